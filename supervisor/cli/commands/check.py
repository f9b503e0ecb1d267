"""``supervisor check``: validate the configuration and nothing else."""

from __future__ import annotations

import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Mapping
from pathlib import Path

from supervisor.cli.configuration import load_for, refuse_misspellings
from supervisor.cli.output import print_json
from supervisor.cli.parsing import add_config, add_json
from supervisor.config.load import LoadedSettings
from supervisor.errors import ConfigError, ConfigProblem, ExitCode

# Where the plan would show a generated secret; nothing of this plan is kept.
_STAND_IN = "generated-at-boot"


def configure(parser: ArgumentParser) -> None:
    """Declare the options."""
    add_config(parser)
    add_json(parser)


def run(args: Namespace, environ: Mapping[str, str]) -> int:
    """Load the configuration and plan for a machine that nobody looked at."""
    try:
        path, notes = _check(args, environ)
    except ConfigError as error:
        if not args.json:
            raise
        names = ("key", "value", "source", "reason", "hint")
        problems = [{name: getattr(p, name) for name in names} for p in error.problems]
        print_json({"ok": False, "message": error.message, "problems": problems})
        return ExitCode.CONFIG
    if args.json:
        print_json({"ok": True, "path": path, "problems": [], "notes": notes})
    else:
        for note in notes:
            print(f"note: {note}", file=sys.stderr)
        print(f"{path or 'no configuration file, defaults and environment'}: no errors")
    return ExitCode.DONE


def _check(args: Namespace, environ: Mapping[str, str]) -> tuple[str | None, list[str]]:
    """Return the path of the file that was found, and what is odd but no error.

    Raises:
        ConfigError: something is wrong.
    """
    loaded = load_for(args, environ)
    # Dependencies between services and lists of models are the plan's knowledge; they do
    # not need hardware. Neither hides what is wrong with the other.
    notes, problems = [*loaded.warnings], dict[str, ConfigProblem]()
    for part in (_services, _models, _names):
        try:
            notes += part(loaded, environ)
        except ConfigError as error:
            unnamed = ConfigProblem(key="configuration", reason=error.message, hint=error.hint)
            problems |= {str(problem): problem for problem in error.problems or (unnamed,)}
    if problems:
        raise loaded.error([*problems.values()])
    return str(loaded.path) if loaded.path else None, notes


def _services(loaded: LoadedSettings, environ: Mapping[str, str]) -> list[str]:
    from supervisor.hardware.facts import HardwareFacts  # noqa: PLC0415
    from supervisor.plan.build import GeneratedSecrets, build_plan  # noqa: PLC0415

    build_plan(
        settings=loaded.settings,
        facts=HardwareFacts(),
        environ=environ,
        generated=GeneratedSecrets(*3 * (_STAND_IN,)),
        secret_names=loaded.environment_secrets,
    )
    return []


def _models(loaded: LoadedSettings, _: Mapping[str, str]) -> list[str]:
    from supervisor.models.planning import plan_models  # noqa: PLC0415

    models = plan_models(loaded.settings.models, directory=Path("models"))
    return [*models.notes, *(f"{item.name} is left out: {item.reason}" for item in models.refused)]


def _names(loaded: LoadedSettings, _: Mapping[str, str]) -> list[str]:
    refuse_misspellings(loaded)
    return []
