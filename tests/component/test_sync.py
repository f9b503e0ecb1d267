"""The whole syncer against a folder: what is finished arrives, once, and nothing else."""

from __future__ import annotations

import errno
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

import anyio
import pytest

from supervisor.sync import cleanup, examine, restore, stability
from supervisor.sync.model import RemoteFile, Tree
from supervisor.sync.target import Target
from tests.support import s3_servers
from tests.support.sync import DEADLINE_S, Pod, contents, mp4, png

pytestmark = pytest.mark.anyio


async def test_files_from_before_and_after_the_start_arrive(tmp_path: Path) -> None:
    pod = Pod(tmp_path)
    (pod.source / "before.png").write_bytes(png("before"))
    async with pod.running():
        await pod.uploaded(1)
        (pod.source / "after.PNG").write_bytes(png("after"))
        (pod.source / "notes.md").write_text("no output")
        (pod.source / "half.png.part").write_text("no output")
        await pod.uploaded(2)
        await pod.syncer.flush(DEADLINE_S)
    assert contents(pod.bucket) == {
        "outputs/before.png": png("before"),
        "outputs/after.PNG": png("after"),
    }
    assert pod.status.last_stored is not None
    assert pod.status.last_stored.startswith("outputs/2")


async def test_nested_folders_made_and_filled_at_once_lose_nothing(tmp_path: Path) -> None:
    pod = Pod(tmp_path)
    async with pod.running():
        for number in range(100):
            folder = pod.source / f"run{number}" / "deep" / "er"
            folder.mkdir(parents=True)
            (folder / "x.png").write_bytes(png(str(number)))
        await pod.uploaded(100)
    assert len(contents(pod.bucket)) == 100


async def test_a_file_with_a_writer_is_not_taken(tmp_path: Path) -> None:
    pod = Pod(tmp_path)
    async with pod.running():
        with (pod.source / "slow.png").open("wb") as file:
            file.write(png("slow")[:30])
            file.flush()
            # A file that comes later is stored first: the slow one was looked at and left.
            (pod.source / "quick.png").write_bytes(png("quick"))
            with anyio.fail_after(DEADLINE_S):
                await pod.state.wait(lambda s: s.sync.uploaded == 1 and s.sync.pending == 1)
            await pod.syncer.flush(DEADLINE_S)
            assert list(contents(pod.bucket)) == ["outputs/quick.png"]
            file.write(png("slow")[30:])
        await pod.uploaded(2)
    assert contents(pod.bucket)["outputs/slow.png"] == png("slow")


async def test_an_mp4_rewritten_for_faststart_is_stored_in_its_last_form(tmp_path: Path) -> None:
    pod = Pod(tmp_path)
    path = pod.source / "video.mp4"
    async with pod.running():
        with path.open("w+b") as file:
            file.write(mp4(moov=False))
            file.flush()
            with path.open("rb") as reader:  # as ffmpeg does: closed once for reading
                reader.read()
            await pod.state.wait(lambda s: s.sync.pending == 1)
            file.seek(0)
            file.write(mp4(b"final" * 100))
        await pod.uploaded(1)
    assert contents(pod.bucket) == {"outputs/video.mp4": mp4(b"final" * 100)}


async def test_temp_and_rename_and_a_move_store_once(tmp_path: Path) -> None:
    pod = Pod(tmp_path)
    async with pod.running():
        (pod.source / "a.png.tmp").write_bytes(png("a"))
        (pod.source / "a.png.tmp").rename(pod.source / "a.png")
        await pod.uploaded(1)
        (pod.source / "kept").mkdir()
        (pod.source / "a.png").rename(pod.source / "kept" / "b.png")
        await pod.syncer.flush(DEADLINE_S)
        (pod.source / "c.png").write_bytes(png("c"))
        await pod.uploaded(2)
    assert sorted(contents(pod.bucket)) == ["outputs/a.png", "outputs/c.png"]


