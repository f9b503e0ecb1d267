"""argparse, with usage errors in the style of all other errors."""

from __future__ import annotations

import argparse
import sys
from functools import partial

from supervisor.errors import ExitCode

TYPE_CHECKING = False  # spares the import of typing; type checkers know the name
if TYPE_CHECKING:
    from typing import NoReturn

_WIDTH = 80


class Parser(argparse.ArgumentParser):
    """A parser of one command; sub-parsers are of this class too."""

    def __init__(self, **options: object) -> None:
        options.setdefault("allow_abbrev", False)
        # Asked for its width, the formatter imports shutil and with it every compressor.
        options.setdefault("formatter_class", partial(argparse.HelpFormatter, width=_WIDTH))
        super().__init__(**options)  # type: ignore[arg-type]

    def error(self, message: str) -> NoReturn:
        """Say what is wrong and how it is used; exit 2."""
        print(f"supervisor: {message}\n  hint: {self._hint(message)}", file=sys.stderr)
        raise SystemExit(int(ExitCode.USAGE))

    def _hint(self, message: str) -> str:
        prefix = "unrecognized arguments: "
        if message.startswith(prefix):
            from difflib import get_close_matches  # noqa: PLC0415 - for typos only

            given = message.removeprefix(prefix).split()[0].split("=")[0]
            near = get_close_matches(given, list(self._option_string_actions), n=1)
            if near:
                return f"did you mean {near[0]}?"
        usage = " ".join(self.format_usage().split()).removeprefix("usage: ")
        return f"usage: {usage}"


def add_json(parser: argparse.ArgumentParser) -> None:
    """Add the ``--json`` of every command that reads."""
    parser.add_argument("--json", action="store_true", help="write JSON")


def add_config(parser: argparse.ArgumentParser) -> None:
    """Add the options that choose the configuration."""
    parser.add_argument("--config", metavar="FILE", help="configuration file")
    parser.add_argument(
        "--set", metavar="KEY=VALUE", action="append", default=[], help="override one setting"
    )
