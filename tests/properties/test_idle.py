"""Whatever happens on a pod, and whenever: it is never stopped in use, and always in the end."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from supervisor.pod.activity import IdleFacts, Idleness, busy_because

USES = (
    IdleFacts(),
    IdleFacts(queue_length=1),
    IdleFacts(queue_length=None),
    IdleFacts(queue_changed=True),
    IdleFacts(busy_kernels=None),
    IdleFacts(jupyter_active=True),
    IdleFacts(ssh_sessions=2),
    IdleFacts(terminals=1),
    IdleFacts(downloads=1),
    IdleFacts(uploads=1),
    IdleFacts(pages=1),
    IdleFacts(kept=True),
)
looks = st.lists(
    st.tuples(st.floats(0.01, 1000), st.sampled_from((*USES, IdleFacts(), IdleFacts()))),
    min_size=1,
    max_size=60,
)


@given(start_s=st.floats(0, 1e6), looks=looks)
@settings(max_examples=300, deadline=None)
def test_idle_time_is_the_time_since_the_last_look_that_saw_use(
    start_s: float, looks: list[tuple[float, IdleFacts]]
) -> None:
    idleness, now_s, last_use_s = Idleness(start_s), start_s, start_s
    for pause_s, facts in looks:
        now_s += pause_s
        idleness = idleness.after(facts, now_s)
        if busy_because(facts):
            last_use_s = now_s
            assert idleness.idle_s(now_s) == 0
        else:
            assert idleness.idle_s(now_s) == now_s - last_use_s
        assert bool(idleness.busy) == bool(busy_because(facts))
