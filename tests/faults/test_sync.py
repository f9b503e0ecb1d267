"""Sync under fire: nothing lost, nothing truncated, nothing twice."""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import anyio
import pytest
from anyio import to_thread
from anyio.abc import SocketAttribute, SocketStream

from supervisor.core import clock
from supervisor.sync import s3_body
from supervisor.sync.ledger import Ledger
from tests.support import s3_servers
from tests.support.s3_servers import Server
from tests.support.sync import DEADLINE_S, Pod, png, sha256

pytestmark = pytest.mark.anyio
ROOT = Path(__file__).parents[2]
MIB = 1024 * 1024


def _victim(config: dict[str, Any], step: str, **options: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "tests.support.sync_victim", json.dumps(config), step],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        **options,
    )


def _finish(config: dict[str, Any]) -> None:
    output, _ = _victim(config, "never").communicate(timeout=90)
    assert json.loads(output.removeprefix("done"))["retained"] == 0, output


_STEPS = (
    "before:intend:1", "after:intend:1", "after:intend:2", "after:uploading:1",
    "before:uploading:2", "after:uploading:2", "before:part:1", "after:part:2",
    "before:stored:1", "after:stored:1", "before:stored:2", "after:stored:2",
    "before:done:1", "after:done:1",
)  # fmt: skip


@pytest.mark.parametrize("step", _STEPS)
def test_a_kill_at_every_step_of_the_journal_changes_nothing(tmp_path: Path, step: str) -> None:
    with s3_servers.strict(pace_s=0.0) as server:
        assert server.strict is not None
        config = {"root": str(tmp_path), **server.settings, "concurrency": 1,
                  "delete_after_upload": step.split(":")[1] == "done"}  # fmt: skip
        source = tmp_path / "comfyui/output"
        source.mkdir(parents=True)
        files = {"a.png": png("a"), "big.ply": os.urandom(MIB) * 20, "c.png": png("c")}
        for name, data in files.items():
            (source / name).write_bytes(data)
        victim = _victim(config, step)
        victim.communicate(timeout=60)
        assert victim.returncode == -signal.SIGKILL, "the step was never reached"
        _finish(config)
        stored = server.strict.objects
        assert sorted(o.sha256 for o in stored.values()) == sorted(map(sha256, files.values()))
        assert {key.rsplit("/", 1)[-1] for key in stored} == set(files)
        assert max(server.strict.writes.values()) == 1, "some bytes were sent twice"
        assert server.strict.uploads == {}, "an upload was left behind"
        assert server.strict.refused == []


def test_an_upload_of_a_file_that_is_gone_is_aborted(tmp_path: Path) -> None:
    with s3_servers.strict() as server:
        assert server.strict is not None
        config = {"root": str(tmp_path), **server.settings}
        source = tmp_path / "comfyui/output"
        source.mkdir(parents=True)
        (source / "big.ply").write_bytes(os.urandom(MIB) * 20)
        _victim(config, "after:part:1").communicate(timeout=60)
        assert len(server.strict.uploads) == 1
        (source / "big.ply").unlink()
        config["rescan_interval_s"] = 1

        async def run() -> None:
            pod = Pod(tmp_path, **server.settings)
            async with pod.running():
                with anyio.fail_after(DEADLINE_S):
                    while server.strict is not None and server.strict.uploads:
                        await anyio.sleep(0.05)

        anyio.run(run)


def _chaos(seed: int) -> Callable[[Any, int], int | str | None]:
    """A third of all requests goes wrong, each in its own way."""
    rng = random.Random(seed)

    def fault(_request: Any, _count: int) -> int | str | None:
        if rng.random() > 0.3:
            return None
        faults: tuple[int | str, ...] = (500, 502, 503, 429, "reset", "lost", "lost")
        return rng.choice(faults)

    return fault


