"""The pod's own readings of its models: when, how gently, and what comes of them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import anyio
import anyio.lowlevel
import pytest

from supervisor.config.settings import ModelsSection
from supervisor.core.events import EventBus
from supervisor.core.state import StateStore
from supervisor.core.status import DownloadFileStatus, DownloadsStatus, DownloadState, HostStatus
from supervisor.download.request import (
    DownloadRequest,
    ProgressCallback,
    Resolved,
    Resolver,
    TransferResult,
)
from supervisor.download.verify import verified_sha256
from supervisor.models.gently import Pace, ReadMarks
from supervisor.models.manager import ModelManager
from supervisor.models.verifier import Verifier
from tests.conftest import require

pytestmark = pytest.mark.anyio

DAY_S = 86400.0
DATA = b"the true bytes" * 1000
DIGEST = hashlib.sha256(DATA).hexdigest()


class Clock:
    """Time that passes only while somebody sleeps; ``meanwhile`` sees every sleep."""

    def __init__(self) -> None:
        self.now_s = 2_000_000_000.0
        self.slept: list[float] = []
        self.meanwhile: Callable[[], Awaitable[None] | None] = lambda: None

    async def sleep(self, delay_s: float) -> None:
        self.slept.append(delay_s)
        self.now_s += delay_s
        if (waiting := self.meanwhile()) is not None:
            await waiting
        await anyio.lowlevel.checkpoint()

    def time(self) -> float:
        return self.now_s


class Engine:
    """Writes the true bytes; waits before that when told to."""

    def __init__(self) -> None:
        self.calls = 0
        self.gate: anyio.Event | None = None

    async def fetch(
        self, request: DownloadRequest, resolver: Resolver, progress: ProgressCallback
    ) -> TransferResult:
        self.calls += 1
        if self.gate is not None:
            await self.gate.wait()
        await anyio.Path(request.destination).write_bytes(DATA)
        return TransferResult(request.destination, len(DATA), DIGEST, len(DATA))


class Source:
    async def resolve(self, request: DownloadRequest) -> Resolved:
        return Resolved(request.url, size_bytes=len(DATA), sha256=DIGEST)


class Bench:
    """A manager with its files in place, and a verifier whose clock is ours."""

    def __init__(self, folder: Path, *names: str) -> None:
        self.clock, self.engine = Clock(), Engine()
        self.state, self.bus = StateStore(), EventBus()
        self.requests = [
            DownloadRequest(name, f"http://h/{name}", folder / name, sha256=DIGEST)
            for name in names
        ]
        self.manager = ModelManager(
            settings=ModelsSection(),
            state=self.state,
            bus=self.bus,
            downloader=self.engine,
            resolvers={"http": Source()},
        )
        self.verifier = self.make_verifier(self.clock.sleep)

    def make_verifier(self, sleep: Callable[[float], Awaitable[None]]) -> Verifier:
        return Verifier(
            settings=ModelsSection(verify_interval_h=24),
            manager=self.manager,
            resolvers={"http": Source()},
            state=self.state,
            bus=self.bus,
            sleep=sleep,
            now_s=self.clock.time,
        )

    async def fetch(self) -> None:
        assert await self.manager.run_until_done(self.requests)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path, "a.bin", "b.bin")


async def test_the_first_pass_comes_soon_and_the_next_ones_in_their_time(bench: Bench) -> None:
    await bench.fetch()
    ends: list[float] = []
    start_s = bench.clock.now_s
    with anyio.CancelScope() as scope:

        def look() -> None:
            ends.append(bench.clock.now_s - start_s)
            if len(ends) == 4:
                scope.cancel()

        bench.clock.meanwhile = look
        await bench.verifier.run()
    assert ends[0] <= 120
    assert [round(end / DAY_S) for end in ends] == [0, 1, 2, 3]
    assert [e.kind for e in bench.bus.recent()].count("models.verified") == 3
    assert bench.state.snapshot.verification.checked == 2


async def test_a_running_download_and_a_busy_queue_hold_it_back(bench: Bench) -> None:
    await bench.fetch()
    bench.engine.gate = anyio.Event()
    third = DownloadRequest("c.bin", "http://h/c.bin", bench.requests[0].destination.parent / "c")
    seen: list[str] = []

    async def meanwhile() -> None:
        """The download ends after three looks, the queue after three more."""
        assert not bench.state.snapshot.verification.checked
        count = len(bench.clock.slept)
        seen.append("fetching" if bench.manager.busy else "idle")
        if count == 3:
            bench.state.update(host=HostStatus(comfyui_queue_length=2))
            assert bench.engine.gate is not None
            bench.engine.gate.set()
            while bench.manager.busy:
                await anyio.sleep(0.01)
        if count == 6:
            bench.state.update(host=HostStatus(comfyui_queue_length=0))

    with anyio.fail_after(60):
        async with anyio.create_task_group() as group:
            await group.start(bench.manager.run)
            bench.manager.add(third)
            while not bench.manager.busy:
                await anyio.sleep(0.01)
            bench.clock.meanwhile = meanwhile
            await bench.verifier.verify_all()
            group.cancel_scope.cancel()
    assert seen[:6] == ["fetching"] * 3 + ["idle"] * 3
    assert bench.state.snapshot.verification.checked == 2


async def test_what_was_read_lately_is_left_alone(bench: Bench) -> None:
    await bench.fetch()
    first = await bench.verifier.verify_all()
    assert (first.checked, first.skipped) == (2, 0)
    bench.clock.now_s += DAY_S / 2
    again = await bench.verifier.verify_all()
    assert (again.checked, again.skipped) == (0, 2)
    bench.requests[0].destination.write_bytes(b"other bytes" + DATA[11:])
    written = await bench.verifier.verify_all()
    assert (written.checked, written.skipped, written.damaged) == (1, 1, 1)
    bench.clock.now_s += DAY_S
    later = await bench.verifier.verify_all()
    assert later.skipped == 0


async def test_damage_is_repaired_and_told(bench: Bench) -> None:
    rotten = bench.requests[1].destination
    with anyio.fail_after(60):
        async with anyio.create_task_group() as group:
            await group.start(bench.manager.run, bench.requests)
            await bench.state.wait(lambda s: s.downloads.done == 2)
            rotten.write_bytes(DATA[:-1] + b"?")
            status = await bench.verifier.verify_all()
            await bench.manager.wait_until_idle()
            group.cancel_scope.cancel()
    assert (status.checked, status.damaged) == (2, 1)
    assert rotten.read_bytes() == DATA
    assert bench.engine.calls == 3
    told = {event.kind: event for event in bench.bus.recent()}
    assert told["models.damaged"].subject == "b.bin"
    assert "1 damaged" in told["models.verified"].message
    rendered = bench.state.snapshot.to_json()["verification"]
    assert rendered["finished"].endswith("Z")
    assert rendered["running"] is False


async def test_a_file_that_is_gone_is_fetched_again(bench: Bench) -> None:
    gone = bench.requests[0].destination
    with anyio.fail_after(60):
        async with anyio.create_task_group() as group:
            await group.start(bench.manager.run, bench.requests)
            await bench.manager.wait_until_idle()
            gone.unlink()
            status = await bench.verifier.verify_all()
            await bench.manager.wait_until_idle()
            group.cancel_scope.cancel()
    assert (status.checked, status.damaged) == (1, 1)
    assert gone.read_bytes() == DATA


async def test_without_a_known_hash_there_is_nothing_to_read(tmp_path: Path) -> None:
    bench = Bench(tmp_path, "a.bin")
    bench.requests = [replace(bench.requests[0], sha256=None, source="elsewhere")]
    bench.manager.enqueue(bench.requests)
    bench.state.update(
        downloads=DownloadsStatus((DownloadFileStatus("a.bin", DownloadState.DONE),))
    )
    bench.requests[0].destination.write_bytes(DATA)
    status = await bench.verifier.verify_all()
    assert (status.files, status.checked, status.damaged) == (1, 0, 0)


async def test_a_reload_in_the_middle_brings_nothing_back(bench: Bench) -> None:
    await bench.fetch()
    bench.requests[0].destination.write_bytes(b"rot")
    bench.manager.reconcile(bench.requests[1:])
    bench.state.update(downloads=bench.state.snapshot.downloads)  # as stale as it can be
    status = await bench.verifier.verify_all()
    assert (status.checked, status.damaged) == (1, 0)
    assert [r.name for r in bench.manager.requests] == ["b.bin"]


async def test_a_stop_in_the_middle_of_a_file_does_not_wait_for_it(tmp_path: Path) -> None:
    """The pod has seconds to end, and a busy queue may hold the reading thread for hours."""
    bench = Bench(tmp_path, "large.bin")
    await bench.fetch()
    with bench.requests[0].destination.open("r+b") as file:
        file.truncate(64 * 1024 * 1024)
    paused = anyio.Event()

    async def sleep(_: float) -> None:
        paused.set()
        await anyio.sleep_forever()

    verifier = bench.make_verifier(sleep)
    with anyio.fail_after(60):
        async with anyio.create_task_group() as group:
            group.start_soon(verifier.verify_all)
            await paused.wait()
            group.cancel_scope.cancel()
    assert bench.state.snapshot.verification.checked == 0


# -- pace and marks -------------------------------------------------------------------------


async def test_reading_takes_its_share_of_the_time() -> None:
    clock = Clock()
    quiet_calls: list[float] = []

    async def quiet() -> None:
        quiet_calls.append(clock.now_s)

    pace = Pace(quiet, share=0.25, sleep=clock.sleep, now_s=clock.time)
    await pace.breathe()
    assert clock.slept == []
    clock.now_s += 2.0  # a slow disk
    await pace.breathe()
    clock.now_s += 0.5
    await pace.breathe()
    assert clock.slept == [6.0, 1.5]
    assert len(quiet_calls) == 3


def test_marks_outlive_the_pod_and_not_the_bytes(tmp_path: Path) -> None:
    path = tmp_path / "f.bin"
    path.write_bytes(DATA)
    try:
        os.setxattr(path, "user.supervisor.test", b"1")
    except OSError:
        require(available=False, what="extended attributes")
    clock = Clock()
    ReadMarks(clock.time).begin(path)(DIGEST)
    other_pod = ReadMarks(clock.time)
    assert other_pod.fresh(path, DAY_S)
    assert verified_sha256(path) == DIGEST  # the next boot need not hash it either
    clock.now_s += DAY_S
    assert not other_pod.fresh(path, DAY_S)
    clock.now_s -= DAY_S
    path.write_bytes(DATA)
    os.utime(path, (1, 1))
    assert not other_pod.fresh(path, DAY_S)


def test_a_file_written_while_it_was_read_is_not_marked(tmp_path: Path) -> None:
    path = tmp_path / "f.bin"
    path.write_bytes(DATA)
    marks = ReadMarks(Clock().time)
    note = marks.begin(path)
    path.write_bytes(b"other")
    os.utime(path, (1, 1))
    note(DIGEST)
    assert not marks.fresh(path, DAY_S)
    assert verified_sha256(path) is None


def test_where_attributes_are_refused_this_pod_remembers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(os, "setxattr", refuse)
    path = tmp_path / "f.bin"
    path.write_bytes(DATA)
    clock = Clock()
    marks = ReadMarks(clock.time)
    marks.begin(path)(DIGEST)
    assert marks.fresh(path, DAY_S)
    assert not ReadMarks(clock.time).fresh(path, DAY_S)
