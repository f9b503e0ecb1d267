"""Downloaders around the engine: sources that need none, and the shared store."""

from __future__ import annotations

import errno
import hashlib
import logging
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

import anyio
import anyio.from_thread
import anyio.to_thread

from supervisor.config.settings import ModelsSection
from supervisor.core.status import DownloadState
from supervisor.download.files import discard_leftovers
from supervisor.download.request import (
    Downloader,
    DownloadRequest,
    Progress,
    ProgressCallback,
    Resolved,
    Resolver,
    TransferResult,
)
from supervisor.download.verify import check_file, verified_sha256
from supervisor.errors import (
    ChecksumMismatchError,
    PermanentTransferError,
    TransientTransferError,
)
from supervisor.models.abilities import DirectFetcher, Mirrored
from supervisor.models.gently import ReadMarks
from supervisor.models.leases import Lease, Leases
from supervisor.models.memory import last_key
from supervisor.models.objects import hash_file, is_object
from supervisor.models.store import ModelStore

log = logging.getLogger("supervisor.models")

_READ_ONLY = frozenset({errno.EROFS, errno.EACCES, errno.EPERM})
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
_ROOM_POLL_S = 15.0


def open_downloader(engine: Downloader, section: ModelsSection, *, pod: str = "") -> Downloader:
    """Put what the settings ask for around the engine. ``pod``: see ``Leases``."""
    direct = DirectDownloader(engine)
    if section.store is None:
        return direct
    store = ModelStore(section.store, staging=section.store_staging)
    return StoreDownloader(direct, store, Leases(store.locks, pod=pod))


class ResolvedAhead:
    """A resolver whose first answer is already there."""

    def __init__(self, source: Resolver, first: Resolved | None) -> None:
        self.source = source
        self._first = first

    async def ask(self, request: DownloadRequest) -> None:
        """Have the answer ready.

        Raises:
            TransferError: as ``Resolver.resolve``.
        """
        self._first = self._first or await self.source.resolve(request)

    async def resolve(self, request: DownloadRequest) -> Resolved:
        """Give the known answer once, then ask."""
        first, self._first = self._first, None
        return first or await self.source.resolve(request)


def _source(resolver: Resolver) -> Resolver:
    return resolver.source if isinstance(resolver, ResolvedAhead) else resolver


class DirectDownloader:
    """Lets a source that can fetch by itself do so; the engine does the others."""

    def __init__(self, engine: Downloader) -> None:
        self._engine = engine

    async def fetch(
        self, request: DownloadRequest, resolver: Resolver, progress: ProgressCallback
    ) -> TransferResult:
        """See ``Downloader.fetch``. What has the wanted hash already is no question to anybody."""
        place = request.destination
        if request.sha256 is not None and await _is(place, request.sha256, request.size_bytes):
            await anyio.to_thread.run_sync(discard_leftovers, place)
            return _present(place, request.sha256)
        source = _source(resolver)
        if isinstance(source, DirectFetcher):
            return await source.fetch(request, progress)
        if isinstance(source, Mirrored) and request.mirrors:
            request = replace(request, mirrors=source.mirrors(request.mirrors))
        return await self._engine.fetch(request, resolver, progress)


