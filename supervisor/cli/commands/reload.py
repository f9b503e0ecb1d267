"""``supervisor reload``: apply a changed configuration."""

from __future__ import annotations

from supervisor.cli.daemon import connect_daemon
from supervisor.cli.output import print_json

TYPE_CHECKING = False  # spares the import of typing; type checkers know the name
if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace
    from collections.abc import Iterator, Mapping
    from typing import Any


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
    print("\n".join(lines(answer)) or "nothing changed")
    return 0


def lines(answer: Mapping[str, Any]) -> Iterator[str]:
    """One line for each kind of change that there is."""
    for what, changes in answer.items():
        kinds = changes if isinstance(changes, dict) else {"": changes}
        for kind, names in kinds.items():
            if names and what != "dry_run":
                listed = names if isinstance(names, list) else [names]
                title = f"{what} {kind}".strip().replace("_", " ")
                yield f"{title}: {', '.join(str(name) for name in listed)}"
