"""``supervisor run``: the entrypoint.

The init forks before anything heavy is imported, argparse included, so that PID 1 stays
small; ``-- COMMAND`` imports nothing else at all.
"""

from __future__ import annotations

import sys

from supervisor import pid1
from supervisor.cli.environment import skip_pydantic_plugins
from supervisor.cli.main import guard
from supervisor.errors import ExitCode

TYPE_CHECKING = False  # spares the import of typing; type checkers know the name
if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace
    from collections.abc import Mapping, Sequence


def configure(parser: ArgumentParser) -> None:
    """Declare the options."""
    from supervisor.cli.parsing import add_config  # noqa: PLC0415 - see the module

    add_config(parser)
    parser.add_argument(
        "--no-group",
        dest="group",
        action="store_false",
        help="with COMMAND: signals go to the program only, not to its group",
    )
    parser.add_argument(
        "--no-setsid",
        dest="setsid",
        action="store_false",
        help="with COMMAND: a process group, but no session of its own",
    )
    parser.usage = f"{parser.prog} [--config FILE] [--set KEY=VALUE]… [-- COMMAND ARG…]"
    parser.description = (
        "Boot the pod from the configuration; with -- COMMAND run that one program under "
        "the init: zombies are reaped, signals forwarded, its exit code returned."
    )


def execute(argv: Sequence[str], environ: Mapping[str, str]) -> int:
    """Boot, or run the one program; returns the exit code of the container."""
    if "--" in argv:
        options, command = argv[: argv.index("--")], argv[argv.index("--") + 1 :]
        return _run_program(options, command)
    if "-h" in argv or "--help" in argv:
        _parse(argv)
    return pid1.run_under_init(lambda: guard(lambda: _boot(argv, environ), environ))


def _run_program(options: Sequence[str], command: Sequence[str]) -> int:
    if not command:
        hint = "supervisor run -- COMMAND ARG…"
        print(f"supervisor: there is no command after --\n  hint: {hint}", file=sys.stderr)
        return ExitCode.USAGE
    if not options:
        return pid1.run_command(command)
    args = _parse(options)
    return pid1.run_command(command, group=args.group, setsid=args.setsid)


def _boot(argv: Sequence[str], environ: Mapping[str, str]) -> int:
    skip_pydantic_plugins()
    if not argv:  # as in the image: argparse takes as long to load as all of this
        from supervisor import app  # noqa: PLC0415 - after the fork

        return app.main(config=None, overrides=(), environ=environ)
    args = _parse(argv)
    from pathlib import Path  # noqa: PLC0415 - after the fork

    from supervisor import app  # noqa: PLC0415 - after the fork

    config = Path(args.config) if args.config else None
    return app.main(config=config, overrides=args.set, environ=environ)


def _parse(argv: Sequence[str]) -> Namespace:
    from supervisor.cli.parsing import Parser  # noqa: PLC0415 - see the module

    parser = Parser(prog="supervisor run")
    configure(parser)
    return parser.parse_args(argv)
