"""What the pod uses, sample by sample, into the snapshot.

Everything that may block (files, NVML, the disks) is read in threads. A disk or a driver that
does not answer costs one thread, not one per sample, and the rest is still shown.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit

import anyio
import anyio.to_thread

from supervisor.core.state import StateStore
from supervisor.core.status import GpuDeviceStatus, HostStatus
from supervisor.monitor.disks import Disks
from supervisor.monitor.readings import Counters, Reading

_ANSWER_BYTES = 64 * 1024
_PATIENCE_S = 10.0


class GpuReading(Protocol):
    """One card as it is now; see ``hardware.facts.GpuSample``."""

    @property
    def index(self) -> int: ...
    @property
    def memory_used_bytes(self) -> int | None: ...
    @property
    def utilization_ratio(self) -> float | None: ...
    @property
    def temperature_celsius(self) -> float | None: ...
    @property
    def throttle_reasons(self) -> tuple[str, ...]: ...


ReadGpu = Callable[[], Awaitable[Sequence[GpuReading]]]


@dataclass(frozen=True, slots=True)
class Limits:
    """What ratios refer to: cores and bytes of the container."""

    cpu: float
    memory_bytes: int | None


class Sampler:
    """Takes one sample after the other, and remembers what rates need.

    ``pids`` gives the leader of each service, which is its process group; ``read_gpu`` is None
    where there is no GPU, ``comfyui_url`` where its queue cannot be asked for. ``disks`` are
    mount points.
    """

    def __init__(
        self,
        *,
        state: StateStore,
        limits: Limits,
        pids: Callable[[], Mapping[str, int]],
        disks: Iterable[Path] = (),
        read_gpu: ReadGpu | None = None,
        comfyui_url: str | None = None,
        system_root: Path = Path("/"),
    ) -> None:
        self._state = state
        self._limits = limits
        self._pids = pids
        self._disks = Disks(disks)
        self._read_gpu = read_gpu
        self._comfyui_url = comfyui_url
        self._counters = Counters(system_root)
        self._before: tuple[float, Reading] | None = None

    async def sample(self) -> None:
        """Take one sample."""
        pids = self._pids()
        reading = await anyio.to_thread.run_sync(self._counters.read, frozenset(pids.values()))
        host = self._host(anyio.current_time(), reading, pids)
        await self._disks.look()
        host = replace(host, disks=self._disks.known, silent_disks=self._disks.silent)
        queue, response_s = await self._ask_comfyui()
        host = replace(host, comfyui_queue_length=queue, comfyui_response_s=response_s)
        # The late facts may have written other parts while this one waited.
        host = replace(host, storage_mode=self._state.snapshot.host.storage_mode)
        self._state.update(host=host)
        if self._read_gpu is not None:
            self._show_gpu(await self._read_gpu())

    def _host(self, now_s: float, reading: Reading, pids: Mapping[str, int]) -> HostStatus:
        usage = {
            name: reading.services[pid] for name, pid in pids.items() if pid in reading.services
        }
        host = HostStatus(
            cpu_limit=self._limits.cpu,
            memory_used_bytes=reading.memory_bytes,
            memory_limit_bytes=self._limits.memory_bytes,
            service_memory_bytes={name: used.memory_bytes for name, used in usage.items()},
        )
        before, self._before = self._before, (now_s, reading)
        if before is None or now_s <= before[0]:
            return host
        took_s, old = now_s - before[0], before[1]
        if reading.cpu_s is not None and old.cpu_s is not None:
            used = (reading.cpu_s - old.cpu_s) / took_s / self._limits.cpu
            host = replace(host, cpu_ratio=round(max(used, 0.0), 4))
        cores = {
            name: round(max(used.cpu_s - old.services[pids[name]].cpu_s, 0.0) / took_s, 2)
            for name, used in usage.items()
            if pids[name] in old.services
        }
        received = max(reading.received_bytes - old.received_bytes, 0)
        sent = max(reading.sent_bytes - old.sent_bytes, 0)
        return replace(
            host,
            service_cpu_cores=cores,
            network_received_bytes_per_s=round(received / took_s, 1),
            network_sent_bytes_per_s=round(sent / took_s, 1),
        )

    def _show_gpu(self, samples: Sequence[GpuReading]) -> None:
        by_index = {sample.index: sample for sample in samples}
        gpu = self._state.snapshot.gpu
        devices = tuple(_device(device, by_index.get(device.index)) for device in gpu.devices)
        self._state.update(gpu=replace(gpu, devices=devices))

    async def _ask_comfyui(self) -> tuple[int | None, float | None]:
        """Length of ComfyUI's queue and the seconds of its answer; None when it is silent."""
        comfyui = self._state.snapshot.services.get("comfyui")
        if self._comfyui_url is None or comfyui is None or not comfyui.ready:
            return None, None
        begun_s = anyio.current_time()
        with anyio.move_on_after(_PATIENCE_S):
            try:
                body = await _get(self._comfyui_url)
                queue = int(json.loads(body)["exec_info"]["queue_remaining"])
            except (OSError, ValueError, KeyError, TypeError, anyio.BrokenResourceError):
                return None, None
            return queue, round(anyio.current_time() - begun_s, 4)
        return None, _PATIENCE_S


def _device(device: GpuDeviceStatus, sample: GpuReading | None) -> GpuDeviceStatus:
    if sample is None:  # it does not answer: old numbers would be a lie
        return replace(
            device,
            memory_used_bytes=None,
            memory_free_bytes=None,
            utilization_ratio=None,
            temperature_celsius=None,
            throttle_reasons=(),
        )
    used = sample.memory_used_bytes
    return replace(
        device,
        memory_used_bytes=used,
        memory_free_bytes=None if used is None else max(device.memory_total_bytes - used, 0),
        utilization_ratio=sample.utilization_ratio,
        temperature_celsius=sample.temperature_celsius,
        throttle_reasons=sample.throttle_reasons,
    )


async def _get(url: str) -> bytes:
    """The body of a small answer; HTTP/1.0, so that its end is the end of the connection."""
    parts = urlsplit(url)
    async with await anyio.connect_tcp(parts.hostname or "127.0.0.1", parts.port or 80) as stream:
        request = f"GET {parts.path or '/'} HTTP/1.0\r\nHost: {parts.netloc}\r\n\r\n"
        await stream.send(request.encode())
        data = b""
        while len(data) < _ANSWER_BYTES:
            try:
                data += await stream.receive()
            except anyio.EndOfStream:
                break
    return data.partition(b"\r\n\r\n")[2]
