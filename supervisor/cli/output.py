"""Results go to standard output; this is their machine-readable form."""

from __future__ import annotations

TYPE_CHECKING = False  # spares the import of typing; type checkers know the name
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any


def print_json(value: Any, *, compact: bool = False) -> None:
    """Write JSON to standard output: indented, or one object a line for streams."""
    from supervisor.core.render_json import render_json  # noqa: PLC0415 - text commands do without

    print(render_json(value, indent=None if compact else 2), flush=compact)


def say(line: str, environ: Mapping[str, str]) -> None:
    """Print a line for people; a terminal gets it folded at its width."""
    import sys  # noqa: PLC0415 - as above

    from supervisor.cli.environment import terminal_width  # noqa: PLC0415
    from supervisor.cli.render import fold  # noqa: PLC0415

    print(fold(line, terminal_width(environ)) if sys.stdout.isatty() else line, flush=True)
