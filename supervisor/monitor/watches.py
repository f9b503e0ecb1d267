"""What is worth an alert: limits, and sentences with a remedy. Pure: snapshot in, watches out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TypeVar

from supervisor.config.settings import AlertsSection
from supervisor.core.status import GpuDeviceStatus, Snapshot
from supervisor.monitor.rules import Rule

_Number = TypeVar("_Number", int, float)

_GIB = 1024**3
_FULL_SOON_S = 900.0
# What makes a card slower than it was paid for; a power cap is how it is meant to run.
_HARMLESS_THROTTLING = frozenset({"power cap"})


@dataclass(frozen=True, slots=True)
class Watch:
    """A reading with its rule and what to say when the rule fires.

    ``value`` has the unit of the rule's threshold; None = unknown.
    """

    rule: Rule
    value: float | None
    message: str
    hint: str
    severity: str = "warning"


def watches(snapshot: Snapshot, section: AlertsSection) -> Iterator[Watch]:
    """Everything that is watched now."""
    yield from _host(snapshot, section)
    yield from _disks(snapshot, section)
    for device in snapshot.gpu.devices:
        yield from _gpu(device, section)
    yield from _comfyui(snapshot, section)
    sync = snapshot.sync
    yield Watch(
        Rule("sync blocked", 1.0, for_s=0.0),
        float(sync.blocked and sync.pending > 0),
        f"Outputs are not stored: {sync.last_error}",
        sync.hint or "`supervisor sync status` tells what waits",
        "error",
    )
    changed = snapshot.nodes.torch_changes
    yield Watch(
        Rule("torch changed", 1.0, for_s=0.0),
        float(bool(changed)),
        f"ComfyUI's torch is not the image's any more: {', '.join(changed)}",
        "`supervisor nodes rollback` brings it back, `supervisor nodes accept` keeps this one",
        "error",
    )


def _host(snapshot: Snapshot, section: AlertsSection) -> Iterator[Watch]:
    host = snapshot.host
    if host.cpu_ratio is not None:
        most_cores = _largest(host.service_cpu_cores)
        busiest = f"; {most_cores[0]} uses {most_cores[1]:.1f}" if most_cores else ""
        yield Watch(
            Rule("cpu", section.cpu_percent / 100, for_s=60.0),
            host.cpu_ratio,
            f"CPU at {host.cpu_ratio:.0%} of {host.cpu_limit or 0:g} cores{busiest}",
            "a pod with more vCPUs, or fewer services beside ComfyUI",
        )
    if host.memory_used_bytes is not None and host.memory_limit_bytes:
        used = host.memory_used_bytes / host.memory_limit_bytes
        largest = _largest(host.service_memory_bytes)
        most = f"; {largest[0]} holds {_gib(largest[1])}" if largest else ""
        yield Watch(
            Rule("memory", section.memory_percent / 100),
            used,
            f"Memory at {used:.0%} of {_gib(host.memory_limit_bytes)}{most}",
            "at the limit the kernel kills the largest process: lower --cache-ram in "
            "COMFYUI_ARGS, or take a pod with more memory",
        )


def _disks(snapshot: Snapshot, section: AlertsSection) -> Iterator[Watch]:
    hint = "`supervisor models evict`, delete outputs that are stored, or a larger volume"
    for mount, disk in snapshot.host.disks.items():
        silent = mount in snapshot.host.silent_disks  # the numbers are old: they say nothing
        used = 1 - disk.free_bytes / disk.total_bytes
        yield Watch(
            Rule(f"disk {mount}", section.disk_percent / 100, margin=0.02, for_s=0.0),
            None if silent else used,
            f"{mount} is {used:.0%} full, {_gib(disk.free_bytes)} are free",
            hint,
        )
        soon_s = disk.full_in_s
        yield Watch(
            Rule(f"disk {mount} filling", 1.0, margin=0.3),
            None if silent else _FULL_SOON_S / max(soon_s, 1.0) if soon_s is not None else 0.0,
            f"{mount} will be full in {(soon_s or 0) / 60:.0f} min at this pace",
            hint,
        )
    for mount in snapshot.host.disks.keys() | set(snapshot.host.silent_disks):
        yield Watch(
            Rule(f"disk {mount} silent", 1.0, for_s=20.0),
            float(mount in snapshot.host.silent_disks),
            f"{mount} does not answer: whatever reads or writes there hangs",
            "a network volume that lost its server; if it lasts, stop the pod and start it again",
            "error",
        )


def _gpu(device: GpuDeviceStatus, section: AlertsSection) -> Iterator[Watch]:
    name = f"gpu{device.index}"
    silent = device.memory_used_bytes is None
    yield Watch(
        Rule(f"{name} silent", 1.0, for_s=60.0),
        float(silent),
        f"GPU {device.index} ({device.name}) does not answer the driver any more",
        "see `dmesg` for Xid errors; a card that fell off the bus needs another pod",
        "error",
    )
    if device.memory_used_bytes is not None and device.memory_total_bytes:
        used = device.memory_used_bytes / device.memory_total_bytes
        yield Watch(
            Rule(f"{name} memory", section.gpu_memory_percent / 100, margin=0.03, for_s=60.0),
            used,
            f"Memory of GPU {device.index} at {used:.0%} of {_gib(device.memory_total_bytes)}",
            "ComfyUI keeps models loaded, so this may be well; if jobs run out of memory, "
            "lower gpu.memory_mode",
            "info",
        )
    heat = device.temperature_celsius
    if heat is not None:
        yield Watch(
            Rule(f"{name} temperature", section.gpu_temperature_celsius, margin=5.0, for_s=60.0),
            heat,
            f"GPU {device.index} is at {heat:.0f} °C",
            "the host cools it badly: it will slow down; ask for another machine",
        )
    slowed = [r for r in device.throttle_reasons if r not in _HARMLESS_THROTTLING]
    yield Watch(
        Rule(f"{name} throttled", 1.0),
        None if silent else float(bool(slowed)),
        f"GPU {device.index} slows itself down: {', '.join(slowed)}",
        "the host cools or feeds it badly; ask for another machine",
    )


def _comfyui(snapshot: Snapshot, section: AlertsSection) -> Iterator[Watch]:
    host = snapshot.host
    response_s, queue = host.comfyui_response_s, host.comfyui_queue_length
    yield Watch(
        Rule("comfyui slow", section.comfyui_response_s, margin=section.comfyui_response_s / 2),
        response_s,
        f"ComfyUI takes {response_s or 0:.1f} s to answer",
        "a custom node blocks its event loop, or the machine has too few cores",
    )
    if section.queue_length:
        yield Watch(
            Rule("queue", section.queue_length, margin=section.queue_length / 10, for_s=60.0),
            queue,
            f"{queue or 0} jobs wait in ComfyUI",
            "more comes in than one pod can do",
        )


def _largest(values: Mapping[str, _Number]) -> tuple[str, _Number] | None:
    return max(values.items(), key=lambda item: item[1], default=None)


def _gib(size_bytes: int) -> str:
    return f"{size_bytes / _GIB:.1f} GiB"
