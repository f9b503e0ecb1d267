"""The table of states, and what follows from an exit."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from supervisor.core.status import ServiceState
from supervisor.services.machine import (
    RESTING,
    RUNNING,
    TRANSITIONS,
    Ending,
    History,
    IllegalTransitionError,
    Trigger,
    Wanted,
    mermaid,
    next_state,
    on_exit,
)
from supervisor.services.spec import FailureAction, RestartPolicy, ServiceSpec

SPEC = ServiceSpec("a", ("x",), max_restarts=3, window_s=100.0, healthy_after_s=30.0)
CRASH = Ending("exit-code", ready_s=1.0)


def test_every_state_has_a_way_in_and_a_way_out() -> None:
    assert set(TRANSITIONS) == set(ServiceState)
    entered = {target for steps in TRANSITIONS.values() for target in steps.values()}
    assert entered == set(ServiceState)
    assert all(TRANSITIONS.values())


def test_only_a_stop_leads_out_of_stopping_and_no_process_survives_a_rest() -> None:
    for state in RUNNING:
        targets = set(TRANSITIONS[state].values())
        # From a running state one rests only by an outcome of the process's end.
        ways = {t for t in TRANSITIONS[state] if TRANSITIONS[state][t] in RESTING}
        assert ways == {Trigger.FINISH, Trigger.FAIL}
        assert ServiceState.DISABLED not in targets


def test_an_illegal_step_raises() -> None:
    with pytest.raises(IllegalTransitionError, match="stopped"):
        next_state(ServiceState.STOPPED, Trigger.READY)
    legal = sum(len(steps) for steps in TRANSITIONS.values())
    illegal = 0
    for state in ServiceState:
        for trigger in Trigger:
            try:
                next_state(state, trigger)
            except IllegalTransitionError:
                illegal += 1
    assert legal + illegal == len(ServiceState) * len(Trigger)


def test_the_drawing_is_the_table() -> None:
    drawn = re.findall(r"^ +(\w+) --> (\w+): (.+)$", mermaid(), re.MULTILINE)
    assert len(drawn) == sum(len(steps) for steps in TRANSITIONS.values())
    for state, target, trigger in drawn:
        assert next_state(ServiceState(state), Trigger(trigger)) == target


def test_the_first_crash_is_repaired_at_once_and_the_next_ones_wait_longer() -> None:
    history = History()
    steps = []
    for now_s in range(3):
        decision = on_exit(SPEC, history, CRASH, now_s=now_s)
        steps.append((decision.trigger, decision.attempt))
        history = decision.history
    assert steps == [(Trigger.RETRY, 0), (Trigger.BACK_OFF, 0), (Trigger.BACK_OFF, 1)]
    last = on_exit(SPEC, history, CRASH, now_s=3)
    assert last.trigger is Trigger.FAIL
    assert "3 times within 100 s" in last.message


def test_a_crash_before_it_was_ever_ready_waits_from_the_first() -> None:
    decision = on_exit(SPEC, History(), Ending("exit-code"), now_s=0)
    assert (decision.trigger, decision.attempt) == (Trigger.BACK_OFF, 0)
    decision = on_exit(SPEC, decision.history, Ending("exit-code"), now_s=0)
    assert (decision.trigger, decision.attempt) == (Trigger.BACK_OFF, 1)


def test_a_healthy_run_starts_anew() -> None:
    history = History(attempt=5, restarts=(0.0,))
    decision = on_exit(SPEC, history, Ending("killed", ready_s=30.0), now_s=50)
    assert decision.trigger is Trigger.RETRY
    assert decision.history == History(attempt=1, restarts=(0.0, 50))


def test_old_restarts_leave_the_window() -> None:
    history = History(attempt=3, restarts=(0.0, 10.0, 20.0))
    assert on_exit(SPEC, history, CRASH, now_s=50).trigger is Trigger.FAIL
    decision = on_exit(SPEC, history, CRASH, now_s=105)
    assert decision.trigger is Trigger.BACK_OFF
    assert decision.history.restarts == (10.0, 20.0, 105)


def test_one_that_must_not_stay_down_is_tried_for_ever_at_the_longest_delay() -> None:
    spec = replace(SPEC, max_restarts=2, on_failure=FailureAction.RESTART, safe_mode=True)
    history, made = History(), []
    for now_s in range(8):
        decision = on_exit(spec, history, Ending("crash"), now_s=now_s)
        history = decision.history
        made.append((decision.trigger, spec.backoff.ceiling_s(decision.attempt)))
    assert made[2][0] is Trigger.RETRY  # safe mode comes first
    assert [delay_s for _, delay_s in made[3:5]] == [1, 2]
    assert made[5:] == [(Trigger.BACK_OFF, spec.backoff.max_s)] * 3
    permanent = on_exit(spec, history, Ending("bad-flag", permanent=True), now_s=9)
    assert permanent.trigger is Trigger.FAIL


def test_safe_mode_is_offered_once() -> None:
    spec = replace(SPEC, safe_mode=True)
    full = History(restarts=(0.0, 0.0, 0.0))
    decision = on_exit(spec, full, CRASH, now_s=1)
    assert decision.trigger is Trigger.RETRY
    assert decision.history == History(safe_mode=True)
    again = History(restarts=(1.0, 1.0, 1.0), safe_mode=True)
    assert on_exit(spec, again, CRASH, now_s=2).trigger is Trigger.FAIL


@pytest.mark.parametrize(
    ("ending", "trigger"),
    [
        (Ending("x", wanted=Wanted.DOWN), Trigger.FINISH),
        (Ending("x", wanted=Wanted.AGAIN), Trigger.RETRY),
        (Ending("x", planned=True, success=True, ready_s=0.1), Trigger.RETRY),
        (Ending("x", planned=True, success=True), Trigger.BACK_OFF),
        (Ending("x", repaired=True), Trigger.RETRY),
        (Ending("x", permanent=True, ready_s=99.0), Trigger.FAIL),
        (Ending("x", success=True), Trigger.BACK_OFF),
    ],
)
def test_what_people_and_services_want(ending: Ending, trigger: Trigger) -> None:
    assert on_exit(SPEC, History(), ending, now_s=0).trigger is trigger


@pytest.mark.parametrize(
    ("policy", "success", "trigger"),
    [
        (RestartPolicy.NEVER, True, Trigger.FINISH),
        (RestartPolicy.NEVER, False, Trigger.FAIL),
        (RestartPolicy.ON_FAILURE, True, Trigger.FINISH),
        (RestartPolicy.ON_FAILURE, False, Trigger.RETRY),
        (RestartPolicy.ALWAYS, True, Trigger.RETRY),
    ],
)
def test_policies(policy: RestartPolicy, success: bool, trigger: Trigger) -> None:
    spec = ServiceSpec("a", ("x",), restart=policy)
    ending = Ending("exited", success=success, ready_s=1.0)
    assert on_exit(spec, History(), ending, now_s=0).trigger is trigger