async def test_a_rewrite_keeps_both_and_the_same_bytes_are_not_sent_again(tmp_path: Path) -> None:
    pod = Pod(tmp_path)
    path = pod.source / "x.png"
    async with pod.running():
        path.write_bytes(png("one"))
        await pod.uploaded(1)
        path.write_bytes(png("two"))
        await pod.uploaded(2)
        path.write_bytes(png("two"))
        await pod.uploaded(3)
        path.write_bytes(png("one"))
        await pod.uploaded(4)
    stored = contents(pod.bucket)
    assert sorted(stored.values()) == sorted([png("one"), png("two")])
    assert stored["outputs/x.png"] == png("one")
    assert [e.data["sent"] for e in pod.bus.recent() if e.kind == "sync.stored"] == [
        True, True, False, False,
    ]  # fmt: skip


async def test_overwrite_replaces(tmp_path: Path) -> None:
    pod = Pod(tmp_path, on_conflict="overwrite")
    async with pod.running():
        (pod.source / "x.png").write_bytes(png("one"))
        await pod.uploaded(1)
        (pod.source / "x.png").write_bytes(png("two"))
        await pod.uploaded(2)
    assert contents(pod.bucket) == {"outputs/x.png": png("two")}


async def test_another_pod_with_the_same_names_overwrites_nothing(tmp_path: Path) -> None:
    first, second = (
        Pod(tmp_path / "1", folder=tmp_path / "b"),
        Pod(tmp_path / "2", folder=tmp_path / "b"),
    )
    for pod, text in ((first, "one"), (second, "two")):
        async with pod.running():
            (pod.source / "ComfyUI_00001_.png").write_bytes(png(text))
            await pod.uploaded(1)
    assert sorted(contents(tmp_path / "b").values()) == sorted([png("one"), png("two")])


async def test_a_restart_sends_nothing_twice_and_finds_what_came_meanwhile(tmp_path: Path) -> None:
    pod = Pod(tmp_path)
    async with pod.running():
        (pod.source / "x.png").write_bytes(png("x"))
        await pod.uploaded(1)
    (pod.source / "y.png").write_bytes(png("y"))
    again = Pod(tmp_path)
    async with again.running():
        await again.uploaded(1)
        assert (await again.syncer.flush(DEADLINE_S)).retained == 0
    assert again.status.uploaded == 1
    assert len(contents(pod.bucket)) == 2


async def test_a_broken_file_goes_to_incomplete_and_its_whole_form_to_outputs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(examine, "BROKEN_GRACE_S", 0.2)
    pod = Pod(tmp_path)
    async with pod.running():
        (pod.source / "x.mp4").write_bytes(mp4(moov=False))
        await pod.uploaded(1)
        assert pod.status.incomplete == 1
        (pod.source / "x.mp4").write_bytes(mp4())
        await pod.uploaded(2)
    assert contents(pod.bucket) == {"incomplete/x.mp4": mp4(moov=False), "outputs/x.mp4": mp4()}


async def test_the_final_flush_does_not_wait_for_the_grace(tmp_path: Path) -> None:
    pod = Pod(tmp_path)
    async with pod.running():
        (pod.source / "x.mp4").write_bytes(mp4(moov=False))
        status = await pod.syncer.flush(DEADLINE_S, final=True)
    assert (status.retained, status.incomplete) == (0, 1)


async def test_links_are_not_followed_and_odd_names_arrive(tmp_path: Path) -> None:
    pod = Pod(tmp_path)
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret.png").write_bytes(png("secret"))
    names = ["ü ñ 画像.png", "new\nline.png", "x" * 251 + ".png", "a%b #?&+.png"]
    async with pod.running():
        (pod.source / "link.png").symlink_to(outside / "secret.png")
        (pod.source / "folder").symlink_to(outside)
        os.mkfifo(pod.source / "pipe.png")
        (pod.source / os.fsdecode(b"\xff\xfe.png")).write_bytes(png("raw"))
        for name in names:
            (pod.source / name).write_bytes(png(str(len(name))))
        await pod.uploaded(5)
        await pod.syncer.flush(DEADLINE_S)
    stored = contents(pod.bucket)
    assert png("secret") not in stored.values()
    assert len(stored) == 5
    assert {"outputs/new%0Aline.png", "outputs/%FF%FE.png", f"outputs/{names[0]}"} <= stored.keys()


