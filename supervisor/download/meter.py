"""Progress of one transfer: bytes, a smoothed rate, and calls at a bearable pace."""

from __future__ import annotations

import math
import time

from supervisor.core.status import DownloadState
from supervisor.download.request import Progress, ProgressCallback

INTERVAL_S = 0.25
SMOOTHING_S = 3.0


class Meter:
    """Counts what arrives and tells the callback a few times a second."""

    def __init__(self, callback: ProgressCallback) -> None:
        self._callback = callback
        self.fetched = 0  # over the network, this time
        self.kept = 0  # of the file after the last try: what the next one need not fetch
        self.done = 0
        self.total: int | None = None
        self.rate_bytes_per_s = 0.0
        self._last_s = time.monotonic()
        self._last_fetched = 0
        self._message: str | None = None

    def begin(self, *, done: int, total: int | None) -> None:
        """State where the file stands before new bytes come."""
        self.done, self.total, self._message = done, total, None
        self._last_s, self._last_fetched = time.monotonic(), self.fetched
        self._tell(DownloadState.ACTIVE)

    def add(self, count: int) -> None:
        """Count ``count`` new bytes."""
        self.fetched += count
        self.done += count
        now_s = time.monotonic()
        if now_s - self._last_s >= INTERVAL_S:
            self._measure(now_s)
            self._tell(DownloadState.ACTIVE)

    def tick(self) -> None:
        """Let the rate fall while nothing arrives."""
        self.add(0)

    def say(self, message: str) -> None:
        """Tell why it waits."""
        self._message = message
        self.rate_bytes_per_s = 0.0
        self._tell(DownloadState.ACTIVE)

    def verifying(self) -> None:
        """All bytes are here; the checks run."""
        self._tell(DownloadState.VERIFYING)

    def finish(self, size_bytes: int) -> None:
        """The file is published."""
        self.done = self.total = size_bytes
        self._message = None
        self._tell(DownloadState.DONE)

    def _measure(self, now_s: float) -> None:
        elapsed_s = now_s - self._last_s
        rate = (self.fetched - self._last_fetched) / elapsed_s
        weight = 1.0 - math.exp(-elapsed_s / SMOOTHING_S)
        if self.rate_bytes_per_s == 0.0:
            self.rate_bytes_per_s = rate
        self.rate_bytes_per_s += weight * (rate - self.rate_bytes_per_s)
        self._last_s, self._last_fetched = now_s, self.fetched

    def _tell(self, state: DownloadState) -> None:
        self._callback(Progress(state, self.done, self.total, self.rate_bytes_per_s, self._message))
