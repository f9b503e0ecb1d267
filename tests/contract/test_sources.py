"""Every source of models through one suite, then what is special to each."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import aiohttp
import anyio
import pytest

from supervisor.config.settings import ModelFile, ModelsSection
from supervisor.core.events import EventBus
from supervisor.core.state import StateStore
from supervisor.download.request import DownloadRequest, Progress, Resolved, TransferResult
from supervisor.errors import (
    AuthRequiredError,
    ChecksumMismatchError,
    NotFoundError,
    PermanentTransferError,
    TransferError,
    TransientTransferError,
)
from supervisor.models.manager import ModelManager
from supervisor.models.preflight import Preflight
from supervisor.models.requests import file_request
from supervisor.models.sources import open_sources, registry
from supervisor.models.sources.base import DirectFetcher, SourceContext, retry_after_s
from supervisor.models.transfers import DirectDownloader
from tests.support.hub import CIVITAI_TOKEN, HF_TOKEN, Hub, host_of, serve, sha256

pytestmark = pytest.mark.anyio

DATA = bytes(range(256)) * 40


@dataclass
class World:
    """The stand-in hub, and sources that talk to it."""

    hub: Hub
    context: SourceContext
    directory: Path

    def request(
        self, source: str, reference: str, to: str = "loras/f.safetensors"
    ) -> DownloadRequest:
        section = ModelsSection(hf_endpoint=self.hub.hub_url, civitai_endpoint=self.hub.hub_url)
        if source == "huggingface":
            file = ModelFile(huggingface=reference, to=to)
        elif source == "civitai":
            file = ModelFile(civitai=int(reference), to=to)
        else:
            file = ModelFile(url=reference, to=to)
        return file_request(file, section=section, directory=self.directory / "models")

    async def resolve(self, request: DownloadRequest, **changes: object) -> Resolved:
        sources = open_sources(replace(self.context, **changes))  # type: ignore[arg-type]
        return await sources[request.source].resolve(request)

    async def read(self, resolved: Resolved) -> bytes:
        async with self.context.session.get(resolved.url, headers=resolved.headers) as response:
            response.raise_for_status()
            return await response.read()


@asynccontextmanager
async def world(tmp_path: Path, **context: object) -> AsyncIterator[World]:
    async with serve(Hub()) as hub, aiohttp.ClientSession() as session:
        base = SourceContext(
            session=session,
            hf_endpoint=hub.hub_url,
            civitai_endpoint=hub.hub_url,
            answer_timeout_s=10.0,
        )
        yield World(hub, replace(base, **context), tmp_path)  # type: ignore[arg-type]


def offer(world: World, source: str, data: bytes) -> DownloadRequest:
    """Put ``data`` on offer and return the request for it."""
    if source == "huggingface":
        world.hub.add("owner/repo", "sub/f.safetensors", data)
        return world.request(source, "owner/repo:sub/f.safetensors")
    if source == "civitai":
        world.hub.add_version(77, "f.safetensors", data)
        return world.request(source, "77")
    if source == "file":
        path = world.directory / "elsewhere" / "f.safetensors"
        path.parent.mkdir()
        path.write_bytes(data)
        return world.request(source, path.as_uri())
    world.hub.files["/files/f.safetensors"] = (data, {})
    return world.request(source, f"{world.hub.hub_url}/files/f.safetensors")


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
        assert not [s for s in w.hub.payload_requests() if s.method != "HEAD"]


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


# -- Hugging Face ---------------------------------------------------------------------------


async def test_hub_hash_is_known_before_the_first_byte(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        request = offer(w, "huggingface", DATA)
        resolved = await w.resolve(request)
        assert resolved.sha256 == sha256(DATA)
        assert host_of(resolved.url) == host_of(w.hub.cdn_url)
        with pytest.raises(PermanentTransferError, match="sha256"):
            await w.resolve(replace(request, sha256="0" * 64))


@pytest.mark.parametrize("token", [None, "hf_wrong"])
async def test_gated_names_page_and_variable(tmp_path: Path, token: str | None) -> None:
    async with world(tmp_path, hf_token=token) as w:
        request = offer(w, "huggingface", DATA)
        w.hub.gated = {"owner/repo"}
        with pytest.raises(AuthRequiredError, match="gated") as caught:
            await w.resolve(request)
        assert caught.value.hint is not None
        assert f"{w.hub.hub_url}/owner/repo" in caught.value.hint
        assert "HF_TOKEN" in caught.value.hint
        assert (await w.resolve(request, hf_token=HF_TOKEN)).size_bytes == len(DATA)


async def test_private_renamed_and_small_files(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        request = offer(w, "huggingface", DATA)
        w.hub.private = {"owner/repo"}
        with pytest.raises(AuthRequiredError, match="private"):
            await w.resolve(request)
        w.hub.private = set()
        w.hub.renamed = {"old/name": "owner/repo"}
        old = w.request("huggingface", "old/name:sub/f.safetensors")
        assert await w.read(await w.resolve(old)) == DATA
        w.hub.small = {"owner/repo:sub/f.safetensors"}
        small = await w.resolve(request)
        assert (small.size_bytes, small.sha256) == (len(DATA), None)
        assert await w.read(small) == DATA


async def test_revision_is_asked_for(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        offer(w, "huggingface", DATA)
        await w.resolve(w.request("huggingface", "owner/repo:sub/f.safetensors@v1"))
        assert "/resolve/v1/" in w.hub.seen[-1].path
        with pytest.raises(NotFoundError, match="revision v9"):
            await w.resolve(w.request("huggingface", "owner/repo:sub/f.safetensors@v9"))


async def test_offline_asks_nobody(tmp_path: Path) -> None:
    async with world(tmp_path, hf_offline=True) as w:
        with pytest.raises(PermanentTransferError, match="HF_HUB_OFFLINE"):
            await w.resolve(offer(w, "huggingface", DATA))
        assert not w.hub.seen


async def test_a_whole_repository_over_several_pages(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        for name in ("config.json", "a.safetensors", "sub/b.safetensors", "sub/deep/c.bin"):
            w.hub.add("owner/repo", name, name.encode())
        w.hub.add("owner/repo", "README.md", b"text")
        w.hub.small = {"owner/repo:config.json"}
        preflight = Preflight(open_sources(w.context))
        whole = await preflight.expand(w.request("huggingface", "owner/repo", "vibevoice/X/"))
        assert {r.name for r in whole} == {
            "vibevoice/X/config.json",
            "vibevoice/X/a.safetensors",
            "vibevoice/X/sub/b.safetensors",
            "vibevoice/X/sub/deep/c.bin",
        }
        by_name = {r.name: r for r in whole}
        one = by_name["vibevoice/X/sub/b.safetensors"]
        assert one.sha256 == sha256(b"sub/b.safetensors")
        assert one.destination == w.directory / "models/vibevoice/X/sub/b.safetensors"
        assert await w.read(await w.resolve(one)) == b"sub/b.safetensors"
        assert by_name["vibevoice/X/config.json"].sha256 is None
        assert sum(1 for s in w.hub.seen if "/tree/" in s.path) == 3
        part = await preflight.expand(w.request("huggingface", "owner/repo:sub/", "diffusers/X/"))
        assert {r.name for r in part} == {"diffusers/X/b.safetensors", "diffusers/X/deep/c.bin"}


async def test_a_hostile_tree_cannot_leave_the_folder(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        w.hub.add("owner/repo", "../../evil.safetensors", b"x")
        preflight = Preflight(open_sources(w.context))
        with pytest.raises(PermanentTransferError, match=r"\.\."):
            await preflight.expand(w.request("huggingface", "owner/repo", "vibevoice/X/"))


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


async def test_http_without_head(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        request = offer(w, "http", DATA)
        w.hub.no_head = True
        assert (await w.resolve(request)).size_bytes == len(DATA)


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
        with pytest.raises(TransientTransferError, match="redirects"):
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