async def test_a_file_from_another_century_holds_up_nothing(tmp_path: Path) -> None:
    """Its time in nanoseconds has more than 63 bits."""
    pod = Pod(tmp_path)
    for name, at_ns in (("future.png", 10**19), ("past.png", -(10**19)), ("now.png", 10**18)):
        (pod.source / name).write_bytes(png(name))
        os.utime(pod.source / name, ns=(at_ns, at_ns))
    async with pod.running():
        await pod.uploaded(3)
        await pod.syncer.flush(DEADLINE_S)
    assert (pod.status.uploaded, len(contents(pod.bucket))) == (3, 3)


async def test_delete_after_upload_deletes_only_what_is_stored(tmp_path: Path) -> None:
    pod = Pod(tmp_path, delete_after_upload=True)
    path = pod.source / "x.png"
    async with pod.running():
        path.write_bytes(png("x"))
        await pod.uploaded(1)
        with anyio.fail_after(DEADLINE_S):
            while path.exists():
                await anyio.sleep(0.05)
        path.write_bytes(png("new under the old name"))
        await pod.uploaded(2)
    assert len(contents(pod.bucket)) == 2


async def test_what_cannot_be_deleted_stands_in_nobodys_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cleanup, "_BATCH", 2)
    real = stability.open_regular

    def open_regular(path: Path) -> int:
        if path.name < "5":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return real(path)

    monkeypatch.setattr(cleanup, "open_regular", open_regular)
    pod = Pod(tmp_path, delete_after_upload=True)
    for number in range(8):
        (pod.source / f"{number}.png").write_bytes(png(str(number)))
    monkeypatch.setattr(cleanup, "_PAUSE_S", 0.05)
    monkeypatch.setattr(cleanup, "_MAX_PAUSE_S", 0.1)
    async with pod.running():
        await pod.uploaded(8)
        with anyio.fail_after(DEADLINE_S):
            while len(os.listdir(pod.source)) > 5:  # noqa: PTH208 (names are enough)
                await anyio.sleep(0.05)
        await pod.event("sync.undeleted")
        await anyio.sleep(0.5)  # more passes
        assert pod.kinds().count("sync.undeleted") == 1
        assert any("cannot be deleted" in line for line in pod.syncer.waiting())
        monkeypatch.setattr(cleanup, "open_regular", real)
        with anyio.fail_after(DEADLINE_S):
            while [*pod.source.iterdir()] or pod.syncer.waiting():
                await anyio.sleep(0.05)
        monkeypatch.setattr(cleanup, "open_regular", open_regular)
        (pod.source / "0.png").write_bytes(png("again"))
        await pod.event("sync.undeleted", 2)


async def test_what_failed_for_good_is_not_tried_again_until_somebody_asks(tmp_path: Path) -> None:
    def fault(request: Any, _count: int) -> int | None:
        return 413 if request.path.endswith("large.png") else None

    with s3_servers.strict(fault=fault) as server:
        assert server.strict is not None
        pod = Pod(tmp_path, **server.settings)
        (pod.source / "large.png").write_bytes(png("large"))
        async with pod.running():
            await pod.event("sync.failed")
            for number in range(3):
                (pod.source / f"{number}.png").write_bytes(png(str(number)))
                status = await pod.syncer.flush(DEADLINE_S)  # looks at everything
                assert (status.failed, status.unflushed) == (1, 1)
            assert pod.kinds().count("sync.failed") == 1
            assert pod.syncer.waiting() == [
                "large.png is refused for good; `supervisor sync retry` asks again"
            ]
            server.strict.fault = None
            await pod.syncer.retry()
            await pod.uploaded(4)


async def test_a_full_or_forbidden_target_holds_files_back_and_says_so_once(
    tmp_path: Path,
) -> None:
    pod = Pod(tmp_path)
    pod.bucket.write_text("a file where the folder should be")
    for number in range(5):
        (pod.source / f"{number}.png").write_bytes(png(str(number)))
    async with pod.running():
        await pod.event("sync.blocked")
        with anyio.fail_after(DEADLINE_S):
            await pod.state.wait(lambda s: s.sync.pending == 5)
        assert pod.status.hint is not None
        pod.bucket.unlink()
        await pod.syncer.retry()
        await pod.uploaded(5)
    assert pod.kinds().count("sync.blocked") == 1
    assert pod.status.last_error is None
    assert len(contents(pod.bucket)) == 5


