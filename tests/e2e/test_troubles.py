"""What goes wrong outside gives one clear line, and the rest of the pod works."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
from pathlib import Path

import pytest

from supervisor.demo.world import DemoWorld
from tests.conftest import require
from tests.e2e.pod import Json, Pod, edit, ready_pod, wait_for
from tests.support.s3_servers import moto, strict

SECRET = "sentinelr2secret0000000000000005"


def shown(pod: Pod) -> str:
    """The status page, as wide as it likes to be."""
    done = pod.cli("status")
    assert done.returncode == 0, done.stderr
    return done.stdout


def r2(endpoint: str, bucket: str, key: str, secret: str) -> dict[str, str]:
    return {
        "ENABLE_R2_SYNC": "true",
        "R2_ENDPOINT": endpoint,
        "R2_BUCKET": bucket,
        "R2_ACCESS_KEY_ID": key,
        "R2_SECRET_ACCESS_KEY": secret,
    }


def to_bucket(world: DemoWorld) -> None:
    """Take the folder target out, so that the environment decides."""
    text = world.config.read_text()
    world.config.write_text(re.sub(r"^(target|folder) = .*\n", "", text, flags=re.MULTILINE))


def test_outputs_arrive_in_a_bucket(world: DemoWorld) -> None:
    to_bucket(world)
    with moto() as server:
        environment = r2(server.endpoint, server.bucket, server.access_key, server.secret_key)
        with ready_pod(world, environment=environment) as pod:
            pod.wait(lambda s: s["sync"]["uploaded"] >= 2, "pictures are stored")
            assert pod.stop() == 0
        objects = server.objects()
    pictures = {key: data for key, data in objects.items() if key.endswith(".png")}
    assert len(pictures) >= 2
    output = world.comfyui_root / "output"
    for key, data in pictures.items():
        match = re.fullmatch(r"outputs/\d{4}-\d\d-\d\d/(.+)", key)
        assert match is not None, key
        assert (output / match[1]).read_bytes() == data
    assert {str(p.relative_to(output)) for p in output.rglob("*.png")} == {
        key.split("/", 2)[2] for key in pictures
    }


def test_wrong_bucket_key(world: DemoWorld) -> None:
    to_bucket(world)
    edit(world, "alerts", interval_s=1)
    with strict() as server:
        environment = r2(server.endpoint, server.bucket, "nobody", SECRET)
        with ready_pod(world, environment=environment) as pod:
            status = pod.wait(lambda s: s["sync"]["last_error"], "the refusal is shown")
            assert status["phase"] == "ready"
            assert status["sync"]["last_error"] in shown(pod)
            status = pod.wait(
                lambda s: any(a["name"] == "sync blocked" for a in s["alerts"]), "and an alert"
            )
            (alert,) = (a for a in status["alerts"] if a["name"] == "sync blocked")
            assert "the key was refused" in alert["message"]
            assert "R2_ACCESS_KEY_ID" in alert["hint"]
            assert 'supervisor_alert_active{alert="sync blocked"} 1.0' in pod.get("/metrics")[1]
            assert SECRET not in pod.text() + shown(pod)
            assert pod.ping() == 200
            assert pod.stop() == 0


def test_taken_port(world: DemoWorld) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        edit(world, "comfyui", port=port)
        edit(world, "services.plain", command=["sleep", "3600"])
        with Pod(world) as pod:
            status = pod.wait(lambda s: s["services"]["comfyui"]["message"], "the reason is shown")
            told = f"port {port} is held by "
            assert told in status["services"]["comfyui"]["message"]
            wait_for(lambda: told in shown(pod), "people are told, too")
            status = pod.wait(
                lambda s: (
                    s["services"]["plain"]["ready"]
                    and s["downloads"]["done"] == s["downloads"]["total"]
                ),
                "the rest works",
            )
            assert not status["ready"]
            taken.close()
            pod.wait(lambda s: s["ready"], "the port is free: ComfyUI starts")
            assert pod.stop() == 0


def test_taken_health_port(world: DemoWorld) -> None:
    with socket.create_server(("127.0.0.1", world.health_port)) as taken, Pod(world) as pod:

        def ready() -> Json:
            done = pod.cli("status", "--json")
            status: Json = json.loads(done.stdout) if done.returncode == 0 else {}
            return status if status.get("ready") else {}

        wait_for(ready, "the pod is ready all the same")
        assert str(world.health_port) in shown(pod)
        assert "in use" in shown(pod)
        taken.close()
        wait_for(lambda: pod.ping() == 200, "the port is taken over when it is free")
        assert pod.stop() == 0


def test_missing_comfyui(world: DemoWorld) -> None:
    shutil.rmtree(world.comfyui_root)
    edit(world, "services.plain", command=["sleep", "3600"])
    with Pod(world) as pod:
        status = pod.wait(lambda s: s["services"]["plain"]["ready"], "the rest works")
        assert not status["ready"]
        assert str(world.comfyui_root) in shown(pod)
        assert status["services"]["comfyui"]["state"] in ("failed", "disabled")
        assert status["services"]["comfyui"]["hint"]
        assert pod.ping() == 503
        assert pod.stop() == 0


def read_only(folder: Path) -> tuple[str, ...]:
    """A wrapper: root writes everywhere but on what is mounted read-only."""
    require(available=os.geteuid() == 0, what="root")
    folder.mkdir(exist_ok=True)
    mounted = f'mount --bind {folder} {folder} && mount -o remount,bind,ro {folder} && exec "$@"'
    return ("unshare", "--mount", "sh", "-c", mounted, "sh")


@pytest.mark.needs("mount", "unshare")
def test_read_only_state_directory(world: DemoWorld) -> None:
    state = world.folder / "state"
    edit(world, "services.plain", command=["sleep", "3600"])
    with Pod(world, wrapper=read_only(state)) as pod:
        pod.wait(lambda s: s["services"]["plain"]["ready"], "the rest works")
        pod.wait(lambda s: s["sync"]["last_error"], "sync says what it lacks")
        assert "check that the state directory is writable" in shown(pod)
        assert "bug" not in pod.text()
        assert pod.stop() == 0


@pytest.mark.needs("mount", "unshare")
def test_unwritable_outputs(world: DemoWorld, tmp_path: Path) -> None:
    output = tmp_path / "output"
    wrapper = read_only(output)
    edit(world, "comfyui", output_directory=output)
    edit(world, "services.plain", command=["sleep", "3600"])
    with Pod(world, wrapper=wrapper) as pod:
        pod.wait(lambda s: s["services"]["plain"]["ready"], "the rest works")
        assert f"{output} cannot be written" in shown(pod)
        assert pod.stop() == 0
