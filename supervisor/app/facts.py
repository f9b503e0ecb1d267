"""Looking at the machine for the plan: side by side, each probe with a deadline."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Generic, TypeVar

from supervisor.config.settings import Settings
from supervisor.hardware.comfyui import find_python, read_comfyui
from supervisor.hardware.facts import HardwareFacts, HostFacts, NvencFacts
from supervisor.hardware.gpu import GpuProbe
from supervisor.hardware.host import find_programs, read_host
from supervisor.plan.context import programs_to_find
from supervisor.plan.storage import paths_to_probe, volume_root

NVENC_TIMEOUT_S = 20.0

# statvfs on a dead network mount never returns.
_HOST_TIMEOUT_S = 5.0

# ComfyUI waits so long for the encoders' answer at the first boot on a card; from the
# second on the answer is remembered.
_NVENC_PATIENCE_S = 1.5

T = TypeVar("T")


class _Background(Generic[T]):
    """A blocking call in a thread of its own that nobody waits for at exit."""

    def __init__(self, call: Callable[[], T]) -> None:
        self._call = call
        self._result: T | None = None
        self._thread = threading.Thread(target=self._run, name="probe", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        self._result = self._call()

    def result(self, timeout_s: float) -> T | None:
        """Wait; None when it takes too long or failed."""
        self._thread.join(timeout_s)
        return self._result


def gather_facts(
    settings: Settings,
    environ: Mapping[str, str],
    probe: GpuProbe,
    *,
    cache_directory: Path | None,
    nvenc: bool = True,
) -> HardwareFacts:
    """Read everything that the plan is decided from; never raises.

    ``cache_directory`` None leaves no trace. With ``nvenc`` the encoders are tried too, for
    a short while only: without an answer ``nvenc`` of the result stays None.
    """
    reading = _Background(lambda: read_host(paths_to_probe(settings)))
    root = settings.comfyui.root
    python = settings.comfyui.python
    folder = Path(python or find_python(root, environ)).parent
    programs = find_programs(programs_to_find(settings), environ=environ, folders=[folder])
    host = reading.result(_HOST_TIMEOUT_S) or HostFacts(
        cpu_limit=1.0,
        cpu_count=1,
        memory_limit_bytes=None,
        memory_total_bytes=0,
        cgroup_version=None,
    )
    seeded = volume_root(settings, host)
    if seeded is not None and (seeded / "main.py").is_file():
        root = seeded
    comfyui = read_comfyui(root, python=python, cache_directory=cache_directory, environ=environ)
    gpu = probe.result(settings.gpu.probe_timeout_s)
    facts = HardwareFacts(gpu=gpu, host=host, comfyui=comfyui, programs=programs)
    if nvenc and settings.gpu.nvenc and gpu.devices and programs.get("ffmpeg"):
        return replace(facts, nvenc=_nvenc_soon(facts, environ, cache_directory))
    return facts


def probe_nvenc_now(facts: HardwareFacts, environ: Mapping[str, str]) -> NvencFacts:
    """Try a real encode with each codec; blocking, bounded by ``NVENC_TIMEOUT_S``."""
    import anyio  # noqa: PLC0415 - only machines with a GPU get here before the launch

    from supervisor.hardware.nvenc import probe_nvenc  # noqa: PLC0415

    async def probe() -> NvencFacts:
        ffmpeg = facts.programs.get("ffmpeg")
        return await probe_nvenc(ffmpeg=ffmpeg, environ=environ, timeout_s=NVENC_TIMEOUT_S)

    return anyio.run(probe)


def _nvenc_soon(
    facts: HardwareFacts, environ: Mapping[str, str], cache_directory: Path | None
) -> NvencFacts | None:
    from supervisor.hardware.nvenc import (  # noqa: PLC0415 - see above
        load_nvenc,
        nvenc_identity,
        store_nvenc,
    )

    identity = nvenc_identity(facts.programs["ffmpeg"] or "", facts.gpu)
    known = load_nvenc(cache_directory, identity) if cache_directory else None
    if known is not None:
        return known

    def try_and_remember() -> NvencFacts:
        found = probe_nvenc_now(facts, environ)
        if cache_directory is not None:
            store_nvenc(cache_directory, identity, found)
        return found

    return _Background(try_and_remember).result(_NVENC_PATIENCE_S)
