"""When a reading becomes an alert, and when it stops being one. Pure: time is an argument.

An alert is raised after the reading was at or over its threshold for ``for_s`` without a
break, and cleared after it was under ``threshold - margin`` for as long. Between the two
lines nothing changes, so a reading that swings around its threshold does not flap.
"""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class Rule:
    """A limit of one reading; threshold and margin are ratios, 0..1."""

    name: str
    threshold: float
    margin: float = 0.05
    for_s: float = 30.0


@dataclass(frozen=True, slots=True)
class RuleState:
    """What is remembered of a rule between two readings."""

    firing: bool = False
    changing_since_s: float | None = None  # since when the readings speak for the other state


def step(rule: Rule, state: RuleState, value: float | None, now_s: float) -> RuleState:
    """Judge one reading taken at ``now_s`` (monotonic); None, an unknown one, says nothing.

    An unknown reading keeps a firing alert but breaks a running duration: nobody saw
    whether the reading stayed where it was.
    """
    if value is None or not _speaks_for_change(rule, value, firing=state.firing):
        return replace(state, changing_since_s=None)
    since_s = now_s if state.changing_since_s is None else state.changing_since_s
    if now_s - since_s >= rule.for_s:
        return RuleState(firing=not state.firing)
    return replace(state, changing_since_s=since_s)


def _speaks_for_change(rule: Rule, value: float, *, firing: bool) -> bool:
    return value < rule.threshold - rule.margin if firing else value >= rule.threshold
