"""What every place that stores files must do, one suite over all of them."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import anyio
import pytest
from anyio.abc import SocketAttribute, SocketStream

from supervisor.config.settings import SyncSection
from supervisor.errors import TransferError, TransientTransferError
from supervisor.sync import s3_body, s3_bucket
from supervisor.sync.credentials import Credentials
from supervisor.sync.folder import FolderTarget
from supervisor.sync.model import Identity, Resume, Upload
from supervisor.sync.pacing import RateLimiter
from supervisor.sync.s3 import S3Target
from supervisor.sync.target import FileChangedError, KeyTakenError, Target
from tests.support import s3_servers
from tests.support.s3_servers import Server
from tests.support.sync import sha256

pytestmark = pytest.mark.anyio
MIB = 1024 * 1024


@dataclass
class Place:
    """A target and a way to look into it that does not go through it."""

    target: Target
    folder: Path | None = None
    server: Server | None = None

    def objects(self) -> dict[str, bytes]:
        """Everything that is stored."""
        if self.server is not None:
            return self.server.objects()
        assert self.folder is not None
        return {
            str(p.relative_to(self.folder)): p.read_bytes()
            for p in self.folder.rglob("*")
            if p.is_file()
        }


@dataclass
class Notes:
    """Remembers what an upload wrote down."""

    steps: list[str] = field(default_factory=list)
    upload_id: str = ""
    parts: dict[int, str] = field(default_factory=dict)

    def creating(self) -> None:
        self.steps.append("creating")

    def started(self, upload_id: str, part_size_bytes: int) -> None:
        self.steps.append("started")
        self.upload_id = upload_id

    def part(self, number: int, etag: str) -> None:
        self.steps.append("part")
        self.parts[number] = etag

    def abandoned(self) -> None:
        self.steps.append("abandoned")


@pytest.fixture(params=["folder", "moto", "s3rver", "strict", "strict-write-only", "plain"])
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Server | None]:
    if request.param == "folder":
        yield None
        return
    kinds: dict[str, Any] = {
        "moto": s3_servers.moto,
        "s3rver": lambda: s3_servers.s3rver(tmp_path / "s3rver"),
        "strict": lambda: s3_servers.strict(pace_s=0.2),
        "strict-write-only": lambda: s3_servers.strict(pace_s=0.2, may_read=False),
        "plain": lambda: s3_servers.strict(pace_s=0.0, conditional=False),
    }
    with kinds[request.param]() as running:
        yield running


@pytest.fixture
async def place(server: Server | None, tmp_path: Path) -> AsyncIterator[Place]:
    limiter = RateLimiter(None)
    if server is None:
        folder = tmp_path / "bucket"
        async with FolderTarget(folder, limiter=limiter) as target:
            yield Place(target, folder=folder)
        return
    settings = SyncSection(**server.settings)
    async with S3Target(settings, Credentials(settings, {}), limiter=limiter) as s3:
        yield Place(s3, server=server)
    if server.strict is not None:
        assert server.strict.refused == [], "a rule of R2 was broken"


def _upload(tmp_path: Path, data: bytes, key: str = "outputs/a b ü.png", **parts: Any) -> Upload:
    source = tmp_path / f"source-{sha256(data)[:8]}"
    if not source.exists():
        source.write_bytes(data)
    upload = Upload(
        source=source,
        identity=Identity.of(source.stat()),
        key=key,
        sha256=sha256(data),
        content_type="image/png",
        metadata={"source": "a%20b"},
        record=Notes(),
    )
    return replace(upload, **parts)


def _can_read(place: Place) -> bool:
    return place.server is None or place.server.strict is None or place.server.strict.may_read


def _values(place: Place) -> list[str]:
    if place.server is not None and place.server.strict is not None:
        return sorted(o.sha256 for o in place.server.strict.objects.values())
    return sorted(map(sha256, place.objects().values()))


async def _store(place: Place, upload: Upload) -> str:
    """Store as ``Transfer`` does: under a key of its own when the first is taken."""
    try:
        await place.target.store(upload)
    except KeyTakenError:
        upload = replace(upload, key=upload.key + sha256(upload.source.read_bytes())[:12],
                         replace=True, look_first=True)  # fmt: skip
        await place.target.store(upload)
    return upload.key


async def test_it_stores_the_bytes_and_confirms_them(place: Place, tmp_path: Path) -> None:
    stored = await place.target.store(_upload(tmp_path, b"one"))
    assert stored.sent
    assert stored.verified
    assert _values(place) == [sha256(b"one")]


async def test_storing_again_is_harmless_and_other_bytes_never_replace(
    place: Place, tmp_path: Path
) -> None:
    first = await _store(place, _upload(tmp_path, b"one"))
    again = await _store(place, _upload(tmp_path, b"one", look_first=True))
    other = await _store(place, _upload(tmp_path, b"two"))
    assert first == again
    assert other != first
    assert _values(place) == sorted([sha256(b"one"), sha256(b"two")])


async def test_replacing_is_done_when_allowed(place: Place, tmp_path: Path) -> None:
    await place.target.store(_upload(tmp_path, b"one", replace=True))
    await place.target.store(_upload(tmp_path, b"two", replace=True))
    assert _values(place) == [sha256(b"two")]


async def test_a_file_that_has_changed_is_not_stored(place: Place, tmp_path: Path) -> None:
    upload = _upload(tmp_path, b"one")
    upload.source.write_bytes(b"changed")
    with pytest.raises(FileChangedError):
        await place.target.store(upload)
    upload.source.unlink()
    with pytest.raises(FileChangedError):
        await place.target.store(upload)
    assert _values(place) == []


@pytest.mark.parametrize("size_mib", [1, 20])
async def test_large_files_arrive_whole(place: Place, tmp_path: Path, size_mib: int) -> None:
    data = os.urandom(MIB) * size_mib + b"tail"
    await _store(place, _upload(tmp_path, data))
    assert _values(place) == [sha256(data)]


async def test_what_was_stored_comes_back_with_its_time(place: Place, tmp_path: Path) -> None:
    if not _can_read(place):
        pytest.skip("the token may not read")
    upload = _upload(tmp_path, b"one", key="workflows/sub/a.json")
    await place.target.store(upload)
    found = [remote async for remote in place.target.list("workflows/")]
    assert [(f.key, f.size_bytes) for f in found] == [("workflows/sub/a.json", 3)]
    destination = tmp_path / "back" / "a.json"
    assert await place.target.fetch(found[0].key, destination, newer_than_s=None)
    assert destination.read_bytes() == b"one"
    mtime_s = upload.identity.mtime_ns / 1e9
    assert abs(destination.stat().st_mtime - mtime_s) < 0.001
    assert not await place.target.fetch(found[0].key, destination, newer_than_s=mtime_s + 1)
    assert [p.name for p in destination.parent.iterdir()] == ["a.json"]


async def test_an_upload_whose_last_answer_was_lost_is_not_asked_for_again(tmp_path: Path) -> None:
    completed = 0

    def fault(request: Any, _count: int) -> int | str | None:
        nonlocal completed
        if request.method != "POST" or "uploadId" not in request.query:
            return None
        completed += 1
        return "lost" if completed == 1 else 500  # as s3rver says of an upload that is gone

    with s3_servers.strict(fault=fault) as server:
        settings = SyncSection(**server.settings)
        async with S3Target(
            settings, Credentials(settings, {}), limiter=RateLimiter(None)
        ) as target:
            notes = Notes()
            upload = _upload(tmp_path, os.urandom(MIB) * 9, record=notes)
            with pytest.raises(TransientTransferError):
                await target.store(upload)
            resume = Resume(notes.upload_id, 8 * MIB, dict(notes.parts))
            assert not (await target.store(replace(upload, resume=resume))).sent
        assert server.strict is not None
        assert list(server.strict.writes.values()) == [1]


@pytest.mark.parametrize("kind", ["moto", "s3rver", "strict", "plain"])
@pytest.mark.parametrize("size_mib", [1, 9])
async def test_only_what_an_earlier_try_has_left_half_is_replaced(
    tmp_path: Path, kind: str, size_mib: int
) -> None:
    kinds: dict[str, Any] = {
        "moto": s3_servers.moto,
        "s3rver": lambda: s3_servers.s3rver(tmp_path / "s3rver"),
        "strict": lambda: s3_servers.strict(pace_s=0.0),
        "plain": lambda: s3_servers.strict(pace_s=0.0, conditional=False),
    }
    data = os.urandom(MIB) * size_mib + b"tail"
    with kinds[kind]() as server:
        client = server.client()
        planted = {"empty": b"", "half": data[: MIB // 2], "other": b"x" * 100}
        for key, body in planted.items():
            client.put_object(Bucket=server.bucket, Key=key, Body=body)
        settings = SyncSection(**server.settings)
        async with S3Target(
            settings, Credentials(settings, {}), limiter=RateLimiter(None)
        ) as target:
            for key in planted:
                upload = _upload(tmp_path, data, key=key, look_first=True)
                with pytest.raises(KeyTakenError):
                    await target.store(upload)
                if key != "other":
                    await target.store(replace(upload, retried=True))
                    continue
                with pytest.raises(KeyTakenError):
                    await target.store(replace(upload, retried=True))
        sizes = {
            k: client.head_object(Bucket=server.bucket, Key=k)["ContentLength"] for k in planted
        }
        client.close()
    assert sizes == {"empty": len(data), "half": len(data), "other": 100}


async def test_a_broken_multipart_is_resumed_and_a_dead_one_starts_anew(tmp_path: Path) -> None:
    data = os.urandom(MIB) * 40
    sent: list[int] = []

    def fault(request: Any, _count: int) -> int | None:
        if "partNumber" in request.query:
            sent.append(int(request.query["partNumber"]))
            return 500 if len(sent) == 4 else None
        return None

    with s3_servers.strict(fault=fault) as server:
        settings = SyncSection(**server.settings)
        async with S3Target(
            settings, Credentials(settings, {}), limiter=RateLimiter(None)
        ) as target:
            notes = Notes()
            upload = _upload(tmp_path, data, record=notes)
            with pytest.raises(TransferError):
                await target.store(upload)
            resume = Resume(notes.upload_id, 8 * MIB, dict(notes.parts))
            before = len(sent)
            await target.store(replace(upload, resume=resume))
            # What was cut off may arrive late, but nothing that was stored is sent again.
            assert set(sent[before:]) == {1, 2, 3, 4, 5} - resume.parts.keys()
            # The same again: the upload id is spent, the object is there.
            stored = await target.store(replace(upload, resume=resume))
            assert not stored.sent
        assert server.strict is not None
        assert [o.sha256 for o in server.strict.objects.values()] == [sha256(data)]
        assert server.strict.uploads == {}


@pytest.mark.parametrize("body", [None, b"data"])
async def test_a_server_that_is_silent_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: bytes | None
) -> None:
    monkeypatch.setattr(s3_bucket, "_SILENCE_S", 0.3)
    monkeypatch.setattr(s3_body, "CONTINUE_S", 0.3)

    async def serve(stream: SocketStream) -> None:
        async with stream:
            await anyio.sleep_forever()  # not even "100 Continue"

    listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
    port = listener.extra(SocketAttribute.local_port)  # noqa: S610 - of anyio
    settings = SyncSection(
        target="s3", endpoint=f"http://127.0.0.1:{port}", access_key_id="k", secret_access_key="s"
    )
    async with listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, serve)
        async with S3Target(
            settings, Credentials(settings, {}), limiter=RateLimiter(None)
        ) as target:
            upload = replace(_upload(tmp_path, b"data"), replace=True, body=body)
            with anyio.fail_after(60), pytest.raises(TransientTransferError, match="not answer"):
                await target.store(upload)
        tasks.cancel_scope.cancel()


async def test_a_file_that_shrinks_while_it_is_sent_is_not_stored(tmp_path: Path) -> None:
    upload = _upload(tmp_path, os.urandom(MIB) * 7, replace=True)

    def shrink(request: Any, _count: int) -> None:
        if request.method == "PUT":
            os.truncate(upload.source, MIB)

    with s3_servers.strict(fault=shrink) as server:
        settings = SyncSection(**server.settings)
        async with S3Target(
            settings, Credentials(settings, {}), limiter=RateLimiter(None)
        ) as target:
            with pytest.raises(FileChangedError):
                await target.store(upload)
        assert server.strict is not None
        assert server.strict.objects == {}


async def test_headers_tell_what_it_is(tmp_path: Path) -> None:
    with s3_servers.strict() as server:
        settings = SyncSection(**server.settings)
        async with S3Target(
            settings, Credentials(settings, {}), limiter=RateLimiter(None)
        ) as target:
            await target.store(_upload(tmp_path, b"one", cache_control="max-age=1"))
        assert server.strict is not None
        (stored,) = server.strict.objects.values()
    headers = {k.lower(): v for k, v in stored.headers.items()}
    assert headers["content-type"] == "image/png"
    assert headers["cache-control"] == "max-age=1"
    assert headers["x-amz-meta-sha256"] == sha256(b"one")
    assert headers["x-amz-meta-source"] == "a%20b"
