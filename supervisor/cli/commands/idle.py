"""``supervisor idle``: look at the idle shutdown, or postpone it."""

from __future__ import annotations

from supervisor.cli.daemon import connect_daemon
from supervisor.cli.output import print_json

TYPE_CHECKING = False  # spares the import of typing; type checkers know the name
if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace
    from collections.abc import Mapping

_UNIT_S = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def configure(parser: ArgumentParser) -> None:
    """Declare the actions."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    status = actions.add_parser("status", help="since when nobody uses the pod, and when it ends")
    keep = actions.add_parser("keep", help="count the pod as in use for a while")
    keep.add_argument("duration", type=seconds_of, metavar="DURATION", help="like 90m or 2h")
    release = actions.add_parser("release", help="take a keep back: idle time counts again")
    for action in (status, keep, release):
        action.add_argument("--json", action="store_true", help="write JSON")


def run(args: Namespace, environ: Mapping[str, str]) -> int:
    """Do what was asked."""
    client = connect_daemon(environ)
    if args.action == "status":
        idle = client.get("/v1/status")["idle"]
    else:
        seconds = args.duration if args.action == "keep" else 0.0
        idle = client.post("/v1/idle/keep", {"seconds": seconds})
    if args.json:
        print_json(idle)
        return 0
    from supervisor.cli.render import clean, idle_text  # noqa: PLC0415 - not for --json

    if args.action == "status" and not idle["enabled"]:
        print("idle shutdown is off (ENABLE_IDLE_SHUTDOWN=true turns it on)")
        return 0
    print(idle_text(idle))
    if idle.get("kept_until"):
        print(f"kept until {clean(idle['kept_until'])}; `supervisor idle release` takes it back")
    if idle.get("problem"):
        print(clean(idle["problem"]))
    return 0


def seconds_of(text: str) -> float:
    """Read a duration such as ``30s``, ``90m``, ``2h``; a bare number is minutes.

    Raises:
        ArgumentTypeError: not a duration.
    """
    from argparse import ArgumentTypeError  # noqa: PLC0415 - argparse is loaded when it calls this

    number, unit = (text[:-1], text[-1]) if text[-1:] in _UNIT_S else (text, "m")
    try:
        seconds = float(number) * _UNIT_S[unit]
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < float("inf"):
        raise ArgumentTypeError(f"{text!r} is not a duration like 30s, 90m or 2h")
    return seconds
