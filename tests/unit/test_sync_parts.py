"""Finding writers, the journal, the backlog and what paces uploads."""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
from pathlib import Path

import anyio
import pytest

from supervisor.core.retry import Backoff
from supervisor.errors import JournalError
from supervisor.sync import stability
from supervisor.sync.backlog import SMALL_BYTES, SMALL_LANES, Backlog, Work
from supervisor.sync.ledger import Ledger
from supervisor.sync.model import FileState, Identity, Row, Tree
from supervisor.sync.pacing import ByteBudget, Gate, KeyPace, RateLimiter
from supervisor.sync.stability import Census, Method, Writers, census, lease_test, open_regular


def _asked(fd: int) -> Writers:
    file = os.fstat(fd)
    return census([file]).writers(file)


def test_lease_and_proc_see_writers_and_only_them(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"x" * 4096)
    fd = open_regular(path)
    try:
        # Processes that may not be looked into leave /proc without a clear "none".
        for test, none in (
            (lease_test, {Writers.NONE}),
            (_asked, {Writers.NONE, Writers.UNKNOWN}),
        ):
            assert test(fd) in none
            with path.open("rb"):
                assert test(fd) in none
            with path.open("ab"):
                assert test(fd) is Writers.SOME
            assert test(fd) in none
    finally:
        os.close(fd)


def test_the_lease_sees_a_mapping_and_an_inherited_descriptor(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"x" * 4096)
    fd = open_regular(path)
    try:
        with path.open("r+b") as file:
            mapping = mmap.mmap(file.fileno(), 4096)
        assert lease_test(fd) is Writers.SOME
        mapping.close()
        with path.open("ab") as file:
            child = subprocess.Popen(
                [sys.executable, "-c", "input()"], stdin=subprocess.PIPE, pass_fds=[file.fileno()]
            )
        assert lease_test(fd) is Writers.SOME
        child.communicate(b"\n")
        assert lease_test(fd) is Writers.NONE
    finally:
        os.close(fd)


def test_the_method_is_found_by_trying_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert stability.choose(tmp_path).method is Method.LEASE
    monkeypatch.setattr(stability, "lease_test", lambda _fd: Writers.UNKNOWN)
    assert stability.choose(tmp_path).method is Method.PROC
    nobody = Census(frozenset(), frozenset({None}))
    monkeypatch.setattr(stability, "census", lambda _files: nobody)
    chosen = stability.choose(tmp_path)
    assert chosen.method is Method.WINDOW
    assert chosen.needs_window(Writers.UNKNOWN)
    assert list(tmp_path.iterdir()) == []
    assert stability.choose(tmp_path / "absent").method is not None


def test_network_file_systems_also_need_the_quiet_period(tmp_path: Path) -> None:
    assert stability.choose(tmp_path, kind="fuse.mfs").needs_window(Writers.NONE)
    assert not stability.choose(tmp_path, kind="overlay").needs_window(Writers.NONE)


def test_the_kind_of_the_file_system_is_that_of_the_deepest_mount(tmp_path: Path) -> None:
    mounts = tmp_path / "mountinfo"
    mounts.write_text(
        "1 0 8:1 / / rw - ext4 /dev/a rw\n2 1 0:1 / /work\\040space rw shared:1 - nfs4 h:/x rw\n"
    )
    assert stability.filesystem_kind(Path("/work space/out"), mounts) == "nfs4"
    assert stability.filesystem_kind(Path("/work"), mounts) == "ext4"


def test_mount_points_of_any_name_are_read(tmp_path: Path) -> None:
    mounts = tmp_path / "mountinfo"
    lines = (
        b"1 0 8:1 / / rw - overlay overlay rw",
        "2 1 0:1 / /données rw - fuse.juicefs x rw".encode(),
        b"3 1 0:1 / /not\xffutf8 rw - cifs x rw",
        b"4 1 0:1 / /new\\012line rw - 9p x rw",
    )
    mounts.write_bytes(b"\n".join(lines) + b"\n")
    kinds = {
        path: stability.filesystem_kind(Path(path), mounts)
        for path in ("/données/out", os.fsdecode(b"/not\xffutf8"), "/new\nline", "/else")
    }
    assert list(kinds.values()) == ["fuse.juicefs", "cifs", "9p", "overlay"]


@pytest.mark.parametrize(
    ("kind", "network"),
    [
        ("ext4", False), ("overlay", False), ("tmpfs", False), ("xfs", False), ("zfs", False),
        ("fuse.fuse-overlayfs", False), ("nfs4", True), ("cifs", True), ("9p", True),
        ("fuse", True), ("fuse.mfs", True), ("fuse.sshfs", True), ("ceph", True), ("lustre", True),
    ],
)  # fmt: skip
def test_other_machines_are_expected_where_they_can_be(
    tmp_path: Path, kind: str, network: bool
) -> None:
    assert stability.choose(tmp_path, kind=kind).network is network


def _row(path: str = "a.png", **parts: object) -> Row:
    values: dict[str, object] = {
        "tree": "outputs",
        "path": path,
        "identity": Identity(1, 2, 3),
        "state": FileState.PENDING,
        "key": f"outputs/{path}",
        "sha256": "aa",
        **parts,
    }
    return Row(**values)  # type: ignore[arg-type]


