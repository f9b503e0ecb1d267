"""The manager: order, concurrency, retries, failures, room, run-time control."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import anyio
import pytest

from supervisor.config.settings import ModelsSection
from supervisor.core.events import EventBus
from supervisor.core.retry import Backoff
from supervisor.core.state import StateStore
from supervisor.core.status import DownloadFileStatus, DownloadState
from supervisor.download.request import (
    DownloadRequest,
    Progress,
    ProgressCallback,
    Resolved,
    Resolver,
    TransferResult,
)
from supervisor.errors import (
    AuthRequiredError,
    ControlError,
    NotFoundError,
    TransferError,
    TransientTransferError,
    UnreachableError,
)
from supervisor.models.manager import ModelManager
from tests.support.model_files import safetensors

pytestmark = pytest.mark.anyio

GB = 10**9
NO_WAIT = Backoff(initial_s=0.0, max_s=0.0)


@dataclass
class Engine:
    """A downloader whose transfers end when the test says so (or at once)."""

    held: set[str] = field(default_factory=set)
    errors: dict[str, list[Exception]] = field(default_factory=dict)
    started: list[str] = field(default_factory=list)
    active: int = 0
    most_active: int = 0
    release: dict[str, anyio.Event] = field(default_factory=dict)

    async def fetch(
        self, request: DownloadRequest, resolver: Resolver, progress: ProgressCallback
    ) -> TransferResult:
        self.started.append(request.name)
        self.active += 1
        self.most_active = max(self.most_active, self.active)
        try:
            size = request.size_bytes or (await resolver.resolve(request)).size_bytes or 0
            progress(Progress(DownloadState.ACTIVE, 0, size))
            await anyio.lowlevel.checkpoint()
            if self.errors.get(request.name):
                raise self.errors[request.name].pop(0)
            if request.name in self.held:
                self.release[request.name] = anyio.Event()
                progress(Progress(DownloadState.ACTIVE, size // 2, size))
                await self.release[request.name].wait()
            progress(Progress(DownloadState.ACTIVE, size, size))
            return TransferResult(request.destination, size, None, size)
        finally:
            self.active -= 1


@dataclass
class Source:
    """Sizes by name; a missing one cannot be resolved."""

    sizes: dict[str, int] = field(default_factory=dict)
    error: TransferError | None = None

    async def resolve(self, request: DownloadRequest) -> Resolved:
        if self.error:
            raise self.error
        return Resolved(url=request.url, size_bytes=self.sizes.get(request.name))


@dataclass
class Rig:
    manager: ModelManager
    engine: Engine
    source: Source
    state: StateStore
    bus: EventBus
    directory: Path

    def request(
        self, name: str, size: int | None = None, *, required: bool = False, url: str = ""
    ) -> DownloadRequest:
        return DownloadRequest(
            name=name,
            url=url or f"https://example.com/{name}",
            destination=self.directory / name,
            reference=url or f"https://example.com/{name}",
            size_bytes=size,
            required=required,
        )

    def file(self, name: str) -> DownloadFileStatus:
        return next(f for f in self.state.snapshot.downloads.files if f.name == name)

    async def until(self, name: str, state: DownloadState) -> DownloadFileStatus:
        with anyio.fail_after(20):
            await self.state.wait(
                lambda s: any(f.name == name and f.state is state for f in s.downloads.files)
            )
        return self.file(name)

    @asynccontextmanager
    async def running(self, *requests: DownloadRequest) -> AsyncIterator[None]:
        async with anyio.create_task_group() as group:
            await group.start(self.manager.run, requests)
            yield
            group.cancel_scope.cancel()


def make(
    tmp_path: Path,
    *,
    concurrent: int = 4,
    free: Callable[[Path], int] = lambda _: 1000 * GB,
    slow: Backoff = NO_WAIT,
    give_up_after: int | None = None,
) -> Rig:
    engine, source, state, bus = Engine(), Source(), StateStore(), EventBus()
    manager = ModelManager(
        settings=ModelsSection(concurrent_files=concurrent),
        state=state,
        bus=bus,
        downloader=engine,
        resolvers={"http": source},
        free=free,
        quick=NO_WAIT,
        slow=slow,
        give_up_after=give_up_after,
    )
    return Rig(manager, engine, source, state, bus, tmp_path)


async def test_required_first_then_small_then_unknown(tmp_path: Path) -> None:
    rig = make(tmp_path, concurrent=1)
    rig.source.error = TransientTransferError("Cannot say")
    requests = [
        rig.request("big", 9 * GB),
        rig.request("unknown"),
        rig.request("small", 1000),
        rig.request("needed", 5 * GB, required=True),
    ]
    rig.engine.errors["unknown"] = []
    rig.manager.enqueue(requests)
    rig.source.error = None
    assert await rig.manager.run_until_done(())
    assert rig.engine.started == ["needed", "small", "unknown", "big"]
    assert rig.state.snapshot.downloads.done == 4


async def test_sizes_are_asked_for_before_the_order_is_made(tmp_path: Path) -> None:
    rig = make(tmp_path, concurrent=1)
    rig.source.sizes = {"a": 8 * GB, "b": 100}
    assert await rig.manager.run_until_done([rig.request("a"), rig.request("b")])
    assert rig.engine.started == ["b", "a"]


async def test_concurrency_is_bounded(tmp_path: Path) -> None:
    rig = make(tmp_path, concurrent=3)
    requests = [rig.request(f"f{n}", 10) for n in range(12)]
    rig.engine.held = {request.name for request in requests}
    async with rig.running(*requests):
        with anyio.fail_after(20):
            while len(rig.engine.release) < 3:
                await anyio.sleep(0.005)
        rig.engine.held.clear()
        for event in rig.engine.release.values():
            event.set()
        with anyio.fail_after(20):
            await rig.manager.wait_until_idle()
    assert rig.engine.most_active == 3


async def test_one_failure_leaves_the_others_alone(tmp_path: Path) -> None:
    rig = make(tmp_path)
    rig.engine.errors["bad"] = [AuthRequiredError("Cannot fetch bad: gated", hint="set HF_TOKEN")]
    assert not await rig.manager.run_until_done([rig.request("bad", 5), rig.request("good", 6)])
    bad = rig.file("bad")
    assert (bad.state, bad.error, bad.hint) == (
        DownloadState.FAILED,
        "Cannot fetch bad: gated",
        "set HF_TOKEN",
    )
    assert rig.file("good").state is DownloadState.DONE
    assert rig.engine.started.count("bad") == 1
    told = {e.kind: (e.subject, e.data) for e in rig.bus.recent()}
    assert told["download.failed"][0] == "bad"
    assert told["download.failed"][1]["reason"] == "AuthRequired"
    assert told["download.done"][0] == "good"
    assert told["download.done"][1]["bytes_fetched"] == 6


async def test_transient_errors_are_tried_for_ever(tmp_path: Path) -> None:
    rig = make(tmp_path)
    rig.engine.errors["f"] = [TransientTransferError("Cannot reach it") for _ in range(25)]
    assert await rig.manager.run_until_done([rig.request("f", 5)])
    assert len(rig.engine.started) == 26


async def test_the_pace_slows_down_and_retry_goes_at_once(tmp_path: Path) -> None:
    rig = make(tmp_path, slow=Backoff(initial_s=9999.0, max_s=9999.0, jitter=False))
    rig.engine.errors["f"] = [TransientTransferError("Cannot reach it") for _ in range(6)]
    async with rig.running(rig.request("f", 5)):
        with anyio.fail_after(20):
            while len(rig.engine.started) < 6:
                await anyio.sleep(0.01)
            await rig.state.wait(lambda s: s.downloads.files[0].error is not None)
        assert rig.file("f").state is DownloadState.QUEUED
        rig.manager.retry("f")
        await rig.until("f", DownloadState.DONE)
    assert len(rig.engine.started) == 7


async def test_it_gives_up_only_when_told(tmp_path: Path) -> None:
    rig = make(tmp_path, give_up_after=3)
    rig.engine.errors["f"] = [TransientTransferError("Cannot reach it") for _ in range(9)]
    assert not await rig.manager.run_until_done([rig.request("f", 5)])
    assert len(rig.engine.started) == 3


async def test_a_pull_ends_after_seconds_without_a_byte(tmp_path: Path) -> None:
    rig = make(tmp_path)
    rig.engine.held.add("f")
    with anyio.fail_after(20):
        async with anyio.create_task_group() as group:
            group.start_soon(rig.manager.run_until_done, [rig.request("f", 5)])
            await rig.state.wait(lambda _: "f" in rig.engine.release)
            await anyio.sleep(1.3)  # the status is published once more meanwhile
            rig.engine.release["f"].set()
    assert rig.file("f").state is DownloadState.DONE


async def test_a_bug_in_the_engine_fails_one_file(tmp_path: Path) -> None:
    rig = make(tmp_path)
    rig.engine.errors["f"] = [ValueError("unexpected")]
    assert not await rig.manager.run_until_done([rig.request("f", 5), rig.request("g", 5)])
    assert rig.file("g").state is DownloadState.DONE


async def test_no_room_is_said_before_the_first_byte(tmp_path: Path) -> None:
    rig = make(tmp_path, concurrent=1, free=lambda _: 12 * GB)
    requests = [rig.request("huge", 60 * GB), rig.request("one", 2 * GB), rig.request("two", GB)]
    assert not await rig.manager.run_until_done(requests)
    assert rig.engine.started == ["two", "one"]
    huge = rig.file("huge")
    assert huge.state is DownloadState.FAILED
    assert huge.error is not None
    assert "60 GB" in huge.error
    assert huge.hint is not None


async def test_room_is_promised_once(tmp_path: Path) -> None:
    rig = make(tmp_path, concurrent=1, free=lambda _: 12 * GB)
    rig.engine.held = {"first"}
    async with rig.running(rig.request("first", GB), rig.request("queued", 9 * GB)):
        await rig.until("first", DownloadState.ACTIVE)
        rig.manager.add(rig.request("late", 4 * GB))
        late = await rig.until("late", DownloadState.FAILED)
        assert "needs 4 GB" in (late.error or "")
        assert rig.file("queued").state is DownloadState.QUEUED


async def test_half_of_a_folder_is_not_fetched(tmp_path: Path) -> None:
    sizes = {"a": 4 * GB, "b": 4 * GB, "c": 6 * GB}

    class Tree(Source):
        async def expand(self, request: DownloadRequest) -> tuple[DownloadRequest, ...]:
            return tuple(rig.request(f"repo/{n}", size) for n, size in sizes.items())

    rig = make(tmp_path, free=lambda _: 12 * GB)
    rig.manager._preflight._resolvers = {"http": Tree()}
    folder = DownloadRequest(
        name="repo/tree", url="https://example.com/tree", destination=tmp_path, directory=True
    )
    async with rig.running(folder):
        for name in sizes:
            await rig.until(f"repo/{name}", DownloadState.FAILED)
        error = rig.file("repo/a").error or ""
        assert "the whole of repo/tree needs 14 GB, 10.9 GB of 12 GB free are left" in error
    assert rig.engine.started == []


async def test_room_is_judged_with_the_true_sizes_before_the_first_byte(tmp_path: Path) -> None:
    asked = anyio.Event()
    answer = anyio.Event()

    class Hub(Source):
        async def expand(self, request: DownloadRequest) -> tuple[DownloadRequest, ...]:
            asked.set()
            await answer.wait()
            return tuple(rig.request(f"{request.name}/{n}", 6 * GB) for n in ("a", "b"))

    rig = make(tmp_path, free=lambda _: 16 * GB)
    hub = Hub(sizes={"large.1": 2 * GB, "large.2": 7 * GB})
    rig.manager._preflight._resolvers = {"http": hub}
    folder = replace(rig.request("folder"), directory=True)
    # Nobody knows a size of these yet, and both are of use only together.
    bundle = [replace(rig.request(n), bundle="large") for n in ("large.1", "large.2")]
    async with rig.running(folder, *bundle, rig.request("known", GB), rig.request("again", GB)):
        with anyio.fail_after(20):
            await asked.wait()
        await anyio.sleep(0.05)
        assert rig.engine.started == []
        answer.set()
        await rig.until("folder/a", DownloadState.FAILED)
        for name in ("known", "again", "large.1", "large.2"):
            await rig.until(name, DownloadState.DONE)
    assert not [name for name in rig.engine.started if name.startswith("folder")]
    assert rig.state.snapshot.notes == (
        "folder skipped: needs 12 GB, 3.93 GB of 16 GB free are left for it",
    )
    events = [e for e in rig.bus.recent() if e.kind == "download.failed"]
    assert [(e.subject, e.data["reason"]) for e in events] == [("folder", "DiskFull")]


async def test_half_of_a_bundle_is_not_fetched(tmp_path: Path) -> None:
    rig = make(tmp_path, free=lambda _: 12 * GB)
    rig.source.sizes = {"one": GB, "two": 20 * GB}
    bundle = [replace(rig.request(n), bundle="pair") for n in ("one", "two")]
    assert not await rig.manager.run_until_done([*bundle, rig.request("other", GB)])
    assert rig.engine.started == ["other"]
    assert "the whole of pair needs 21 GB" in (rig.file("one").error or "")


async def test_a_file_in_place_needs_no_room(tmp_path: Path) -> None:
    rig = make(tmp_path, free=lambda _: 2 * GB)
    there = tmp_path / "there"
    with there.open("wb") as file:
        file.truncate(5 * GB)
    assert await rig.manager.run_until_done([rig.request("there", 5 * GB)])


async def test_add_cancel_and_prioritise_at_run_time(tmp_path: Path) -> None:
    rig = make(tmp_path, concurrent=1)
    rig.engine.held = {"first"}
    async with rig.running(rig.request("first", 100), rig.request("second", 200)):
        await rig.until("first", DownloadState.ACTIVE)
        rig.manager.add(rig.request("urgent", 300), now=True)
        await rig.until("urgent", DownloadState.DONE)
        assert rig.file("second").state is DownloadState.QUEUED
        rig.manager.cancel("first")
        first = await rig.until("first", DownloadState.SKIPPED)
        assert first.error == "cancelled"
        await rig.until("second", DownloadState.DONE)
        rig.engine.held.clear()
        rig.manager.retry("first")
        await rig.until("first", DownloadState.DONE)
        with pytest.raises(ControlError):
            rig.manager.cancel("first")
        with pytest.raises(ControlError):
            rig.manager.cancel("nobody")
        with pytest.raises(ControlError):
            rig.manager.add(rig.request("second", 1, url="https://elsewhere.example/x"))
    assert not rig.manager.busy


async def test_a_bundle_is_steered_as_a_whole(tmp_path: Path) -> None:
    rig = make(tmp_path, concurrent=1)
    rig.engine.held = {"first"}
    one, two = (replace(rig.request(n, 300), bundle="b") for n in ("one", "two"))
    async with rig.running(rig.request("first", 100), rig.request("other", 200), one, two):
        await rig.until("first", DownloadState.ACTIVE)
        rig.manager.cancel("b")
        await rig.until("two", DownloadState.SKIPPED)
        rig.manager.prioritise("b")  # which also takes the cancellation back
        await rig.until("one", DownloadState.DONE)
        await rig.until("two", DownloadState.DONE)
        assert rig.file("other").state is DownloadState.QUEUED
        with pytest.raises(ControlError) as caught:
            rig.manager.retry("othr")
        assert caught.value.hint == "did you mean other?"


async def test_readiness_waits_for_required_files(tmp_path: Path) -> None:
    rig = make(tmp_path)
    rig.engine.held = {"needed"}
    async with rig.running(rig.request("needed", 10, required=True), rig.request("other", 5)):
        assert rig.state.snapshot.missing == ("needed",)
        await rig.until("needed", DownloadState.ACTIVE)
        with anyio.fail_after(10):
            while "needed" not in rig.engine.release:
                await anyio.sleep(0.01)
        rig.engine.release["needed"].set()
        await rig.until("needed", DownloadState.DONE)
        assert not rig.state.snapshot.missing


async def test_progress_is_published_and_conflated(tmp_path: Path) -> None:
    rig = make(tmp_path)

    class Chatty(Engine):
        async def fetch(
            self, request: DownloadRequest, resolver: Resolver, progress: ProgressCallback
        ) -> TransferResult:
            for done in range(0, 4000, 2):
                progress(Progress(DownloadState.ACTIVE, done, 4000))
                await anyio.lowlevel.checkpoint()
            return TransferResult(request.destination, 4000, None, 4000)

    rig.manager._downloader = Chatty()
    before = rig.state.revision
    assert await rig.manager.run_until_done([rig.request("f", 4000)])
    assert rig.file("f").bytes_done == 4000
    assert rig.state.revision - before < 60  # of 2 000 steps


async def test_reconcile_touches_only_what_changed(tmp_path: Path) -> None:
    rig = make(tmp_path)
    rig.engine.held = {"kept", "dropped"}
    kept, dropped = rig.request("kept", 100), rig.request("dropped", 200)
    async with rig.running(kept, dropped, rig.request("changed", 5)):
        await rig.until("kept", DownloadState.ACTIVE)
        await rig.until("dropped", DownloadState.ACTIVE)
        await rig.until("changed", DownloadState.DONE)
        changed = rig.request("changed", 5, url="https://example.com/other")
        rig.manager.reconcile([kept, changed, rig.request("new", 7)])
        await rig.until("new", DownloadState.DONE)
        await rig.until("changed", DownloadState.DONE)
        names = [f.name for f in rig.state.snapshot.downloads.files]
        assert sorted(names) == ["changed", "kept", "new"]
        assert rig.engine.started.count("kept") == 1
        assert rig.engine.started.count("changed") == 2
        assert rig.engine.active == 1


async def test_reconcile_tries_again_what_failed(tmp_path: Path) -> None:
    room = [2 * GB]
    rig = make(tmp_path, free=lambda _: room[0])
    rig.engine.errors["gated"] = [AuthRequiredError("Cannot fetch gated: gated")]
    rig.engine.held = {"held"}
    requests = [rig.request("gated", 5), rig.request("large", 4 * GB), rig.request("held", 5)]
    async with rig.running(*requests):
        await rig.until("gated", DownloadState.FAILED)
        await rig.until("large", DownloadState.FAILED)
        await rig.until("held", DownloadState.ACTIVE)
        assert "large skipped: needs 4 GB" in "".join(rig.state.snapshot.notes)
        room[0] = 9 * GB
        settings = ModelsSection(require="all")
        rig.manager.reconcile(requests, settings=settings)
        await rig.until("gated", DownloadState.DONE)
        await rig.until("large", DownloadState.DONE)
        assert rig.state.snapshot.notes == ()
        assert rig.state.snapshot.required_downloads == {"gated", "large", "held"}
        assert rig.engine.started.count("held") == 1


@pytest.mark.parametrize(
    "error",
    [
        AuthRequiredError("Cannot fetch it: gated"),
        NotFoundError("Cannot fetch it: gone"),
        UnreachableError("Cannot fetch it: HF_HUB_OFFLINE is set"),
        TransientTransferError("Cannot fetch it: the hub is down"),
    ],
)
async def test_what_is_whole_does_not_wait_for_its_source(
    tmp_path: Path, error: TransferError
) -> None:
    rig = make(tmp_path, give_up_after=1)
    rig.source.error = error
    whole = safetensors(tmp_path / "whole.safetensors", ["a.weight"])
    size = whole.stat().st_size
    safetensors(tmp_path / "cut.safetensors", ["a.weight"], truncate=1)
    safetensors(tmp_path / "other.safetensors", ["a.weight"])
    names = ("whole", "cut", "absent")
    requests = [rig.request(f"{name}.safetensors") for name in names]
    other = rig.request("other.safetensors", size + 1)
    rig.engine.errors[other.name] = [error]
    assert not await rig.manager.run_until_done([*requests, other])
    states = {f.name: f.state for f in rig.state.snapshot.downloads.files}
    assert states == {
        "whole.safetensors": DownloadState.DONE,
        "cut.safetensors": DownloadState.FAILED,
        "absent.safetensors": DownloadState.FAILED,
        "other.safetensors": DownloadState.FAILED,
    }
    (kept,) = [e for e in rig.bus.recent() if e.kind == "download.kept"]
    assert kept.subject == "whole.safetensors"
    assert error.message in kept.message


async def test_what_the_source_has_judged_is_not_kept(tmp_path: Path) -> None:
    rig = make(tmp_path, give_up_after=1)
    safetensors(tmp_path / "old.safetensors", ["a.weight"])
    rig.source.sizes = {"old.safetensors": 10**6}  # the remote file is another one
    rig.engine.errors["old.safetensors"] = [TransientTransferError("Cannot fetch it: cut")]
    assert not await rig.manager.run_until_done([rig.request("old.safetensors")])


async def test_a_folder_becomes_its_files(tmp_path: Path) -> None:
    class Tree(Source):
        async def expand(self, request: DownloadRequest) -> tuple[DownloadRequest, ...]:
            return tuple(rig.request(f"repo/{n}", 10, required=True) for n in ("a", "b"))

    rig = make(tmp_path)
    rig.manager._preflight._resolvers = {"http": Tree()}
    folder = DownloadRequest(
        name="repo/tree",
        url="https://example.com/tree",
        destination=tmp_path,
        directory=True,
        required=True,
    )
    async with rig.running(folder):
        assert rig.state.snapshot.required_downloads == {"repo/tree"}
        await rig.until("repo/a", DownloadState.DONE)
        await rig.until("repo/b", DownloadState.DONE)
        assert rig.state.snapshot.required_downloads == {"repo/a", "repo/b"}
        started = len(rig.engine.started)
        rig.manager.reconcile([folder])
        await anyio.sleep(0.1)
        assert len(rig.engine.started) == started
        rig.manager.reconcile([])
        with anyio.fail_after(10):
            await rig.state.wait(lambda s: not s.downloads.files)
