"""The local model origin answers as the hub, CivitAI and their storage do."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import AsyncIterator, Mapping

import aiohttp
import pytest

from supervisor.demo.media import safetensors
from supervisor.demo.origin import CivitaiFile, Fault, Origin, OriginFile, serve_origin

pytestmark = pytest.mark.anyio
CONTENT = safetensors("test", 300_000)


@pytest.fixture
async def origin() -> AsyncIterator[Origin]:
    async with serve_origin(Origin()) as served:
        yield served


@pytest.fixture
async def client() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(auto_decompress=False) as session:
        yield session


async def fetch(
    client: aiohttp.ClientSession, url: str, **headers: str
) -> tuple[int, bytes, Mapping[str, str]]:
    named = {key.replace("_", "-"): value for key, value in headers.items()}
    async with client.get(url, headers=named) as answer:
        return answer.status, await answer.read(), answer.headers


def test_safetensors_are_valid_and_always_the_same() -> None:
    for size in (0, 1000, 300_000):
        content = safetensors("name", size)
        assert content == safetensors("name", size)
        assert content != safetensors("other", size)
        assert abs(len(content) - size) < 300
        (length,) = struct.unpack_from("<Q", content)
        header = json.loads(content[8 : 8 + length])
        tensor = header["weight"]
        rows, columns = tensor["shape"]
        assert tensor["data_offsets"] == [0, len(content) - 8 - length]
        assert rows * columns * 2 == len(content) - 8 - length


async def test_hub_redirects_to_signed_storage_elsewhere(
    origin: Origin, client: aiohttp.ClientSession
) -> None:
    file = origin.add_hub_file("owner/repo", "folder/model.safetensors", CONTENT)
    url = f"{origin.front_url}/owner/repo/resolve/main/folder/model.safetensors"
    async with client.head(url, allow_redirects=False) as answer:
        assert answer.status == 302
        assert answer.headers["X-Linked-ETag"] == f'"{hashlib.sha256(CONTENT).hexdigest()}"'
        assert answer.headers["X-Linked-Size"] == str(len(CONTENT))
        assert len(answer.headers["X-Repo-Commit"]) == 40
        location = answer.headers["Location"]
    assert location.startswith(origin.storage_url)
    assert origin.storage_url != origin.front_url
    status, body, headers = await fetch(client, location)
    assert (status, body) == (200, CONTENT)
    assert headers["ETag"] == file.etag
    origin.expire_signatures()
    assert (await fetch(client, location))[0] == 403


async def test_ranges_and_if_range(origin: Origin, client: aiohttp.ClientSession) -> None:
    file = origin.add_plain_file("/files/a.bin", CONTENT)
    url = origin.front_url + "/files/a.bin"
    status, body, headers = await fetch(client, url, Range="bytes=10-19")
    assert (status, body) == (206, CONTENT[10:20])
    assert headers["Content-Range"] == f"bytes 10-19/{len(CONTENT)}"
    assert (await fetch(client, url, Range=f"bytes={len(CONTENT) - 5}-"))[1] == CONTENT[-5:]
    assert (await fetch(client, url, Range="bytes=-7"))[1] == CONTENT[-7:]
    assert (await fetch(client, url, Range=f"bytes={len(CONTENT)}-"))[0] == 416
    assert (await fetch(client, url, Range="bytes=5-", If_Range=file.etag))[0] == 206
    etag = file.etag
    file.version += 1  # the remote file changed
    assert (await fetch(client, url, Range="bytes=5-", If_Range=etag))[0] == 200
    assert origin.seen[0].range == "bytes=10-19"


async def test_gated_and_missing_files_have_the_hubs_codes(
    origin: Origin, client: aiohttp.ClientSession
) -> None:
    origin.add_hub_file("owner/repo", "gated.safetensors", CONTENT, gated=True)
    base = f"{origin.front_url}/owner/repo/resolve"
    cases = [
        (f"{base}/main/gated.safetensors", {}, 401, "GatedRepo"),
        (f"{base}/main/gated.safetensors", {"Authorization": "Bearer no"}, 403, "GatedRepo"),
        (f"{base}/main/nothing", {}, 404, "EntryNotFound"),
        (f"{base}/other/gated.safetensors", {}, 404, "RevisionNotFound"),
        (f"{origin.front_url}/no/repo/resolve/main/x", {}, 401, "RepoNotFound"),
    ]
    for url, headers, status, code in cases:
        async with client.get(url, headers=headers) as answer:
            assert (answer.status, answer.headers["X-Error-Code"]) == (status, code)
    token = f"Bearer {origin.token}"
    url = f"{base}/main/gated.safetensors"
    assert (await fetch(client, url, Authorization=token))[:2] == (200, CONTENT)
    # What a client must not do shows in what the storage saw.
    assert origin.seen[-1].host == "storage"


async def test_tree_is_paged_by_link(origin: Origin, client: aiohttp.ClientSession) -> None:
    names = [f"models/{number}.safetensors" for number in range(5)]
    for name in names:
        origin.add_hub_file("owner/repo", name, name.encode())
    url: str | None = f"{origin.front_url}/api/models/owner/repo/tree/main/models?recursive=1"
    found, pages = [], 0
    while url is not None:
        async with client.get(url) as answer:
            found += [(entry["path"], entry["lfs"]["oid"]) for entry in await answer.json()]
            following = answer.links.get("next")
        url = str(following["url"]) if following else None
        pages += 1
    assert found == [(name, hashlib.sha256(name.encode()).hexdigest()) for name in names]
    assert pages == 3


async def test_civitai(origin: Origin, client: aiohttp.ClientSession) -> None:
    origin.add_civitai_version(41, CivitaiFile("style.safetensors"), CONTENT)
    early = CivitaiFile("new.safetensors", early_access=True)
    origin.add_civitai_version(42, early, CONTENT)
    async with client.get(f"{origin.front_url}/api/v1/model-versions/41") as answer:
        (file,) = (await answer.json())["files"]
    assert file["hashes"]["SHA256"] == hashlib.sha256(CONTENT).hexdigest().upper()
    assert file["primary"]
    assert (await fetch(client, file["downloadUrl"]))[:2] == (200, CONTENT)
    async with client.get(file["downloadUrl"], allow_redirects=False) as answer:
        assert answer.status == 307
    early_url = f"{origin.front_url}/api/download/models/42"
    assert (await fetch(client, early_url))[0] == 401
    assert (await fetch(client, early_url, Authorization=f"Bearer {origin.token}"))[0] == 200
    assert (await fetch(client, f"{origin.front_url}/api/v1/model-versions/43"))[0] == 404


def plain(origin: Origin, fault: Fault) -> tuple[OriginFile, str]:
    file = origin.add_plain_file("/a", CONTENT)
    file.faults.append(fault)
    return file, origin.front_url + "/a"


async def test_fault_happens_as_often_as_told_and_then_no_more(
    origin: Origin, client: aiohttp.ClientSession
) -> None:
    _, url = plain(origin, Fault(times=2, status=503, retry_after_s=7))
    for _ in range(2):
        status, _, headers = await fetch(client, url)
        assert (status, headers["Retry-After"]) == (503, "7")
    assert (await fetch(client, url))[:2] == (200, CONTENT)


async def test_cut_connection(origin: Origin, client: aiohttp.ClientSession) -> None:
    _, url = plain(origin, Fault(cut_after=100_000))
    async with client.get(url) as answer:
        received = b""
        with pytest.raises(aiohttp.ClientPayloadError):  # noqa: PT012 - at some chunk
            while chunk := await answer.content.read(1000):
                received += chunk
    assert received == CONTENT[: len(received)]
    assert 0 < len(received) <= 100_000


async def test_stall(origin: Origin, client: aiohttp.ClientSession) -> None:
    _, url = plain(origin, Fault(stall_after=1000))
    async with client.get(url, timeout=aiohttp.ClientTimeout(sock_read=0.3)) as answer:
        assert await answer.content.readexactly(1000) == CONTENT[:1000]
        with pytest.raises(TimeoutError):
            await answer.content.read(1)


async def test_wrong_bytes_ignored_ranges_and_login_pages(
    origin: Origin, client: aiohttp.ClientSession
) -> None:
    file, url = plain(origin, Fault(flip_byte=5000))
    body = (await fetch(client, url))[1]
    assert len(body) == len(CONTENT)
    assert [at for at in range(len(body)) if body[at] != CONTENT[at]] == [5000]
    file.faults.append(Fault(no_ranges=True))
    assert (await fetch(client, url, Range="bytes=9-"))[:2] == (200, CONTENT)
    file.faults.append(Fault(html=True))
    status, body, headers = await fetch(client, url)
    assert (status, headers["Content-Type"]) == (200, "text/html")
    assert body != CONTENT
