"""NVML through ``nvidia-ml-py``: facts once, samples again and again. Everything blocks.

Every call may fail by itself (old driver, MIG, vGPU), so each value is optional and only
what makes the answer useless is an error. NVML may also hang: call from a thread.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any, Self, TypeVar

from supervisor.errors import HardwareError
from supervisor.hardware.facts import GpuDevice, GpuFacts, GpuProcess, GpuSample

LIBRARY = "libnvidia-ml.so.1"
MIG_ENABLED = 1  # NVML_DEVICE_MIG_ENABLE
TEMPERATURE_GPU = 0  # NVML_TEMPERATURE_GPU

# Bits of nvmlDeviceGetCurrentClocksThrottleReasons (nvml.h, 13.x) that slow the GPU down
# and that a person may want to know; idling and application clocks are not among them.
THROTTLE_REASONS = {
    0x04: "power cap",
    0x08: "hardware slowdown",
    0x20: "software thermal slowdown",
    0x40: "hardware thermal slowdown",
    0x80: "power brake",
}

T = TypeVar("T")


class NoNvidiaError(HardwareError):
    """NVML says, or its absence says, that this machine has no NVIDIA GPU to use."""


class NvmlError(HardwareError):
    """NVML failed; there may be a GPU all the same."""


class Nvml:
    """An open NVML. A context manager; use from one thread at a time."""

    def __init__(self, dev: Path = Path("/dev")) -> None:
        """Load the library and initialise it.

        Raises:
            NoNvidiaError: no driver and no device.
            NvmlError: anything else.
        """
        self._api = _load(dev)
        try:
            self._api.nvmlInit()
        except self._api.NVMLError as exc:
            raise _translate(self._api, exc, dev) from exc

    def close(self) -> None:
        """Release NVML."""
        self._optional(self._api.nvmlShutdown)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def facts(self) -> GpuFacts:
        """All devices, MIG instances instead of the cards that are split into them.

        Raises:
            NvmlError: the devices cannot be counted, or none of them answers.
        """
        devices: list[GpuDevice] = []
        errors: list[str] = []
        for handle, parent in self._handles(errors):
            try:
                devices.append(self._device(len(devices), handle, parent))
            except self._api.NVMLError as exc:
                errors.append(f"Cannot read GPU {len(devices)}: {exc}")
        if errors and not devices:
            raise NvmlError(errors[0])
        cuda = self._optional(self._api.nvmlSystemGetCudaDriverVersion)
        return GpuFacts(
            devices=tuple(devices),
            driver=self._optional(self._api.nvmlSystemGetDriverVersion),
            cuda=f"{cuda // 1000}.{cuda % 1000 // 10}" if cuda else None,
            error="; ".join(errors) or None,
        )

    def sample(self) -> tuple[GpuSample, ...]:
        """What every device is doing now, in the order of ``facts``.

        Raises:
            NvmlError: the devices cannot be counted.
        """
        return tuple(
            self._sample(index, handle) for index, (handle, _) in enumerate(self._handles([]))
        )

    def _handles(self, errors: list[str]) -> Iterator[tuple[Any, Any]]:
        """Handles of usable devices, with the parent card's of a MIG instance (else None)."""
        api = self._api
        try:
            count = api.nvmlDeviceGetCount()
        except api.NVMLError as exc:
            raise NvmlError(f"Cannot count the GPUs: {exc}") from exc
        for number in range(count):
            try:
                card = api.nvmlDeviceGetHandleByIndex(number)
            except api.NVMLError as exc:
                errors.append(f"Cannot open GPU {number}: {exc}")
                continue
            instances = list(self._instances(card))
            yield from ((instance, card) for instance in instances)
            if not instances:
                yield card, None

    def _instances(self, card: Any) -> Iterator[Any]:
        mode = self._optional(self._api.nvmlDeviceGetMigMode, card)
        if not mode or mode[0] != MIG_ENABLED:
            return
        for slot in range(self._optional(self._api.nvmlDeviceGetMaxMigDeviceCount, card) or 0):
            # Slots that hold no instance answer "not found".
            if instance := self._optional(
                self._api.nvmlDeviceGetMigDeviceHandleByIndex, card, slot
            ):
                yield instance

    def _device(self, index: int, handle: Any, parent: Any) -> GpuDevice:
        api = self._api
        memory = api.nvmlDeviceGetMemoryInfo(handle)
        name = self._optional(api.nvmlDeviceGetName, handle)
        capability = self._optional(api.nvmlDeviceGetCudaComputeCapability, parent or handle)
        return GpuDevice(
            index=index,
            name=name or self._optional(api.nvmlDeviceGetName, parent or handle) or "NVIDIA GPU",
            memory_total_bytes=int(memory.total),
            memory_free_bytes=int(memory.free),
            uuid=self._optional(api.nvmlDeviceGetUUID, handle),
            compute_capability=tuple(capability) if capability else None,
            mig=parent is not None,
        )

    def _sample(self, index: int, handle: Any) -> GpuSample:
        api = self._api
        memory = self._optional(api.nvmlDeviceGetMemoryInfo, handle)
        load = self._optional(api.nvmlDeviceGetUtilizationRates, handle)
        heat = self._optional(api.nvmlDeviceGetTemperature, handle, TEMPERATURE_GPU)
        bits = self._optional(api.nvmlDeviceGetCurrentClocksThrottleReasons, handle) or 0
        processes = self._optional(api.nvmlDeviceGetComputeRunningProcesses, handle) or []
        return GpuSample(
            index=index,
            uuid=self._optional(api.nvmlDeviceGetUUID, handle),
            memory_total_bytes=int(memory.total) if memory else None,
            memory_used_bytes=int(memory.used) if memory else None,
            utilization_ratio=load.gpu / 100 if load else None,
            temperature_celsius=float(heat) if heat is not None else None,
            throttle_reasons=tuple(name for bit, name in THROTTLE_REASONS.items() if bits & bit),
            processes=tuple(GpuProcess(p.pid, p.usedGpuMemory) for p in processes),
        )

    def _optional(self, call: Callable[..., T], *arguments: Any) -> T | None:
        try:
            return call(*arguments)
        except self._api.NVMLError:
            return None


def _load(dev: Path) -> ModuleType:
    """Import pynvml, which takes 25 ms, only where the library can be loaded."""
    try:
        ctypes.CDLL(LIBRARY)
    except OSError as exc:
        raise _without_library(dev) from exc
    import pynvml  # noqa: PLC0415 - slow, and not needed on machines without a GPU

    module: ModuleType = pynvml
    return module


def _without_library(dev: Path) -> HardwareError:
    if _device_files(dev):
        return NvmlError(
            f"Cannot load {LIBRARY}, though {dev}/nvidia0 exists",
            hint="NVIDIA_DRIVER_CAPABILITIES must contain utility",
        )
    if (dev / "kfd").exists():
        return NvmlError("This machine has an AMD GPU, which NVML does not know")
    return NoNvidiaError(f"there is no {LIBRARY}")


def _translate(api: ModuleType, error: Any, dev: Path) -> HardwareError:
    absent = (api.NVML_ERROR_DRIVER_NOT_LOADED, api.NVML_ERROR_GPU_NOT_FOUND)
    if error.value in absent and not _device_files(dev):
        return NoNvidiaError("the NVIDIA driver is not loaded")
    return NvmlError(f"Cannot start NVML: {error}")


def _device_files(dev: Path) -> bool:
    return any(dev.glob("nvidia[0-9]*"))
