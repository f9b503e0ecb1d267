"""Which connections are given up: those that stall or crawl, never those that wait for us."""

from __future__ import annotations

import time

import pytest

from supervisor.download.segments import MIB, Span
from supervisor.download.watch import SLOW_AFTER_S, Stretch, judge

STALL_S = 30.0


class Connection(Stretch):
    """One that fetches at a steady rate, as far as anybody sees."""

    def __init__(self, rate: float, *, held: bool = False) -> None:
        super().__init__(Span(0, 100 * MIB, rate))
        self.rate = rate
        self.waits = held
        self.reason: str | None = None

    @property
    def held(self) -> bool:
        return self.waits

    def abort(self, reason: str) -> None:
        self.reason = reason

    def move(self, seconds: float) -> None:
        self.span.advance(int(self.rate * seconds))


def look(connections: list[Connection], *, silent_s: float = 0.0, slow_s: float = 0.0) -> None:
    """Judge them as if they had been silent, or under the median, for so long."""
    for connection in connections:
        connection.move(1.0)
        connection.last_byte_s = time.monotonic() - silent_s
        connection.slow_since_s = time.monotonic() - slow_s
    judge(connections, elapsed_s=1.0, stall_timeout_s=STALL_S)


def test_silence_is_a_stall_only_when_the_server_is_waited_for() -> None:
    silent, ours = Connection(0.0), Connection(0.0, held=True)
    look([silent, ours], silent_s=STALL_S + 1)
    assert (silent.reason, ours.reason) == ("it stalled", None)
    look([ours], silent_s=STALL_S - 1)
    assert ours.reason is None


@pytest.mark.parametrize(
    ("slow_s", "replaced"), [(SLOW_AFTER_S - 1, False), (SLOW_AFTER_S + 1, True)]
)
def test_a_crawler_among_quick_ones_is_replaced_after_a_while(
    slow_s: float, replaced: bool
) -> None:
    quick = [Connection(10 * MIB) for _ in range(3)]
    crawler, ours = Connection(0.5 * MIB), Connection(0.5 * MIB, held=True)
    look([*quick, crawler, ours], slow_s=slow_s)
    assert (crawler.reason is not None) is replaced
    assert {c.reason for c in (*quick, ours)} == {None}


def test_two_connections_are_no_majority() -> None:
    quick, crawler = Connection(10 * MIB), Connection(0.1 * MIB)
    look([quick, crawler], slow_s=SLOW_AFTER_S + 1)
    assert crawler.reason is None


def test_a_crawler_that_recovers_has_its_time_anew() -> None:
    connections = [Connection(10 * MIB) for _ in range(4)]
    look(connections, slow_s=SLOW_AFTER_S + 1)
    assert all(c.slow_since_s > time.monotonic() - SLOW_AFTER_S for c in connections)


def test_the_rate_follows_what_arrives() -> None:
    connection = Connection(0.0)
    connection.rate = 10 * MIB
    look([connection])
    first = connection.span.rate_bytes_per_s
    look([connection])
    assert 0 < first < connection.span.rate_bytes_per_s < 10 * MIB
