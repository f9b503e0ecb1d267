"""Which connections are given up. The clock is the test's."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from supervisor.download import watch as module
from supervisor.download.segments import Span
from supervisor.download.watch import Stretch, Watch

MB = 1_000_000
TICK_S = 0.1


class Line(Stretch):
    """A connection that brings ``rate`` bytes a second."""

    def __init__(self, rate: int) -> None:
        super().__init__(Span(0, 10_000 * MB))
        self.rate = rate
        self.reason = ""

    @property
    def held(self) -> bool:
        return False

    def abort(self, reason: str) -> None:
        self.reason = self.reason or reason


class World:
    """Time goes on and every line brings its bytes."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, stall_timeout_s: float = 300.0) -> None:
        self.now_s = 1000.0
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: self.now_s))
        self.watch = Watch(stall_timeout_s)

    def run(self, seconds: float, *lines: Line) -> None:
        for _ in range(round(seconds / TICK_S)):
            self.now_s += TICK_S
            for line in lines:
                count = line.span.advance(round(line.rate * TICK_S))
                line.last_byte_s = self.now_s if count else line.last_byte_s
            self.watch.judge(lines, elapsed_s=TICK_S)


def test_one_far_behind_its_siblings_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch)
    lines = [Line(4 * MB), Line(4 * MB), Line(2 * MB), Line(20_000)]
    world.run(10, *lines)
    assert [bool(line.reason) for line in lines] == [False, False, False, True]


def test_the_last_one_is_measured_by_those_that_have_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch)
    slow = Line(2_000)
    world.run(2, *(Line(4 * MB) for _ in range(4)), slow)
    world.run(10, slow)
    assert "slower" in slow.reason


def test_a_network_that_gets_slow_is_no_connections_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch)
    lines = [Line(4 * MB), Line(4 * MB)]
    world.run(2, *lines, Line(4 * MB))
    for line in lines:
        line.rate = 200_000
    world.run(60, *lines)
    assert not any(line.reason for line in lines)


def test_silence_ends_a_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch, stall_timeout_s=20.0)
    line = Line(0)
    world.run(15, line)
    assert not line.reason
    world.run(10, line)
    assert "stalled" in line.reason
