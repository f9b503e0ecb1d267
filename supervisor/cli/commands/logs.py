"""``supervisor logs``: what the services wrote."""

from __future__ import annotations

import sys

from supervisor.cli.daemon import connect_daemon, query
from supervisor.cli.environment import color_allowed
from supervisor.cli.output import print_json

TYPE_CHECKING = False  # spares the import of typing; type checkers know the name
if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace
    from collections.abc import Mapping


def configure(parser: ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("service", nargs="?", metavar="SERVICE", help="only this one")
    parser.add_argument("-f", "--follow", action="store_true", help="go on with new lines")
    parser.add_argument(
        "-n", "--lines", type=int, default=100, metavar="N", help="last N lines first (100)"
    )
    parser.add_argument("--json", action="store_true", help="write one JSON object a line")


def run(args: Namespace, environ: Mapping[str, str]) -> int:
    """Print lines as they come."""
    if args.lines < 0:
        raise SystemExit(_usage(args.lines))
    client = connect_daemon(environ)
    from supervisor.cli.render import Paint, clean  # noqa: PLC0415 - after the connection

    paint = Paint(enabled=color_allowed(environ, sys.stdout))
    parameters = query(service=args.service, limit=args.lines, follow=args.follow)
    for record in client.stream(f"/v1/logs{parameters}"):
        if args.json:
            print_json(record, compact=True)
        elif "text" in record:
            prefix = "" if args.service else paint(f"{clean(record['service'])} | ", "cyan")
            # Their colours stay when this is a terminal; nothing else may steer it.
            text = record["text"] if paint.enabled else _plain(record["text"])
            print(f"{prefix}{text}", flush=True)
        elif record.get("lagged"):
            print(f"supervisor: {record['lagged']} lines were lost here", file=sys.stderr)
    return 0


def _usage(lines: int) -> int:
    print(f"supervisor: -n {lines}: must not be negative\n  hint: -n 0 -f", file=sys.stderr)
    return 2


def _plain(text: str) -> str:
    if "\x1b" not in text:
        return text
    import re  # noqa: PLC0415 - only for output with escape sequences

    return re.sub(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|.)?", "", text)
