"""``supervisor shutdown``: stop the pod in order."""

from __future__ import annotations

from supervisor.cli.daemon import connect_daemon

TYPE_CHECKING = False  # spares the import of typing; type checkers know the name
if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace
    from collections.abc import Mapping


def configure(parser: ArgumentParser) -> None:
    """Nothing to declare."""


def run(args: Namespace, environ: Mapping[str, str]) -> int:
    """Ask the daemon to stop; it answers before it does."""
    connect_daemon(environ).post("/v1/shutdown")
    print("stopping")
    return 0
