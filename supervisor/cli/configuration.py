"""Loading the settings for the commands that work without a daemon."""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path

from supervisor.config.load import LoadedSettings, load_settings


def load_for(args: Namespace, environ: Mapping[str, str]) -> LoadedSettings:
    """Load what ``--config``, the environment and ``--set`` say; warnings go to stderr.

    Raises:
        ConfigError: with every problem.
    """
    loaded = load_settings(
        config=Path(args.config) if args.config else None, environ=environ, overrides=args.set
    )
    for warning in loaded.warnings:
        print(f"supervisor: warning: {warning}", file=sys.stderr)
    return loaded


def refuse_misspellings(loaded: LoadedSettings) -> None:
    """End with an error when ``[models]`` names bundles or choices that do not exist.

    Raises:
        ConfigError: with every such name, or because a catalog file is unusable.
    """
    from supervisor.models.planning import misspellings  # noqa: PLC0415 - most commands do not

    if wrong := misspellings(loaded.settings.models):
        raise loaded.error(wrong)
