"""The shared store where disks are read-only, full, elsewhere or rotten, and pods race."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import mmap
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import anyio
import anyio.from_thread
import pytest

from supervisor.config.settings import ModelsSection
from supervisor.download.request import (
    DownloadRequest,
    ProgressCallback,
    Resolver,
    TransferResult,
)
from supervisor.errors import TransientTransferError
from supervisor.models import objects
from supervisor.models.leases import Leases
from supervisor.models.objects import open_files
from supervisor.models.runtime import opened_downloader
from supervisor.models.store import ModelStore
from supervisor.models.transfers import StoreDownloader
from supervisor.models.verifier import Verdict, Verified, discard_damaged
from tests.support.hub import Hub, serve
from tests.support.pod import NoResolver

ROOT = Path(__file__).parents[2]
DATA = os.urandom(50_000)
DIGEST = hashlib.sha256(DATA).hexdigest()
OLD = (0, 0)


class Engine:
    def __init__(self) -> None:
        self.calls: list[Path] = []

    async def fetch(
        self, request: DownloadRequest, resolver: Resolver, progress: ProgressCallback
    ) -> TransferResult:
        self.calls.append(request.destination)
        request.destination.parent.mkdir(parents=True, exist_ok=True)
        request.destination.write_bytes(DATA)
        return TransferResult(request.destination, len(DATA), DIGEST, len(DATA))


def wanted(place: Path, digest: str | None = DIGEST) -> DownloadRequest:
    return DownloadRequest(place.name, "https://e.com/f", place, sha256=digest, size_bytes=50_000)


def stored(root: Path, *places: Path, data: bytes = DATA) -> tuple[ModelStore, str]:
    """A store with one object that is linked at ``places``."""
    store = ModelStore(root / "store")
    digest = hashlib.sha256(data).hexdigest()
    file = root / f"{digest[:8]}.tmp"
    file.write_bytes(data)
    store.put(file, digest)
    for place in places:
        store.link(digest, place)
    if places:
        os.utime(root / "store/uses" / digest / "last", OLD)
    return store, digest


@pytest.fixture
def other_disk(tmp_path: Path) -> Iterator[Path]:
    memory = Path("/dev/shm")
    if not memory.is_dir() or memory.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("needs a second file system")
    folder = Path(tempfile.mkdtemp(dir=memory))
    yield folder
    shutil.rmtree(folder)


async def get(store: ModelStore, engine: Engine, request: DownloadRequest) -> TransferResult:
    downloader = StoreDownloader(engine, store, Leases(store.locks, lease_s=5))
    with anyio.fail_after(30):
        return await downloader.fetch(request, NoResolver(), lambda _: None)


# -- pods that share nothing but the folder -------------------------------------------------


def test_pods_with_the_same_process_number_do_not_meet(tmp_path: Path) -> None:
    """Two containers' processes have the same numbers; threads have them too."""
    store, _ = stored(tmp_path)
    shared = tmp_path / "models/f.bin"

    def work(pod: int) -> None:
        for turn in range(60):
            store.link(DIGEST, shared)
            store.link(DIGEST, tmp_path / f"pod{pod}" / f"{turn}.bin")
            store.pinned()

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    assert len(store.places(DIGEST)) == 1 + 4 * 60
    assert shared.read_bytes() == DATA
    assert not list((store.root / "temporary").iterdir())


def test_linking_and_evicting_at_once_loses_nobodys_file(tmp_path: Path) -> None:
    """What was linked is there, or the linker knows that it has to fetch."""
    store = ModelStore(tmp_path / "store")
    outcomes: list[str] = []

    def link(pod: int) -> None:
        for turn in range(80):
            fresh = tmp_path / f"{pod}-{turn}.tmp"
            fresh.write_bytes(DATA)
            place = tmp_path / f"pod{pod}/f.bin"
            try:
                store.put(fresh, DIGEST)
                store.link(DIGEST, place)
                assert place.read_bytes() == DATA
                outcomes.append("linked")
            except FileNotFoundError:
                outcomes.append("again")

    def evict(_: int) -> None:
        for _turn in range(40):
            store.evict(0, opened=frozenset)

    with ThreadPoolExecutor(4) as pool:
        jobs = [pool.submit(w, n) for n in (1, 2) for w in (link, evict)]
        for job in jobs:
            job.result()
    assert outcomes.count("linked") == len(outcomes)  # just used: no eviction takes it
    os.utime(store.root / "uses" / DIGEST / "last", OLD)
    assert [o.sha256 for o in store.evict(0, opened=frozenset)] == [DIGEST]
    assert not (tmp_path / "pod1/f.bin").exists()


