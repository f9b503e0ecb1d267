"""Facts and plan for the commands that work without a daemon and change nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from supervisor.app.boot import decide_resumed, with_models
from supervisor.app.facts import gather_facts, probe_nvenc_now
from supervisor.config.load import LoadedSettings
from supervisor.hardware.facts import HardwareFacts
from supervisor.hardware.gpu import GpuProbe
from supervisor.plan.model import Plan
from supervisor.plan.secrets import GeneratedSecrets

# What the plan shows where `run` generates a secret; renderers hide it anyway.
_TO_BE_GENERATED = "generated-at-boot"


def read_facts(
    loaded: LoadedSettings, environ: Mapping[str, str], *, nvenc: bool = False
) -> HardwareFacts:
    """Look at the machine; ``nvenc`` also tries the encoders, which takes seconds."""
    facts = gather_facts(loaded.settings, environ, GpuProbe(), cache_directory=None, nvenc=False)
    return replace(facts, nvenc=probe_nvenc_now(facts, environ)) if nvenc else facts


def make_plan(
    loaded: LoadedSettings,
    facts: HardwareFacts,
    environ: Mapping[str, str],
    *,
    models: bool = True,
) -> Plan:
    """Decide what `run` would do here, with its downloads or without.

    Raises:
        ConfigError: services or model files that make no sense.
    """
    generated = GeneratedSecrets(_TO_BE_GENERATED, _TO_BE_GENERATED, _TO_BE_GENERATED)
    plan, _ = decide_resumed(loaded, facts, environ, generated)
    return with_models(plan, loaded.settings, facts) if models else plan
