"""The state of the files on their way, and in which order they go. No I/O."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

import anyio

from supervisor.core.status import DownloadFileStatus, DownloadsStatus, DownloadState
from supervisor.download.request import DownloadRequest, Progress, Resolved

# A size nobody knows is taken for a large file, behind everything known to be small.
ASSUMED_SIZE_BYTES = 4 * 1024**3

# An address found while preparing is still good for the engine's first connection.
_RESOLVED_FRESH_S = 60.0

_ENDED = frozenset({DownloadState.DONE, DownloadState.FAILED, DownloadState.SKIPPED})


@dataclass(slots=True, eq=False)
class Job:
    """One file. Times are of the event loop's clock."""

    request: DownloadRequest
    seq: int
    urgent: bool = False
    state: DownloadState = DownloadState.QUEUED
    prepared: bool = False  # size asked for, room checked
    bytes_done: int = 0
    most_done: int = 0  # ever: some files begin again and again
    bytes_total: int | None = None
    rate_bytes_per_s: float = 0.0
    error: str | None = None
    hint: str | None = None
    attempt: int = 0
    not_before_s: float = 0.0
    started_s: float = 0.0
    resolved: Resolved | None = None
    resolved_s: float = 0.0
    scope: anyio.CancelScope | None = None

    @property
    def size_bytes(self) -> int | None:
        """The best known size."""
        if self.bytes_total is not None:
            return self.bytes_total
        return self.request.size_bytes

    @property
    def running(self) -> bool:
        """Whether a task works on it."""
        return self.scope is not None

    @property
    def ended(self) -> bool:
        """Whether nothing more happens by itself."""
        return self.state in _ENDED

    @property
    def order(self) -> tuple[bool, bool, int, int]:
        """Sort key: asked for now, required, small, first come."""
        size = self.size_bytes
        return (
            not self.urgent,
            not self.request.required,
            ASSUMED_SIZE_BYTES if size is None else size,
            self.seq,
        )

    def requeue(self, *, urgent: bool) -> None:
        """Begin anew after an end; size and room are asked for again."""
        self.state, self.urgent, self.prepared = DownloadState.QUEUED, urgent, False
        self.error = self.hint = self.resolved = None
        self.attempt, self.most_done, self.not_before_s = 0, 0, 0.0

    def end(
        self, state: DownloadState, *, error: str | None = None, hint: str | None = None
    ) -> None:
        """Nothing more happens by itself."""
        self.state, self.error, self.hint = state, error, hint
        self.rate_bytes_per_s = 0.0

    def advance(self, step: Progress) -> None:
        """Take over what the engine reports."""
        if step.bytes_done > self.most_done:
            self.attempt, self.most_done = 0, step.bytes_done
        if step.state in (DownloadState.ACTIVE, DownloadState.VERIFYING):
            self.state = step.state
        self.bytes_done = step.bytes_done
        if step.bytes_total is not None:
            self.bytes_total = step.bytes_total
        self.rate_bytes_per_s = step.rate_bytes_per_s
        self.error = step.message

    def take_resolved(self, now_s: float) -> Resolved | None:
        """Hand out, once, the address that was found while preparing."""
        resolved, self.resolved = self.resolved, None
        return resolved if now_s - self.resolved_s < _RESOLVED_FRESH_S else None

    def status(self) -> DownloadFileStatus:
        """Render for the snapshot."""
        return DownloadFileStatus(
            name=self.request.name,
            state=self.state,
            bytes_total=self.size_bytes,
            bytes_done=self.bytes_done,
            error=self.error,
            hint=self.hint,
            required=self.request.required,
            source=self.request.source,
            bundle=self.request.bundle,
            destination=str(self.request.destination),
            rate_bytes_per_s=self.rate_bytes_per_s,
        )


@dataclass(slots=True)
class RateMeter:
    """Bytes per second over the last ``window_s`` seconds."""

    window_s: float = 10.0
    _samples: deque[tuple[float, int]] = field(default_factory=deque)
    _total: int = 0

    def add(self, count: int, now_s: float) -> None:
        """Record bytes that came over the network."""
        self._total += count
        self._samples.append((now_s, count))
        self._expire(now_s)

    def rate(self, now_s: float) -> float:
        """The mean over the window, or over the shorter time since the first byte."""
        self._expire(now_s)
        if not self._samples:
            return 0.0
        span_s = now_s - self._samples[0][0]
        return self._total / max(span_s, 1.0)

    def _expire(self, now_s: float) -> None:
        while self._samples and self._samples[0][0] < now_s - self.window_s:
            self._total -= self._samples.popleft()[1]


def summarise(jobs: Iterable[Job], rate_bytes_per_s: float) -> DownloadsStatus:
    """Render all jobs, with the time left when it can be told."""
    jobs = list(jobs)
    open_jobs = [j for j in jobs if not j.ended]
    left = sum(max((j.size_bytes or 0) - j.bytes_done, 0) for j in open_jobs)
    known = all(j.size_bytes is not None for j in open_jobs)
    eta_s = round(left / rate_bytes_per_s, 1) if rate_bytes_per_s > 0 and known and left else None
    return DownloadsStatus(
        files=tuple(j.status() for j in jobs),
        rate_bytes_per_s=round(rate_bytes_per_s, 1),
        eta_s=eta_s,
    )
