"""The shared store: one copy, one download, locks that outlive nobody, repair, eviction."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

import anyio
import pytest

from supervisor.config.settings import ModelFile, ModelsSection
from supervisor.core.events import EventBus
from supervisor.core.state import StateStore
from supervisor.download.request import (
    DownloadRequest,
    ProgressCallback,
    Resolver,
    TransferResult,
)
from supervisor.errors import ChecksumMismatchError, TransientTransferError
from supervisor.models.keeper import StoreKeeper
from supervisor.models.leases import Leases
from supervisor.models.liveness import Fate, SignOfLife, is_dead, judged, process_owner
from supervisor.models.manager import ModelManager
from supervisor.models.memory import Memory
from supervisor.models.objects import hash_file, open_files
from supervisor.models.planning import plan_models
from supervisor.models.preflight import Preflight
from supervisor.models.queue import Job
from supervisor.models.room import RESERVE_BYTES
from supervisor.models.store import ModelStore
from supervisor.models.transfers import StoreDownloader
from tests.support.pod import NoResolver

ROOT = Path(__file__).parents[2]
DATA = os.urandom(100_000)
DIGEST = hashlib.sha256(DATA).hexdigest()

# A network and a PID namespace of its own: as strange to the others as another machine.
NAMESPACES = ["unshare", "--net", "--pid", "--fork", "--kill-child", "--mount-proc"]


class Engine:
    """Writes the given bytes at once."""

    def __init__(self, data: bytes = DATA) -> None:
        self.data = data
        self.calls = 0

    async def fetch(
        self, request: DownloadRequest, resolver: Resolver, progress: ProgressCallback
    ) -> TransferResult:
        self.calls += 1
        request.destination.parent.mkdir(parents=True, exist_ok=True)
        request.destination.write_bytes(self.data)
        return TransferResult(request.destination, len(self.data), None, len(self.data))


def request(place: Path, digest: str | None = DIGEST, data: bytes = DATA) -> DownloadRequest:
    return DownloadRequest(
        name=place.name,
        url="https://e.com/f",
        destination=place,
        sha256=digest,
        size_bytes=len(data),
    )


@pytest.fixture
def other_disk(tmp_path: Path) -> Iterator[Path]:
    memory = Path("/dev/shm")
    if not memory.is_dir() or memory.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("needs a second file system")
    folder = Path(tempfile.mkdtemp(dir=memory))
    yield folder
    shutil.rmtree(folder)


async def get(store: ModelStore, engine: Engine, wanted: DownloadRequest) -> TransferResult:
    downloader = StoreDownloader(engine, store, Leases(store.locks, lease_s=5))
    with anyio.fail_after(30):
        return await downloader.fetch(wanted, NoResolver(), lambda _: None)


@contextmanager
def pod(
    root: Path,
    name: str,
    *,
    digest: str = DIGEST,
    lease_s: float = 30.0,
    alone: bool = False,
    step: str | None = None,
    pod_id: str = "",
) -> Iterator[subprocess.Popen[str]]:
    source = root / "source"
    source.write_bytes(DATA)
    command = [
        sys.executable,
        "-m",
        "tests.support.pod",
        str(root),
        name,
        digest,
        str(source),
        str(lease_s),
        *([step] if step else []),
    ]
    process = subprocess.Popen(
        [*(NAMESPACES if alone else []), *command],
        cwd=ROOT,
        env=os.environ | {"RUNPOD_POD_ID": pod_id} | ({"POD_PAUSE_S": "0"} if step else {}),
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def transfers(root: Path) -> list[int]:
    return [int(n) for n in (root / "transfers").read_text().split()]


# -- one copy -------------------------------------------------------------------------------


@pytest.mark.anyio
async def test_one_object_under_two_names(tmp_path: Path) -> None:
    store, engine = ModelStore(tmp_path / "store"), Engine()
    first, second = tmp_path / "m/loras/a.bin", tmp_path / "m/vae/b.bin"
    assert (await get(store, engine, request(first))).bytes_fetched == len(DATA)
    assert (await get(store, engine, request(second))).bytes_fetched == 0
    assert engine.calls == 1
    assert first.samefile(second)
    assert first.stat().st_nlink == 3
    (stored,) = store.objects()
    assert set(stored.places) == {str(first), str(second)}


@pytest.mark.anyio
async def test_a_hash_nobody_knew_is_found_out(tmp_path: Path) -> None:
    store, engine = ModelStore(tmp_path / "store"), Engine()
    result = await get(store, engine, request(tmp_path / "m/a.bin", None))
    assert result.sha256 == DIGEST
    assert store.has(DIGEST, len(DATA))


@pytest.mark.anyio
async def test_truncated_is_replaced_and_whole_is_adopted(tmp_path: Path) -> None:
    store, engine = ModelStore(tmp_path / "store"), Engine()
    truncated, whole = tmp_path / "m/a.bin", tmp_path / "n/a.bin"
    truncated.parent.mkdir()
    truncated.write_bytes(DATA[:5000])
    await get(store, engine, request(truncated))
    assert truncated.read_bytes() == DATA

    other = ModelStore(tmp_path / "other")
    whole.parent.mkdir()
    whole.write_bytes(DATA)
    assert (await get(other, engine, request(whole))).bytes_fetched == 0
    assert engine.calls == 1
    assert other.has(DIGEST)


@pytest.mark.anyio
async def test_damaged_bytes_are_never_seen(tmp_path: Path) -> None:
    store, engine = ModelStore(tmp_path / "store"), Engine(DATA[:-1] + b"?")
    place = tmp_path / "m/a.bin"
    with pytest.raises(ChecksumMismatchError):
        await get(store, engine, request(place))
    assert not place.exists()
    assert not store.objects()


@pytest.mark.anyio
async def test_staging_on_another_disk(tmp_path: Path, other_disk: Path) -> None:
    store = ModelStore(tmp_path / "store", staging=other_disk)
    await get(store, Engine(), request(tmp_path / "m/a.bin"))
    assert (tmp_path / "m/a.bin").read_bytes() == DATA
    assert not any(other_disk.glob("incoming/*"))  # noqa: ASYNC240 - a look, in a test


# -- two pods -------------------------------------------------------------------------------


@pytest.mark.parametrize("digest", [DIGEST, "unknown"])
def test_two_processes_one_download(tmp_path: Path, digest: str) -> None:
    with ExitStack() as stack:
        first = stack.enter_context(pod(tmp_path, "one", digest=digest))
        assert line(first) == "started"
        second = stack.enter_context(pod(tmp_path, "two", digest=digest))
        assert line(first) == f"done {len(DATA)}"
        assert line(second) == "done 0"
    assert (tmp_path / "one/loras/f.bin").samefile(tmp_path / "two/loras/f.bin")
    assert transfers(tmp_path) == [0]


@pytest.mark.needs("root", "unshare")
def test_two_namespaces_one_download(tmp_path: Path) -> None:
    with ExitStack() as stack:
        pods = [stack.enter_context(pod(tmp_path, n, alone=True)) for n in ("one", "two", "three")]
        outputs = [p.communicate(timeout=90)[0].split() for p in pods]
    assert sorted(o[-1] for o in outputs) == ["0", "0", str(len(DATA))]
    assert transfers(tmp_path) == [0]
    assert all((tmp_path / n / "loras/f.bin").read_bytes() == DATA for n in ("one", "two", "three"))


def test_a_killed_process_is_succeeded_at_once_and_resumed(tmp_path: Path) -> None:
    with ExitStack() as stack:
        first = stack.enter_context(pod(tmp_path, "one", lease_s=3600))
        assert line(first) == "started"
        part = tmp_path / "store/incoming" / DIGEST / "1/f.part"
        while not part.exists() or part.stat().st_size < 20_000:
            pass
        first.send_signal(signal.SIGKILL)
        first.wait()
        second = stack.enter_context(pod(tmp_path, "two", lease_s=3600))
        assert line(second) == "started"
        done = line(second)
    assert 0 < int(done.split()[1]) <= len(DATA) - 20_000
    assert transfers(tmp_path)[1] >= 20_000


@pytest.mark.parametrize("step", ["put", "_place", "clear_incoming"])
def test_a_pod_killed_while_it_publishes_costs_no_second_transfer(
    tmp_path: Path, step: str
) -> None:
    with ExitStack() as stack:
        first = stack.enter_context(pod(tmp_path, "one", lease_s=3600, step=step))
        assert line(first) == "started"
        assert line(first) == f"at {step}"
        second = stack.enter_context(pod(tmp_path, "two", lease_s=3600, step="none"))
        first.kill()
        first.wait()
        finished = line(second)
        if finished == "started":  # the bytes lay there, complete, and nobody had stored them
            finished = line(second)
        assert finished == "done 0"
    store = ModelStore(tmp_path / "store")
    assert [o.sha256 for o in store.objects()] == [DIGEST]
    assert (tmp_path / "two/loras/f.bin").read_bytes() == DATA
    assert not list((tmp_path / "store/temporary").iterdir())


@pytest.mark.needs("root", "unshare")
def test_the_lock_of_a_dead_machine_expires(tmp_path: Path) -> None:
    with ExitStack() as stack:
        first = stack.enter_context(pod(tmp_path, "one", alone=True, lease_s=2))
        assert line(first) == "started"
        first.kill()
        first.wait()
        second = stack.enter_context(pod(tmp_path, "two", lease_s=2))
        assert line(second) == "started"
        assert line(second).startswith("done")
    assert (tmp_path / "two/loras/f.bin").read_bytes() == DATA


@pytest.mark.needs("root", "unshare")
def test_the_next_container_of_a_pod_does_not_wait_for_the_last_one(tmp_path: Path) -> None:
    """Another PID namespace, as a new container has, and the same kernel and pod."""
    with ExitStack() as stack:
        first = stack.enter_context(pod(tmp_path, "one", alone=True, lease_s=3600, pod_id="p"))
        assert line(first) == "started"
        part = tmp_path / "store/incoming" / DIGEST / "1/f.part"
        while not part.exists() or part.stat().st_size < 20_000:
            assert first.poll() is None
        first.kill()
        first.wait()
        second = stack.enter_context(pod(tmp_path, "two", alone=True, lease_s=3600, pod_id="p"))
        assert line(second) == "started"
        assert line(second).startswith("done")
    assert transfers(tmp_path)[1] >= 20_000


@pytest.mark.needs("root", "unshare")
def test_what_lives_is_waited_for_even_under_one_pods_name(tmp_path: Path) -> None:
    with ExitStack() as stack:
        pods = [
            stack.enter_context(pod(tmp_path, n, alone=True, lease_s=3600, pod_id="p"))
            for n in ("one", "two")
        ]
        outputs = [p.communicate(timeout=90)[0].split() for p in pods]
    assert sorted(o[-1] for o in outputs) == ["0", str(len(DATA))]
    assert transfers(tmp_path) == [0]


@pytest.mark.needs("root", "unshare")
def test_a_paused_holder_cannot_publish(tmp_path: Path) -> None:
    """SIGSTOP stands for a frozen machine: it comes back after its lease was taken over."""
    with ExitStack() as stack:
        first = stack.enter_context(pod(tmp_path, "one", alone=True, lease_s=1))
        assert line(first) == "started"
        (child,) = Path(f"/proc/{first.pid}/task/{first.pid}/children").read_text().split()
        os.kill(int(child), signal.SIGSTOP)
        second = stack.enter_context(pod(tmp_path, "two", lease_s=1))
        assert line(second) == "started"
        assert line(second).startswith("done")
        os.kill(int(child), signal.SIGCONT)
        assert first.wait(timeout=60) != 0
    assert not (tmp_path / "one/loras/f.bin").exists()
    (path,) = (tmp_path / "store/objects").glob("??/*")
    assert hash_file(path) == DIGEST


# -- locks ----------------------------------------------------------------------------------


@pytest.mark.anyio
async def test_a_lock_excludes_and_counts_up(tmp_path: Path) -> None:
    leases = Leases(tmp_path, lease_s=30)
    order: list[int] = []

    async def work() -> None:
        async with leases.hold("k") as lease:
            order.append(lease.generation)
            await anyio.sleep(0.01)
            assert order[-1] == lease.generation

    with anyio.fail_after(60):
        async with anyio.create_task_group() as group:
            for _ in range(3):
                group.start_soon(work)
    assert order == [1, 2, 3]


@pytest.mark.anyio
async def test_errors_of_the_body_pass_through(tmp_path: Path) -> None:
    with pytest.raises(KeyError):
        async with Leases(tmp_path).hold("k"):
            raise KeyError
    with anyio.fail_after(10):
        async with Leases(tmp_path).hold("k") as lease:
            assert not lease.taken_over


@pytest.mark.anyio
async def test_a_fenced_holder_is_cancelled(tmp_path: Path) -> None:
    async def hold() -> None:
        async with Leases(tmp_path, lease_s=0.5).hold("k") as lease:
            (lease.folder / f"{lease.generation + 1:010d}").write_text("{}")
            with pytest.raises(TransientTransferError):
                lease.check()
            await anyio.sleep_forever()

    with anyio.fail_after(30), pytest.raises(TransientTransferError, match="took over"):
        await hold()


def test_owners(tmp_path: Path) -> None:
    me = process_owner()
    assert not is_dead(me)
    boot, namespace, pid, start = me.split("/")
    assert is_dead(f"{boot}/{namespace}/{pid}/{int(start) - 1}")  # the number was given again
    assert not is_dead(f"another/{namespace}/999999/1")  # nobody can tell
    assert not is_dead("")


def elsewhere(me: str, *, boot: str | None = None) -> str:
    """The name of a process in another PID namespace, of this kernel unless told."""
    return f"{boot or me.split('/', maxsplit=1)[0]}/pid:[1]/7/1"


@pytest.mark.parametrize("pod", ["p", "other", ""])
@pytest.mark.parametrize("same_kernel", [True, False])
@pytest.mark.parametrize("locked", ["held", "free", "no locks"])
@pytest.mark.parametrize("silent_s", [0.0, 14.0, 15.0])
def test_what_is_concluded_about_an_owner(
    tmp_path: Path, pod: str, same_kernel: bool, locked: str, silent_s: float
) -> None:
    sign = SignOfLife.give(tmp_path, 1, pod="p", beat_s=5)
    owner = elsewhere(process_owner(), boot=None if same_kernel else "another")
    record = {"owner": owner, "state": "held", **sign.record}
    if locked == "no locks":
        record = {key: record[key] for key in ("owner", "state", "pod", "beat_s")}
    if locked != "held":
        sign.close()
    found = judged(tmp_path, record, pod=pod, silent_s=silent_s)
    sign.close()
    silent, earlier = silent_s >= 15, pod == "p"
    if same_kernel and locked == "free" and (earlier or silent):
        assert found is Fate.GONE
    elif earlier and silent:
        assert found is Fate.SILENT
    else:
        assert found is Fate.ALIVE


@pytest.mark.parametrize(
    "record",
    [
        {},
        {"owner": 3, "pod": ["p"], "beat_s": "x", "alive": 5},
        {"alive": "../../etc/passwd.alive"},
        {"beat_s": 5},  # of an older supervisor
    ],
)
def test_a_record_that_says_nothing_is_waited_for(
    tmp_path: Path, record: dict[str, object]
) -> None:
    record = {"owner": elsewhere(process_owner())} | record
    assert judged(tmp_path, record, pod="p", silent_s=80) is Fate.ALIVE


# -- verify and evict -----------------------------------------------------------------------


def fill(store: ModelStore, tmp_path: Path, *names: str) -> dict[str, str]:
    digests = {}
    for age, name in enumerate(names):
        data = name.encode() * 1000
        file = tmp_path / f"{age}.tmp"
        file.write_bytes(data)
        digests[name] = hashlib.sha256(data).hexdigest()
        store.put(file, digests[name])
        store.link(digests[name], tmp_path / "m" / name)
        record = store.root / "uses" / digests[name] / "last"
        os.utime(record, (age, age))
    return digests


def test_evict_by_last_use_spares_what_is_wanted_or_open(tmp_path: Path) -> None:
    store = ModelStore(tmp_path / "store")
    digests = fill(store, tmp_path, "a", "b", "c", "d", "e")
    store.pin("some pod", [digests["c"]])
    with store.path(digests["a"]).open("rb"):
        dry = store.evict(2000, keep=[digests["b"]], dry_run=True)
        assert [o.sha256 for o in dry] == [digests["d"], digests["e"]]
        assert len(store.objects()) == 5
        removed = store.evict(3000, keep=[digests["b"]], opened=open_files)
    assert [o.sha256 for o in removed] == [digests["d"], digests["e"]]
    assert sorted(p.name for p in (tmp_path / "m").iterdir()) == ["a", "b", "c"]


def test_evict_leaves_a_users_file_alone(tmp_path: Path) -> None:
    store = ModelStore(tmp_path / "store")
    fill(store, tmp_path, "a")
    (tmp_path / "m/a").unlink()
    (tmp_path / "m/a").write_bytes(b"mine")
    assert store.evict(0)
    assert (tmp_path / "m/a").read_bytes() == b"mine"


def test_pins_of_pods_that_are_gone_do_not_count(tmp_path: Path) -> None:
    store = ModelStore(tmp_path / "store")
    store.pin("gone", ["a" * 64])
    assert store.pinned() == {"a" * 64}
    (pin,) = (store.root / "pins").glob("*.json")
    os.utime(pin, (1, 1))
    assert not store.pinned()


@pytest.mark.anyio
async def test_a_boot_evicts_nothing_that_it_will_want(tmp_path: Path) -> None:
    """Nobody has been here for days, and the folder's source has not been asked yet."""
    store = ModelStore(tmp_path / "store")
    digests = fill(store, tmp_path, "folder/a", "single", "spare")
    single, spare, inside = (tmp_path / "m" / n for n in ("single", "spare", "folder/a"))
    folder = DownloadRequest("folder/x", "", tmp_path / "m/folder", directory=True)
    child = DownloadRequest("folder/a", "", inside, size_bytes=inside.stat().st_size)
    Memory(store).remember(folder, [child])
    settings = ModelsSection(store=store.root, store_budget="1KB")
    bus = EventBus()
    manager = ModelManager(
        settings=settings, state=StateStore(), bus=bus, downloader=Engine(), resolvers={}
    )
    manager.enqueue([folder, request(single, digests["single"])])
    await StoreKeeper(settings=settings, manager=manager, bus=bus).keep_once()
    assert inside.exists()
    assert single.exists()
    assert not spare.exists()
    assert [e.subject for e in bus.recent() if e.kind == "models.evicted"] == [digests["spare"]]


