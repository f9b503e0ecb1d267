"""``supervisor reload``: apply a changed configuration."""

from __future__ import annotations

from supervisor.cli.daemon import connect_daemon
from supervisor.cli.output import print_json

TYPE_CHECKING = False  # spares the import of typing; type checkers know the name
if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace
    from collections.abc import Mapping


def configure(parser: ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("--dry-run", action="store_true", help="only show what would change")
    parser.add_argument("--json", action="store_true", help="write JSON")


def run(args: Namespace, environ: Mapping[str, str]) -> int:
    """Ask the daemon to read its configuration again."""
    answer = connect_daemon(environ).post("/v1/reload", {"dry_run": args.dry_run})
    if args.json:
        print_json(answer)
        return 0
    changes = [
        f"{what}: {', '.join(map(str, names)) if isinstance(names, list) else names}"
        for what, names in answer.items()
        if names and what != "dry_run"
    ]
    print("\n".join(changes) or "nothing changed")
    return 0
