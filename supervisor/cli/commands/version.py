"""``supervisor version``."""

from __future__ import annotations

import supervisor
from supervisor.cli.output import print_json

TYPE_CHECKING = False  # spares the import of typing; type checkers know the name
if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace
    from collections.abc import Mapping

SWITCHES = ("--json",)  # all options; see ``cli.main``


def configure(parser: ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("--json", action="store_true", help="write JSON")


def run(args: Namespace, environ: Mapping[str, str]) -> int:
    """Print the version of this program; no daemon is asked."""
    if args.json:
        print_json({"version": supervisor.__version__})
    else:
        print(f"supervisor {supervisor.__version__}")
    return 0
