"""``supervisor config``: schema, documentation, effective configuration."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Mapping

from supervisor.cli.configuration import load_for
from supervisor.cli.output import print_json
from supervisor.cli.parsing import add_config, add_json


def configure(parser: ArgumentParser) -> None:
    """Declare the actions."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    actions.add_parser("schema", help="JSON Schema of supervisor.toml")
    actions.add_parser("docs", help="reference of every setting, in Markdown")
    show = actions.add_parser("show", help="what is in force and where it was set")
    add_config(show)
    add_json(show)
    show.add_argument("--all", action="store_true", help="defaults too")


def run(args: Namespace, environ: Mapping[str, str]) -> int:
    """Print what was asked for."""
    from supervisor.config import schema  # noqa: PLC0415 - not for --help

    if args.action == "schema":
        print_json(schema.json_schema())
    elif args.action == "docs":
        print(schema.reference(), end="")
    else:
        loaded = load_for(args, environ)
        if args.json:
            print_json(schema.effective(loaded))
        else:
            print(schema.render_effective(loaded, everything=args.all))
    return 0
