"""With [sync] logs the logs and a report of the boot reach the target, and hinder nothing."""

from __future__ import annotations

import json

from supervisor.demo.world import DemoWorld
from tests.e2e.pod import Pod, edit, ready_pod


def test_logs_and_the_boot_report_are_stored_and_an_open_log_is_no_pending_output(
    world: DemoWorld,
) -> None:
    edit(world, "sync", logs=True)
    edit(world, "supervisor", shutdown_grace_s=50)  # time for the last upload on a busy machine
    with ready_pod(world) as pod:
        logs = world.folder / "state" / "logs"
        pod.wait(lambda _: (logs / "comfyui.log").exists(), "the log is written")
        pod.wait(lambda s: s["sync"]["uploaded"] and not s["sync"]["pending"], "nothing waits")
        waiting = pod.json("sync", "status")["waiting"]
        assert not [sentence for sentence in waiting if "comfyui.log" in sentence]
        pod.wait(lambda _: [*world.bucket.glob("logs/*/*/boot-*.json")], "the report is stored")
        assert pod.stop() == 0
    (report,) = world.bucket.glob("logs/*/*/boot-*.json")
    document = json.loads(report.read_text())
    assert document["boot"]["spans_s"]["ready"] > 0
    assert [service["name"] for service in document["plan"]["services"]] == ["comfyui"]
    assert world.token not in report.read_text()
    (stored,) = world.bucket.glob("logs/*/*/comfyui.log")
    assert "Starting server" in stored.read_text()


def test_a_boot_that_never_became_ready_is_reported_as_well(world: DemoWorld) -> None:
    edit(world, "sync", logs=True)
    edit(world, "supervisor", shutdown_grace_s=50)
    edit(world, "services.never", command=["sleep", "3600"], required=True, after=["comfyui"])
    world.config.write_text(
        world.config.read_text() + f'[services.never.ready]\nfile = "{world.folder}/no"\n'
    )
    with Pod(world) as pod:
        pod.wait(lambda s: s["sync"]["uploaded"], "the sync runs")
        assert pod.stop() == 0
    (report,) = world.bucket.glob("logs/*/*/boot-*.json")
    assert "ready" not in json.loads(report.read_text())["boot"]["spans_s"]
