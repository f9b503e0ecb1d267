"""The output of services: a ring per service, followers, files and stdout.

A service that writes faster than its share is read all the same, so that it never waits;
what exceeds the share is dropped in bulk, counted, and said in the log.
"""

from __future__ import annotations

import heapq
import re
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count, islice, repeat, takewhile
from pathlib import Path

import anyio

from supervisor.core.clock import wall_time_s
from supervisor.services.lines import LineSplitter, to_text
from supervisor.services.sinks import FileWriter, LogLine, Sink, StreamWriter, stdout_descriptor

__all__ = ["LogLine", "LogLimits", "LogStore", "LogSubscription", "ServiceLog"]

_LAST_WORDS = 40  # lines that are kept of a flood that ends with the process
_LAST_WORDS_BYTES = 16 * 1024
_LINE_OVERHEAD_BYTES = 150  # of a tuple, its numbers and its string object


@dataclass(frozen=True, slots=True)
class LogLimits:
    """Bounds per service; of a stream, what is above ``rate`` (after a ``burst``) is dropped."""

    ring_lines: int = 5000
    ring_bytes: int = 2 * 1024 * 1024
    burst_bytes: int = 8 * 1024 * 1024
    rate_bytes_per_s: int = 4 * 1024 * 1024
    file_bytes: int = 10 * 1024 * 1024
    files_kept: int = 3


class LogSubscription:
    """A bounded queue of lines; iterate over it. The oldest go when the reader is slow."""

    def __init__(self, service: str | None, limit: int) -> None:
        self.service = service
        self._queue: deque[LogLine] = deque(maxlen=limit)
        self._wake = anyio.Event()
        self._closed = False
        self.lagged = 0

    def push(self, lines: list[LogLine]) -> None:
        """Add lines and count those that fall out."""
        room = (self._queue.maxlen or 0) - len(self._queue)
        self.lagged += max(0, len(lines) - room)
        self._queue.extend(lines)
        self._wake.set()

    def close(self) -> None:
        """End the iteration after what is queued."""
        self._closed = True
        self._wake.set()

    @property
    def closed(self) -> bool:
        """Whether nothing will come any more."""
        return self._closed

    async def wait(self) -> None:
        """Return when there are lines, or there will be none."""
        while not self._queue and not self._closed:
            self._wake = anyio.Event()
            await self._wake.wait()

    def take(self) -> list[LogLine]:
        """Return all lines that are queued: cheaper than iterating when there are many."""
        lines = list(self._queue)
        self._queue.clear()
        return lines

    async def __aiter__(self) -> AsyncIterator[LogLine]:
        """Yield lines until cancelled or closed."""
        while True:
            while self._queue:
                yield self._queue.popleft()
            if self._closed:
                return
            self._wake = anyio.Event()
            await self._wake.wait()


@dataclass(slots=True)
class _Ring:
    """The last lines of one service, bounded in lines and bytes."""

    limits: LogLimits
    lines: deque[LogLine] = field(default_factory=deque)
    size_bytes: int = 0

    def extend(self, lines: list[LogLine], size_bytes: int) -> None:
        self.lines.extend(lines)
        self.size_bytes += size_bytes + _LINE_OVERHEAD_BYTES * len(lines)
        while self.lines and (
            len(self.lines) > self.limits.ring_lines or self.size_bytes > self.limits.ring_bytes
        ):
            self.size_bytes -= len(self.lines.popleft().text) + _LINE_OVERHEAD_BYTES


@dataclass(slots=True)
class _Stream:
    """One of a service's streams: its unfinished line, and its share of the log.

    Each has a share of its own, so that a flood on one costs no error on the other.
    """

    tokens_bytes: float
    splitter: LineSplitter = field(default_factory=LineSplitter)
    refilled_s: float | None = None
    skipped: bytes = b""  # the end of what was dropped since the last line that was kept

    def affordable(self, data: bytes, now_s: float, limits: LogLimits) -> bool:
        """Whether ``data`` is within the share; pays for it then."""
        if self.refilled_s is not None:
            gained = (now_s - self.refilled_s) * limits.rate_bytes_per_s
            self.tokens_bytes = min(limits.burst_bytes, self.tokens_bytes + gained)
        self.refilled_s = now_s
        if self.tokens_bytes <= 0:
            return False
        self.tokens_bytes -= len(data) + _LINE_OVERHEAD_BYTES * data.count(b"\n")
        return True

    def skip(self, data: bytes) -> int:
        """Drop ``data`` and return how many bytes are lost."""
        enough = len(data) >= _LAST_WORDS_BYTES
        self.skipped = data if enough else (self.skipped + data)[-_LAST_WORDS_BYTES:]
        return self.splitter.skip(data)

    def end(self) -> tuple[list[bytes], list[bytes]]:
        """The process has ended: return the last lines that were dropped, and what was
        unfinished. The next life goes on with the same share."""
        lines = LineSplitter().feed(self.skipped, 0.0)[1:]  # the first may lack its beginning
        rest = self.splitter.end()
        self.splitter, self.skipped = LineSplitter(), b""
        return lines[-_LAST_WORDS:], rest


