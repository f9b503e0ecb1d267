"""State decides, events inform."""

from __future__ import annotations

import random
from contextlib import aclosing
from dataclasses import replace

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from supervisor.core.events import EventBus
from supervisor.core.retry import Backoff
from supervisor.core.state import StateStore
from supervisor.core.status import (
    BootStatus,
    DownloadFileStatus,
    DownloadsStatus,
    DownloadState,
    Phase,
    ServiceState,
    ServiceStatus,
    Snapshot,
)

COMFY = ServiceStatus("comfyui", required=True)


def up(status: ServiceStatus) -> ServiceStatus:
    return replace(status, state=ServiceState.READY, ready=True)


def phase(store: StateStore) -> Phase:
    return store.snapshot.phase


def model(state: DownloadState, done: int = 0) -> DownloadsStatus:
    return DownloadsStatus(files=(DownloadFileStatus("vae", state, 10, done),))


def test_the_phase_follows_the_required_parts() -> None:
    store = StateStore()
    store.set_service(COMFY)
    assert phase(store) is Phase.BOOTING
    assert store.snapshot.missing == ("comfyui",)
    store.set_service(up(COMFY))
    assert phase(store) is Phase.READY
    store.set_service(replace(COMFY, state=ServiceState.BACKOFF))
    assert phase(store) is Phase.DEGRADED
    assert not store.snapshot.broken
    store.set_service(replace(COMFY, state=ServiceState.FAILED))
    assert list(store.snapshot.broken) == ["comfyui"]


def test_an_optional_service_does_not_hold_readiness_up() -> None:
    store = StateStore()
    store.set_service(up(COMFY))
    store.set_service(ServiceStatus("jupyter", state=ServiceState.FAILED))
    assert store.snapshot.ready
    assert phase(store) is Phase.READY


def test_a_pod_without_services_is_ready_once_they_would_have_been_launched() -> None:
    store = StateStore(Snapshot(boot=BootStatus(spans_s={"imports": 0.1})))
    store.update(required_downloads=frozenset())
    assert phase(store) is Phase.BOOTING
    store.update(boot=BootStatus(spans_s={"imports": 0.1, "launch": 0.2}))
    assert phase(store) is Phase.READY


def test_readiness_waits_for_required_models() -> None:
    store = StateStore(Snapshot(required_downloads=frozenset({"vae"})))
    store.set_service(up(COMFY))
    store.update(downloads=model(DownloadState.ACTIVE, 5))
    assert store.snapshot.missing == ("vae",)
    store.update(downloads=model(DownloadState.DONE, 10))
    assert store.snapshot.ready
    store.update(downloads=model(DownloadState.FAILED))
    assert store.snapshot.broken == ("vae",)


@pytest.mark.parametrize("final", [Phase.RESCUE, Phase.STOPPING])
def test_rescue_and_stopping_stay(final: Phase) -> None:
    store = StateStore()
    store.update(phase=final)
    store.set_service(up(COMFY))
    assert phase(store) is final
    assert not store.snapshot.ready


def test_the_json_has_the_public_keys_and_plain_values() -> None:
    store = StateStore()
    store.set_service(COMFY)
    rendered = store.snapshot.to_json()
    assert {"phase", "ready", "missing", "gpu", "services", "downloads", "sync"} <= set(rendered)
    service = rendered["services"]["comfyui"]
    assert {"state", "ready", "pid", "generation", "restarts", "last_exit"} <= set(service)
    assert {"total", "done", "failed", "bytes_total", "bytes_done", "files"} <= set(
        rendered["downloads"]
    )


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"])
async def test_waiters_always_see_the_latest_value() -> None:
    store = StateStore()
    seen: list[int] = []

    async def wait_for_three() -> None:
        snapshot = await store.wait(lambda s: len(s.notes) == 3)
        seen.append(len(snapshot.notes))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(wait_for_three)
        for count in (1, 2, 3):
            await anyio.lowlevel.checkpoint()
            store.update(notes=("x",) * count)
    assert seen == [3]


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"])
async def test_changes_conflates_but_ends_on_the_latest() -> None:
    store = StateStore()
    lengths: list[int] = []
    with anyio.fail_after(10):
        async with aclosing(store.changes()) as changes:
            async for snapshot in changes:
                lengths.append(len(snapshot.notes))
                if lengths[-1] == 3:
                    break
                store.update(notes=("x",) * (lengths[-1] + 1))
                if lengths[-1] == 1:
                    store.update(notes=("x",) * 3)
    assert lengths == [0, 1, 3]


@pytest.mark.anyio
async def test_a_slow_reader_loses_the_oldest_events_and_is_told() -> None:
    bus = EventBus(history=5)
    with bus.subscribe(limit=2) as events:
        for n in range(4):
            bus.publish("test", f"event {n}")
        got = []
        async for event in events:
            got.append(event.message)
            if len(got) == 2:
                break
        assert got == ["event 2", "event 3"]
        assert events.lagged == 2
    assert [e.message for e in bus.recent(2)] == ["event 2", "event 3"]
    assert [e.seq for e in bus.recent()] == [1, 2, 3, 4]
    assert bus.recent(0) == []


@given(st.integers(0, 10_000), st.floats(0.01, 10), st.floats(10, 1000), st.integers())
def test_backoff_stays_within_its_ceiling(
    attempt: int, initial_s: float, max_s: float, seed: int
) -> None:
    backoff = Backoff(initial_s, max_s)
    delay_s = backoff.delay_s(attempt, random.Random(seed))
    assert 0 <= delay_s <= backoff.ceiling_s(attempt) <= max_s
    assert backoff.ceiling_s(attempt + 1) >= backoff.ceiling_s(attempt)
    assert Backoff(initial_s, max_s, jitter=False).delay_s(0) == initial_s
