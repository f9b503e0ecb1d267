"""Start, stop, restart, dependencies: real processes, waited for by state."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import anyio
import pytest

from supervisor.core.retry import Backoff
from supervisor.core.status import ServiceState
from supervisor.errors import ControlError
from supervisor.services.spec import (
    Dependency,
    DependencyCondition,
    ExecProbe,
    FailureAction,
    FileProbe,
    Liveness,
    Readiness,
    RestartPolicy,
    RunFirst,
    ServiceSpec,
)
from tests.process.pod import running, shell

pytestmark = pytest.mark.anyio

SLEEP = "exec sleep 1000"


async def test_a_service_without_readiness_is_ready_when_it_runs() -> None:
    async with running(shell("a", SLEEP)) as pod:
        status = await pod.reaches("a", ServiceState.READY)
        assert status.ready
        assert status.generation == 1
        assert status.restarts == 0
        assert status.pid is not None
        os.kill(status.pid, 0)
    assert pod.states("a") == ["starting", "ready", "stopping", "stopped"]
    assert pod["a"].pid is None


async def test_kill_9_is_repaired_at_once_and_counted() -> None:
    async with running(shell("a", SLEEP)) as pod:
        first = await pod.reaches("a", ServiceState.READY)
        assert first.pid is not None
        os.kill(first.pid, signal.SIGKILL)
        second = await pod.when("a", lambda s: s.ready and s.generation == 2)
        assert second.pid != first.pid
        assert second.restart_reasons == {"killed": 1}
        assert "backoff" not in pod.states("a")


async def test_a_crash_loop_backs_off_and_ends_failed_with_the_reason() -> None:
    async with running(shell("a", "echo boom >&2; exit 3", max_restarts=3)) as pod:
        status = await pod.reaches("a", ServiceState.FAILED)
        assert status.restarts == 3
        assert status.restart_reasons == {"exit-code": 3}
        assert "exited with 3" in status.message
        assert "3 times" in status.message
        assert status.last_exit is not None
        assert status.last_exit.code == 3
        # One free restart, then delays.
        assert pod.states("a").count("backoff") == 2
        await pod.manager.start("a")
        await pod.when("a", lambda s: s.state is ServiceState.FAILED and s.generation > 4)


async def test_dependencies_start_in_order_and_stop_in_reverse() -> None:
    specs = [
        shell("c", SLEEP, after=(Dependency("b"),)),
        shell("b", SLEEP, after=(Dependency("a"),)),
        shell("a", SLEEP),
    ]
    async with running(*specs) as pod:
        await pod.reaches("c", ServiceState.READY)
    moves = [
        (e.subject, e.data["state"])
        for e in pod.bus.recent()
        if e.kind == "service.state" and e.data["state"] in ("ready", "stopped")
    ]
    assert moves == [
        ("a", "ready"),
        ("b", "ready"),
        ("c", "ready"),
        ("c", "stopped"),
        ("b", "stopped"),
        ("a", "stopped"),
    ]


async def test_started_is_less_than_ready(tmp_path: Path) -> None:
    never = Readiness(FileProbe(tmp_path / "never"), timeout_s=60)
    specs = [
        shell("slow", SLEEP, readiness=never),
        shell("early", SLEEP, after=(Dependency("slow", DependencyCondition.STARTED),)),
        shell("late", SLEEP, after=(Dependency("slow"),)),
    ]
    async with running(*specs) as pod:
        await pod.reaches("early", ServiceState.READY)
        assert pod["late"].state is ServiceState.WAITING
        assert pod["late"].message == "waiting for slow"


async def test_a_failed_dependency_fails_its_user_until_it_is_back(
    tmp_path: Path,
) -> None:
    flag = f"{tmp_path}/flag"
    specs = [
        shell("base", f"test -e {flag} && {SLEEP}; exit 1", max_restarts=0),
        shell("user", SLEEP, after=(Dependency("base"),), required=True),
    ]
    async with running(*specs) as pod:
        # It is up for an instant, so the user may run already; what counts is the end.
        await pod.reaches("base", ServiceState.FAILED)
        await pod.manager.restart("user")
        status = await pod.reaches("user", ServiceState.FAILED)
        assert "base" in status.message
        await anyio.Path(flag).touch()
        await pod.manager.start("base")
        await pod.reaches("user", ServiceState.READY)


async def test_on_failure_shutdown_asks_for_the_exit_code() -> None:
    spec = shell("a", "exit 9", max_restarts=1, on_failure=FailureAction.SHUTDOWN)
    async with running(spec, shell("b", SLEEP)) as pod:
        with anyio.fail_after(30):
            request = await pod.manager.wait_failure()
        assert (request.service, request.code) == ("a", 9)


async def test_on_failure_restart_never_gives_up() -> None:
    spec = shell("a", "exit 9", max_restarts=1, on_failure=FailureAction.RESTART)
    async with running(spec) as pod:
        await pod.when("a", lambda s: s.generation > 5)
        assert "failed" not in pod.states("a")


async def test_one_that_puts_itself_into_the_background_is_told_not_to() -> None:
    spec = shell("a", "sleep 1000 & exit 0", max_restarts=0)
    async with running(spec) as pod:
        status = await pod.reaches("a", ServiceState.FAILED)
        assert "left 1 of its processes running" in status.message
        assert "foreground" in (status.hint or "")


async def test_a_liveness_check_that_fails_during_the_start_changes_nothing(
    tmp_path: Path,
) -> None:
    # Pebble's case: there the check would restart a service that is still starting.
    asked, ready = tmp_path / "asked", tmp_path / "ready"
    spec = shell(
        "a",
        SLEEP,
        readiness=Readiness(FileProbe(ready), timeout_s=60, interval_s=0.05),
        liveness=Liveness(
            ExecProbe(("/bin/sh", "-c", f"touch {asked}; exit 1")), interval_s=0.01, failures=1
        ),
        max_restarts=0,
    )
    async with running(spec) as pod:
        await pod.when("a", lambda s: s.pid is not None)
        await anyio.sleep(0.5)  # fifty checks, if any were made
        assert not asked.exists()
        assert pod["a"].state is ServiceState.STARTING
        ready.touch()
        status = await pod.reaches("a", ServiceState.FAILED)
        assert pod.exits("a") == ["hung"]
        assert status.generation == 1


async def test_nothing_that_is_still_on_its_way_holds_up_the_end(tmp_path: Path) -> None:
    # Each is stuck at another step of its start; Pebble waited for such ones at shutdown.
    never = Readiness(FileProbe(tmp_path / "never"), timeout_s=600)
    slow = Backoff(initial_s=1000, max_s=1000, jitter=False)

    async def released(spec: ServiceSpec) -> None:
        if spec.name == "gpu":
            await anyio.sleep_forever()

    specs = [
        shell("unready", SLEEP, readiness=never),
        shell("prepared", SLEEP, prepare=(RunFirst(("sleep", "1000"), timeout_s=900),)),
        shell("waiting", SLEEP, after=(Dependency("unready"),)),
        shell("delayed", "exit 1", backoff=slow),
        shell("gpu", "exit 1", max_restarts=1),
    ]
    async with running(*specs, released=released) as pod:
        await pod.when("unready", lambda s: s.pid is not None)
        await pod.reaches("prepared", ServiceState.STARTING)
        await pod.reaches("delayed", ServiceState.BACKOFF)
        await pod.when("gpu", lambda s: s.generation == 2)
        begun_s = anyio.current_time()
        await pod.manager.stop_all(60.0)
        assert anyio.current_time() - begun_s < 30
        resting = {ServiceState.STOPPED}
        assert {s.state for s in pod.state.snapshot.services.values()} == resting


@pytest.mark.parametrize(
    ("policy", "code", "state"),
    [
        (RestartPolicy.NEVER, 0, ServiceState.STOPPED),
        (RestartPolicy.NEVER, 1, ServiceState.FAILED),
        (RestartPolicy.ON_FAILURE, 0, ServiceState.STOPPED),
    ],
)
async def test_policies_that_do_not_restart(
    policy: RestartPolicy, code: int, state: ServiceState
) -> None:
    async with running(shell("a", f"exit {code}", restart=policy)) as pod:
        status = await pod.reaches("a", ServiceState.STOPPED, ServiceState.FAILED)
        assert status.state is state
        assert status.generation == 1


async def test_stop_and_start_during_backoff_each_end_in_one_state() -> None:
    slow = Backoff(initial_s=1000, max_s=1000, jitter=False)
    async with running(shell("a", "exit 1", backoff=slow)) as pod:
        await pod.reaches("a", ServiceState.BACKOFF)
        await pod.manager.stop("a")
        assert pod["a"].state is ServiceState.STOPPED
        await pod.manager.start("a")
        await pod.reaches("a", ServiceState.BACKOFF)
        generation = pod["a"].generation
        await pod.manager.restart("a")
        await pod.when("a", lambda s: s.generation > generation)


async def test_a_stop_during_the_start_and_a_double_stop() -> None:
    never = Readiness(FileProbe(Path("/nonexistent")), timeout_s=600)
    async with running(shell("a", SLEEP, readiness=never)) as pod:
        await pod.when("a", lambda s: s.pid is not None)
        async with anyio.create_task_group() as both:
            both.start_soon(pod.manager.stop, "a")
            both.start_soon(pod.manager.stop, "a")
        assert pod["a"].state is ServiceState.STOPPED


async def test_a_missing_command_is_one_clear_line_and_disturbs_nobody() -> None:
    specs = [
        ServiceSpec("gone", ("no-such-program", "x"), max_restarts=0),
        ServiceSpec("data", ("/etc/passwd",), max_restarts=0),
        shell("ok", SLEEP),
    ]
    async with running(*specs) as pod:
        gone = await pod.reaches("gone", ServiceState.FAILED)
        assert "no-such-program: command not found" in gone.message
        assert gone.hint is not None
        data = await pod.reaches("data", ServiceState.FAILED)
        assert "Permission denied" in data.message
        assert pod.output("gone") == ["Cannot start no-such-program: command not found"]
        assert (await pod.reaches("ok", ServiceState.READY)).ready


async def test_unknown_names_are_clear_errors() -> None:
    async with running(shell("a", SLEEP)) as pod:
        with pytest.raises(ControlError) as missing:
            await pod.manager.stop("b")
        assert missing.value.status == 404
        with pytest.raises(ControlError, match="SIGNONSENSE"):
            await pod.manager.signal("a", "SIGNONSENSE")
        await pod.manager.stop("a")
        with pytest.raises(ControlError) as idle:
            await pod.manager.signal("a", "HUP")
        assert idle.value.status == 409


async def test_a_disabled_service_runs_only_when_asked() -> None:
    async with running(shell("a", SLEEP, enabled=False)) as pod:
        assert pod["a"].state is ServiceState.DISABLED
        await pod.manager.start("a")
        await pod.reaches("a", ServiceState.READY)


async def test_an_unavailable_service_is_failed_with_its_reason() -> None:
    spec = shell("a", SLEEP, unavailable="Cannot start a: it is not installed", hint="install it")
    async with running(spec) as pod:
        status = await pod.reaches("a", ServiceState.FAILED)
        assert (status.message, status.hint) == (spec.unavailable, "install it")
        assert status.generation == 0
