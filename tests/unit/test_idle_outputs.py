"""Outputs that would be deleted with the pod keep it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from supervisor.app import idle_outputs, idling
from supervisor.app.essentials import Essentials
from supervisor.config.settings import Settings
from supervisor.core.state import StateStore
from supervisor.core.status import SyncStatus
from supervisor.hardware.host import MountEntry
from supervisor.plan.model import SyncPlan
from supervisor.pod.idle import PodEndError
from supervisor.sync.syncer import Syncer

FLEETING, VOLUME, NETWORK = "overlay", "ext4", "nfs4"


def settings(action: str = "stop", mode: str = "auto", **idle: Any) -> Settings:
    return Settings.model_validate(
        {"idle": {"action": action, **idle}, "storage": {"mode": mode}},
    )


@pytest.fixture
def output(tmp_path: Path) -> Path:
    folder = tmp_path / "output"
    (folder / "day" / ".hidden").mkdir(parents=True)
    (folder / "_output_images_will_be_put_here").touch()
    (folder / ".trash").touch()
    (folder / "day" / ".hidden" / "no.png").touch()
    return folder


def mounted(monkeypatch: pytest.MonkeyPatch, path: Path, kind: str) -> None:
    entries = (
        MountEntry("overlay", Path("/"), "overlay", frozenset({"rw"})),
        MountEntry("disk", path, kind, frozenset({"rw"})),
    )
    monkeypatch.setattr(idle_outputs, "read_mounts", lambda: entries)


@pytest.mark.parametrize(
    ("kind", "action", "safe"),
    [
        (FLEETING, "stop", False),
        (FLEETING, "command", False),
        (FLEETING, "exit", True),
        (VOLUME, "stop", True),
        (VOLUME, "terminate", False),
        (NETWORK, "terminate", True),
    ],
)
def test_what_the_disk_and_the_end_make_of_them(
    kind: str, action: str, safe: bool, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mounted(monkeypatch, output.parent, kind)
    plan = SyncPlan(source=output)
    assert idle_outputs.outputs_at_risk(settings(action), plan) == 0, "there is no output"
    (output / "day" / "a.png").touch()
    assert idle_outputs.outputs_at_risk(settings(action), plan) == (0 if safe else 1)


def test_a_folder_that_is_a_link_to_the_volume(
    output: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mounted(monkeypatch, output, VOLUME)
    (output / "a.png").touch()
    link = tmp_path / "link"
    link.symlink_to(output)
    assert idle_outputs.outputs_at_risk(settings(), SyncPlan(source=link)) == 0


@pytest.mark.parametrize(("mode", "found"), [("persistent", 0), ("ephemeral", 1)])
def test_what_people_say_of_the_storage_counts(
    mode: str, found: int, output: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mounted(monkeypatch, tmp_path, VOLUME)
    (output / "a.png").touch()
    assert idle_outputs.outputs_at_risk(settings(mode=mode), SyncPlan(source=output)) == found


def test_a_bucket_keeps_them_and_a_fleeting_folder_does_not(
    output: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mounted(monkeypatch, tmp_path, FLEETING)
    (output / "a.png").touch()
    bucket = SyncPlan(enabled=True, source=output, target="s3://bucket")
    assert idle_outputs.outputs_at_risk(settings(), bucket) == 0
    folder = SyncPlan(enabled=True, source=output, folder=tmp_path / "copies")
    assert idle_outputs.outputs_at_risk(settings(), folder) == 1


class StandInSync:
    """A syncer as the flush sees it."""

    def __init__(self, *, running: bool, retained: int = 0) -> None:
        self.running = running
        self._retained = retained

    async def flush(self, timeout_s: float) -> SyncStatus:
        assert timeout_s > 0
        return SyncStatus(enabled=True, retained=self._retained)


async def flush(given: Settings, plan: SyncPlan, syncer: StandInSync | None) -> SyncStatus | None:
    boot = SimpleNamespace(settings=given, plan=SimpleNamespace(sync=plan))
    base = cast("Essentials", SimpleNamespace(boot=boot, state=StateStore()))
    return await idling._flush(base, cast("Syncer | None", syncer), 1.0)


BUCKET = SyncPlan(enabled=True, source=Path("/nowhere"), target="s3://bucket")


@pytest.mark.anyio
@pytest.mark.parametrize("syncer", [None, StandInSync(running=False)])
async def test_a_sync_that_does_not_run_has_stored_nothing(syncer: StandInSync | None) -> None:
    with pytest.raises(PodEndError, match="the output sync does not run"):
        await flush(settings(), BUCKET, syncer)
    assert await flush(settings(ignore_unsynced=True), BUCKET, syncer) is None


@pytest.mark.anyio
async def test_what_a_running_sync_left_is_told() -> None:
    status = await flush(settings(), BUCKET, StandInSync(running=True, retained=2))
    assert status is not None
    assert status.retained == 2


@pytest.mark.anyio
async def test_outputs_on_a_fleeting_disk_are_left_too(
    output: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mounted(monkeypatch, tmp_path, FLEETING)
    (output / "a.png").touch()
    status = await flush(settings(), SyncPlan(source=output), None)
    assert status is not None
    assert (status.retained, status.last_error) == (1, idling._AT_RISK)