def test_faults_and_kills_send_nothing_twice(tmp_path: Path) -> None:
    rng = random.Random(1)
    source = tmp_path / "comfyui/output"
    wanted: dict[str, str] = {}
    with s3_servers.strict(pace_s=0.0, fault=_chaos(2)) as server:
        assert server.strict is not None
        config = {"root": str(tmp_path), **server.settings, "concurrency": 8}
        victim = _victim(config, "never")
        for number in range(60):
            name = f"{number % 7}/{number % 3}/{number}.png"
            path = source / name
            path.parent.mkdir(parents=True, exist_ok=True)
            data = png(f"{number}" * rng.randrange(1, 5000))
            path.write_bytes(data)
            wanted[name] = sha256(data)
            if number % 10 == 0:
                victim.kill()
                victim.communicate()
                victim = _victim(config, "never")
        victim.communicate(timeout=120)
        server.strict.fault = None
        _finish(config)
        stored = {key.split("/", 2)[2]: o.sha256 for key, o in server.strict.objects.items()}
    lost = [name for name in wanted if name not in stored]
    torn = [name for name in wanted if stored.get(name) != wanted[name]]
    doubles = len(stored) - len(wanted)
    twice = [key for key, writes in server.strict.writes.items() if writes > 1]
    assert (lost, torn, doubles, twice) == ([], [], 0, [])


@pytest.fixture(params=["moto", "s3rver"])
def real_server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Server]:
    with ExitStack() as stack:
        if request.param == "moto":
            yield stack.enter_context(s3_servers.moto())
        else:
            yield stack.enter_context(s3_servers.s3rver(tmp_path / "s3rver"))


def test_kills_against_real_servers(real_server: Server, tmp_path: Path) -> None:
    config = {"root": str(tmp_path), **real_server.settings, "concurrency": 2}
    source = tmp_path / "comfyui/output"
    source.mkdir(parents=True)
    files = {f"{n}.png": png(str(n)) for n in range(20)}
    files["big.ply"] = os.urandom(MIB) * 18
    for name, data in files.items():
        (source / name).write_bytes(data)
    for step in ("after:stored:3", "after:uploading:2", "before:stored:5", "after:part:1"):
        _victim(config, step).communicate(timeout=60)
    _finish(config)
    stored = {key.split("/", 2)[2]: data for key, data in real_server.objects().items()}
    assert stored == files


@pytest.mark.parametrize("conditional", [True, False])
async def test_a_server_that_keeps_half_of_what_it_got_ends_with_all(
    tmp_path: Path, *, conditional: bool
) -> None:
    puts: Counter[str] = Counter()

    def fault(request: Any, _count: int) -> str | None:
        puts[request.path] += request.method == "PUT"
        # Twice: aiohttp itself sends again once where a kept connection breaks.
        return "torn" if request.method == "PUT" and puts[request.path] <= 2 else None

    with s3_servers.strict(fault=fault, conditional=conditional, pace_s=0.0) as server:
        assert server.strict is not None
        pod = Pod(tmp_path, **server.settings)
        files = {f"{n}.png": png(str(n) * 1000) for n in range(5)}
        for name, data in files.items():
            (pod.source / name).write_bytes(data)
        async with pod.running():
            await pod.uploaded(len(files))
        stored = {key.split("/", 2)[2]: o.sha256 for key, o in server.strict.objects.items()}
    assert min(puts.values()) > 2
    assert stored == {name: sha256(data) for name, data in files.items()}


async def test_wrong_keys_hold_everything_back_until_the_file_is_rotated(tmp_path: Path) -> None:
    secret = tmp_path / "key-id"
    secret.write_text("wrong\n")
    with s3_servers.strict() as server:
        pod = Pod(tmp_path, **server.settings, credential_files={"access_key_id": secret})
        for number in range(8):
            (pod.source / f"{number}.png").write_bytes(png(str(number)))
        async with pod.running():
            await pod.event("sync.blocked")
            status = await pod.syncer.flush(DEADLINE_S)
            assert (status.uploaded, status.retained) == (0, 8)
            assert status.hint is not None
            assert status.blocked
            assert "secret" not in repr([e.to_json() for e in pod.bus.recent()])
            secret.write_text("key\n")
            await pod.syncer.retry()
            await pod.uploaded(8)
        assert server.strict is not None
        assert len(server.strict.objects) == 8
    assert pod.kinds().count("sync.blocked") == 1
    assert pod.status.last_error is None
    assert not pod.status.blocked


async def test_a_missing_bucket_is_one_alert(tmp_path: Path) -> None:
    with s3_servers.strict() as server:
        pod = Pod(tmp_path, **{**server.settings, "bucket": "nowhere"})
        for number in range(5):
            (pod.source / f"{number}.png").write_bytes(png(str(number)))
        async with pod.running():
            await pod.event("sync.blocked")
            status = await pod.syncer.flush(DEADLINE_S)
    assert status.retained == 5
    assert "no such bucket" in str(status.last_error)
    assert pod.kinds().count("sync.blocked") == 1


