"""What ``supervisor models`` does without a daemon: fetch, verify and repair, evict."""

from __future__ import annotations

import ctypes
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
from supervisor.config.units import parse_size_bytes
from supervisor.core.events import EventBus
from supervisor.core.state import StateStore
from supervisor.core.status import DownloadsStatus
from supervisor.download.request import DownloadRequest, Resolver
from supervisor.errors import ControlError, TransferError
from supervisor.models.manager import ModelManager
from supervisor.models.runtime import opened_downloader, opened_sources
from supervisor.models.store import ModelStore, StoredObject, hash_file, is_object

# A person waits here: the daemon never gives up, a command does.
PULL_TRIES = 5

StatusCallback = Callable[[DownloadsStatus], None]


async def pull(
    requests: Sequence[DownloadRequest],
    *,
    section: ModelsSection,
    environ: Mapping[str, str],
    on_status: StatusCallback = lambda _: None,
    tries: int = PULL_TRIES,
) -> DownloadsStatus:
    """Fetch ``requests`` and return how each of them ended.

    Cancellation leaves partial files, which the next pull or boot resumes.
    """
    state, bus = StateStore(), EventBus()
    async with (
        opened_sources(section, environ) as resolvers,
        opened_downloader(section) as downloader,
    ):
        manager = ModelManager(
            settings=section,
            state=state,
            bus=bus,
            downloader=downloader,
            resolvers=resolvers,
            give_up_after=tries,
        )
        async with anyio.create_task_group() as group:
            group.start_soon(_report, state, on_status)
            await manager.run_until_done(requests)
            group.cancel_scope.cancel()
    on_status(state.snapshot.downloads)
    return state.snapshot.downloads


async def _report(state: StateStore, on_status: StatusCallback) -> None:
    async for snapshot in state.changes():
        on_status(snapshot.downloads)


# -- verify -------------------------------------------------------------------------------


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


async def verify(
    requests: Sequence[DownloadRequest],
    *,
    section: ModelsSection,
    environ: Mapping[str, str],
    on_verdict: Callable[[Verified], None] = lambda _: None,
) -> list[Verified]:
    """Hash every file that is there, one after the other, with idle I/O priority.

    The expected hash comes from the configuration or catalog, else from the file's source.
    """
    verdicts: list[Verified] = []
    async with opened_sources(section, environ) as resolvers:
        for request in requests:
            if request.directory:
                continue
            verdict = await _verify_one(request, resolvers)
            verdicts.append(verdict)
            on_verdict(verdict)
    return verdicts


async def _verify_one(request: DownloadRequest, resolvers: Mapping[str, Resolver]) -> Verified:
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


# -- evict --------------------------------------------------------------------------------


def evict(
    section: ModelsSection,
    *,
    budget: str | None,
    wanted: Sequence[DownloadRequest],
    dry_run: bool = False,
) -> list[StoredObject]:
    """Shrink the store to ``budget`` ("500GB"; default: the configured one). Blocking.

    What the configuration marks as required stays, as does what running pods want.

    Raises:
        ControlError: there is no store, or no budget.
    """
    if section.store is None:
        raise ControlError(
            "Cannot evict: there is no store", hint="set [models] store to a folder of the volume"
        )
    text = budget or section.store_budget
    if text is None:
        raise ControlError(
            "Cannot evict: there is no budget", hint="say --budget 500GB, or set store_budget"
        )
    try:
        limit_bytes = parse_size_bytes(text)
    except ValueError as exc:
        raise ControlError(f"Cannot evict to {text!r}: it {exc}") from exc
    keep = {r.sha256 for r in wanted if r.required and r.sha256}
    store = ModelStore(section.store)
    required = {str(r.destination) for r in wanted if r.required}
    keep |= {o.sha256 for o in store.objects() if required.intersection(o.places)}
    return store.evict(limit_bytes, keep=keep, dry_run=dry_run)
