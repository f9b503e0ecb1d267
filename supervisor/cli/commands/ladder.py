"""``supervisor ladder``: how far ComfyUI was taken down the VRAM ladder, and back up."""

from __future__ import annotations

from supervisor.cli.daemon import connect_daemon
from supervisor.cli.output import print_json

TYPE_CHECKING = False  # spares the import of typing; type checkers know the name
if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace
    from collections.abc import Mapping


def configure(parser: ArgumentParser) -> None:
    """Declare the actions."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    status = actions.add_parser("status", help="the step and how it came to it")
    reset = actions.add_parser("reset", help="back to the planned mode, for now and later boots")
    reset.add_argument("--now", action="store_true", help="do not wait for ComfyUI's queue")
    for action in (status, reset):
        action.add_argument("--json", action="store_true", help="write JSON")


def run(args: Namespace, environ: Mapping[str, str]) -> int:
    """Do what was asked."""
    client = connect_daemon(environ)
    if args.action == "reset":
        done = client.post("/v1/ladder/reset", {"now": args.now})
        if args.json:
            print_json(done)
        elif not done.get("steps"):
            print("ComfyUI runs as planned: there is nothing to reset")
        else:
            print(f"reset from step {done['steps']}: ComfyUI restarts as planned")
        return 0
    gpu = client.get("/v1/status")["gpu"]
    ladder = {"step": gpu["ladder_step"], "reasons": gpu["ladder_reasons"]}
    if args.json:
        print_json(ladder)
        return 0
    from supervisor.cli.environment import terminal_width  # noqa: PLC0415 - not for --json
    from supervisor.cli.render import clean, fold  # noqa: PLC0415

    if not ladder["step"]:
        print("ComfyUI runs as planned")
    for reason in ladder["reasons"]:
        print(fold(clean(reason), terminal_width(environ)))
    return 0