async def test_a_server_that_comes_back_gets_everything(tmp_path: Path) -> None:
    down = True

    def fault(_request: Any, _count: int) -> str | None:
        return "reset" if down else None

    with s3_servers.strict(fault=fault) as server:
        pod = Pod(tmp_path, **server.settings)
        async with pod.running():
            (pod.source / "a.png").write_bytes(png("a"))
            with anyio.fail_after(DEADLINE_S):
                await pod.state.wait(lambda s: s.sync.last_error is not None)
            down = False
            await pod.uploaded(1)


async def test_a_server_that_never_says_continue_gets_the_body_unasked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3_body, "CONTINUE_S", 0.3)
    waited = 0

    async def serve(stream: SocketStream) -> None:
        nonlocal waited
        async with stream:
            data = b""
            while b"\r\n\r\n" not in data:
                data += await stream.receive()
            head, _, body = data.partition(b"\r\n\r\n")
            if b"100-continue" in head:
                waited += 1
                await anyio.sleep_forever()
            sent = re.search(rb"(?i)content-length: (\d+)", head)
            while len(body) < int(sent[1] if sent else 0):
                body += await stream.receive()
            md5 = hashlib.md5(body, usedforsecurity=False).hexdigest()
            answer = f'HTTP/1.1 200 OK\r\nETag: "{md5}"\r\nContent-Length: 0\r\n'
            await stream.send(f"{answer}Connection: close\r\n\r\n".encode())

    listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
    port = listener.extra(SocketAttribute.local_port)  # noqa: S610 (anyio's, not Django's)
    pod = Pod(tmp_path, target="s3", endpoint=f"http://127.0.0.1:{port}", on_conflict="overwrite")
    (pod.source / "a.bin.txt").write_bytes(os.urandom(MIB))
    async with listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, serve)
        async with pod.running():
            await pod.uploaded(1)
        tasks.cancel_scope.cancel()
    assert waited == 1


async def test_a_full_journal_disk_holds_files_back_and_loses_nothing(tmp_path: Path) -> None:
    pod = Pod(tmp_path)
    async with pod.running():
        (pod.source / "first.png").write_bytes(png("first"))
        await pod.uploaded(1)
        running = pod.syncer._running
        assert running is not None
        connection = running.ledger._connection
        pages = connection.execute("PRAGMA page_count").fetchone()[0]
        connection.execute(f"PRAGMA max_page_count = {pages}")  # SQLite says: disk full
        for number in range(300):
            (pod.source / f"{number}.png").write_bytes(png(str(number)))
        with anyio.fail_after(DEADLINE_S):
            await pod.state.wait(lambda s: "journal" in (s.sync.last_error or ""))
        connection.execute("PRAGMA max_page_count = 1000000")
        await pod.syncer.retry()
        await pod.uploaded(301)
    assert len(list(pod.bucket.rglob("*.png"))) == 301


async def test_clock_steps_do_no_harm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = clock.wall_time_s()
    pod = Pod(tmp_path, delete_after_upload=False)
    async with pod.running():
        for number, step_s in enumerate((0.0, 86_400.0, -864_000.0, 5.0)):
            monkeypatch.setattr("supervisor.sync.ledger.wall_time_s", lambda s=step_s: now + s)
            path = pod.source / f"{number}.png"
            path.write_bytes(png(str(number)))
            os.utime(path, (now + step_s, now + step_s))
            await pod.uploaded(number + 1)
            (pod.source / f"{number}-after.txt").write_text("x")
            await pod.syncer.flush(DEADLINE_S)
    stored = list(pod.bucket.rglob("*.png"))
    assert sorted(p.name for p in stored) == [f"{n}.png" for n in range(4)]


async def test_a_torn_journal_tail_is_rolled_back(tmp_path: Path) -> None:
    config = {"root": str(tmp_path), "folder": str(tmp_path / "bucket")}
    source = tmp_path / "comfyui/output"
    source.mkdir(parents=True)
    for number in range(5):
        (source / f"{number}.png").write_bytes(png(str(number)))
    victim = _victim(config, "after:stored:3")
    await to_thread.run_sync(victim.communicate)
    assert victim.returncode == -signal.SIGKILL, "the step was never reached"
    log = tmp_path / "state" / "sync.db-wal"
    data = log.read_bytes()
    log.write_bytes(data[: len(data) - 1000])
    Ledger(tmp_path / "state" / "sync.db").close()
    await to_thread.run_sync(_finish, config)
    assert len(list((tmp_path / "bucket").rglob("*.png"))) == 5
