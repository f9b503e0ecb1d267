"""Reads models again, tells what has changed on the disk, and repairs it."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import anyio.from_thread
import anyio.to_thread

from supervisor.config.settings import ModelsSection
from supervisor.core.clock import iso_utc, wall_time_s
from supervisor.core.events import EventBus, Severity
from supervisor.core.state import StateStore
from supervisor.core.status import DownloadState, VerificationStatus
from supervisor.download.request import DownloadRequest, Resolver
from supervisor.errors import ControlError, TransferError
from supervisor.models.gently import Pace, ReadMarks, idle_io
from supervisor.models.manager import ModelManager
from supervisor.models.objects import hash_file, is_object
from supervisor.models.store import ModelStore

log = logging.getLogger("supervisor.models")

# How often it is looked whether others are still busy.
_LOOK_AGAIN_S = 10.0
# The first pass begins when nothing has moved for so long.
_SETTLE_S = 60.0


class Verdict(StrEnum):
    """What a re-hash found."""

    OK = "ok"
    MISSING = "missing"
    DAMAGED = "damaged"
    UNKNOWN = "unknown"  # no source tells the hash


@dataclass(frozen=True, slots=True)
class Verified:
    """One file. ``found`` is its hash now, when it was computed."""

    request: DownloadRequest
    verdict: Verdict
    expected: str | None = None
    found: str | None = None
    reason: str = ""

    def to_json(self) -> dict[str, Any]:
        """Render for ``--json``."""
        return {
            "name": self.request.name,
            "verdict": str(self.verdict),
            "expected": self.expected,
            "found": self.found,
            "reason": self.reason,
        }


class Verifier:
    """Hashes one file after the other, gently, while nothing is fetched or rendered.

    ``sleep`` and ``now_s`` (seconds since the epoch) are replaced in tests.
    """

    def __init__(
        self,
        *,
        settings: ModelsSection,
        manager: ModelManager,
        resolvers: Mapping[str, Resolver],
        state: StateStore,
        bus: EventBus,
        sleep: Callable[[float], Awaitable[None]] = anyio.sleep,
        now_s: Callable[[], float] = wall_time_s,
    ) -> None:
        self._settings = settings
        self._manager = manager
        self._resolvers = resolvers
        self._state = state
        self._bus = bus
        self._sleep, self._now_s = sleep, now_s
        self._marks = ReadMarks(now_s)
        self._interval_s = settings.verify_interval_h * 3600

    async def run(self) -> None:
        """Verify once the first downloads are in place, then every ``verify_interval_h`` hours.

        Runs until cancelled.
        """
        while True:
            await self._sleep(min(_SETTLE_S, self._interval_s))
            if not self._busy:
                break
        while True:
            await self.verify_all()
            await self._sleep(self._interval_s)

    async def verify_all(self) -> VerificationStatus:
        """Verify what is in place; damaged files are taken away and fetched again at once.

        Files that were read within the interval, and not written since, are left alone.
        """
        requests = self._in_place()
        last = self._state.snapshot.verification.finished
        status = VerificationStatus(running=True, files=len(requests), finished=last)
        for request in requests:
            self._state.update(verification=status)
            status = await self._step(request, status)
        status = replace(status, running=False, finished=iso_utc(self._now_s()))
        self._state.update(verification=status)
        if requests:
            self._tell(status)
        return status

    async def _step(
        self, request: DownloadRequest, status: VerificationStatus
    ) -> VerificationStatus:
        path = request.destination
        fresh = partial(self._marks.fresh, path, self._interval_s)
        if await anyio.to_thread.run_sync(fresh):
            return replace(status, skipped=status.skipped + 1)
        await self._quiet()
        if request.name not in {r.name for r in self._manager.requests}:
            return status  # a reload took it out
        try:
            note = await anyio.to_thread.run_sync(self._marks.begin, path)
            verdict = await verify_one(request, self._resolvers, pause=self._pauses())
            if verdict.verdict is Verdict.OK and verdict.found is not None:
                await anyio.to_thread.run_sync(note, verdict.found)
            repaired = await self._repair(verdict)
        except OSError as exc:
            log.warning("Cannot verify %s: %s", request.name, exc.strerror or exc)
            return status
        was_read = verdict.found is not None  # without a known hash there is nothing to compare
        return replace(
            status,
            checked=status.checked + int(was_read),
            damaged=status.damaged + int(repaired),
        )

    async def _repair(self, verdict: Verified) -> bool:
        if verdict.verdict not in (Verdict.DAMAGED, Verdict.MISSING):
            return False
        request = verdict.request
        await anyio.to_thread.run_sync(discard_damaged, [verdict], self._settings)
        message = f"{request.name} is fetched again: {verdict.reason}"
        log.error("%s", message)
        self._bus.publish(
            "models.damaged", message, severity=Severity.WARNING, subject=request.name
        )
        try:
            self._manager.add(request, now=True)
        except ControlError as exc:  # its place was given to another file meanwhile
            log.warning("%s", exc.message)
        return True

    def _tell(self, status: VerificationStatus) -> None:
        message = (
            f"models were verified: {status.checked} read, {status.skipped} read lately, "
            f"{status.damaged} damaged"
        )
        log.info("%s", message)
        self._bus.publish(
            "models.verified",
            message,
            checked=status.checked,
            skipped=status.skipped,
            damaged=status.damaged,
        )

    @property
    def _busy(self) -> bool:
        """Whether bytes are moving or ComfyUI has work."""
        return self._manager.busy or bool(self._state.snapshot.host.comfyui_queue_length)

    async def _quiet(self) -> None:
        while self._busy:
            await self._sleep(_LOOK_AGAIN_S)

    def _pauses(self) -> Callable[[], None]:
        """Return what the reading thread calls before every few MiB."""
        pace = Pace(self._quiet, sleep=self._sleep)
        return partial(anyio.from_thread.run, pace.breathe)

    def _in_place(self) -> list[DownloadRequest]:
        files = self._state.snapshot.downloads.files
        done = {file.name for file in files if file.state is DownloadState.DONE}
        return [r for r in self._manager.requests if r.name in done and not r.directory]


async def verify_one(
    request: DownloadRequest,
    resolvers: Mapping[str, Resolver],
    *,
    pause: Callable[[], None] = anyio.from_thread.check_cancelled,
) -> Verified:
    """Hash one file; the expected hash is the request's, else its source's.

    ``pause`` is called in the reading thread before every few MiB.
    """
    path = request.destination
    try:
        size = (await anyio.to_thread.run_sync(path.stat)).st_size
    except OSError as exc:
        return Verified(request, Verdict.MISSING, reason=exc.strerror or str(exc))
    expected, expected_size = request.sha256, request.size_bytes
    if expected is None:
        resolver = resolvers.get(request.source)
        if resolver is None:
            return Verified(request, Verdict.UNKNOWN, reason=f"no source {request.source}")
        try:
            resolved = await resolver.resolve(request)
        except TransferError as exc:
            return Verified(request, Verdict.UNKNOWN, reason=exc.message)
        expected = resolved.sha256
        expected_size = resolved.size_bytes if expected_size is None else expected_size
    if expected_size not in (None, size):
        reason = f"{size} bytes, {expected_size} are expected"
        return Verified(request, Verdict.DAMAGED, expected, reason=reason)
    if expected is None:
        return Verified(request, Verdict.UNKNOWN, reason="no source tells its hash")
    found = await anyio.to_thread.run_sync(partial(_hash_gently, path, pause))
    if found == expected:
        return Verified(request, Verdict.OK, expected, found)
    return Verified(request, Verdict.DAMAGED, expected, found, "the bytes have changed")


def discard_damaged(verdicts: Sequence[Verified], section: ModelsSection) -> list[DownloadRequest]:
    """Take damaged files out of ComfyUI's sight; return what is to be fetched again. Blocking."""
    store = ModelStore(section.store) if section.store else None
    again = []
    for verdict in verdicts:
        if verdict.verdict is Verdict.DAMAGED:
            request = verdict.request
            digest = verdict.expected
            if store and digest and is_object(request.destination, store.path(digest)):
                store.set_aside(digest)
            request.destination.unlink(missing_ok=True)
        if verdict.verdict in (Verdict.DAMAGED, Verdict.MISSING):
            again.append(verdict.request)
    return again


def _hash_gently(path: Path, pause: Callable[[], None]) -> str:
    with idle_io():
        return hash_file(path, pause=pause)
