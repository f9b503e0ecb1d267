"""``supervisor check``: validate the configuration and nothing else."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Mapping

from supervisor.cli.configuration import load_for
from supervisor.cli.output import print_json
from supervisor.cli.parsing import add_config, add_json
from supervisor.errors import ConfigError, ExitCode

# Where the plan would show a generated secret; nothing of this plan is kept.
_STAND_IN = "generated-at-boot"


def configure(parser: ArgumentParser) -> None:
    """Declare the options."""
    add_config(parser)
    add_json(parser)


def run(args: Namespace, environ: Mapping[str, str]) -> int:
    """Load the configuration and build the plan of a machine that nobody looked at."""
    try:
        path = _check(args, environ)
    except ConfigError as error:
        if not args.json:
            raise
        names = ("key", "value", "source", "reason", "hint")
        problems = [{name: getattr(p, name) for name in names} for p in error.problems]
        print_json({"ok": False, "message": error.message, "problems": problems})
        return ExitCode.CONFIG
    if args.json:
        print_json({"ok": True, "path": path, "problems": []})
    else:
        print(f"{path or 'no configuration file, defaults and environment'}: no errors")
    return ExitCode.DONE


def _check(args: Namespace, environ: Mapping[str, str]) -> str | None:
    """Return the path of the file that was found.

    Raises:
        ConfigError: something is wrong.
    """
    from supervisor.hardware.facts import HardwareFacts  # noqa: PLC0415
    from supervisor.plan.build import GeneratedSecrets, build_plan  # noqa: PLC0415

    loaded = load_for(args, environ)
    # Dependencies between services are the plan's knowledge; they do not need hardware.
    build_plan(
        settings=loaded.settings,
        facts=HardwareFacts(),
        environ=environ,
        generated=GeneratedSecrets(*3 * (_STAND_IN,)),
        secret_names=loaded.environment_secrets,
    )
    return str(loaded.path) if loaded.path else None
