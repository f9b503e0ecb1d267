"""``supervisor status``: the snapshot."""

from __future__ import annotations

import sys

from supervisor.cli.daemon import connect_daemon
from supervisor.cli.environment import color_allowed, terminal_width
from supervisor.errors import ExitCode

TYPE_CHECKING = False  # spares the import of typing; type checkers know the name
if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace
    from collections.abc import Mapping
    from typing import Any

SWITCHES = ("--json", "--watch", "--check")  # all options; see ``cli.main``
_HOME_AND_CLEAR = "\x1b[H\x1b[J"


def configure(parser: ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("--json", action="store_true", help="write JSON")
    parser.add_argument("--watch", action="store_true", help="show it again when it changes")
    parser.add_argument(
        "--check",
        action="store_true",
        help="exit 1 when the pod is degraded or in rescue mode (for HEALTHCHECK)",
    )


def run(args: Namespace, environ: Mapping[str, str]) -> int:
    """Show the status once, or until interrupted."""
    client = connect_daemon(environ)
    raw = _show(client.request("GET", "/v1/status"), args, environ)
    while args.watch:
        import time  # noqa: PLC0415 - for --watch only

        time.sleep(1.0)  # noqa: TID251 - a person's screen, in a process of its own
        raw = _show(client.request("GET", "/v1/status"), args, environ)
    if not args.check:
        return ExitCode.DONE
    unwell = _parse(raw)["phase"] in ("degraded", "rescue")
    return ExitCode.NO if unwell else ExitCode.DONE


def _show(raw: bytes, args: Namespace, environ: Mapping[str, str]) -> bytes:
    if args.json:
        # As it came: a program's health check should not pay for parsing it twice.
        sys.stdout.buffer.write(raw.rstrip() + b"\n")
        sys.stdout.flush()
        return raw
    from supervisor.cli.render import Paint, render_status  # noqa: PLC0415 - not for --json

    paint = Paint(enabled=color_allowed(environ, sys.stdout))
    screen = render_status(_parse(raw), paint, terminal_width(environ))
    print(f"{_HOME_AND_CLEAR if args.watch and sys.stdout.isatty() else ''}{screen}", flush=True)
    return raw


def _parse(raw: bytes) -> Any:
    import json  # noqa: PLC0415 - not for --json

    return json.loads(raw)
