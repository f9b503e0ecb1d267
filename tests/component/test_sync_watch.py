"""How new files are noticed: inotify at its limits, network volumes, roots that come and go."""

from __future__ import annotations

import errno
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import pytest
from anyio import to_thread

from supervisor.sync import examine, stability, sweep, watcher
from supervisor.sync import inotify as inotify_module
from supervisor.sync.inotify import IN_Q_OVERFLOW, Inotify
from supervisor.sync.ledger import Ledger
from supervisor.sync.model import Tree
from supervisor.sync.stability import Census, Method, Stability
from tests.support.sync import DEADLINE_S, Pod, contents, png

pytestmark = pytest.mark.anyio

_LIMIT = Path("/proc/sys/fs/inotify/max_queued_events")
_NEVER_S = 3600.0  # of the rescan: what arrives was hinted at, or swept for a reason


async def _until(holds: Callable[[], bool]) -> None:
    with anyio.fail_after(DEADLINE_S):
        while not holds():
            await anyio.sleep(0.02)


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> list[Inotify]:
    """Every inotify instance that is opened."""
    opened: list[Inotify] = []

    class Remembered(Inotify):
        def __init__(self) -> None:
            super().__init__()
            opened.append(self)

    monkeypatch.setattr(watcher, "Inotify", Remembered)
    return opened


async def test_after_an_overflow_everything_is_looked_at_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pod = Pod(tmp_path, rescan_interval_s=_NEVER_S)
    lost: list[bytes] = []

    def read(fd: int, size: int) -> bytes:
        """Swallow every event, as a full queue does, and say so as the kernel does."""
        lost.append(os.read(fd, size))
        return struct.pack("iIII", -1, IN_Q_OVERFLOW, 0, 0)

    async with pod.running():
        (pod.source / "before.png").write_bytes(png("before"))
        await pod.uploaded(1)

        class Os:
            def __getattr__(self, name: str) -> Any:
                return read if name == "read" else getattr(os, name)

        monkeypatch.setattr(inotify_module, "os", Os())
        for number in range(300):
            folder = pod.source / f"{number % 7}" / f"{number % 5}"
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{number}.png").write_bytes(png(str(number)))
        await pod.uploaded(301)
    assert lost
    assert len(contents(pod.bucket)) == 301


async def test_a_burst_beyond_the_kernels_queue_loses_nothing(
    tmp_path: Path, watched: list[Inotify]
) -> None:
    """The event loop stands still while more happens than the kernel remembers."""
    limit = int(await to_thread.run_sync(_LIMIT.read_text))
    pod = Pod(tmp_path, rescan_interval_s=_NEVER_S)
    async with pod.running():
        (pod.source / "before.png").write_bytes(png("before"))
        await pod.uploaded(1)
        for number in range(limit // 2 + 100):  # created and deleted: two events each
            (pod.source / f"{number}.bin").touch()
            (pod.source / f"{number}.bin").unlink()
        for number in range(50):
            (pod.source / "late").mkdir(exist_ok=True)
            (pod.source / "late" / f"{number}.png").write_bytes(png(str(number)))
        await pod.uploaded(51)
    assert len(contents(pod.bucket)) == 51


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EMFILE])
async def test_without_watches_folders_are_polled_and_it_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def refuse(*_: object, **__: object) -> bool:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(Inotify, "add" if code == errno.ENOSPC else "__init__", refuse)
    monkeypatch.setattr(sweep, "_BLIND_PAUSE_S", 0.1)
    pod = Pod(tmp_path, rescan_interval_s=_NEVER_S)
    async with pod.running():
        await pod.event("sync.polling")
        (pod.source / "new").mkdir()
        (pod.source / "new" / "a.png").write_bytes(png("a"))
        await pod.uploaded(1)
        (pod.source / "b.png").write_bytes(png("b"))
        await pod.uploaded(2)
    assert pod.kinds().count("sync.polling") == 1
    told = next(e for e in pod.bus.recent() if e.kind == "sync.polling")
    assert "inotify" in told.message
    assert "fs.inotify.max_user_" in str(told.to_json())


