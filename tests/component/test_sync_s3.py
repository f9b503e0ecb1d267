"""The whole syncer against S3 servers: the cap on the line, what is loaded when."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import anyio
import pytest

from supervisor.core.status import Phase
from supervisor.sync import syncer
from supervisor.sync.targets import LateTarget, make_target
from tests.support import s3_servers
from tests.support.s3_servers import Server
from tests.support.sync import DEADLINE_S, Pod, png

pytestmark = pytest.mark.anyio
MIB = 1024 * 1024


@pytest.fixture(params=["moto", "s3rver"])
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Server]:
    with ExitStack() as stack:
        if request.param == "moto":
            yield stack.enter_context(s3_servers.moto())
        else:
            yield stack.enter_context(s3_servers.s3rver(tmp_path / "s3rver"))


async def test_the_cap_holds_for_small_and_large_files_together(
    server: Server, tmp_path: Path
) -> None:
    rate = 5 * MIB
    pod = Pod(tmp_path, **server.settings, rate_limit=f"{rate}B/s")
    sizes = {"parts.txt": 9 * MIB, "single.txt": 2 * MIB}
    sizes |= {f"{number}.txt": MIB // 8 for number in range(16)}
    files = {name: os.urandom(size) for name, size in sizes.items()}
    for name, data in files.items():
        (pod.source / name).write_bytes(data)
    started = time.monotonic()
    async with pod.running():
        await pod.uploaded(len(files))
    took_s = time.monotonic() - started
    sent = sum(sizes.values())
    # 2.6 s at this rate; the first piece is free, and only a slower line is slower.
    assert sent / took_s < 1.2 * rate
    assert {k.split("/", 2)[2]: data for k, data in server.objects().items()} == files


async def test_the_client_is_there_before_the_first_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(syncer, "_PREPARE_AFTER_S", 0.0)
    prepared = anyio.Event()
    prepare = LateTarget.prepare

    async def observed(target: LateTarget) -> None:
        await prepare(target)
        prepared.set()

    monkeypatch.setattr(LateTarget, "prepare", observed)
    with s3_servers.strict() as server:
        assert server.strict is not None
        pod = Pod(tmp_path, **server.settings)
        assert isinstance(make_target(pod.settings, {}), LateTarget)
        async with pod.running():
            await anyio.wait_all_tasks_blocked()
            assert not prepared.is_set()  # the pod boots: others need the processor
            pod.state.update(phase=Phase.READY)
            with anyio.fail_after(DEADLINE_S):
                await prepared.wait()
        assert not server.strict.requests


async def test_a_run_that_ends_in_the_middle_keeps_nothing_from_the_next(tmp_path: Path) -> None:
    """The same syncer runs again, as after a failure."""
    with s3_servers.strict(fault=lambda _request, _count: "hang", pace_s=0.0) as server:
        assert server.strict is not None
        pod = Pod(tmp_path, **server.settings, concurrency=1)
        names = {f"{number}.png" for number in range(12)}
        for name in names:
            (pod.source / name).write_bytes(png(name))
        async with pod.running():
            with anyio.fail_after(DEADLINE_S):
                while not server.strict.requests:
                    await anyio.sleep(0.01)
        server.strict.fault = None
        async with pod.running():
            await pod.uploaded(len(names))
        assert {key.rsplit("/", 1)[-1] for key in server.strict.objects} == names


@pytest.mark.parametrize("noted", ["soon", "-5", "9" * 30])
async def test_what_others_write_into_metadata_ends_no_restore(tmp_path: Path, noted: str) -> None:
    with s3_servers.strict() as server:
        server.client().put_object(
            Bucket=server.bucket, Key="workflows/a.json", Body=b"{}", Metadata={"mtime-ns": noted}
        )
        pod = Pod(tmp_path, **server.settings)
        result = await pod.syncer.restore(["workflows"])
    assert result.files == 1
