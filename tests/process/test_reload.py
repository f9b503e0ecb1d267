"""A reload touches what differs and nothing else, and shows it first."""

from __future__ import annotations

from dataclasses import replace

import anyio
import pytest

from supervisor.core.status import ServiceState
from supervisor.services.reload import ServiceChange, ServiceDiff, diff
from supervisor.services.spec import HttpProbe, Liveness
from tests.process.pod import running, shell

pytestmark = pytest.mark.anyio

SLEEP = "exec sleep 1000"


def test_the_difference_names_what_changed_and_shows_no_value() -> None:
    old = [shell("a", "x", environment={"K": "secret", "L": "1"}), shell("b", "x"), shell("c", "x")]
    new = [
        shell("a", "x", environment={"K": "other", "M": "1"}, required=True, reasons=("why",)),
        replace(old[1], max_restarts=1),
        shell("d", "x"),
    ]
    found = diff(old, new)
    assert found.added == ("d",)
    assert found.removed == ("c",)
    assert found.changed == {
        "a": ServiceChange(
            ("environment.K", "environment.L", "environment.M", "required"), restart=True
        ),
        "b": ServiceChange(("max_restarts",), restart=False),
    }
    assert "secret" not in repr(found)
    assert diff(new, new) == ServiceDiff()


async def test_only_what_differs_is_touched() -> None:
    old = [shell(name, SLEEP) for name in ("same", "tuned", "changed", "gone")]
    async with running(*old) as pod:
        for spec in old:
            await pod.reaches(spec.name, ServiceState.READY)
        pids = {spec.name: pod[spec.name].pid for spec in old}
        probe = HttpProbe("http://127.0.0.1:1/")
        new = [
            old[0],
            replace(old[1], required=True, liveness=Liveness(probe, interval_s=1000)),
            replace(old[2], environment={"NEW": "1"}),
            shell("added", SLEEP),
        ]
        shown = await pod.manager.reconcile(new, dry_run=True)
        assert {spec.name for spec in pod.manager.specs} == {"same", "tuned", "changed", "gone"}
        done = await pod.manager.reconcile(new)
        assert done == shown
        await pod.when("changed", lambda s: s.generation == 2 and s.ready)
        await pod.reaches("added", ServiceState.READY)
        assert pod["same"].pid == pids["same"]
        assert pod["tuned"].pid == pids["tuned"]
        assert pod["tuned"].required
        assert "gone" not in pod.state.snapshot.services
        assert pod["changed"].restart_reasons == {"restart-asked": 1}
        assert await pod.manager.reconcile(new) == ServiceDiff()


async def test_a_correction_revives_what_had_failed_and_disabling_rests() -> None:
    broken = shell("a", "exit 1", max_restarts=0)
    async with running(broken) as pod:
        await pod.reaches("a", ServiceState.FAILED)
        await pod.manager.reconcile([shell("a", SLEEP)])
        await pod.reaches("a", ServiceState.READY)
        await pod.manager.reconcile([shell("a", SLEEP, enabled=False)])
        await pod.reaches("a", ServiceState.DISABLED)
        assert pod["a"].pid is None
        await pod.manager.reconcile([shell("a", SLEEP)])
        with anyio.fail_after(30):
            await pod.reaches("a", ServiceState.READY)