async def test_a_folder_that_gets_no_watch_is_polled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The limit may be reached by the hundredth folder as well."""
    add = Inotify.add

    def limited(self: Inotify, folder: Path, name: str, *, follow: bool = False) -> bool:
        if name:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return add(self, folder, name, follow=follow)

    monkeypatch.setattr(Inotify, "add", limited)
    monkeypatch.setattr(sweep, "_BLIND_PAUSE_S", 0.1)
    pod = Pod(tmp_path, rescan_interval_s=_NEVER_S)
    async with pod.running():
        (pod.source / "new").mkdir()
        await pod.event("sync.polling")
        (pod.source / "new" / "a.png").write_bytes(png("a"))
        await pod.uploaded(1)


def _network(monkeypatch: pytest.MonkeyPatch) -> None:
    def choose(_root: Path) -> Stability:
        return Stability(Method.LEASE, network=True)

    monkeypatch.setattr(examine.Examiner.__init__, "__kwdefaults__",
                        {"exclude": None, "choose": choose})  # fmt: skip


async def test_on_a_network_volume_local_writers_are_heard_and_others_are_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, watched: list[Inotify]
) -> None:
    """The lease lies there: only a close that was seen here, or quiet, makes a file finished."""
    _network(monkeypatch)
    monkeypatch.setattr(examine, "window_s", lambda *_: _NEVER_S)
    monkeypatch.setattr(sweep, "_BLIND_PAUSE_S", 0.1)
    pod = Pod(tmp_path, rescan_interval_s=_NEVER_S)
    elsewhere = tmp_path / "elsewhere.png"
    elsewhere.write_bytes(png("elsewhere"))
    async with pod.running():
        await _until(lambda: bool(watched and watched[0]._folders))  # the root is watched
        (pod.source / "here.png").write_bytes(png("here"))
        await pod.uploaded(1)
        # Another machine's file: it is there, and no event tells of a close.
        os.link(elsewhere, pod.source / "there.png")
        await _until(lambda: pod.status.pending == 1)
        await anyio.sleep(0.5)
        assert [*contents(pod.bucket)] == ["outputs/here.png"]
        monkeypatch.setattr(examine, "window_s", lambda *_: 0.1)
        await pod.uploaded(2)


async def test_the_root_may_come_late_go_and_come_back(tmp_path: Path) -> None:
    pod = Pod(tmp_path, rescan_interval_s=_NEVER_S)
    pod.source.rmdir()
    async with pod.running():
        await pod.state.wait(lambda s: s.sync.enabled)
        for number in range(3):
            pod.source.mkdir()
            (pod.source / f"{number}.png").write_bytes(png(str(number)))
            await pod.uploaded(2 * number + 1)
            (pod.source / f"{number}-late.png").write_bytes(png(f"{number} late"))
            await pod.uploaded(2 * number + 2)
            if number == 0:
                shutil.rmtree(pod.source)
            else:
                pod.source.rename(tmp_path / f"away{number}")
    assert len(contents(pod.bucket)) == 6


async def test_the_root_may_become_a_link_to_the_volume(tmp_path: Path) -> None:
    volume = tmp_path / "volume" / "output"
    volume.mkdir(parents=True)
    pod = Pod(tmp_path, rescan_interval_s=_NEVER_S)
    pod.source.rmdir()
    async with pod.running():
        await pod.state.wait(lambda s: s.sync.enabled)
        pod.source.symlink_to(volume)
        (pod.source / "a.png").write_bytes(png("a"))
        await pod.uploaded(1)
        (volume / "deep").mkdir()
        (volume / "deep" / "b.png").write_bytes(png("b"))
        await pod.uploaded(2)
    assert {*contents(pod.bucket)} == {"outputs/a.png", "outputs/deep/b.png"}


async def test_settings_are_seen_as_soon_as_they_are_written(tmp_path: Path) -> None:
    pod = Pod(tmp_path, rescan_interval_s=_NEVER_S, restore=("settings", "workflows"))
    user = tmp_path / "comfyui/user/default"
    async with pod.running():
        await pod.state.wait(lambda s: s.sync.enabled)
        user.mkdir(parents=True)  # ComfyUI makes it
        (user / "comfy.settings.json").write_text('{"a": 1}')
        (user / "other.json").write_text("{}")
        await pod.uploaded(1)
        (user / "comfy.settings.json").write_text('{"a": 2}')
        await pod.uploaded(2)
        (user / "workflows").mkdir()
        (user / "workflows" / "w.json").write_text("{}")
        await pod.uploaded(3)
    stored = {str(p.relative_to(pod.bucket)): p.read_text() for p in pod.bucket.rglob("*.json")}
    assert stored == {"settings/comfy.settings.json": '{"a": 2}', "workflows/w.json": "{}"}


async def test_a_folder_that_becomes_a_link_leads_nowhere(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "a.png").write_bytes(png("not yours"))
    pod = Pod(tmp_path, rescan_interval_s=1)
    (pod.source / "in").mkdir()
    (pod.source / "in" / "a.png").write_bytes(png("a"))
    (pod.source / "loop").symlink_to(pod.source)
    (pod.source / "out").symlink_to(secret)
    async with pod.running():
        await pod.uploaded(1)
        shutil.rmtree(pod.source / "in")
        (pod.source / "in").symlink_to(secret)
        running = pod.syncer._running
        assert running is not None
        await running.tracker._hint("outputs", ["in/a.png", "out/a.png", "loop/in/a.png"], True)
        (pod.source / "b.png").write_bytes(png("b"))
        await pod.uploaded(2)
        await pod.syncer.flush(DEADLINE_S)
    assert {*contents(pod.bucket)} == {"outputs/in/a.png", "outputs/b.png"}


async def test_a_moved_folder_is_watched_where_it_is(
    tmp_path: Path, watched: list[Inotify]
) -> None:
    pod = Pod(tmp_path, rescan_interval_s=_NEVER_S)
    (pod.source / "old" / "sub").mkdir(parents=True)
    async with pod.running():
        (pod.source / "old" / "sub" / "a.png").write_bytes(png("a"))
        await pod.uploaded(1)
        (pod.source / "old").rename(pod.source / "new")
        await _until(lambda: "new/sub" in {n for n, _ in watched[0]._folders.values()})
        (pod.source / "new" / "sub" / "b.png").write_bytes(png("b"))
        (pod.source / "new" / "c.png").write_bytes(png("c"))
        await pod.uploaded(3)
    assert {*contents(pod.bucket)} == {
        "outputs/old/sub/a.png", "outputs/new/sub/b.png", "outputs/new/c.png",
    }  # fmt: skip


def _write_aside(path: Path, data: bytes) -> None:
    scratch = path.with_suffix(".tmp")
    scratch.write_bytes(struct.pack("<Q", 2) + b"{}" + data)
    os.utime(scratch, (1e9, 1e9))
    scratch.rename(path)


async def test_a_recycled_inode_with_equal_size_and_time_is_another_file(tmp_path: Path) -> None:
    """Archives set times that are alike, frames have sizes that are: only the bytes differ."""
    pod = Pod(tmp_path, rescan_interval_s=_NEVER_S)
    first, second = pod.source / "1.latent", pod.source / "2.latent"
    async with pod.running():
        _write_aside(first, b"first!")
        await pod.uploaded(1)
        inode = first.stat().st_ino
        first.rename(second.with_suffix(".tmp"))
        _write_aside(second, b"second")
        assert second.stat().st_ino == inode
        await pod.uploaded(2)
    assert sorted(data[-6:] for data in contents(pod.bucket).values()) == [b"first!", b"second"]


async def test_what_may_not_be_read_waits_until_it_may(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        refuse = PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        patch = pytest.MonkeyPatch()
        real = stability.open_regular

        def open_regular(path: Path) -> int:
            if not path.stat().st_mode & 0o444:
                raise refuse
            return real(path)

        patch.setattr(examine, "open_regular", open_regular)
    else:
        patch = pytest.MonkeyPatch()
    pod = Pod(tmp_path, rescan_interval_s=1)
    try:
        async with pod.running():
            path = pod.source / "a.png"
            path.touch(mode=0o000)
            path.chmod(0)
            (pod.source / "b.png").write_bytes(png("b"))
            with anyio.fail_after(DEADLINE_S):
                await pod.state.wait(lambda s: s.sync.uploaded == 1 and s.sync.pending == 1)
            path.chmod(0o600)
            path.write_bytes(png("a"))
            await pod.uploaded(2)
    finally:
        patch.undo()


async def test_one_look_at_the_processes_serves_all_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without CAP_LEASE every file would cost a walk through all of /proc."""
    looks: list[int] = []
    real = stability.census

    def census(files: list[os.stat_result]) -> Census:
        looks.append(len(files))
        return Census(real(files).writing, frozenset())

    monkeypatch.setattr(examine, "census", census)
    tree = Tree("outputs", tmp_path / "out", "outputs", outputs=True)
    tree.root.mkdir()
    paths = [f"{number}.png" for number in range(50)]
    for path in paths:
        (tree.root / path).write_bytes(png(path))
    ledger = Ledger(tmp_path / "sync.db")
    try:
        examiner = examine.Examiner(tree, ledger, choose=lambda _: Stability(Method.PROC))
        examiner.probe()
        with (tree.root / "7.png").open("ab"):
            facts = await to_thread.run_sync(examiner.look, paths)
    finally:
        ledger.close()
    assert looks == [50]
    assert [f.path for f in facts if f.writers] == ["7.png"]
    assert not any(f.quiet_s or f.fault for f in facts)
