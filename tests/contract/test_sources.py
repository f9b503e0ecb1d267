"""Every source of models through one suite, then what is special to each."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import aiohttp
import anyio
import pytest

from supervisor.config.settings import ModelsSection
from supervisor.core.events import EventBus
from supervisor.core.state import StateStore
from supervisor.download.request import DownloadRequest, Progress, TransferResult
from supervisor.errors import (
    AuthRequiredError,
    ChecksumMismatchError,
    NotFoundError,
    PermanentTransferError,
    TransferError,
    TransientTransferError,
)
from supervisor.models.abilities import DirectFetcher
from supervisor.models.manager import ModelManager
from supervisor.models.preflight import Preflight
from supervisor.models.sources import open_sources, registry
from supervisor.models.sources.base import retry_after_s
from supervisor.models.transfers import DirectDownloader
from tests.support.hub import CIVITAI_TOKEN, HF_TOKEN, host_of, sha256
from tests.support.sources import World, offer, world

pytestmark = pytest.mark.anyio

DATA = bytes(range(256)) * 40


def absent(world: World, source: str) -> DownloadRequest:
    world.hub.repos.setdefault("owner/repo", {})
    references = {
        "huggingface": "owner/repo:sub/none.safetensors",
        "civitai": "404",
        "file": (world.directory / "none.safetensors").as_uri(),
        "http": f"{world.hub.hub_url}/files/none.safetensors",
    }
    return world.request(source, references[source])


every_source = pytest.mark.parametrize("source", sorted(registry))
network_source = pytest.mark.parametrize("source", sorted(set(registry) - {"file"}))


# -- the contract ---------------------------------------------------------------------------


@every_source
async def test_size_name_and_bytes(tmp_path: Path, source: str) -> None:
    async with world(tmp_path) as w:
        request = offer(w, source, DATA)
        resolved = await w.resolve(request)
        assert resolved.file_name == "f.safetensors"
        assert resolved.size_bytes == len(DATA)
        assert resolved.sha256 in (None, sha256(DATA))
        if source == "file":
            assert resolved.url == request.reference
        else:
            assert await w.read(resolved) == DATA


@every_source
async def test_missing_is_permanent_and_says_what_to_do(tmp_path: Path, source: str) -> None:
    async with world(tmp_path) as w:
        with pytest.raises(NotFoundError) as caught:
            await w.resolve(absent(w, source))
        assert caught.value.message.startswith("Cannot fetch loras/f.safetensors")
        assert caught.value.hint


@every_source
async def test_another_size_than_expected_is_refused_before_the_first_byte(
    tmp_path: Path, source: str
) -> None:
    async with world(tmp_path) as w:
        request = replace(offer(w, source, DATA), size_bytes=len(DATA) + 1)
        with pytest.raises(PermanentTransferError, match="size"):
            await w.resolve(request)


@every_source
async def test_check_moves_no_payload(tmp_path: Path, source: str) -> None:
    async with world(tmp_path) as w:
        good, bad = offer(w, source, DATA), absent(w, source)
        preflight = Preflight(open_sources(w.context))
        answers = await preflight.check([good, bad, good])
        assert [a.ok for a in answers] == [True, False, True]
        assert answers[0].size_bytes == len(DATA)
        asked = [s for s in w.hub.payload_requests() if s.method != "HEAD"]
        # A HEAD that is refused says little: then the first byte is asked for.
        assert {s.range for s in asked if s.path == "/files/none.safetensors"} <= {"bytes=0-0"}
        assert not [s for s in asked if s.path != "/files/none.safetensors"]


@network_source
async def test_trouble_of_the_server_is_transient(tmp_path: Path, source: str) -> None:
    async with world(tmp_path) as w:
        request = offer(w, source, DATA)
        w.hub.outages = [(503, {"Retry-After": "7"})]
        with pytest.raises(TransientTransferError) as caught:
            await w.resolve(request)
        assert caught.value.retry_after_s == 7
        w.hub.outages = [(429, {})]
        with pytest.raises(TransientTransferError):
            await w.resolve(request)
        assert (await w.resolve(request)).size_bytes == len(DATA)


@network_source
async def test_no_connection_is_transient(tmp_path: Path, source: str, free_tcp_port: int) -> None:
    async with world(tmp_path) as w:
        nowhere = f"http://127.0.0.1:{free_tcp_port}"
        request = offer(w, source, DATA)
        if source == "http":
            request = w.request("http", f"{nowhere}/files/f.safetensors?secret=1")
        with pytest.raises(TransientTransferError) as caught:
            await w.resolve(request, hf_endpoint=nowhere, civitai_endpoint=nowhere)
        assert "secret" not in caught.value.message
        assert "no connection to 127.0.0.1 (Connection refused)" in caught.value.message


@network_source
async def test_tokens_stay_with_their_host(tmp_path: Path, source: str) -> None:
    async with world(tmp_path, hf_token=HF_TOKEN, civitai_token=CIVITAI_TOKEN) as w:
        resolved = await w.resolve(offer(w, source, DATA))
        if host_of(resolved.url) == host_of(w.hub.cdn_url):
            assert not resolved.headers
        await w.read(resolved)
        assert all(s.authorization is None for s in w.hub.seen if s.server == "cdn")
        assert all("token" not in s.query for s in w.hub.seen)


@network_source
async def test_signed_addresses_are_made_anew(tmp_path: Path, source: str) -> None:
    async with world(tmp_path) as w:
        request = offer(w, source, DATA)
        first = await w.resolve(request)
        w.hub.expired = {"s1"}
        if host_of(first.url) == host_of(w.hub.cdn_url):
            with pytest.raises(aiohttp.ClientResponseError):
                await w.read(first)
        assert await w.read(await w.resolve(request)) == DATA


# -- CivitAI --------------------------------------------------------------------------------


async def test_civitai_version_hash_and_name(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        digest = w.hub.add_version(5, "nice lora.safetensors", DATA)
        resolved = await w.resolve(w.request("civitai", "5"))
        assert (resolved.sha256, resolved.file_name) == (digest, "nice lora.safetensors")


async def test_civitai_type_decides_the_folder(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        kinds = {"Checkpoint": "checkpoints", "LoCon": "loras", "TextualInversion": "embeddings"}
        preflight = Preflight(open_sources(w.context))
        for number, (kind, folder) in enumerate(kinds.items(), start=1):
            w.hub.add_version(number, "m.safetensors", DATA, kind=kind)
            (request,) = await preflight.expand(w.request("civitai", str(number), ""))
            assert request.name == f"{folder}/m.safetensors"
            assert request.destination == w.directory / "models" / folder / "m.safetensors"
        (kept,) = await preflight.expand(w.request("civitai", "1", "loras/mine/"))
        assert kept.name == "loras/mine/m.safetensors"
        w.hub.add_version(9, "m.safetensors", DATA, kind="Poses")
        with pytest.raises(PermanentTransferError, match="no model folder"):
            await preflight.expand(w.request("civitai", "9", ""))


async def test_civitai_name_is_made_safe(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        w.hub.add_version(5, "../../.ssh/authorized_keys", DATA)
        preflight = Preflight(open_sources(w.context))
        (request,) = await preflight.expand(w.request("civitai", "5", "loras/"))
        assert request.destination == w.directory / "models/loras/authorized_keys"


async def test_civitai_file_choice(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        w.hub.add_version(5, "fp16.safetensors", DATA)
        files = w.hub.versions[5]["files"]
        other = {
            **files[0],
            "name": "fp32.safetensors",
            "primary": False,
            "metadata": {"format": "SafeTensor", "fp": "fp32", "size": "full"},
        }
        files.insert(0, other)
        page = f"{w.hub.hub_url}/api/download/models/5"
        chosen = await w.resolve(w.request("civitai", "5"))
        assert chosen.file_name == "fp16.safetensors"
        full = w.request("http", f"{page}?type=Model&format=SafeTensor&size=full&fp=fp32")
        assert full.source == "civitai"
        assert (await w.resolve(full)).file_name == "fp32.safetensors"
        with pytest.raises(NotFoundError) as caught:
            await w.resolve(w.request("http", f"{page}?format=GGUF"))
        assert caught.value.hint is not None
        assert "fp32" in caught.value.hint


async def test_civitai_model_page_takes_the_newest_free_version(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        w.hub.add_version(6, "new.safetensors", DATA, availability="EarlyAccess")
        w.hub.add_version(5, "old.safetensors", DATA)
        versions = [w.hub.versions[6], w.hub.versions[5]]
        w.hub.models[50] = {"id": 50, "type": "LORA", "modelVersions": versions}
        request = w.request("http", f"{w.hub.hub_url}/models/50/some-name")
        assert (await w.resolve(request)).file_name == "old.safetensors"
        pinned = w.request("http", f"{w.hub.hub_url}/models/50?modelVersionId=6")
        assert (await w.resolve(pinned)).file_name == "new.safetensors"


@pytest.mark.parametrize("how", ["locked", "html"])
async def test_civitai_login_is_asked_for(tmp_path: Path, how: str) -> None:
    async with world(tmp_path) as w:
        request = offer(w, "civitai", DATA)
        setattr(w.hub, how, {77})
        with pytest.raises(AuthRequiredError) as caught:
            await w.resolve(request)
        assert caught.value.hint is not None
        assert "CIVITAI_API_KEY" in caught.value.hint
        assert await w.read(await w.resolve(request, civitai_token=CIVITAI_TOKEN)) == DATA


@pytest.mark.parametrize(
    ("ends", "file"),
    [("2999-01-01T00:00:00.000Z", "old"), ("2020-01-01T00:00:00.000Z", "new"), ("soon", "old")],
)
async def test_civitai_early_access_ends(tmp_path: Path, ends: str, file: str) -> None:
    async with world(tmp_path) as w:
        dates = {"availability": "EarlyAccess", "earlyAccessEndsAt": ends}
        w.hub.add_version(6, "new.safetensors", DATA, **dates)
        w.hub.add_version(5, "old.safetensors", DATA)
        versions = [w.hub.versions[6], w.hub.versions[5]]
        w.hub.models[50] = {"id": 50, "type": "LORA", "modelVersions": versions}
        request = w.request("http", f"{w.hub.hub_url}/models/50")
        assert (await w.resolve(request)).file_name == f"{file}.safetensors"


async def test_civitai_early_access_names_the_page(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        w.hub.add_version(7, "f.safetensors", DATA, availability="EarlyAccess")
        w.hub.locked = {7}
        with pytest.raises(AuthRequiredError, match="early access") as caught:
            await w.resolve(w.request("civitai", "7"), civitai_token="wrong")
        assert caught.value.hint is not None
        assert "modelVersionId=7" in caught.value.hint


# -- plain http -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("header", "name"),
    [
        ('attachment; filename="nice; name.safetensors"', "nice; name.safetensors"),
        ("attachment; filename=plain.safetensors", "plain.safetensors"),
        (
            "attachment; filename=x.bin; filename*=UTF-8''na%C3%AFve.safetensors",
            "naïve.safetensors",
        ),
        ('attachment; filename="../../etc/passwd"', "passwd"),
        ('attachment; filename="..\\\\..\\\\evil.safetensors"', "evil.safetensors"),
        ("attachment; filename*=UTF-8''%2e%2e%2f%2e%2e%2fevil.pt", "evil.pt"),
        ("attachment", "f.safetensors"),
        ('attachment; filename="..."', "f.safetensors"),
    ],
)
async def test_content_disposition_is_made_safe(tmp_path: Path, header: str, name: str) -> None:
    async with world(tmp_path) as w:
        request = offer(w, "http", DATA)
        w.hub.files["/files/f.safetensors"] = (DATA, {"Content-Disposition": header})
        assert (await w.resolve(request)).file_name == name


@pytest.mark.parametrize("status", [401, 403, 404, 405, 500, 501])
async def test_http_without_head(tmp_path: Path, status: int) -> None:
    async with world(tmp_path) as w:
        request = offer(w, "http", DATA)
        w.hub.no_head = status
        assert (await w.resolve(request)).size_bytes == len(DATA)


@pytest.mark.parametrize(
    ("headers", "size"),
    [
        ({"Content-Length": "0"}, None),
        ({"Content-Length": "9", "Content-Encoding": "gzip"}, None),
        ({"Content-Length": "9", "Content-Type": "text/html"}, len(DATA)),
    ],
)
async def test_what_http_head_says_is_doubted(
    tmp_path: Path, headers: dict[str, str], size: int | None
) -> None:
    async with world(tmp_path) as w:
        request = offer(w, "http", DATA)
        w.hub.outages = [(200, headers)]  # the one answer to HEAD
        assert (await w.resolve(request)).size_bytes == size


async def test_http_empty_file(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        request = offer(w, "http", b"")
        w.hub.no_head = 405
        assert (await w.resolve(request)).size_bytes == 0


async def test_netrc_goes_to_its_host_only(tmp_path: Path) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login me password word\n")
    netrc.chmod(0o600)
    async with world(tmp_path) as w:
        request = offer(w, "http", DATA)
        w.hub.users = {"/files/f.safetensors": ("me", "word")}
        with pytest.raises(AuthRequiredError) as caught:
            await w.resolve(request)
        assert caught.value.hint is not None
        assert "netrc" in caught.value.hint
        assert await w.read(await w.resolve(request, netrc=netrc)) == DATA
        inline = w.hub.hub_url.replace("://", "://me:word@") + "/files/f.safetensors"
        by_url = w.request("http", inline)
        assert "word" not in by_url.url
        resolved = await w.resolve(by_url)
        assert "word" not in resolved.url
        assert await w.read(resolved) == DATA
        w.hub.files["/files/away"] = (b"", {"Location": f"{w.hub.cdn_url}/blob/x?signature=1"})
        w.hub.users["/files/away"] = ("me", "word")
        away = w.request("http", w.hub.hub_url.replace("://", "://me:word@") + "/files/away")
        with pytest.raises(TransferError):
            await w.resolve(away)
        assert w.hub.seen[-1].server == "cdn"
        assert w.hub.seen[-1].authorization is None


async def test_a_web_page_is_not_a_model(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        request = offer(w, "http", DATA)
        w.hub.files["/files/f.safetensors"] = (b"<html>", {"Content-Type": "text/html"})
        with pytest.raises(PermanentTransferError, match="web page"):
            await w.resolve(request)


async def test_redirects_end(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        request = offer(w, "http", DATA)
        w.hub.files["/files/f.safetensors"] = (b"", {"Location": "/files/f.safetensors"})
        with pytest.raises(PermanentTransferError, match="redirects"):
            await w.resolve(request)


def test_retry_after_as_number_and_date() -> None:
    assert retry_after_s({"Retry-After": "12"}) == 12
    assert retry_after_s({"Retry-After": "nan"}) is None
    assert retry_after_s({"Retry-After": "soon"}) is None
    assert retry_after_s({"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}) == 0
    assert retry_after_s({"Retry-After": "999999"}) == 3600


# -- files ----------------------------------------------------------------------------------


async def test_file_source_copies_and_verifies(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        request = offer(w, "file", DATA)
        source = open_sources(w.context)["file"]
        assert isinstance(source, DirectFetcher)
        steps: list[Progress] = []
        wrong = replace(request, sha256="0" * 64)
        with pytest.raises(ChecksumMismatchError):
            await source.fetch(wrong, steps.append)
        assert not list(request.destination.parent.iterdir())
        result = await source.fetch(request, steps.append)
        assert result == TransferResult(request.destination, len(DATA), sha256(DATA), 0)
        assert request.destination.read_bytes() == DATA
        assert steps[-1].bytes_done == len(DATA)
        again = replace(request, sha256=None)
        steps.clear()
        before = request.destination.stat()
        await source.fetch(again, steps.append)
        assert not steps
        assert request.destination.stat().st_ino == before.st_ino
        os.utime(request.destination)  # somebody wrote to the copy
        await source.fetch(again, steps.append)
        assert steps


async def test_manager_runs_a_file_source_by_itself(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        request = offer(w, "file", DATA)

        class NoEngine:
            fetch: Callable[..., object]

        manager = ModelManager(
            settings=ModelsSection(),
            state=StateStore(),
            bus=EventBus(),
            downloader=DirectDownloader(NoEngine()),  # type: ignore[arg-type]
            resolvers=open_sources(w.context),
        )
        with anyio.fail_after(20):
            assert await manager.run_until_done([request])
        assert request.destination.read_bytes() == DATA