@pytest.mark.anyio
async def test_what_is_in_the_store_needs_no_room(tmp_path: Path) -> None:
    """A new container disk beside a volume that is nearly full of what is wanted."""
    store = ModelStore(tmp_path / "store")
    digests = fill(store, tmp_path, "file", "folder/a")
    (tmp_path / "m/file").unlink()
    (tmp_path / "m/folder/a").unlink()
    (tmp_path / "m/folder/a").write_bytes(b"cut")
    size = store.path(digests["file"]).stat().st_size
    folder_size = store.path(digests["folder/a"]).stat().st_size
    models = tmp_path / "m"
    settings = ModelsSection(
        bundles=(),
        files=(
            ModelFile(url="https://e.com/f", to="file", sha256=digests["file"], size_bytes=size),
            ModelFile(url="https://e.com/g", to="more", sha256="0" * 64, size_bytes=size),
        ),
        store=store.root,
    )
    plan = plan_models(settings, directory=models, free_bytes=RESERVE_BYTES + size - 1)
    assert [r.name for r in plan.requests] == ["file"]
    assert [r.name for r in plan.refused] == ["more"]

    folder = DownloadRequest("folder/x", "", models / "folder", directory=True)
    child = replace(request(models / "folder/a", digests["folder/a"]), size_bytes=folder_size)
    preflight = Preflight({}, free=lambda _: RESERVE_BYTES, store=store.root)
    preflight.memory.remember(folder, [child])
    jobs = [Job(plan.requests[0], 0), Job(child, 1), Job(replace(child, sha256="1" * 64), 2)]
    short = await preflight.without_room(jobs, [], lambda job: str(job.seq))
    assert list(short) == ["2"]
