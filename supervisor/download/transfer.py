"""One file over many connections: growth, stealing, stalls, and the hash that follows."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from typing import Any

import anyio
from anyio.abc import TaskGroup

from supervisor.download.attempts import (
    LONGEST_PAUSE_S,
    Sources,
    check_size,
    identify,
    resumable,
)
from supervisor.download.files import reserved_bytes
from supervisor.download.follow import Follower
from supervisor.download.growth import Growth
from supervisor.download.intake import Intake
from supervisor.download.lane import Errand
from supervisor.download.meter import Meter
from supervisor.download.partial import PartFile
from supervisor.download.receive import Receiver, Reception, can_take_over
from supervisor.download.request import DownloadRequest, Resolved
from supervisor.download.resources import Resources
from supervisor.download.segments import (
    MIB,
    SMALLEST_PIECE_BYTES,
    SegmentMap,
    Span,
    piece_bytes,
)
from supervisor.download.storage import check_room, disk_errors
from supervisor.download.threads import in_thread
from supervisor.download.transport import (
    Link,
    LinkExpiredError,
    NoRangeError,
    RemoteChangedError,
    Reply,
    open_range,
    show_url,
    validator,
)
from supervisor.download.trip import Larger
from supervisor.download.watch import Watch
from supervisor.download.wire import DeclinedError
from supervisor.errors import TransientTransferError

Work = Coroutine[Any, Any, None]
FirstWork = Callable[[Reception], Work]

TICK_S = 0.1
EARLY_BYTES = MIB  # what aiohttp may hold before a receiver takes the connection over


class Transfer:
    """Brings the missing bytes of one open part file, and verifies them on the way."""

    def __init__(
        self,
        request: DownloadRequest,
        resolved: Resolved,
        sources: Sources,
        *,
        part: PartFile,
        meter: Meter,
        resources: Resources,
    ) -> None:
        self._request = request
        self._resolved = resolved
        self._sources = sources
        self._part = part
        self._meter = meter
        self._resources = resources
        self._link = Link.of(resolved)
        # The nodes of some networks give one file several ETags: when everything was dropped
        # for that once, and the hash is known, the hash decides.
        self._lenient = resolved.sha256 is not None and sources.changes > 0
        self._relinking = anyio.Lock()
        self._refused_at = -1  # bytes fetched when an address was refused last
        self._failures = self._failed_at = self._size = self._workers = self._paused = 0
        self._segments = SegmentMap(0)
        self._growth = Growth(resources.connections, resources.first_connections)
        self._error: Exception | None = None
        self._flowing: Callable[[], bool] = bool
        self._fetched_all = anyio.Event()
        self._follower = Follower(
            part,
            expected=resolved.sha256,
            threads=resources.hashers,
            drop_cache=resources.drop_cache,
        )

    async def open(self, stack: AsyncExitStack) -> tuple[Reply, Span | None]:
        """Ask for the first missing piece; the answer tells everything about the file.

        Without a span the answer must be read to its end by the simple way.
        """
        part = self._part
        if part.identity is not None and not resumable(part.identity, self._resolved):
            part.identity = None
        start, end = 0, SMALLEST_PIECE_BYTES
        size = part.identity.size_bytes if part.identity is not None else None
        if size:
            gap = next(part.written.gaps(size), None)
            if gap is not None:
                start = gap[0]
                end = min(gap[1], start + piece_bytes(size - part.written.total, 4))
        reply = await self._ask(stack, start, end)
        if not reply.ranged or reply.total is None or not can_take_over(reply.response):
            return reply, None
        remote = identify(reply, self._resolved)
        check_size(remote.size_bytes, self._resolved, reply.link.url)
        known = part.identity
        if known is None:
            if reply.start != 0:
                raise RemoteChangedError(f"Cannot resume {remote.origin}: its size is unknown")
            if reply.total > SMALLEST_PIECE_BYTES or reply.length != reply.total:
                await in_thread(self._resources.threads, lambda: part.restart(remote))
            else:  # comes whole in this answer: a journal would not pay
                part.identity = remote
        self._size = reply.total
        self._check(reply, start)
        self._link = reply.link
        self._segments = SegmentMap.of(self._size, part.written)
        return reply, self._segments.take_at(start, reply.length)

    async def run(self, stack: AsyncExitStack, reply: Reply, span: Span) -> None:
        """Fetch everything, hash included; ``stack`` holds the first answer.

        Raises:
            TransferError: by class; the part file keeps what has arrived.
        """
        await self._run(stack, lambda reception: self._receive(reception, stack, reply, span))

    async def go_on(self, stack: AsyncExitStack, first: Larger) -> None:
        """Like ``run``, after a first answer that a thread has got."""
        errand, self._size = first.errand, first.errand.total
        await in_thread(self._resources.threads, lambda: self._part.restart(first.identity))
        self._segments = SegmentMap.of(self._size, self._part.written)
        span = self._segments.take_at(0, errand.end)

        async def receive(reception: Reception) -> None:
            try:
                await self._resources.lanes.fetch(errand, span, reception.intake, first.opened)
            finally:
                self._segments.release(span)
                with anyio.CancelScope(shield=True):
                    await stack.aclose()

        await self._run(stack, receive)

    async def _run(self, stack: AsyncExitStack, first: FirstWork) -> None:
        await in_thread(self._resources.threads, self._reserve)
        self._meter.begin(done=self._part.written.total, total=self._size)
        intake = self._resources.intake(self._part, self._follower, self._meter, self._size)
        reception, self._flowing = Reception(intake), intake.flowing
        self._growth.at_s, self._growth.fetched = anyio.current_time(), self._resources.fetched
        try:
            with self._resources.sharing(self._meter):
                async with anyio.create_task_group() as group:
                    group.start_soon(self._follow, group)
                    group.start_soon(self._watch, reception, group)
                    group.start_soon(self._work, reception, group, first)
        finally:
            with anyio.CancelScope(shield=True):
                await stack.aclose()
            await intake.drain()
        self._raise(intake)

    async def verify(self) -> str | None:
        """See ``Follower.verify``."""
        return await self._follower.verify(self._request.name)

    async def follow_to_end(self) -> None:
        """Check and hash a part file that was complete from the start."""
        self._size = self._part.written.prefix_end
        await self._follower.run(self._size)

    def _reserve(self) -> None:
        part = self._part
        check_room(
            part.destination,
            self._size - reserved_bytes(part.destination),
            begun=part.written.total > 0,
        )
        if self._size > SMALLEST_PIECE_BYTES:
            part.allocate(self._size)

    async def _ask(self, stack: AsyncExitStack, start: int, end: int) -> Reply:
        resources, link = self._resources, self._link
        await stack.enter_async_context(self._slot())
        reply = await stack.enter_async_context(
            open_range(
                resources.session,
                link,
                start=start,
                end=end,
                if_range=self._if_range(),
                timeout_s=resources.stall_timeout_s,
                sock_read_s=resources.stall_timeout_s,
                buffer_bytes=EARLY_BYTES,
            )
        )
        resources.lanes.learn(reply)
        return reply

    def _slot(self) -> AbstractAsyncContextManager[None]:
        priority = self._resources.priority(self._request, first=self._workers <= 1)
        return self._resources.gate.slot(self._link.host, priority)

    def _if_range(self) -> str | None:
        identity = self._part.identity
        if identity is None or self._lenient:
            return None
        return validator(identity.etag, identity.modified)

    def _same_place(self) -> bool:
        known = self._part.identity
        here = known is not None and known.origin == show_url(self._resolved.url)
        return here and not self._lenient

    def _check(self, reply: Reply, start: int) -> None:
        known, where = self._part.identity, show_url(reply.link.url)
        if not reply.ranged:
            raise RemoteChangedError(f"Cannot resume {where}: the remote file changed")
        if not can_take_over(reply.response) or reply.start != start:
            raise NoRangeError(f"Cannot resume {where}: the server changed its manner")
        if reply.total != self._size or (
            known is not None
            and (
                known.size_bytes != reply.total or (self._same_place() and known.etag != reply.etag)
            )
        ):
            raise RemoteChangedError(f"Cannot resume {where}: the remote file changed")

    async def _work(
        self, reception: Reception, group: TaskGroup, first: FirstWork | None = None
    ) -> None:
        self._workers += 1
        try:
            if first is not None:
                await self._guard(group, first(reception))
            # Who was asked for patience does not stand in for one who works.
            while self._workers - self._paused <= self._growth.target and self._error is None:
                new = self._segments.take(self._growth.target) or self._segments.steal()
                if new is None:
                    return
                await self._guard(group, self._fetch(reception, new), new)
        finally:
            self._workers -= 1
            if self._segments.finished:
                self._fetched_all.set()

    async def _fetch(self, reception: Reception, span: Span) -> None:
        if self._resources.lanes.usable(self._link):
            try:
                await self._fetch_in_lane(reception, span)
            except DeclinedError:
                pass  # nothing came; aiohttp finds out why
            except BaseException:
                self._segments.release(span)
                raise
            else:
                self._segments.release(span)
                return
        async with AsyncExitStack() as stack:
            try:
                reply = await self._ask(stack, span.position, span.end)
                self._check(reply, span.position)
            except BaseException:
                self._segments.release(span)
                raise
            await self._receive(reception, stack, reply, span)

    async def _fetch_in_lane(self, reception: Reception, span: Span) -> None:
        known, link = self._part.identity, self._link
        errand = Errand(
            link,
            show_url(link.url),
            span.position,
            span.end,
            self._size,
            etag=known.etag if known is not None and self._same_place() else None,
            if_range=self._if_range(),
        )
        async with self._slot():
            await self._resources.lanes.fetch(errand, span, reception.intake)

    async def _receive(
        self, reception: Reception, stack: AsyncExitStack, reply: Reply, span: Span
    ) -> None:
        try:
            receiver = Receiver(span, reception, show_url(reply.link.url))
            await receiver.run(reply.response, reply.length or 0)
        finally:
            self._segments.release(span)
            with anyio.CancelScope(shield=True):
                await stack.aclose()

    async def _guard(self, group: TaskGroup, work: Work, span: Span | None = None) -> None:
        """Run one request, for ``span``; decide about its failure."""
        link, start = self._link, span.position if span else -1
        try:
            await work
        except LinkExpiredError as exc:
            await self._relink(group, link, exc)
        except RemoteChangedError as exc:
            self._fail(group, exc)
        except TransientTransferError as exc:  # one wrong range says nothing of the next
            nothing = span is not None and span.position == start
            await self._pause(group, exc, crowded=nothing and self._flowing())
        except Exception as exc:  # noqa: BLE001  (raised again by ``run``)
            self._fail(group, exc)

    async def _relink(self, group: TaskGroup, link: Link, exc: LinkExpiredError) -> None:
        async with self._relinking:
            if self._link is not link:
                return  # another connection has done it
            if self._refused_at == self._meter.fetched:
                self._fail(group, exc)  # not one byte with the new address either
                return
            self._refused_at = self._meter.fetched
            try:
                self._link = Link.of(await self._sources.resolve())
            except Exception as error:  # noqa: BLE001  (raised again by ``run``)
                self._fail(group, error)

    async def _pause(self, group: TaskGroup, exc: TransientTransferError, *, crowded: bool) -> None:
        """Wait after a failure; ``crowded``: the server turned us away while it served others."""
        if crowded:
            self._resources.gate.turned_away(self._link.host)
        moved = crowded or self._meter.fetched > self._failed_at
        self._failures = 1 if moved else self._failures + 1
        self._failed_at = self._meter.fetched
        wanted_s = exc.retry_after_s or 0.0
        alone = not self._segments.active
        if self._failures >= self._resources.attempts or (alone and wanted_s > LONGEST_PAUSE_S):
            self._fail(group, exc)
            return
        if exc.retry_after_s is not None:
            self._growth.shrink(anyio.current_time())
        if alone:
            self._meter.say(exc.message)
        delay_s = self._resources.backoff.delay_s(self._failures - 1)
        # The others may fetch everything meanwhile: then nobody waits for this one.
        self._paused += 1
        with anyio.move_on_after(wanted_s + delay_s):
            await self._fetched_all.wait()
        self._paused -= 1

    def _fail(self, group: TaskGroup, exc: Exception) -> None:
        if self._error is None:
            self._error = exc
        group.cancel_scope.cancel()

    def _raise(self, intake: Intake) -> None:
        if intake.error is not None:
            with disk_errors(self._part.destination):
                raise intake.error
        if self._error is not None:
            raise self._error

    async def _watch(self, reception: Reception, group: TaskGroup) -> None:
        intake, last_s = reception.intake, anyio.current_time()
        watch = Watch(self._resources.stall_timeout_s)
        while not self._segments.finished:
            self._grow(reception, group)
            with anyio.move_on_after(TICK_S):
                await self._fetched_all.wait()
            now_s = anyio.current_time()
            watch.judge(list(intake.connections), elapsed_s=now_s - last_s)
            last_s = now_s
            reception.tick()
            intake.tick()
            if intake.error is not None:
                group.cancel_scope.cancel()
        # Idle workers have ended by themselves; the last writes end in ``drain``.
        self._fetched_all.set()

    def _grow(self, reception: Reception, group: TaskGroup) -> None:
        growth, segments, resources = self._growth, self._segments, self._resources
        growth.bound(resources.most_connections)
        saturated = len(reception.intake.connections) >= growth.target
        growth.step(anyio.current_time(), resources.fetched, saturated=saturated)
        useful = min(growth.target, 1 + segments.left // (2 * MIB))
        if segments.pending or len(segments.active) < useful:
            for _ in range(useful - self._workers):
                group.start_soon(self._work, reception, group)

    async def _follow(self, group: TaskGroup) -> None:
        try:
            await self._follower.run(self._size)
        except Exception as exc:  # noqa: BLE001  (raised again by ``run``)
            self._fail(group, exc)
