"""Whatever connections do, every byte is fetched by exactly one of them at a time."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from supervisor.download.segments import MIB, SMALLEST_STEAL_BYTES, Intervals, SegmentMap, Span

SIZES = st.integers(0, 200 * MIB)


@given(st.lists(st.tuples(st.integers(0, 300), st.integers(0, 60))), st.integers(1, 400))
def test_intervals_are_the_set_of_their_bytes(adds: list[tuple[int, int]], size: int) -> None:
    intervals, model = Intervals(), set[int]()
    for start, length in adds:
        intervals.add(start, start + length)
        model |= set(range(start, start + length))
        pairs = list(intervals)
        assert all(a < b for a, b in pairs)
        assert all(left[1] < right[0] for left, right in pairwise(pairs))
        assert intervals.total == len(model)
    assert {byte for a, b in intervals for byte in range(a, b)} == model
    assert {byte for a, b in intervals.gaps(size) for byte in range(a, b)} == (
        set(range(size)) - model
    )
    prefix = 0
    while prefix in model:
        prefix += 1
    assert intervals.prefix_end == prefix


def _covers(segments: SegmentMap, done: Intervals) -> None:
    pieces = [*segments.pending, *((s.position, s.end) for s in segments.active if s.left), *done]
    position = 0
    for start, end in sorted(pieces):
        assert start == position, "a hole or an overlap"
        position = end
    assert position == segments.size


@settings(max_examples=200)
@given(SIZES, st.data())
def test_no_byte_is_lost_or_fetched_twice_at_a_time(size: int, data: st.DataObject) -> None:
    done = Intervals()
    for start, length in data.draw(
        st.lists(st.tuples(st.integers(0, max(size, 1)), st.integers(0, 40 * MIB)), max_size=4)
    ):
        done.add(start, min(start + length, size))
    segments, rates = SegmentMap.of(size, done), st.floats(0, 1e9)
    for _ in range(data.draw(st.integers(0, 40))):
        action = data.draw(st.sampled_from(["take", "steal", "move", "move", "release"]))
        if action == "take":
            segments.take(data.draw(st.integers(1, 32)))
        elif action == "steal":
            victims = {id(span): span.left for span in segments.active}
            stolen = segments.steal()
            if stolen is not None:
                assert stolen.left >= SMALLEST_STEAL_BYTES
                assert all(
                    span.left >= SMALLEST_STEAL_BYTES
                    for span in segments.active
                    if id(span) in victims and victims[id(span)] != span.left
                )
        elif segments.active:
            span = data.draw(st.sampled_from(segments.active))
            if action == "release":
                segments.release(span)
            else:
                _move(span, done, data.draw(st.integers(0, span.left)), data.draw(rates))
        _covers(segments, done)
    _finish(segments, done)
    assert done.total == size


def _move(span: Span, done: Intervals, count: int, rate: float) -> None:
    done.add(span.position, span.position + count)
    span.position += count
    span.rate_bytes_per_s = rate


def _finish(segments: SegmentMap, done: Intervals) -> None:
    while not segments.finished:
        span = segments.take(4) or segments.active[0]
        _move(span, done, span.left, 1.0)
        segments.release(span)
