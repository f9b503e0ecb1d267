"""Facts and plan for the commands that work without a daemon and change nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from supervisor.config.load import LoadedSettings
from supervisor.hardware.comfyui import read_comfyui
from supervisor.hardware.facts import HardwareFacts, NvencFacts
from supervisor.hardware.gpu import start_gpu_probe
from supervisor.hardware.host import find_programs, read_host
from supervisor.plan.build import build_plan
from supervisor.plan.context import programs_to_find
from supervisor.plan.model import Plan, Skipped
from supervisor.plan.secrets import GeneratedSecrets
from supervisor.plan.storage import paths_to_probe

NVENC_TIMEOUT_S = 20.0
# What the plan shows where `run` generates a secret; renderers hide it anyway.
_TO_BE_GENERATED = "generated-at-boot"


def read_facts(
    loaded: LoadedSettings, environ: Mapping[str, str], *, nvenc: bool = False
) -> HardwareFacts:
    """Look at the machine; ``nvenc`` also tries the encoders, which takes seconds."""
    settings = loaded.settings
    probe = start_gpu_probe()
    comfyui = read_comfyui(
        settings.comfyui.root,
        python=settings.comfyui.python,
        cache_directory=None,  # a cache would be a trace left behind
        environ=environ,
    )
    host = read_host(paths_to_probe(settings))
    gpu = probe.result(settings.gpu.probe_timeout_s)
    facts = HardwareFacts(
        gpu=gpu,
        host=host,
        comfyui=comfyui,
        programs=find_programs(
            programs_to_find(settings), environ=environ, folders=(Path(comfyui.python).parent,)
        ),
    )
    return replace(facts, nvenc=read_nvenc(facts, environ)) if nvenc else facts


def read_nvenc(facts: HardwareFacts, environ: Mapping[str, str]) -> NvencFacts:
    """Encode a few frames with each NVENC codec."""
    import anyio  # noqa: PLC0415 - `plan` and `check` do without the event loop

    from supervisor.hardware.nvenc import probe_nvenc  # noqa: PLC0415

    async def probe() -> NvencFacts:
        ffmpeg = facts.programs.get("ffmpeg")
        return await probe_nvenc(ffmpeg=ffmpeg, environ=environ, timeout_s=NVENC_TIMEOUT_S)

    return anyio.run(probe)


def make_plan(loaded: LoadedSettings, facts: HardwareFacts, environ: Mapping[str, str]) -> Plan:
    """Decide what `run` would do here.

    Raises:
        ConfigError: services or model files that make no sense.
    """
    from supervisor.models.planning import plan_models  # noqa: PLC0415 - see read_nvenc
    from supervisor.models.preflight import free_bytes  # noqa: PLC0415

    plan = build_plan(
        settings=loaded.settings,
        facts=facts,
        environ=environ,
        generated=GeneratedSecrets(_TO_BE_GENERATED, _TO_BE_GENERATED, _TO_BE_GENERATED),
        secret_names=loaded.environment_secrets,
    )
    if plan.models_directory is None:
        return plan
    models = plan_models(
        loaded.settings.models,
        directory=plan.models_directory,
        vram_mib=_vram_mib(facts, loaded.settings.gpu.index),
        free_bytes=free_bytes(plan.models_directory),
    )
    refused = tuple(Skipped(item.name, item.reason) for item in models.refused)
    return replace(
        plan,
        downloads=models.requests,
        skipped=(*plan.skipped, *refused),
        notes=(*plan.notes, *models.notes),
    )


def _vram_mib(facts: HardwareFacts, index: int) -> int | None:
    """Memory of ComfyUI's card; 0 without one, None when NVML could not tell."""
    if facts.gpu.uncertain:
        return None
    device = next((d for d in facts.gpu.devices if d.index == index), None)
    return device.memory_total_mib if device else 0
