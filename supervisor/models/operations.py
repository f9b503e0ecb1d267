"""What ``supervisor models`` does without a daemon: fetch, verify and repair, evict."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import anyio
import anyio.to_thread

from supervisor.config.settings import ModelsSection
from supervisor.config.units import parse_size_bytes
from supervisor.core.events import EventBus
from supervisor.core.state import StateStore
from supervisor.core.status import DownloadsStatus
from supervisor.download.request import DownloadRequest
from supervisor.errors import ControlError, TransferError
from supervisor.models.manager import ModelManager
from supervisor.models.memory import Memory
from supervisor.models.preflight import Preflight
from supervisor.models.runtime import opened_downloader, opened_sources
from supervisor.models.store import ModelStore, StoredObject
from supervisor.models.verifier import Verdict, Verified, verify_one

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
        opened_downloader(section, environ) as downloader,
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


async def verify(
    requests: Sequence[DownloadRequest],
    *,
    section: ModelsSection,
    environ: Mapping[str, str],
    on_verdict: Callable[[Verified], None] = lambda _: None,
) -> list[Verified]:
    """Hash every file that is there, one after the other, with idle I/O priority.

    The expected hash comes from the configuration or catalog, else from the file's source,
    which also tells the files of folders.
    """
    verdicts: dict[str, Verified] = {}
    async with opened_sources(section, environ) as resolvers:
        preflight = Preflight(resolvers, store=section.store)
        for request in requests:
            try:
                files = await preflight.expand(request)
            except TransferError as exc:
                files = await anyio.to_thread.run_sync(preflight.memory.noted, request)
                if not files:
                    verdict = Verified(request, Verdict.UNKNOWN, reason=exc.message)
                    verdicts[request.name] = verdict
                    on_verdict(verdict)
            for file in files:
                if file.name not in verdicts:  # folders may overlap
                    verdicts[file.name] = await verify_one(file, resolvers)
                    on_verdict(verdicts[file.name])
    return [*verdicts.values()]


# -- evict --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Eviction:
    """What was (or would be) removed; ``over`` says that what stays is more than the budget."""

    removed: tuple[StoredObject, ...]
    kept_bytes: int
    over: bool


def evict(
    section: ModelsSection,
    *,
    budget: str | None,
    wanted: Sequence[DownloadRequest],
    dry_run: bool = False,
) -> Eviction:
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
    memory = Memory(store)
    required = {str(p) for r in wanted if r.required for p in _places(r, memory)}
    keep |= {
        o.sha256
        for o in store.objects()
        if any(place in required or _lies_in(place, required) for place in o.places)
    }
    before = sum(o.size_bytes for o in store.objects())
    removed = store.evict(limit_bytes, keep=keep, spare_s=0.0, dry_run=dry_run)
    kept_bytes = before - sum(o.size_bytes for o in removed)
    return Eviction(tuple(removed), kept_bytes, kept_bytes > limit_bytes)


def _places(request: DownloadRequest, memory: Memory) -> list[Path]:
    """Where the files of a request stand, or the folder that nobody knows the files of."""
    noted = memory.noted(request) if request.directory else ()
    return [file.destination for file in noted] or [request.destination]


def _lies_in(place: str, folders: Collection[str]) -> bool:
    return any(str(parent) in folders for parent in Path(place).parents)