class ServiceLog:
    """What one service writes, from both of its streams."""

    def __init__(self, store: LogStore, name: str, limits: LogLimits) -> None:
        self._store = store
        self._name = name
        self._limits = limits
        self._ring = _Ring(limits)
        self._streams: dict[str, _Stream] = {}
        self._unsaid_bytes = 0
        self._said_s = float("-inf")
        self._waiting: list[tuple[re.Pattern[str], anyio.Event]] = []
        self.dropped_bytes = 0
        self.last_output_s = float("-inf")

    def feed(self, stream: str, data: bytes, now_s: float) -> bool:
        """Take what was read from ``stream``; ``now_s`` is the event loop's clock.

        Returns whether it was dropped.
        """
        source = self._stream(stream)
        self.last_output_s = now_s
        if not source.affordable(data, now_s, self._limits):
            if self._waiting:
                self._match(to_text([data]))
            self._drop(source.skip(data), now_s)
            return True
        if source.skipped:
            source.skipped = b""
            self._say_dropped(now_s)
        self._emit(stream, source.splitter.feed(data, now_s))
        return False

    def idle(self, stream: str, now_s: float) -> None:
        """Show an unfinished line after a pause."""
        self._emit(stream, self._stream(stream).splitter.idle(now_s))

    def pending(self, stream: str) -> bool:
        """Whether ``stream`` holds an unfinished line."""
        return self._stream(stream).splitter.pending

    def end(self, stream: str, now_s: float) -> None:
        """The stream of one process has ended. Its last words are kept whatever it wrote."""
        words, rest = self._stream(stream).end()
        kept_bytes = min(self._unsaid_bytes, sum(len(word) + 1 for word in words))
        self._unsaid_bytes -= kept_bytes
        self.dropped_bytes -= kept_bytes
        self._say_dropped(now_s)
        self._emit(stream, [*words, *rest])

    def note(self, text: str) -> None:
        """Add a line of the supervisor's own."""
        self._publish("supervisor", self._store.redact(text).split("\n"))

    def count_dropped(self, size_bytes: int) -> None:
        """Count bytes that a sink could not take."""
        self.dropped_bytes += size_bytes
        self._store.dropped(self._name, self.dropped_bytes)

    def said_since(self, position: int, limit: int) -> tuple[str, ...]:
        """What the service itself wrote after ``position`` (see ``position``)."""
        lines = takewhile(lambda line: line.seq > position, reversed(self._ring.lines))
        own = (line.text for line in lines if line.stream != "supervisor")
        return tuple(islice(own, limit))[::-1]

    @property
    def position(self) -> int:
        """Where the log of all services is now."""
        return self._store.number(0) - 1

    def tail(self, limit: int, stream: str | None = None) -> list[LogLine]:
        """Return the last lines, oldest first."""
        lines = reversed(self._ring.lines)
        own = (line for line in lines if stream is None or line.stream == stream)
        return list(islice(own, limit))[::-1]

    @contextmanager
    def expect(self, pattern: str) -> Iterator[anyio.Event]:
        """Set the event when a line matches from now on."""
        entry = (re.compile(pattern, re.MULTILINE), anyio.Event())
        self._waiting.append(entry)
        try:
            yield entry[1]
        finally:
            self._waiting.remove(entry)

    def _stream(self, name: str) -> _Stream:
        if name not in self._streams:
            self._streams[name] = _Stream(float(self._limits.burst_bytes))
        return self._streams[name]

    def _drop(self, size_bytes: int, now_s: float) -> None:
        self._unsaid_bytes += size_bytes
        self.dropped_bytes += size_bytes
        if now_s - self._said_s >= 1.0:
            self._say_dropped(now_s)

    def _say_dropped(self, now_s: float) -> None:
        if not self._unsaid_bytes:
            return
        self.note(f"{self._unsaid_bytes} bytes of output dropped: they came too fast")
        self._unsaid_bytes = 0
        self._said_s = now_s
        self._store.dropped(self._name, self.dropped_bytes)

    def _emit(self, stream: str, lines: list[bytes]) -> None:
        if not lines:
            return
        text = to_text(lines)
        if self._waiting:
            self._match(text)
        self._publish(stream, self._store.redact(text).split("\n"))

    def _match(self, text: str) -> None:
        for pattern, event in self._waiting:
            if not event.is_set() and pattern.search(text):
                event.set()

    def _publish(self, stream: str, texts: list[str]) -> None:
        at_s = self._store.clock()
        seq = self._store.number(len(texts))
        # map makes the tuples twice as fast as a comprehension
        same = (repeat(self._name), repeat(at_s), repeat(stream))
        lines = list(map(LogLine, *same, texts, count(seq)))
        size_bytes = sum(map(len, texts))
        self._ring.extend(lines, size_bytes)
        self._store.distribute(self._name, lines, size_bytes + 40 * len(lines))

    def merged(self) -> Iterator[LogLine]:
        """Return an iterator over the ring, newest first."""
        return reversed(self._ring.lines)


