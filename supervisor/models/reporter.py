"""Keeps ``StateStore.downloads`` current, a few times a second at most."""

from __future__ import annotations

from collections.abc import Mapping

import anyio

from supervisor.core.state import StateStore
from supervisor.download.request import Progress, ProgressCallback
from supervisor.models.outcomes import Outcomes
from supervisor.models.queue import Job, RateMeter, summarise

_PUBLISH_INTERVAL_S = 0.25
_LINE_INTERVAL_S = 30.0


class Reporter:
    """Renders ``jobs`` into the state."""

    def __init__(self, state: StateStore, outcomes: Outcomes, jobs: Mapping[str, Job]) -> None:
        self._state = state
        self._outcomes = outcomes
        self._jobs = jobs
        self._changed = anyio.Event()
        self.meter = RateMeter()

    def touch(self) -> None:
        """Say that something changed."""
        self._changed.set()

    def progress_of(self, job: Job) -> ProgressCallback:
        """Return what takes the steps of one transfer."""
        seen = -1

        def step(progress: Progress) -> None:
            nonlocal seen
            if job.ended:
                return
            # The first step of a resumed file counts what was there before.
            if seen >= 0:
                self.meter.add(max(progress.bytes_done - seen, 0), anyio.current_time())
            seen = progress.bytes_done
            job.advance(progress)
            self.touch()

        return step

    def publish(self) -> None:
        """Bring the state up to date now."""
        rate = self.meter.rate(anyio.current_time()) if self._moving else 0.0
        self._state.update(downloads=summarise(self._jobs.values(), rate))

    async def run(self) -> None:
        """Publish changes until cancelled, and write a log line now and then."""
        next_line_s = anyio.current_time() + _LINE_INTERVAL_S
        while True:
            # With nothing moving nothing changes by itself; a stall must show as such.
            with anyio.move_on_after(1.0 if self._moving else None):
                await self._changed.wait()
            self._changed = anyio.Event()
            self.publish()
            if self._moving and anyio.current_time() >= next_line_s:
                next_line_s = anyio.current_time() + _LINE_INTERVAL_S
                self._outcomes.under_way(self._state.snapshot.downloads)
            await anyio.sleep(_PUBLISH_INTERVAL_S)

    @property
    def _moving(self) -> bool:
        return any(job.running for job in self._jobs.values())
