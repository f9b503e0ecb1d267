"""What counts as somebody using the pod. Pure: facts in, reasons out."""

from __future__ import annotations

from dataclasses import dataclass

ESTABLISHED = "01"  # include/net/tcp_states.h


@dataclass(frozen=True, slots=True)
class IdleFacts:
    """One look at the pod. None = it could not be found out, which counts as busy."""

    queue_length: int | None = 0  # jobs that run or wait in ComfyUI
    queue_changed: bool = False  # jobs came or went since the last look
    busy_kernels: int | None = 0
    jupyter_active: bool = False  # Jupyter saw activity since the last look
    ssh_sessions: int | None = 0
    downloads: int = 0
    uploads: int = 0
    kept: bool = False  # somebody asked to keep the pod, and that time is not over


def busy_because(facts: IdleFacts) -> tuple[str, ...]:
    """Reasons not to count this moment as idle, for people; empty = idle."""
    found = (
        (facts.kept, "kept by request"),
        (facts.queue_length is None, "ComfyUI's queue is unknown"),
        (bool(facts.queue_length), f"jobs in ComfyUI's queue: {facts.queue_length}"),
        (facts.queue_changed and not facts.queue_length, "ComfyUI's queue changed"),
        (facts.busy_kernels is None, "Jupyter's kernels are unknown"),
        (bool(facts.busy_kernels), f"busy Jupyter kernels: {facts.busy_kernels}"),
        (facts.jupyter_active and not facts.busy_kernels, "Jupyter is in use"),
        (facts.ssh_sessions is None, "SSH sessions are unknown"),
        (bool(facts.ssh_sessions), f"SSH sessions: {facts.ssh_sessions}"),
        (facts.downloads > 0, f"downloads running: {facts.downloads}"),
        (facts.uploads > 0, f"uploads running: {facts.uploads}"),
    )
    return tuple(reason for holds, reason in found if holds)


def count_sessions(table: str, port: int) -> int:
    """Established connections to local ``port`` in /proc/net/tcp or tcp6 (proc_net_tcp)."""
    rows = (line.split() for line in table.splitlines()[1:])
    return sum(
        len(row) > 3 and row[3] == ESTABLISHED and row[1].rpartition(":")[2] == f"{port:04X}"
        for row in rows
    )