class LogStore:
    """All logs. ``redact`` removes secrets from a text; ``directory`` None = no files."""

    def __init__(
        self,
        directory: Path | None,
        redact: Callable[[str], str],
        *,
        console: bool = True,
        console_json: bool = False,
        limits: LogLimits | None = None,
        clock: Callable[[], float] = wall_time_s,
    ) -> None:
        self.redact = redact
        self.clock = clock
        self.on_drop: Callable[[str, int], None] = lambda _name, _total: None
        self._limits = limits or LogLimits()
        self._services: dict[str, ServiceLog] = {}
        self._subscriptions: set[LogSubscription] = set()
        self._seq = 0
        self._files = FileWriter(
            directory, max_bytes=self._limits.file_bytes, keep=self._limits.files_kept
        )
        self._sinks = [Sink(self._files, on_drop=self._count_dropped)]
        if console:
            writer = StreamWriter(descriptor=stdout_descriptor(), as_json=console_json)
            self._sinks.append(Sink(writer, on_drop=self._count_dropped))

    async def run(self) -> None:
        """Write to files and stdout until cancelled; what is queued then is written first."""
        try:
            async with anyio.create_task_group() as tasks:
                for sink in self._sinks:
                    tasks.start_soon(sink.run)
        finally:
            # A reader of stdout that stopped reading must not hold up the end.
            with anyio.move_on_after(1.0, shield=True):
                for sink in self._sinks:
                    await anyio.to_thread.run_sync(sink.flush, abandon_on_cancel=True)

    async def release_files(self) -> None:
        """Close the files when all is written, so that they count as finished.

        The next line opens its file again.
        """
        await self._sinks[0].settle(self._files.close)

    def service(self, name: str) -> ServiceLog:
        """Return the log of one service, made on first use."""
        if name not in self._services:
            self._services[name] = ServiceLog(self, name, self._limits)
        return self._services[name]

    def also_write(self, name: str, path: Path | None) -> None:
        """Append the lines of a service to a file of the user's too."""
        self._files.also(name, path)

    def names(self) -> list[str]:
        """Return the services that have a log."""
        return sorted(self._services)

    def tail(self, service: str | None, limit: int) -> list[LogLine]:
        """Return the last lines of one service, or of all merged, oldest first."""
        if service is not None:
            log = self._services.get(service)
            return log.tail(limit) if log else []
        rings = [log.merged() for log in self._services.values()]
        newest = heapq.merge(*rings, key=lambda line: line.seq, reverse=True)
        return list(islice(newest, limit))[::-1]

    @contextmanager
    def subscribe(self, service: str | None = None, limit: int = 5000) -> Iterator[LogSubscription]:
        """Receive every line of a service (None = all) while the context is open."""
        subscription = LogSubscription(service, limit)
        self._subscriptions.add(subscription)
        try:
            yield subscription
        finally:
            self._subscriptions.discard(subscription)

    def close_subscriptions(self) -> None:
        """End every follower, so that none holds up a shutdown."""
        for subscription in self._subscriptions:
            subscription.close()

    def number(self, count: int) -> int:
        """Reserve ``count`` sequence numbers; return the first."""
        first = self._seq + 1
        self._seq += count
        return first

    def distribute(self, name: str, lines: list[LogLine], size_bytes: int) -> None:
        """Hand lines to followers and sinks."""
        for subscription in self._subscriptions:
            if subscription.service in (None, name):
                subscription.push(lines)
        for sink in self._sinks:
            sink.put(lines, size_bytes)

    def dropped(self, name: str, total_bytes: int) -> None:
        """Tell that output of a service was lost."""
        self.on_drop(name, total_bytes)

    def _count_dropped(self, name: str, size_bytes: int) -> None:
        self.service(name).count_dropped(size_bytes)
