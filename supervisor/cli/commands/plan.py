"""``supervisor plan``: what ``run`` would do, with reasons; touches nothing."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Mapping

from supervisor.cli.configuration import load_for
from supervisor.cli.output import print_json
from supervisor.cli.parsing import add_config, add_json


def configure(parser: ArgumentParser) -> None:
    """Declare the options."""
    add_config(parser)
    add_json(parser)


def run(args: Namespace, environ: Mapping[str, str]) -> int:
    """Print the plan."""
    from supervisor.cli.planning import make_plan, read_facts  # noqa: PLC0415 - not for --help
    from supervisor.config.redaction import Redactor  # noqa: PLC0415
    from supervisor.plan.render import plan_to_json, render_plan  # noqa: PLC0415

    loaded = load_for(args, environ)
    plan = make_plan(loaded, read_facts(loaded, environ), environ)
    redactor = Redactor(loaded.secrets)
    if args.json:
        print_json(redactor.redact_values(plan_to_json(plan)))
    else:
        print(redactor.redact(render_plan(plan)))
    return 0
