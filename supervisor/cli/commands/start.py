"""``supervisor start SERVICE``."""

from __future__ import annotations

from supervisor.cli.services import act

TYPE_CHECKING = False  # spares the import of typing; type checkers know the name
if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace
    from collections.abc import Mapping


def configure(parser: ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("service", metavar="SERVICE", help="its name")


def run(args: Namespace, environ: Mapping[str, str]) -> int:
    """Start the service."""
    return act(environ, args.service, "start")
