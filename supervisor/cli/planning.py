"""Facts and plan for the commands that work without a daemon and change nothing."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import replace

from supervisor.config.load import LoadedSettings
from supervisor.hardware.comfyui import read_comfyui
from supervisor.hardware.facts import HardwareFacts, NvencFacts
from supervisor.hardware.gpu import start_gpu_probe
from supervisor.hardware.host import read_host
from supervisor.plan.build import build_plan
from supervisor.plan.model import Plan
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
        gpu=gpu, host=host, comfyui=comfyui, programs=find_programs(loaded, environ)
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


def find_programs(loaded: LoadedSettings, environ: Mapping[str, str]) -> dict[str, str | None]:
    """Find the programs of the built-in services on the PATH."""
    settings = loaded.settings
    names = (
        settings.jupyter.command[0] if settings.jupyter.command else "jupyter",
        settings.filebrowser.command,
        settings.ssh.command,
        "ssh-keygen",
        "ffmpeg",
    )
    return {name: shutil.which(name, path=environ.get("PATH")) for name in names}


def make_plan(loaded: LoadedSettings, facts: HardwareFacts, environ: Mapping[str, str]) -> Plan:
    """Decide what `run` would do here.

    Raises:
        ConfigError: services or model files that make no sense.
    """
    from supervisor.models.requests import settings_requests  # noqa: PLC0415 - `check` does without

    plan = build_plan(
        settings=loaded.settings,
        facts=facts,
        environ=environ,
        generated=GeneratedSecrets(_TO_BE_GENERATED, _TO_BE_GENERATED, _TO_BE_GENERATED),
        secret_names=loaded.environment_secrets,
    )
    if plan.models_directory is None:
        return plan
    requests = settings_requests(loaded.settings.models, directory=plan.models_directory)
    return replace(plan, downloads=requests)
