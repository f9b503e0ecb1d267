"""The machine walked at random: always a legal state, restarts never above the limit."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from supervisor.core.retry import Backoff
from supervisor.core.status import ServiceState
from supervisor.services.machine import (
    TRANSITIONS,
    Ending,
    History,
    IllegalTransitionError,
    Trigger,
    Wanted,
    next_state,
    on_exit,
)
from supervisor.services.spec import FailureAction, RestartPolicy, ServiceSpec


class Walk(RuleBasedStateMachine):
    """Triggers at random beside a model that only knows whether a process is there."""

    def __init__(self) -> None:
        super().__init__()
        self.state = ServiceState.WAITING
        self.process = False

    @rule(trigger=st.sampled_from(Trigger))
    def take(self, trigger: Trigger) -> None:
        """Take the step when the table has it; the model follows on its own."""
        try:
            after = next_state(self.state, trigger)
        except IllegalTransitionError:
            assert trigger not in TRANSITIONS[self.state]
            return
        ends = trigger in (Trigger.RETRY, Trigger.BACK_OFF, Trigger.FINISH, Trigger.FAIL)
        if trigger is Trigger.LAUNCH:
            assert not self.process, "two processes of one service"
            self.process = True
        elif ends:
            self.process = False
        self.state = after

    @invariant()
    def the_state_tells_whether_there_is_a_process(self) -> None:
        running = self.state in (
            ServiceState.STARTING,
            ServiceState.READY,
            ServiceState.UNHEALTHY,
            ServiceState.STOPPING,
        )
        assert running == self.process


TestWalk = Walk.TestCase

ENDINGS = st.builds(
    Ending,
    reason=st.just("x"),
    success=st.booleans(),
    planned=st.booleans(),
    permanent=st.booleans(),
    ready_s=st.none() | st.floats(0, 100),
    wanted=st.sampled_from([Wanted.UP, Wanted.UP, Wanted.UP, Wanted.DOWN, Wanted.AGAIN]),
)
SPECS = st.builds(
    ServiceSpec,
    name=st.just("a"),
    command=st.just(("x",)),
    restart=st.sampled_from(RestartPolicy),
    max_restarts=st.integers(0, 5),
    window_s=st.floats(1, 200),
    healthy_after_s=st.floats(0, 60),
    safe_mode=st.booleans(),
    on_failure=st.sampled_from(FailureAction),
)


@given(SPECS, st.lists(st.tuples(ENDINGS, st.floats(0, 50)), max_size=40))
def test_never_more_failures_repaired_than_the_limit_allows(
    spec: ServiceSpec, course: list[tuple[Ending, float]]
) -> None:
    history, now_s = History(), 0.0
    repaired: list[float] = []
    safe_modes = 0
    for ending, pause_s in course:
        now_s += pause_s
        decision = on_exit(spec, history, ending, now_s=now_s)
        next_state(ServiceState.READY, decision.trigger)  # legal
        if ending.wanted is not Wanted.UP or decision.trigger in (Trigger.FAIL, Trigger.FINISH):
            history, repaired, safe_modes = History(), [], 0  # started anew by a person
            continue
        if decision.history.safe_mode and not history.safe_mode:
            safe_modes += 1
            repaired = []
        elif not (ending.planned and ending.ready_s is not None):
            repaired.append(now_s)
        history = decision.history
        recent = [at for at in repaired if now_s - at < spec.window_s]
        assert len(recent) <= spec.max_restarts or (
            spec.on_failure is FailureAction.RESTART and decision.trigger is Trigger.BACK_OFF
        )
        assert safe_modes <= 1
        assert not ending.permanent or (ending.planned and ending.ready_s is not None)


@given(st.integers(0, 10_000), st.floats(0.001, 10), st.floats(10, 1000))
def test_delays_stay_within_their_bounds(attempt: int, initial_s: float, max_s: float) -> None:
    backoff = Backoff(initial_s, max_s)
    assert 0 <= backoff.delay_s(attempt) <= backoff.ceiling_s(attempt) <= max_s
    assert backoff.ceiling_s(attempt + 1) >= backoff.ceiling_s(attempt)
