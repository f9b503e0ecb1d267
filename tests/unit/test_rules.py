"""Thresholds, hysteresis and durations of alerts."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from supervisor.monitor.rules import Rule, RuleState, step

RULE = Rule("memory", threshold=0.85, margin=0.05, for_s=10.0)


def firing_after(values: Sequence[float | None], *, every_s: float = 5.0) -> list[bool]:
    state, seen = RuleState(), []
    for index, value in enumerate(values):
        state = step(RULE, state, value, index * every_s)
        seen.append(state.firing)
    return seen


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        pytest.param([0.85, 0.9, 0.9], [False, False, True], id="raised-after-its-duration"),
        pytest.param([0.9, 0.9, 0.84, 0.9, 0.9], [False] * 5, id="a-break-starts-again"),
        pytest.param([0.9, None, 0.9, 0.9], [False] * 4, id="unknown-breaks-the-duration"),
        pytest.param(
            [0.9] * 3 + [0.81] * 4, [False, False] + [True] * 5, id="kept-between-the-lines"
        ),
        pytest.param(
            [0.9] * 3 + [0.7, 0.7, 0.7], [False, False, True, True, True, False], id="cleared"
        ),
        pytest.param(
            [0.9] * 3 + [0.7, 0.82, 0.7, 0.7], [False, False] + [True] * 5, id="no-flapping"
        ),
        pytest.param([0.9] * 3 + [None] * 4, [False, False] + [True] * 5, id="unknown-keeps-it"),
    ],
)
def test_sequences(values: list[float | None], expected: list[bool]) -> None:
    assert firing_after(values) == expected


def test_without_a_duration_one_reading_decides() -> None:
    rule = Rule("disk", threshold=0.9, for_s=0.0)
    state = step(rule, RuleState(), 0.95, 1.0)
    assert state.firing
    assert not step(rule, state, 0.5, 2.0).firing
