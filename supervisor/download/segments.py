"""Which bytes are here, which are under way, and who takes which next. Pure.

A ``Span`` is one request's work: [position, end) is still to come. The map hands out the
lowest missing bytes first, so that a hash can follow the contiguous prefix.
"""

from __future__ import annotations

import threading
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field

MIB = 1024 * 1024
SMALLEST_PIECE_BYTES = 8 * MIB
LARGEST_PIECE_BYTES = 32 * MIB
# Less than this is not worth a connection of its own, unless it comes very slowly.
SHORT_BYTES = 1 * MIB
SMALLEST_STEAL_BYTES = 256 * 1024
SLOW_REST_S = 1.0
# What comes sooner is not worth a request, and what its server has sent already is lost.
QUICK_REST_S = 0.1


class Intervals:
    """A set of disjoint, sorted, half-open ranges of bytes."""

    __slots__ = ("_ends", "_starts", "total")

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []
        self.total = 0

    def add(self, start: int, end: int) -> None:
        """Add [start, end), merging what touches it."""
        if start >= end:
            return
        first = bisect_left(self._ends, start)
        last = bisect_right(self._starts, end)
        if first < last:
            start = min(start, self._starts[first])
            end = max(end, self._ends[last - 1])
            self.total -= sum(
                self._ends[index] - self._starts[index] for index in range(first, last)
            )
        self._starts[first:last] = [start]
        self._ends[first:last] = [end]
        self.total += end - start

    @property
    def prefix_end(self) -> int:
        """How many bytes from the start are here without a hole."""
        return self._ends[0] if self._starts and self._starts[0] == 0 else 0

    def gaps(self, size: int) -> Iterator[tuple[int, int]]:
        """The ranges of [0, size) that are missing, in order."""
        position = 0
        for start, end in self:
            if start > position:
                yield position, min(start, size)
            position = max(position, end)
            if position >= size:
                return
        if position < size:
            yield position, size

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return iter(list(zip(self._starts, self._ends, strict=True)))


@dataclass(slots=True, eq=False)
class Span:
    """The bytes [position, end) that one connection is fetching."""

    position: int
    end: int
    rate_bytes_per_s: float = 0.0  # as last measured; the caller keeps it
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    @property
    def left(self) -> int:
        """Bytes still to come."""
        return self.end - self.position

    @property
    def seconds_left(self) -> float:
        """How long the rest will take at the last rate."""
        return self.left / max(self.rate_bytes_per_s, 1.0)

    def advance(self, count: int) -> int:
        """So many bytes more have come; how many of them belong here. From any thread."""
        with self._lock:
            count = max(0, min(count, self.end - self.position))
            self.position += count
            return count

    def halve(self) -> Span:
        """Give the second half of the rest away. From any thread."""
        with self._lock:
            middle = self.position + self.left // 2
            stolen, self.end = Span(middle, self.end), middle
            return stolen


@dataclass(slots=True)
class SegmentMap:
    """Shares the missing bytes of one file out to connections."""

    size: int
    pending: list[tuple[int, int]] = field(default_factory=list)  # sorted
    active: list[Span] = field(default_factory=list)

    @classmethod
    def of(cls, size: int, done: Intervals) -> SegmentMap:
        """Start with everything that is not ``done``."""
        return cls(size, list(done.gaps(size)))

    @property
    def left(self) -> int:
        """Bytes that no connection has received yet."""
        return sum(end - start for start, end in self.pending) + sum(s.left for s in self.active)

    @property
    def finished(self) -> bool:
        """Nothing is missing and nothing is under way."""
        return not self.pending and not self.active

    def take(self, connections: int) -> Span | None:
        """Hand out the lowest missing bytes; None when all are under way.

        Pieces shrink towards the end, so that all connections finish together.
        """
        if not self.pending:
            return None
        start, end = self.pending[0]
        length = piece_bytes(self.left, connections)
        # A short tail is taken along: a request for a few bytes is a wasted round trip.
        cut = end if end - start <= length + SHORT_BYTES else start + length
        if cut < end:
            self.pending[0] = (cut, end)
        else:
            del self.pending[0]
        span = Span(start, cut, self._usual_rate())
        self.active.append(span)
        return span

    def take_at(self, start: int, limit: int | None) -> Span:
        """Hand out the missing bytes from ``start``, at most ``limit`` of them."""
        for index, (begin, end) in enumerate(self.pending):
            if begin == start:
                cut = end if limit is None else min(end, start + limit)
                self.pending[index : index + 1] = [(cut, end)] if cut < end else []
                span = Span(start, cut)
                self.active.append(span)
                return span
        raise ValueError(f"no missing bytes begin at {start}")

    def steal(self) -> Span | None:
        """Take half of what the slowest connection still has to fetch, when that is worth it."""
        victims = [
            span
            for span in self.active
            if (span.left >= 2 * SHORT_BYTES and span.seconds_left > QUICK_REST_S)
            or (span.left >= 2 * SMALLEST_STEAL_BYTES and span.seconds_left > SLOW_REST_S)
        ]
        if not victims:
            return None
        victim = max(victims, key=lambda span: span.seconds_left)
        stolen = victim.halve()
        stolen.rate_bytes_per_s = self._usual_rate()
        self.active.append(stolen)
        return stolen

    def _usual_rate(self) -> float:
        """What a new connection may be expected to bring; 0.0 while nobody knows."""
        rates = [span.rate_bytes_per_s for span in self.active if span.rate_bytes_per_s]
        return sum(rates) / len(rates) if rates else 0.0

    def release(self, span: Span) -> None:
        """A connection is done with ``span``; what it did not fetch is missing again."""
        self.active.remove(span)
        if span.left > 0:
            self.pending.append((span.position, span.end))
            self.pending.sort()


def piece_bytes(left: int, connections: int) -> int:
    """Length of the next request: a quarter of a fair share, from 8 to 32 MiB."""
    share = left // (4 * max(connections, 1))
    aligned = share // MIB * MIB
    return max(SMALLEST_PIECE_BYTES, min(LARGEST_PIECE_BYTES, aligned))
