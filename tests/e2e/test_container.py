"""The pod as PID 1 of a container, and what happens to a broken configuration."""

from __future__ import annotations

import os
import signal
import time

import pytest

from supervisor.demo.world import DemoWorld
from tests.conftest import require
from tests.e2e.pod import Pod, edit, pod_processes, ready_pod, wait_for
from tests.pidns.harness import NAMESPACE

STUBBORN = ["sh", "-c", "trap '' TERM INT; echo up; while :; do sleep 1; done"]


@pytest.fixture
def pid1_world(world: DemoWorld) -> DemoWorld:
    require(available=os.geteuid() == 0, what="root")
    return world


@pytest.mark.needs("unshare")
def test_as_pid_1_it_ends_within_its_grace(pid1_world: DemoWorld) -> None:
    with ready_pod(pid1_world, wrapper=NAMESPACE) as pod:
        pod.wait(lambda s: s["sync"]["uploaded"], "a picture is stored")
        started_s = time.monotonic()
        assert pod.stop() == 0
        assert time.monotonic() - started_s < 9
        assert pod_processes(str(pid1_world.folder)) == {}
        assert "stopped" in pod.text()


@pytest.mark.needs("unshare")
def test_second_sigterm_hurries(pid1_world: DemoWorld) -> None:
    edit(pid1_world, "supervisor", shutdown_grace_s=45)
    edit(pid1_world, "services.stubborn", command=STUBBORN, stop_grace_s=40)
    with ready_pod(pid1_world, wrapper=NAMESPACE) as pod:
        pod.wait(lambda s: s["services"]["stubborn"]["ready"], "it is up")
        started_s = time.monotonic()
        os.kill(pod.init, signal.SIGTERM)
        pod.wait(lambda s: s["phase"] == "stopping", "it stops")
        edit(pid1_world, "services.late", command=["sleep", "3600"])
        for command in (["reload"], ["start", "comfyui"], ["restart", "--now", "stubborn"]):
            refused = pod.cli(*command)
            assert refused.returncode == 1
            assert "the pod is stopping" in refused.stderr
        assert pod.stop() == 0
        assert time.monotonic() - started_s < 25
        assert pod_processes(str(pid1_world.folder)) == {}


@pytest.mark.parametrize(
    ("broken", "shown"),
    [
        ("[comfyui\n", "supervisor.toml:1:9"),
        ("[comfyui]\nprot = 1\n[jupiter]\nenabled = true\n", "did you mean port?"),
    ],
    ids=["syntax", "typos"],
)
def test_rescue_until_it_is_mended(world: DemoWorld, broken: str, shown: str) -> None:
    good = world.config.read_text()
    world.config.write_text(broken)
    environment = {
        "SUPERVISOR_HEALTH__PORT": str(world.health_port),
        "SUPERVISOR_HEALTH__HOST": "127.0.0.1",
        "SUPERVISOR_SUPERVISOR__STATE_DIR": str(world.folder / "state"),
    }
    with Pod(world, environment=environment) as pod:
        wait_for(lambda: pod.ping() == 503, "/ping is 503")
        assert pod.get("/healthz")[0] == 200
        status = pod.json("status")
        assert status["phase"] == "rescue"
        assert not status["ready"]
        page = pod.cli("status")
        assert page.returncode == 0
        assert shown in page.stdout
        if "jupiter" in broken:
            assert "jupyter" in page.stdout
            assert len(status["rescue"]) == 2
        refused = pod.cli("reload")
        assert refused.returncode != 0
        assert shown in refused.stderr
        world.config.write_text(good)
        assert pod.cli("reload").returncode == 0
        pod.wait(lambda s: s["ready"], "the pod boots")
        assert pod.ping() == 200
        assert pod.stop() == 0


def test_rescue_ends_with_78(world: DemoWorld) -> None:
    edit(world, "comfyui", port="many")
    with Pod(world) as pod:
        wait_for(lambda: pod.ping() == 503, "/ping is 503")
        assert pod.stop() == 78
        assert not world.socket.exists()


def test_dry_run_writes_nothing(world: DemoWorld) -> None:
    before = {path: path.stat().st_mtime_ns for path in world.folder.rglob("*")}
    with Pod(world, environment={"DRY_RUN": "true"}) as pod:
        assert pod.process.wait(60) == 0
        assert "comfyui" in pod.text()
        after = {
            path: path.stat().st_mtime_ns for path in world.folder.rglob("*") if path != pod.log
        }
    changed = {p for p in {*before, *after} if before.get(p) != after.get(p)}
    assert not changed - {world.folder}


@pytest.mark.parametrize(
    ("models", "said"),
    [
        ('[[models.files]]\nurl = "https://x/a"\nto = "../../etc/passwd"\n', "'..'"),
        ('[[models.files]]\nurl = "ftp://x/a"\nto = "loras/a"\n', "https://"),
    ],
)
def test_check_looks_at_the_models_too(world: DemoWorld, models: str, said: str) -> None:
    world.config.write_text(models)
    with Pod(world, arguments=["--set", "supervisor.dry_run=true"]) as pod:
        checked = pod.cli("check", "--config", str(world.config))
        assert checked.returncode == 78
        assert said in checked.stderr
        assert pod.process.wait(60) == 78
        assert said in pod.text()