def test_the_journal_survives_reopening_step_by_step(tmp_path: Path) -> None:
    path = tmp_path / "sync.db"
    name = os.fsdecode(b"\xff odd\n.png")

    def reopen() -> Ledger:
        return Ledger(path)

    ledger = reopen()
    ledger.intend(_row(name, key="outputs/odd.png"))
    ledger.close()
    ledger = reopen()
    ledger.uploading("outputs", name, "id-1", 8)
    ledger.part("outputs", name, 1, "e1")
    ledger.close()
    ledger = reopen()
    (row,) = ledger.unfinished()
    assert row.path == name
    resume = ledger.resume(row)
    assert resume is not None
    assert (resume.upload_id, resume.part_size_bytes, dict(resume.parts)) == ("id-1", 8, {1: "e1"})
    assert ledger.news("outputs", [(name, row.identity)])
    ledger.stored("outputs", name, etag="e", verified=True)
    ledger.close()
    ledger = reopen()
    assert not ledger.unfinished()
    assert not ledger.news("outputs", [(name, row.identity)])
    assert ledger.news("outputs", [(name, Identity(1, 2, 4))])
    assert ledger.object_sha256("outputs/odd.png") == "aa"
    assert [r.path for r in ledger.deletable("outputs", before_s=1e12)] == [name]
    ledger.done("outputs", name)
    assert ledger.deletable("outputs", before_s=1e12) == []
    ledger.close()


def test_a_second_supervisor_is_refused(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "sync.db")
    ledger.intend(_row())
    with pytest.raises(JournalError, match="Cannot open"):
        Ledger(tmp_path / "sync.db")
    ledger.close()


def test_a_damaged_journal_is_kept_aside_and_rebuilt(tmp_path: Path) -> None:
    path = tmp_path / "sync.db"
    path.write_bytes(b"this is no database" * 100)
    ledger = Ledger(path)
    assert ledger.set_aside is not None
    assert ledger.set_aside.exists()
    ledger.intend(_row())
    ledger.close()


def _work(path: str, size: int = 1, mtime: int = 1, due_at: float = 0.0) -> Work:
    tree = Tree("outputs", Path("/x"), "outputs")
    return Work(tree, path, Identity(hash(path) & 0xFFFF, size, mtime), due_at=due_at)


@pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"])
class TestNeutral:
    """What both event loops run."""

    pytestmark = pytest.mark.anyio

    async def test_the_backlog_hurries_small_and_old_first(self) -> None:
        backlog = Backlog(8)
        later = anyio.current_time() + 1000
        for work in (
            _work("big", 100, due_at=later),
            _work("new", 1, 2, due_at=later),
            _work("old", 1, 1, due_at=later),
        ):
            backlog.add(work)
        with anyio.move_on_after(0.01) as scope:
            await backlog.take()
        assert scope.cancelled_caught
        backlog.hurry()
        assert [(await backlog.take()).path for _ in range(3)] == ["old", "new", "big"]

    async def test_a_file_that_changes_under_way_is_looked_at_again(self) -> None:
        backlog = Backlog(8)
        backlog.add(_work("a"))
        taken = await backlog.take()
        backlog.add(_work("a", size=2))
        assert len(backlog) == 1
        assert backlog.finish(taken)
        assert len(backlog) == 0

    async def test_the_gate_opens_by_itself_or_when_asked(self) -> None:
        gate = Gate(Backoff(0.01, 0.02, jitter=False))
        await gate.wait()  # open from the beginning
        gate.refuse()
        assert gate.closed
        with anyio.fail_after(30):
            await gate.wait()
        gate.refuse(retry_after_s=1000.0)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(gate.wait)
            await anyio.wait_all_tasks_blocked()
            gate.hurry()

    async def test_large_files_leave_lanes_for_small_ones(self) -> None:
        backlog = Backlog(1)
        for name in ("big", "bigger"):
            backlog.add(_work(name, size=SMALL_BYTES + 1))
        for number in range(SMALL_LANES + 1):
            backlog.add(_work(f"small {number}"))
        taken = [await backlog.take() for _ in range(1 + SMALL_LANES)]
        assert [w.path for w in taken] == ["big", *(f"small {n}" for n in range(SMALL_LANES))]
        with anyio.move_on_after(0.01) as scope:
            await backlog.take()
        assert scope.cancelled_caught
        backlog.defer(taken[1], 1000.0)
        assert (await backlog.take()).path == f"small {SMALL_LANES}"
        backlog.finish(taken[0])
        assert (await backlog.take()).path == "bigger"

    async def test_refusals_in_flight_do_not_double_the_delay(self) -> None:
        gate = Gate(Backoff(10.0, 1000.0, jitter=False))
        first = gate.refuse()
        assert gate.refuse() <= first

    async def test_the_budget_bounds_and_lets_the_oversized_through(self) -> None:
        budget = ByteBudget(10)
        held = most = 0

        async def hold(size: int) -> None:
            nonlocal held, most
            async with budget.hold(size):
                held += min(size, 10)
                most = max(most, held)
                await anyio.sleep(0.001)
                held -= min(size, 10)

        async with anyio.create_task_group() as tasks:
            for size in (3, 4, 5, 25, 6, 2):
                tasks.start_soon(hold, size)
        assert most <= 10

    async def test_rate_and_key_pace_spread_out(self) -> None:
        limiter = RateLimiter(1000)
        start = anyio.current_time()
        for _ in range(3):
            await limiter.spend(50)
        assert anyio.current_time() - start >= 0.1
        pace = KeyPace(0.05)
        start = anyio.current_time()
        await pace.wait("a")
        await pace.wait("b")
        await pace.wait("a")
        assert anyio.current_time() - start >= 0.05