async def test_a_target_inside_the_source_is_not_synced_into_itself(tmp_path: Path) -> None:
    pod = Pod(tmp_path, folder=tmp_path / "comfyui" / "output" / "bucket")
    async with pod.running():
        (pod.source / "x.png").write_bytes(png("x"))
        await pod.uploaded(1)
        await pod.syncer.flush(DEADLINE_S)
    assert len(contents(pod.source / "bucket")) == 1


async def test_workflows_go_up_and_come_back_newest_first(tmp_path: Path) -> None:
    pod = Pod(tmp_path, restore=["workflows", "settings"])
    workflows = tmp_path / "comfyui/user/default/workflows"
    workflows.mkdir(parents=True)
    settings = tmp_path / "comfyui/user/default/comfy.settings.json"
    (workflows / "a.json").write_text("a")
    (workflows / "b.json").write_text("b")
    settings.write_text("{}")
    async with pod.running():
        await pod.uploaded(3)
        (workflows / "a.json").write_text("a, changed")
        await pod.uploaded(4)
    (workflows / "a.json").unlink()
    settings.unlink()
    (workflows / "b.json").write_text("b, newer here")
    restored = await Pod(tmp_path).syncer.restore(["workflows", "settings"])
    assert (restored.files, restored.kept) == (2, 1)
    assert (workflows / "a.json").read_text() == "a, changed"
    assert (workflows / "b.json").read_text() == "b, newer here"
    assert settings.read_text() == "{}"


async def test_restore_stays_in_its_folder_and_leaves_out_what_it_cannot_write(
    tmp_path: Path,
) -> None:
    pod = Pod(tmp_path)
    stored, outside = pod.bucket / "workflows", tmp_path / "outside"
    outside.mkdir()
    workflows = tmp_path / "comfyui/user/default/workflows"
    (workflows / "taken.json").mkdir(parents=True)
    (workflows / "leads-out").symlink_to(outside)
    good = {"a.json", "new%0Aline.json", "50%25AF.json", "bad%FF.json", "in/deep/b.json"}
    for key in (*good, "taken.json", "leads-out/x.json"):
        (stored / key).parent.mkdir(parents=True, exist_ok=True)
        (stored / key).write_text(key)
    (pod.bucket / "workflows-not" / "c.json").parent.mkdir()
    (pod.bucket / "workflows-not" / "c.json").write_text("c")
    restored = await pod.syncer.restore(["workflows"])
    assert (restored.files, restored.kept, restored.skipped) == (5, 0, 2)
    names = {os.fsencode(p.relative_to(workflows)) for p in workflows.rglob("*") if p.is_file()}
    assert names == {b"a.json", b"new\nline.json", b"50%AF.json", b"bad\xff.json",
                     b"in/deep/b.json"}  # fmt: skip
    assert list(outside.iterdir()) == []


@pytest.mark.parametrize(
    "key",
    ["../up.json", "/etc/x", "a/../../up.json", "folder/", "", ".", "nul\0.json", "/"],
)
async def test_keys_that_lead_elsewhere_are_left_alone(tmp_path: Path, key: str) -> None:
    """A bucket is written to by others, too."""

    class Bucket:
        async def list(self, prefix: str) -> AsyncIterator[RemoteFile]:
            yield RemoteFile(f"{prefix}{key}", 1, 1e9)
            yield RemoteFile(f"{prefix}fine.json", 1, 1e9)

        async def fetch(self, key: str, destination: Path, *, newer_than_s: float | None) -> bool:
            fetched.append((key, destination, newer_than_s))
            return True

    fetched: list[tuple[str, Path, float | None]] = []
    tree = Tree("workflows", tmp_path / "workflows", "workflows")
    result = await restore.restore(cast("Target", Bucket()), [tree])
    assert fetched == [("workflows/fine.json", tree.root / "fine.json", None)]
    assert result.files == 1


