"""``supervisor completion``: a completion script made from the parsers."""

from __future__ import annotations

import argparse
from collections.abc import Mapping

from supervisor.cli.completion import SHELLS, script


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("shell", choices=SHELLS, help="for which shell")


def run(args: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """Print the script; `source <(supervisor completion bash)` turns it on."""
    print(script(args.shell), end="")
    return 0
