"""What counts as somebody using the pod. Pure: facts in, reasons out."""

from __future__ import annotations

from dataclasses import dataclass, replace

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
    pages: int | None = 0  # open pages of ComfyUI, when they count
    terminals: int | None = 0  # in which something happened since the last look
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
        (facts.terminals is None, "terminals are unknown"),
        (bool(facts.terminals), f"terminals in use: {facts.terminals}"),
        (facts.downloads > 0, f"downloads running: {facts.downloads}"),
        (facts.uploads > 0, f"uploads running: {facts.uploads}"),
        (facts.pages is None, "open ComfyUI pages are unknown"),
        (bool(facts.pages), f"open ComfyUI pages: {facts.pages}"),
    )
    return tuple(reason for holds, reason in found if holds)


def peers(table: str, port: int) -> frozenset[str]:
    """Who is connected to local ``port``, from /proc/net/tcp or tcp6 (proc_net_tcp)."""
    rows = (line.split() for line in table.splitlines()[1:])
    return frozenset(
        row[2]
        for row in rows
        if len(row) > 3 and row[3] == ESTABLISHED and row[1].rpartition(":")[2] == f"{port:04X}"
    )


@dataclass(frozen=True, slots=True)
class Idleness:
    """How long nobody has used the pod, on the clock of the event loop.

    ``warned`` remembers that the end was announced, so that it is said once.
    """

    since_s: float
    busy: tuple[str, ...] = ()
    warned: bool = False

    def after(self, facts: IdleFacts, now_s: float) -> Idleness:
        """Take in one more look: any use begins the time anew."""
        busy = busy_because(facts)
        return Idleness(now_s, busy) if busy else replace(self, busy=())

    def idle_s(self, now_s: float) -> float:
        """Seconds without use; 0 while it is in use."""
        return 0.0 if self.busy else max(0.0, now_s - self.since_s)
