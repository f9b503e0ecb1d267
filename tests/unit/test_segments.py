"""Piece sizes, stealing, growth and the token bucket, by example."""

from __future__ import annotations

import anyio
import pytest

from supervisor.download.growth import Growth
from supervisor.download.limits import HostGate, RateLimiter
from supervisor.download.segments import MIB, Intervals, SegmentMap, piece_bytes


@pytest.mark.parametrize(
    ("left", "connections", "expected"),
    [
        (100_000 * MIB, 16, 32 * MIB),
        (1280 * MIB, 16, 20 * MIB),
        (100 * MIB, 16, 8 * MIB),
        (0, 1, 8 * MIB),
    ],
)
def test_pieces_are_8_to_32_mib_and_shrink_towards_the_end(
    left: int, connections: int, expected: int
) -> None:
    assert piece_bytes(left, connections) == expected


def test_bytes_are_handed_out_from_the_front() -> None:
    done = Intervals()
    done.add(0, 3 * MIB)
    done.add(10 * MIB, 12 * MIB)
    segments = SegmentMap.of(40 * MIB, done)
    taken = []
    while (span := segments.take(4)) is not None:
        taken.append((span.position // MIB, span.end // MIB))
    assert taken == [(3, 10), (12, 20), (20, 28), (28, 36), (36, 40)]


def test_the_idle_take_half_of_what_the_slowest_still_has_to_do() -> None:
    segments = SegmentMap.of(16 * MIB, Intervals())
    fast, slow = segments.take(4), segments.take(4)
    assert fast is not None
    assert slow is not None
    fast.rate_bytes_per_s, slow.rate_bytes_per_s = 100.0, 1.0
    slow.position += 4 * MIB
    stolen = segments.steal()
    assert stolen is not None
    assert (stolen.position, stolen.end) == (14 * MIB, 16 * MIB)
    assert slow.end == 14 * MIB


def test_a_rest_that_is_not_worth_a_connection_stays_where_it_is() -> None:
    segments = SegmentMap.of(MIB, Intervals())
    span = segments.take(1)
    assert span is not None
    span.rate_bytes_per_s = 10.0 * MIB
    assert segments.steal() is None
    span.rate_bytes_per_s = 0.1 * MIB  # ten seconds for the rest
    assert segments.steal() is not None


def test_connections_grow_while_that_brings_more_and_not_further() -> None:
    growth, fetched, now_s, targets = Growth(16, 2), 0, 0.0, []
    for _ in range(9):
        now_s += 0.3
        fetched += min(growth.target, 8) * 30_000_000  # the network carries eight
        growth.step(now_s, fetched, saturated=True)
        targets.append(growth.target)
    # Each number first settles. The third doubling brings nothing more, and is taken back.
    assert targets == [2, 4, 4, 8, 8, 16, 16, 16, 8]
    growth.shrink(now_s)
    assert growth.target == 4


def test_connections_that_each_bring_little_are_many_at_once() -> None:
    growth, fetched, now_s, targets = Growth(16, 2), 0, 0.0, []
    for _ in range(3):
        now_s += 0.15
        fetched += growth.target * 3_000_000  # 20 MB/s each
        growth.step(now_s, fetched, saturated=True)
        targets.append(growth.target)
    assert targets == [16, 16, 16]


def test_a_burst_at_the_start_does_not_stop_the_growth_for_good() -> None:
    growth, fetched, now_s = Growth(16, 4), 500_000, 0.0  # burst
    for _ in range(40):
        now_s += 0.3
        fetched += growth.target * 1000  # every connection is throttled alike
        growth.step(now_s, fetched, saturated=True)
    assert growth.target == 16


def test_a_probe_that_brings_nothing_is_taken_back() -> None:
    growth, fetched, now_s, targets = Growth(64, 4), 0, 0.0, []
    for _ in range(60):
        now_s += 0.3
        fetched += 800_000_000
        growth.step(now_s, fetched, saturated=True)
        targets.append(growth.target)
    assert max(targets) == 8
    assert targets.count(4) > targets.count(5) > 0


def test_the_bucket_gives_the_rate_over_time() -> None:
    now_s, sent = 0.0, 0
    limiter = RateLimiter(1_000_000, clock=lambda: now_s)
    while now_s < 10:
        delay_s = limiter.charge(50_000)
        sent += 50_000
        now_s += delay_s
    assert sent == pytest.approx(10_000_000, rel=0.03)
    assert RateLimiter(None).charge(10**12) == 0


@pytest.mark.anyio
async def test_the_gate_holds_the_limit_serves_the_urgent_first_and_survives_cancels() -> None:
    gate, go, order, held, peak = HostGate(2), anyio.Event(), list[int](), 0, 0

    async def visit(priority: int) -> None:
        nonlocal held, peak
        async with gate.slot("host", priority):
            held += 1
            peak = max(peak, held)
            order.append(priority)
            await go.wait()
            held -= 1

    async with anyio.create_task_group() as group:
        for priority in (9, 9, 5, 3, 1, 4):
            group.start_soon(visit, priority)
        await anyio.wait_all_tasks_blocked()
        with anyio.move_on_after(0):
            await visit(0)
        go.set()
    assert peak == 2
    assert order == [9, 9, 1, 3, 4, 5]
    async with gate.slot("host", 0), gate.slot("host", 0):
        pass


@pytest.mark.anyio
async def test_a_host_gets_as_many_as_it_keeps_and_more_after_a_while() -> None:
    now_s = 0.0
    gate = HostGate(8, clock=lambda: now_s)
    for _ in range(8):
        await gate.acquire("host", 0)
    for _ in range(5):  # three are served, the others turned away
        gate.release("host")
        gate.turned_away("host")
    assert gate.most("host") == 3
    assert gate.most("another") == 8
    done: list[int] = []

    async def visit(number: int) -> None:
        await gate.acquire("host", number)
        done.append(number)

    async with anyio.create_task_group() as group:
        for number in range(3):
            group.start_soon(visit, number)
        await anyio.wait_all_tasks_blocked()
        assert not done
        gate.release("host")
        await anyio.wait_all_tasks_blocked()
        assert done == [0]
        now_s += 2 * HostGate.PATIENCE_S  # two more may be tried
        gate.release("host")
        await anyio.wait_all_tasks_blocked()
        assert done == [0, 1, 2]
    now_s += 20 * HostGate.PATIENCE_S
    assert gate.most("host") == 8


def test_a_file_gives_connections_up_when_others_want_their_share() -> None:
    growth = Growth(16, 16)
    growth.bound(2)
    assert growth.target == 2
    growth.bound(16)
    growth.step(1.0, 2_000_000, saturated=True)
    assert growth.target > 2  # and takes them again when it is alone
