"""A folder as the target, where processes die and disks are full, read-only, gone or others."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import anyio
import pytest

from tests.conftest import require
from tests.support.sync import DEADLINE_S, Pod, contents, png

pytestmark = pytest.mark.anyio
_ROOT = Path(__file__).parents[2]
_MIB = 1024 * 1024


def _victim(root: Path, step: str) -> subprocess.CompletedProcess[str]:
    config = {"root": str(root), "target": "folder", "folder": str(root / "bucket"),
              "concurrency": 1}  # fmt: skip
    return subprocess.run(
        [sys.executable, "-m", "tests.support.sync_victim", json.dumps(config), step],
        cwd=_ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        timeout=90,
        check=False,
    )


@pytest.mark.parametrize(
    "step",
    [
        "after:intend:1", "before:os.fsync:1", "after:os.fsync:6", "before:Path.hardlink_to:1",
        "after:Path.hardlink_to:2", "before:Path.unlink:2", "before:stored:1", "after:stored:2",
    ],
)  # fmt: skip
def test_a_kill_at_every_step_changes_nothing(tmp_path: Path, step: str) -> None:
    source = tmp_path / "comfyui/output"
    source.mkdir(parents=True)
    files = {"a.png": png("a"), "run/b.ply": os.urandom(_MIB) * 3, "run/c.png": png("c")}
    for name, data in files.items():
        (source / name).parent.mkdir(exist_ok=True)
        (source / name).write_bytes(data)
    assert _victim(tmp_path, step).returncode == -signal.SIGKILL, "the step was never reached"
    # Whatever has its final name is whole.
    stored = contents(tmp_path / "bucket").items()
    assert all(files[name.removeprefix("outputs/")] == data for name, data in stored)
    output = _victim(tmp_path, "never").stdout
    assert json.loads(output.removeprefix("done"))["retained"] == 0, output
    wanted = {f"outputs/{name}": data for name, data in files.items()}
    assert contents(tmp_path / "bucket") == wanted
    left = [p for p in tmp_path.rglob(".supervisor-incoming/*") if p.is_file()]
    assert left == [], "a dead run's copy takes room for ever"


class Disk:
    """A small disk of its own, mounted at a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def mount(self, options: str = "size=1m") -> None:
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(self.folder)]
        try:
            done = subprocess.run(command, check=False, stderr=subprocess.DEVNULL).returncode == 0
        except OSError:
            done = False
        require(available=done, what="the right to mount")

    def remount(self, options: str) -> None:
        self.mount(f"remount,{options}")

    def unmount(self) -> None:
        subprocess.run(["umount", "-l", str(self.folder)], check=False)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    (tmp_path / "bucket").mkdir()
    found = Disk(tmp_path / "bucket")
    found.mount()
    yield found
    found.unmount()


async def _says(pod: Pod, words: str) -> None:
    with anyio.fail_after(DEADLINE_S):
        await pod.state.wait(lambda s: words in str(s.sync.last_error))


async def test_a_full_disk_keeps_room_for_others_and_gets_the_rest(
    tmp_path: Path, disk: Disk
) -> None:
    pod = Pod(tmp_path)
    (pod.source / "large.ply").write_bytes(bytes(2 * _MIB))
    async with pod.running():
        await _says(pod, "no space is left")
        for number in range(3):
            (pod.source / f"{number}.png").write_bytes(png(str(number)))
        with anyio.fail_after(DEADLINE_S):
            await pod.state.wait(lambda s: s.sync.uploaded == 3)
        assert pod.status.pending == 1
        disk.remount("size=8m")
        await pod.syncer.retry()
        await pod.uploaded(4)
    assert len(contents(pod.bucket)) == 4


async def test_a_disk_that_becomes_read_only_is_told(tmp_path: Path, disk: Disk) -> None:
    pod = Pod(tmp_path)
    async with pod.running():
        (pod.source / "a.png").write_bytes(png("a"))
        await pod.uploaded(1)
        disk.remount("ro")
        (pod.source / "b.png").write_bytes(png("b"))
        await _says(pod, "Read-only file system")
        assert pod.status.blocked
        disk.remount("rw,size=1m")
        await pod.syncer.retry()
        await pod.uploaded(2)


async def test_an_unmounted_disk_is_waited_for_and_its_folder_stays_empty(
    tmp_path: Path, disk: Disk
) -> None:
    pod = Pod(tmp_path)
    async with pod.running():
        (pod.source / "a.png").write_bytes(png("a"))
        await pod.uploaded(1)
        disk.unmount()
        (pod.source / "b.png").write_bytes(png("b"))
        await _says(pod, "is gone")
        assert [*pod.bucket.iterdir()] == []
        disk.mount()
        await pod.syncer.retry()
        await pod.uploaded(2)
        assert [*contents(pod.bucket)] == ["outputs/b.png"]


async def test_a_link_to_another_disk_below_the_folder_is_followed(
    tmp_path: Path, disk: Disk
) -> None:
    pod = Pod(tmp_path, folder=tmp_path / "other")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "outputs").symlink_to(disk.folder)
    async with pod.running():
        (pod.source / "a.png").write_bytes(png("a"))
        await pod.uploaded(1)
    assert [p.name for p in disk.folder.rglob("*.png")] == ["a.png"]


async def test_a_file_in_the_place_of_a_folder_holds_up_only_what_belongs_there(
    tmp_path: Path,
) -> None:
    pod = Pod(tmp_path)
    async with pod.running():
        (pod.source / "x.png").write_bytes(png("x"))
        await pod.uploaded(1)
        (pod.source / "x.png").unlink()
        (pod.source / "x.png").mkdir()
        (pod.source / "x.png" / "y.png").write_bytes(png("y"))
        await pod.event("sync.failed")
        (pod.source / "z.png").write_bytes(png("z"))
        with anyio.fail_after(DEADLINE_S):
            await pod.state.wait(lambda s: s.sync.uploaded == 2 and s.sync.pending == 1)
        next(pod.bucket.rglob("x.png")).unlink()
        await pod.syncer.retry()
        await pod.uploaded(3)
