"""Results go to standard output; this is their machine-readable form."""

from __future__ import annotations

TYPE_CHECKING = False  # spares the import of typing; type checkers know the name
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any


def print_json(value: Any, *, compact: bool = False) -> None:
    """Write JSON to standard output: indented, or one object a line for streams."""
    import json  # noqa: PLC0415 - pretty output of a text command does without

    if compact:
        print(_encodable(json.dumps(value, separators=(",", ":"), ensure_ascii=False)), flush=True)
    else:
        print(_encodable(json.dumps(value, indent=2, ensure_ascii=False)))


def say(line: str, environ: Mapping[str, str]) -> None:
    """Print a line for people; a terminal gets it folded at its width."""
    import sys  # noqa: PLC0415 - as above

    from supervisor.cli.environment import terminal_width  # noqa: PLC0415
    from supervisor.cli.render import fold  # noqa: PLC0415

    print(fold(line, terminal_width(environ)) if sys.stdout.isatty() else line, flush=True)


def _encodable(text: str) -> str:
    """Write what is no UTF-8, such as a file's name, as JSON's escapes."""
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()
