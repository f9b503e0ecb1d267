"""Whether the GPU's memory came back after a service ended, and whether it works."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import anyio
import anyio.to_thread

from supervisor.core.threads import LoneThread
from supervisor.errors import HardwareError
from supervisor.hardware.facts import GpuProcess, GpuSample
from supervisor.hardware.gpu import GpuSampler
from supervisor.services import procfs
from supervisor.services.spec import ServiceKind, ServiceSpec

if TYPE_CHECKING:
    from supervisor.app.boot import Boot

# The driver frees memory in pieces after the last process has gone.
_POLL_S = 0.25
_PATIENCE_S = 10.0
_SLACK_BYTES = 512 * 1024 * 1024
_BUSY_RATIO = 0.2


class GpuMemory:
    """Compares the card with what it was before the first launch."""

    def __init__(self, boot: Boot) -> None:
        self._index = boot.settings.gpu.index
        devices = boot.facts.gpu.devices
        self._present = self._index < len(devices)
        device = devices[self._index] if self._present else None
        free = device.memory_free_bytes if device else None
        self._used_at_boot_bytes = device.memory_total_bytes - free if device and free else None
        self._nvml = LoneThread(
            GpuSampler().sample, name="nvml", timeout_s=boot.settings.gpu.probe_timeout_s
        )
        self._utilization_ratio = 0.0

    def busy(self) -> bool:
        """Whether the card computed when it was last looked at (a busy job is not a hang)."""
        return self._utilization_ratio > _BUSY_RATIO

    async def wait_released(self, spec: ServiceSpec) -> str | None:
        """Wait until ComfyUI's memory is back; after ``_PATIENCE_S`` tell who has it."""
        if not self._present or spec.kind is not ServiceKind.COMFYUI:
            return None
        by_s = anyio.current_time() + _PATIENCE_S
        while True:
            sample = await self.sample()
            used = sample.memory_used_bytes if sample else None
            if sample is None or used is None or self._used_at_boot_bytes is None:
                return None
            missing = used - self._used_at_boot_bytes
            if missing <= _SLACK_BYTES:
                return None
            if anyio.current_time() >= by_s:
                holders = await anyio.to_thread.run_sync(_describe, sample.processes)
                return f"{missing / 2**30:.1f} GiB of GPU memory were not given back; {holders}"
            await anyio.sleep(_POLL_S)

    async def sample(self) -> GpuSample | None:
        """Look at ComfyUI's card; None when NVML does not answer in time."""
        samples = await self.samples()
        return samples[self._index] if self._index < len(samples) else None

    async def samples(self) -> tuple[GpuSample, ...]:
        """Look at all cards; empty when NVML does not answer in time."""
        try:
            found = await self._nvml.call()
        except (TimeoutError, HardwareError):
            found = ()
        mine = found[self._index] if self._index < len(found) else None
        self._utilization_ratio = (mine.utilization_ratio or 0.0) if mine else 0.0
        return found


def _describe(processes: Sequence[GpuProcess]) -> str:
    """Name the processes that use the card; NVML may number those outside as the host does."""
    names = []
    for process in processes:
        what = procfs.command_line(process.pid) or "not of this container"
        cookie = procfs.variables_of(process.pid, procfs.COOKIE).get(procfs.COOKIE, "")
        service = f" of the service {cookie.partition('/')[0]}" if cookie else ""
        names.append(f"pid {process.pid}{service} ({what})")
    return f"the card is used by {', '.join(names)}" if names else "NVML names no process"