def test_two_evictions_at_once(tmp_path: Path) -> None:
    store = ModelStore(tmp_path / "store")
    for index in range(30):
        stored(tmp_path, tmp_path / f"m/{index}.bin", data=f"object {index}".encode())
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda _: store.evict(0, opened=frozenset), range(2)))
    assert not store.objects()
    assert not list((tmp_path / "m").iterdir())
    assert not list((store.root / "uses").iterdir())


@pytest.mark.anyio
async def test_two_pods_where_flock_does_not_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    hub = Hub()
    hub.files["/files/f.bin"] = (DATA, {})
    done: list[int] = []

    async def pod(name: str) -> None:
        section = ModelsSection(store=tmp_path / "store")
        url = hub.hub_url + "/files/f.bin"
        request = DownloadRequest(
            "f.bin", url, tmp_path / name / "f.bin", sha256=DIGEST, reference=url
        )

        async with opened_downloader(section, {}) as engine:
            result = await engine.fetch(request, NoResolver(), lambda _: None)
            done.append(result.bytes_fetched)

    async with serve(hub):
        with anyio.fail_after(60):
            async with anyio.create_task_group() as group:
                group.start_soon(pod, "one")
                group.start_soon(pod, "two")
    assert sorted(done) == [0, len(DATA)]
    assert (tmp_path / "one/f.bin").samefile(tmp_path / "two/f.bin")


# -- disks ----------------------------------------------------------------------------------


@pytest.mark.anyio
async def test_a_store_on_another_disk(tmp_path: Path, other_disk: Path) -> None:
    store, engine = ModelStore(other_disk / "store"), Engine()
    one, two = tmp_path / "one/f.bin", tmp_path / "two/f.bin"
    await get(store, engine, wanted(one))
    await get(store, engine, wanted(two))
    assert len(engine.calls) == 1
    assert one.is_symlink()
    assert one.read_bytes() == two.read_bytes() == DATA
    os.utime(store.root / "uses" / DIGEST / "last", OLD)
    assert store.evict(0, opened=frozenset)
    assert not one.is_symlink()
    assert not two.is_symlink()
    await get(store, engine, wanted(one))
    assert one.read_bytes() == DATA


@pytest.mark.anyio
async def test_a_link_of_the_users_does_not_become_an_object(tmp_path: Path) -> None:
    """Its file may change under the store; and it is nobody else's to move."""
    mine = tmp_path / "elsewhere/f.bin"
    mine.parent.mkdir()
    mine.write_bytes(DATA)
    place = tmp_path / "models/f.bin"
    place.parent.mkdir()
    place.symlink_to(mine)
    store, engine = ModelStore(tmp_path / "store"), Engine()
    await get(store, engine, wanted(place))
    assert engine.calls == []  # the bytes were there
    assert not store.path(DIGEST).is_symlink()
    assert place.samefile(store.path(DIGEST))
    mine.write_bytes(b"changed")
    assert place.read_bytes() == DATA


