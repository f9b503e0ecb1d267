"""Reads models again, tells what has changed on the disk, and repairs it."""

from __future__ import annotations

import ctypes
import logging
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from typing import Any

import anyio
import anyio.from_thread
import anyio.to_thread

from supervisor.config.settings import ModelsSection
from supervisor.core.events import EventBus, Severity
from supervisor.core.state import StateStore
from supervisor.core.status import DownloadState
from supervisor.download.request import DownloadRequest, Resolver
from supervisor.errors import TransferError
from supervisor.models.manager import ModelManager
from supervisor.models.store import ModelStore, hash_file, is_object

log = logging.getLogger("supervisor.models")

_LOOK_AGAIN_S = 60.0


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
    """Hashes one file after the other with idle I/O priority, while nothing is fetched."""

    def __init__(
        self,
        *,
        settings: ModelsSection,
        manager: ModelManager,
        resolvers: Mapping[str, Resolver],
        state: StateStore,
        bus: EventBus,
    ) -> None:
        self._settings = settings
        self._manager = manager
        self._resolvers = resolvers
        self._state = state
        self._bus = bus

    async def run(self) -> None:
        """Verify every ``verify_interval_h`` hours until cancelled."""
        while True:
            await anyio.sleep(self._settings.verify_interval_h * 3600)
            await self.verify_all()

    async def verify_all(self) -> None:
        """Verify what is in place; damaged files are taken away and fetched again at once."""
        damaged = 0
        for request in self._in_place():
            while self._manager.busy:
                await anyio.sleep(_LOOK_AGAIN_S)
            try:
                damaged += await self._verify(request)
            except OSError as exc:
                log.warning("Cannot verify %s: %s", request.name, exc.strerror or exc)
        message = f"models were verified: {damaged} damaged"
        log.info("%s", message)
        self._bus.publish("models.verified", message, damaged=damaged)

    def _in_place(self) -> list[DownloadRequest]:
        files = self._state.snapshot.downloads.files
        done = {file.name for file in files if file.state is DownloadState.DONE}
        return [r for r in self._manager.requests if r.name in done and not r.directory]

    async def _verify(self, request: DownloadRequest) -> bool:
        verdict = await verify_one(request, self._resolvers)
        if verdict.verdict not in (Verdict.DAMAGED, Verdict.MISSING):
            return False
        await anyio.to_thread.run_sync(discard_damaged, [verdict], self._settings)
        message = f"{request.name} is fetched again: {verdict.reason}"
        log.error("%s", message)
        self._bus.publish(
            "models.damaged", message, severity=Severity.WARNING, subject=request.name
        )
        self._manager.add(request, now=True)
        return True


async def verify_one(request: DownloadRequest, resolvers: Mapping[str, Resolver]) -> Verified:
    """Hash one file; the expected hash is the request's, else its source's."""
    path = request.destination
    try:
        size = (await anyio.to_thread.run_sync(path.stat)).st_size
    except OSError as exc:
        return Verified(request, Verdict.MISSING, reason=exc.strerror or str(exc))
    expected, expected_size = request.sha256, request.size_bytes
    if expected is None:
        try:
            resolved = await resolvers[request.source].resolve(request)
        except TransferError as exc:
            return Verified(request, Verdict.UNKNOWN, reason=exc.message)
        expected = resolved.sha256
        expected_size = resolved.size_bytes if expected_size is None else expected_size
    if expected_size not in (None, size):
        reason = f"{size} bytes, {expected_size} are expected"
        return Verified(request, Verdict.DAMAGED, expected, reason=reason)
    if expected is None:
        return Verified(request, Verdict.UNKNOWN, reason="no source tells its hash")
    pause = anyio.from_thread.check_cancelled
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
            if store and verdict.expected:
                target = store.path(verdict.expected)
                if is_object(request.destination, target):
                    target.unlink()
            request.destination.unlink(missing_ok=True)
        if verdict.verdict in (Verdict.DAMAGED, Verdict.MISSING):
            again.append(verdict.request)
    return again


def _hash_gently(path: Any, pause: Callable[[], None]) -> str:
    with idle_io():
        return hash_file(path, pause=pause)


@contextmanager
def idle_io() -> Iterator[None]:
    """Read only when nobody else wants the disk: the idle class of ioprio_set(2).

    Works on this thread alone; where the call is not known, nothing happens.
    """
    number = {"x86_64": 251, "aarch64": 30}.get(platform.machine())
    if number is None:
        yield
        return
    syscall = ctypes.CDLL(None, use_errno=True).syscall
    who_process, this_thread, idle, none = 1, 0, 3 << 13, 0
    syscall(number, who_process, this_thread, idle)
    try:
        yield
    finally:
        syscall(number, who_process, this_thread, none)
