"""``supervisor events``: what happened."""

from __future__ import annotations

import sys

from supervisor.cli.daemon import connect_daemon, query
from supervisor.cli.environment import color_allowed
from supervisor.cli.output import print_json

TYPE_CHECKING = False  # spares the import of typing; type checkers know the name
if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace
    from collections.abc import Mapping

_COLORS = {"debug": "dim", "warning": "yellow", "error": "red"}


def configure(parser: ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("-f", "--follow", action="store_true", help="go on with new events")
    parser.add_argument("-n", "--lines", type=int, metavar="N", help="only the last N")
    parser.add_argument("--json", action="store_true", help="write one JSON object a line")


def run(args: Namespace, environ: Mapping[str, str]) -> int:
    """Print events as they come."""
    client = connect_daemon(environ)
    from supervisor.cli.render import Paint, clean  # noqa: PLC0415 - after the connection

    paint = Paint(enabled=color_allowed(environ, sys.stdout))
    for event in client.stream(f"/v1/events{query(limit=args.lines, follow=args.follow)}"):
        if args.json:
            print_json(event, compact=True)
        elif "message" in event:
            style = _COLORS.get(event["severity"])
            line = f"{event['severity']:<7} {event['kind']:<18} {clean(event['message'])}"
            print(f"{event['at'][11:19]} {paint(line, style)}", flush=True)
        elif event.get("lagged"):
            print(f"supervisor: {event['lagged']} events were lost here", file=sys.stderr)
    return 0