def mounted(script: str, tmp_path: Path, *, size: str = "1m") -> subprocess.CompletedProcess[str]:
    """Run a script with a file system of its own at ``tmp_path``/store."""
    source = tmp_path / "source"
    source.write_bytes(DATA)
    store = tmp_path / "store"
    store.mkdir(exist_ok=True)
    run = f"{sys.executable} -m tests.support.pod {tmp_path} $NAME {DIGEST} {source} 30"
    head = f"set -e; mount -t tmpfs -o size={size} none {store}; pod() {{ NAME=$1; {run}; }}\n"
    return subprocess.run(
        ["unshare", "--mount", "sh", "-c", head + script],
        cwd=ROOT,
        env=os.environ | {"POD_PAUSE_S": "0"},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


@pytest.mark.needs("root", "unshare")
def test_a_read_only_store_serves_and_does_not_stop_others(tmp_path: Path) -> None:
    ended = mounted(
        f"pod one; mount -o remount,ro {tmp_path}/store; pod two; "
        f"cmp {tmp_path}/two/loras/f.bin {tmp_path}/source",
        tmp_path,
    )
    assert ended.stdout.split() == ["started", "done", str(len(DATA)), "done", "0"], ended.stderr
    empty = mounted(f"mount -o remount,ro {tmp_path}/store; pod three", tmp_path)
    assert empty.stdout.split() == ["started", "done", str(len(DATA))], empty.stderr
    assert (tmp_path / "three/loras/f.bin").read_bytes() == DATA


@pytest.mark.needs("root", "unshare")
def test_a_full_store_is_waited_for(tmp_path: Path) -> None:
    """A transient error: the manager tries again; with room it goes on where it stopped."""
    ended = mounted(
        f"pod one || true; mount -o remount,size=1m {tmp_path}/store; pod one; "
        f"cmp {tmp_path}/one/loras/f.bin {tmp_path}/source",
        tmp_path,
        size="48k",
    )
    lines = ended.stdout.splitlines()
    assert ended.returncode == 0, ended.stderr
    assert lines[1].startswith("failed TransientTransferError")
    assert "No space left" in lines[1]
    assert lines[2] == "started"
    assert 0 < int(lines[3].removeprefix("done ")) < len(DATA)


@pytest.mark.anyio
@pytest.mark.parametrize("number", [errno.ESTALE, errno.EIO, errno.ENOSPC])
async def test_a_volume_that_hiccups_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    store, engine = ModelStore(tmp_path / "store"), Engine()
    put = store.put

    def fail(file: Path, sha256: str, **_: object) -> Path:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(store, "put", fail)
    with pytest.raises(TransientTransferError, match=os.strerror(number)):
        await get(store, engine, wanted(tmp_path / "m/f.bin"))
    monkeypatch.setattr(store, "put", put)
    await get(store, engine, wanted(tmp_path / "m/f.bin"))
    assert (tmp_path / "m/f.bin").read_bytes() == DATA


def test_no_room_for_the_copy_of_an_earlier_fetch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = ModelStore(tmp_path / "store")
    (store.incoming("k", 1, writer_gone=True) / "f.part").write_bytes(b"half")

    def full(*_: object, **__: object) -> None:
        raise shutil.Error([("a", "b", "No space left on device")])

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "copytree", full)
        folder = store.incoming("k", 2, writer_gone=False)
    assert list(folder.iterdir()) == []
    (folder / "f.part").write_bytes(b"other half")
    assert [p.name for p in store.incoming("k", 3, writer_gone=False).iterdir()] == ["f.part"]