class StoreDownloader:
    """Fetches into the shared store, once for all pods, and links from there."""

    def __init__(self, engine: Downloader, store: ModelStore, leases: Leases) -> None:
        self._engine = engine
        self._store = store
        self._leases = leases

    async def fetch(
        self, request: DownloadRequest, resolver: Resolver, progress: ProgressCallback
    ) -> TransferResult:
        """See ``Downloader.fetch``. Waits while another pod fetches the same file.

        Losing the lock to another pod is a transient error: the next try finds its result.
        So is trouble with the volume. A store that cannot be written is done without.
        """
        try:
            return await self._fetch(request, resolver, progress)
        except OSError as exc:
            if exc.errno not in _READ_ONLY:
                raise _trouble(request, exc) from exc
            reason = exc.strerror or exc
            log.warning("%s is fetched without the store: %s", request.name, reason)
        return await self._engine.fetch(request, resolver, progress)

    async def restore(self, request: DownloadRequest) -> None:
        """See ``Restorer``: the pod's own disk may be new while the store is not."""

        def link() -> None:
            known = self._store.recall(last_key(request))
            there = known is not None and self._store.has(known, request.size_bytes)
            if known is not None and there and not request.destination.exists():
                with suppress(OSError):  # ``fetch`` meets it again and reports it
                    self._store.link(known, request.destination)

        await anyio.to_thread.run_sync(link)

    async def _fetch(
        self, request: DownloadRequest, resolver: Resolver, progress: ProgressCallback
    ) -> TransferResult:
        resolved: Resolved | None = None
        digest, size = request.sha256, request.size_bytes
        if digest is None:
            resolved = await self._resolve(request, resolver)
            digest = resolved.sha256 if resolved else None
            size = resolved.size_bytes if size is None and resolved else size
        key = digest or _key(request, resolved)
        if result := await self._linked(request, key, digest, size):
            return result
        progress(Progress(DownloadState.QUEUED, 0, size, message="waiting for another pod"))
        async with self._leases.hold(key) as lease:
            if result := await self._linked(request, key, digest, size):
                return result
            if digest is not None and await self._adopt(request, digest, size, progress):
                return _present(request.destination, digest)
            make = partial(
                self._store.incoming,
                key,
                lease.generation,
                writer_gone=not lease.taken_over,
                pause=anyio.from_thread.check_cancelled,
            )
            incoming = await anyio.to_thread.run_sync(make) / request.destination.name
            inner = replace(request, destination=incoming, sha256=digest, size_bytes=size)
            ahead = ResolvedAhead(_source(resolver), resolved)
            result = await self._engine.fetch(inner, ahead, progress)
            found = result.sha256 or await _hash(incoming)
            if digest is not None and found != digest:
                await anyio.to_thread.run_sync(partial(incoming.unlink, missing_ok=True))
                raise ChecksumMismatchError(
                    f"Cannot fetch {request.name}: sha256 is {found}, {digest} is expected",
                    hint="the remote file was replaced: pin a revision, or update the entry",
                )
            again = digest is None and resolved is not None and resolved.etag
            publish = partial(
                self._publish, request, incoming, found, lease, remember=key if again else None
            )
            await anyio.to_thread.run_sync(publish)
            await anyio.to_thread.run_sync(self._store.clear_incoming, key)
            return replace(result, path=request.destination, sha256=found)

    async def _resolve(self, request: DownloadRequest, resolver: Resolver) -> Resolved | None:
        try:
            return await resolver.resolve(request)
        except PermanentTransferError:
            if not request.mirrors:
                raise
            return None  # the engine goes on to the mirrors

    def _publish(
        self,
        request: DownloadRequest,
        incoming: Path,
        digest: str,
        lease: Lease,
        *,
        remember: str | None,
    ) -> None:
        lease.check()
        # A stop does not wait for a copy onto a slow volume.
        self._store.put(incoming, digest, pause=anyio.from_thread.check_cancelled)
        self._store.link(digest, request.destination)
        if remember is not None:
            self._store.remember(remember, digest)
        self._note_last(request, digest)

    def _note_last(self, request: DownloadRequest, digest: str) -> None:
        key = last_key(request)
        if request.sha256 is None and self._store.recall(key) != digest:
            with suppress(OSError):  # a store that is read-only or full serves what it has
                self._store.remember(key, digest)

    async def _linked(
        self, request: DownloadRequest, key: str, digest: str | None, size: int | None
    ) -> TransferResult | None:
        """Link an object that is there."""

        def link() -> TransferResult | None:
            known = digest or self._store.recall(key)
            if known is None or not self._store.has(known, size):
                return None
            try:
                self._store.link(known, request.destination)
            except FileNotFoundError:  # another pod has just evicted it
                return None
            self._note_last(request, known)
            return _present(request.destination, known)

        return await anyio.to_thread.run_sync(link)

    async def _adopt(
        self, request: DownloadRequest, digest: str, size: int | None, progress: ProgressCallback
    ) -> bool:
        """Take a whole file that stands at the destination already into the store."""
        destination = request.destination
        progress(Progress(DownloadState.VERIFYING, 0, size))
        if not await _is(destination, digest, size):
            return False

        def adopt() -> bool:
            if not is_object(destination, self._store.path(digest)):
                self._store.put(destination, digest, pause=anyio.from_thread.check_cancelled)
                self._store.link(digest, destination)
            return True

        return await anyio.to_thread.run_sync(adopt)


def _present(path: Path, digest: str) -> TransferResult:
    return TransferResult(path, path.stat().st_size, digest, 0)


def _trouble(request: DownloadRequest, exc: OSError) -> TransientTransferError:
    full = exc.errno in _FULL
    return TransientTransferError(
        f"Cannot put {request.name} into the store: {exc.strerror or exc}",
        hint="free space on its volume, or evict" if full else "is its volume still there?",
        retry_after_s=_ROOM_POLL_S if full else None,
    )


def _key(request: DownloadRequest, resolved: Resolved | None) -> str:
    """A lock for a file whose hash nobody knows before it is there."""
    etag = (resolved.etag if resolved else None) or ""
    identity = "\n".join((request.source, request.reference or request.url, etag))
    return "at-" + hashlib.sha256(identity.encode()).hexdigest()


async def _is(path: Path, sha256: str, size_bytes: int | None) -> bool:
    """Whether these bytes are at ``path``. What was read once is not read again."""

    def look() -> tuple[bool, str | None]:
        try:
            fits = size_bytes in (None, path.stat().st_size)
            check_file(path)
        except (OSError, PermanentTransferError):
            return False, None
        return fits, verified_sha256(path)

    fits, known = await anyio.to_thread.run_sync(look)
    if not fits or known is not None:
        return fits and known == sha256
    note = await anyio.to_thread.run_sync(ReadMarks().begin, path)
    try:
        same = await _hash(path) == sha256
    except OSError:  # it went, or its disk is broken: whoever fetches it finds out
        return False
    if same:
        await anyio.to_thread.run_sync(note, sha256)
    return same


async def _hash(path: Path) -> str:
    pause: Callable[[], None] = anyio.from_thread.check_cancelled
    return await anyio.to_thread.run_sync(partial(hash_file, path, pause=pause))