async def test_workflows_come_back_page_by_page(tmp_path: Path) -> None:
    with s3_servers.strict() as server:
        assert server.strict is not None
        server.strict.page_keys = 7
        client = server.client()
        for number in range(30):
            client.put_object(Bucket=server.bucket, Key=f"workflows/{number}.json", Body=b"{}")
        client.put_object(Bucket=server.bucket, Key="workflows/sub/", Body=b"")
        client.put_object(Bucket=server.bucket, Key="workflows/sub/x é+&.json", Body=b"{}")
        client.close()
        pod = Pod(tmp_path, **server.settings)
        restored = await pod.syncer.restore(["workflows"])
    assert (restored.files, restored.skipped) == (31, 0)
    workflows = tmp_path / "comfyui/user/default/workflows"
    assert (workflows / "sub" / "x é+&.json").read_text() == "{}"


async def test_a_flush_waits_for_what_was_there_when_it_was_asked_for(tmp_path: Path) -> None:
    pod = Pod(tmp_path)
    stop = anyio.Event()

    async def produce() -> None:
        number = 0
        while not stop.is_set():
            (pod.source / f"late-{number}.png").write_bytes(png(str(number)))
            number += 1
            await anyio.sleep(0.001)

    async with pod.running(), anyio.create_task_group() as tasks:
        for number in range(20):
            (pod.source / f"{number}.png").write_bytes(png(str(number)))
        with (pod.source / "open.mp4").open("wb") as video:
            video.write(b"x" * 48)
            video.flush()
            tasks.start_soon(produce)
            with anyio.fail_after(DEADLINE_S):
                status = await pod.syncer.flush(DEADLINE_S)
            assert status.unflushed == 0
            early = {key for key in contents(pod.bucket) if "late" not in key}
            assert len(early) == 20
            stop.set()
            with anyio.fail_after(DEADLINE_S):
                await pod.state.wait(lambda s: s.sync.pending == 1)
            assert pod.syncer.waiting() == ["open.mp4 is still being written"]


async def test_what_waits_is_told_with_its_reason(tmp_path: Path) -> None:
    with s3_servers.strict() as server:
        pod = Pod(tmp_path, **{**server.settings, "bucket": "nowhere"})
        (pod.source / "a.png").write_bytes(png("a"))
        (pod.source / "cut.png").write_bytes(png("cut")[:-6])
        async with pod.running():
            await pod.event("sync.blocked")
            status = await pod.syncer.flush(0.5)
            assert status.unflushed == 2
            told = pod.syncer.waiting()
            assert any("cut.png is not whole (the PNG has no IEND chunk)" in line for line in told)
            assert any("a.png is held back until the target accepts" in line for line in told)


async def test_rotated_logs_go_up_and_the_written_one_stays(tmp_path: Path) -> None:
    logs = tmp_path / "logs"
    logs.mkdir()
    pod = Pod(tmp_path, logs=True, logs_directory=logs)
    with (logs / "comfyui.log").open("w") as current:
        current.write("now")
        current.flush()
        (logs / "comfyui.log.1").write_text("old")
        async with pod.running():
            with anyio.fail_after(DEADLINE_S):
                await pod.state.wait(lambda s: s.sync.uploaded == 1)
    assert contents(pod.bucket) == {"logs/pod/comfyui.log.1": b"old"}


async def test_metrics_see_the_time_from_close_to_stored(tmp_path: Path) -> None:
    class Sink:
        def __init__(self) -> None:
            self.latencies: list[float | None] = []

        def stored(self, *, size_bytes: int, latency_s: float | None) -> None:
            self.latencies.append(latency_s)

        def failed(self, reason: str) -> None:
            raise AssertionError(reason)

    sink = Sink()
    pod = Pod(tmp_path, metrics=sink)
    async with pod.running():
        for number in range(3):
            (pod.source / f"{number}.png").write_bytes(png("x"))
            await pod.uploaded(number + 1)
    assert len(sink.latencies) == 3
    assert sink.latencies[-1] is not None
    assert 0 <= sink.latencies[-1] < DEADLINE_S