@pytest.mark.anyio
async def test_a_stop_does_not_wait_for_a_copy_onto_the_volume(
    tmp_path: Path, other_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The copy of a large file onto a slow volume takes minutes; what was fetched stays."""
    store, engine = ModelStore(tmp_path / "store", staging=other_disk), Engine()
    copying = threading.Event()
    check_cancelled = anyio.from_thread.check_cancelled

    def slow() -> None:
        copying.set()
        time.sleep(0.05)
        check_cancelled()

    with anyio.fail_after(60):
        async with anyio.create_task_group() as group:
            with monkeypatch.context() as patch:
                patch.setattr(objects, "_CHUNK_BYTES", 100)
                patch.setattr(anyio.from_thread, "check_cancelled", slow)
                group.start_soon(get, store, engine, wanted(tmp_path / "m/f.bin"))
                while not copying.is_set():
                    await anyio.sleep(0.01)
                group.cancel_scope.cancel()
    assert not store.has(DIGEST)
    assert not list((store.root / "temporary").iterdir())
    (fetched,) = other_disk.glob("incoming/*/*/f.bin")  # noqa: ASYNC240 - a look, in a test
    assert fetched.read_bytes() == DATA
    await get(store, engine, wanted(tmp_path / "m/f.bin"))
    assert (tmp_path / "m/f.bin").read_bytes() == DATA


def test_a_copied_fetch_that_is_cancelled_leaves_nothing_half(tmp_path: Path) -> None:
    store = ModelStore(tmp_path / "store")
    (store.incoming("k", 1, writer_gone=True) / "f.part").write_bytes(DATA)

    def cancelled() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.incoming("k", 2, writer_gone=False, pause=cancelled)
    assert [p.name for p in (store.root / "incoming/k").iterdir()] == ["1"]
    folder = store.incoming("k", 2, writer_gone=False)
    assert (folder / "f.part").read_bytes() == DATA


# -- damage ---------------------------------------------------------------------------------


def test_repair_while_comfyui_has_it_open_and_another_pod_links_it(tmp_path: Path) -> None:
    mine, others = tmp_path / "one/f.bin", tmp_path / "two/f.bin"
    store, digest = stored(tmp_path, mine, others)
    rotten = b"\0rot" + DATA[4:]
    store.path(digest).chmod(0o644)
    store.path(digest).write_bytes(rotten)
    with others.open("rb") as opened, mmap.mmap(opened.fileno(), 0, prot=mmap.PROT_READ) as mapped:
        damaged = Verified(wanted(mine, digest), Verdict.DAMAGED, digest)
        section = ModelsSection(store=store.root)
        assert discard_damaged([damaged], section) == [damaged.request]
        assert not mine.exists()  # ComfyUI does not load it any more
        assert not store.has(digest)
        whole = tmp_path / "whole"
        whole.write_bytes(DATA)
        store.put(whole, digest)
        store.link(digest, mine)
        assert mapped[:4] == b"\0rot"  # whoever had it open is not disturbed
    assert mine.read_bytes() == others.read_bytes() == DATA
    assert mine.samefile(others)
    assert not list((store.root / "rotten").iterdir())


def test_repair_of_what_is_linked_from_another_disk(tmp_path: Path, other_disk: Path) -> None:
    mine, others = tmp_path / "one/f.bin", tmp_path / "two/f.bin"
    store, digest = stored(other_disk, mine, others)
    store.path(digest).chmod(0o644)
    store.path(digest).write_bytes(b"\0rot" + DATA[4:])
    damaged = Verified(wanted(mine, digest), Verdict.DAMAGED, digest)
    discard_damaged([damaged], ModelsSection(store=store.root))
    assert not mine.is_symlink()
    assert not others.exists()  # nobody loads it
    whole = other_disk / "whole"
    whole.write_bytes(DATA)
    store.put(whole, digest)
    store.link(digest, mine)
    assert mine.read_bytes() == others.read_bytes() == DATA


def test_two_pods_find_the_same_damage(tmp_path: Path) -> None:
    one, two = tmp_path / "one/f.bin", tmp_path / "two/f.bin"
    store, digest = stored(tmp_path, one, two)
    section = ModelsSection(store=store.root)
    for place in (one, two):
        discard_damaged([Verified(wanted(place, digest), Verdict.DAMAGED, digest)], section)
    assert not one.exists()
    assert not two.exists()


# -- eviction -------------------------------------------------------------------------------


def test_a_mapped_file_counts_as_open(tmp_path: Path) -> None:
    """safetensors files are mapped and closed; most containers may not read map_files."""
    path = tmp_path / "with space.bin"
    path.write_bytes(DATA)
    with path.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
    try:
        process = tmp_path / "proc/4711"
        process.mkdir(parents=True)
        (process / "maps").write_bytes(Path("/proc/self/maps").read_bytes())
        (process / "root").symlink_to("/")
        info = path.stat()
        assert (info.st_dev, info.st_ino) in open_files(tmp_path / "proc")
    finally:
        mapped.close()


def test_what_was_just_linked_is_not_evicted_though_nobody_pinned_it(tmp_path: Path) -> None:
    store, digest = stored(tmp_path, tmp_path / "m/f.bin")
    store.use(digest)
    assert store.evict(0, opened=frozenset) == []
    assert [o.sha256 for o in store.evict(0, opened=frozenset, spare_s=0)] == [digest]


def test_a_user_of_the_last_moment_keeps_the_object(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another pod links it after the eviction has made its list."""
    store, digest = stored(tmp_path, tmp_path / "m/f.bin")

    def late() -> frozenset[tuple[int, int]]:
        store.link(digest, tmp_path / "other pod/f.bin")
        return frozenset()

    assert store.evict(0, opened=late) == []
    assert (tmp_path / "other pod/f.bin").read_bytes() == DATA
    assert store.has(digest)


def test_what_killed_pods_left_is_swept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, _ = stored(tmp_path, tmp_path / "m/f.bin")
    (store.root / "temporary/half").write_bytes(b"half a copy")
    (store.incoming("abandoned", 1, writer_gone=True) / "f.part").write_bytes(b"half")
    store.sweep()
    assert (store.root / "temporary/half").exists()
    now_s: Callable[[], float] = store._now_s
    monkeypatch.setattr(store, "_now_s", lambda: now_s() + 7 * 3600)
    store.sweep()
    assert not (store.root / "temporary/half").exists()
    assert (store.root / "incoming/abandoned/1/f.part").exists()
    monkeypatch.setattr(store, "_now_s", lambda: now_s() + 8 * 86400)
    store.sweep()
    assert not (store.root / "incoming/abandoned").exists()
    assert (tmp_path / "m/f.bin").read_bytes() == DATA
