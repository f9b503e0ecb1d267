"""What is special to Hugging Face, checked against huggingface_hub 2.4."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from supervisor.config.settings import ModelsSection
from supervisor.download.request import (
    DownloadRequest,
    ProgressCallback,
    Resolver,
    TransferResult,
)
from supervisor.errors import (
    AuthRequiredError,
    DiskFullError,
    NotFoundError,
    PermanentTransferError,
    TransientTransferError,
)
from supervisor.models.preflight import Preflight
from supervisor.models.room import RESERVE_BYTES
from supervisor.models.runtime import opened_downloader
from supervisor.models.sources import open_sources
from supervisor.models.sources.base import SourceContext, same_host
from supervisor.models.sources.huggingface import at_endpoint, is_hub
from supervisor.models.transfers import DirectDownloader, ResolvedAhead
from tests.support.hub import HF_TOKEN, host_of, sha256
from tests.support.model_files import safetensors_bytes
from tests.support.sources import offer, world

pytestmark = pytest.mark.anyio

DATA = bytes(range(256)) * 40


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


async def test_other_addresses_on_the_hub_follow_the_endpoint_and_offline(tmp_path: Path) -> None:
    """The shipped catalog names copies on the hub; mirrors elsewhere are the user's business."""
    copy, own = "https://huggingface.co/o/r/resolve/main/f", "https://nas.local/f"
    seen: list[tuple[str, ...]] = []

    class Engine:
        async def fetch(
            self, request: DownloadRequest, resolver: Resolver, progress: ProgressCallback
        ) -> TransferResult:
            seen.append(request.mirrors)
            return TransferResult(request.destination, 0, None, 0)

    for offline in (False, True):
        async with world(tmp_path, hf_offline=offline) as w:
            request = replace(offer(w, "huggingface", DATA), mirrors=(copy, own))
            ahead = ResolvedAhead(open_sources(w.context)["huggingface"], None)
            await DirectDownloader(Engine()).fetch(request, ahead, lambda _: None)
            at_endpoint = f"{w.context.hf_endpoint}/o/r/resolve/main/f"
            assert seen[-1] == ((own,) if offline else (at_endpoint, own))


async def test_a_gated_file_comes_from_an_open_copy_of_the_same_bytes(tmp_path: Path) -> None:
    """As the shipped FLUX does without a token."""
    async with world(tmp_path, hf_token=None) as w:
        data = safetensors_bytes(["x.weight"])
        w.hub.gated = {"owner/repo"}
        w.hub.add("open/copy", "f.safetensors", data)
        request = replace(
            offer(w, "huggingface", data),
            sha256=sha256(data),
            size_bytes=len(data),
            mirrors=("https://huggingface.co/open/copy/resolve/main/f.safetensors",),
        )
        async with opened_downloader(ModelsSection(), {}) as downloader:
            source = open_sources(w.context)["huggingface"]
            result = await downloader.fetch(request, source, lambda _: None)
        assert result.sha256 == sha256(data)
        assert request.destination.stat().st_size == len(data)


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


async def test_a_check_judges_the_room_for_whole_folders(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        for name in ("a", "b"):
            w.hub.add("owner/repo", f"{name}.safetensors", DATA)
        w.hub.add("other/repo", "small.safetensors", DATA)
        folder = w.request("huggingface", "owner/repo", "diffusers/x/")
        small = w.request("huggingface", "other/repo:small.safetensors")
        room = RESERVE_BYTES + 2 * len(DATA)
        preflight = Preflight(open_sources(w.context), free=lambda _: room)
        checked = await preflight.check([folder, small])
        assert [c.ok for c in checked] == [False, False, True]
        assert isinstance(checked[0].error, DiskFullError)
        assert "needs 20.5 kB, 10.2 kB of 1.07 GB free are left" in checked[0].error.message
        assert not w.hub.payload_requests()


async def test_a_hostile_tree_cannot_leave_the_folder(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        w.hub.add("owner/repo", "../../evil.safetensors", b"x")
        preflight = Preflight(open_sources(w.context))
        with pytest.raises(PermanentTransferError, match=r"\.\."):
            await preflight.expand(w.request("huggingface", "owner/repo", "vibevoice/X/"))


async def test_a_wrong_token_and_a_disabled_repository_are_called_so(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        request = offer(w, "huggingface", DATA)
        w.hub.refusals["owner/repo"] = (401, "Invalid credentials in Authorization header")
        with pytest.raises(AuthRequiredError, match="does not know the token") as caught:
            await w.resolve(request, hf_token="hf_wrong")
        assert "hf_wrong" not in f"{caught.value} {caught.value.hint}"
        w.hub.refusals["owner/repo"] = (403, "Access to this resource is disabled.")
        with pytest.raises(NotFoundError, match="has disabled owner/repo"):
            await w.resolve(request)
        w.hub.refusals["owner/repo"] = (403, "Forbidden")
        with pytest.raises(AuthRequiredError, match="is denied"):
            await w.resolve(request)


async def test_the_length_of_a_redirect_is_not_the_length_of_the_file(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        request = offer(w, "huggingface", DATA)
        w.hub.bare = True
        resolved = await w.resolve(request)
        assert (resolved.size_bytes, resolved.sha256) == (None, None)
        assert await w.read(resolved) == DATA


async def test_pages_of_a_tree_that_a_mirror_passes_on_are_asked_of_the_mirror(
    tmp_path: Path,
) -> None:
    async with world(tmp_path) as w:
        for name in ("a", "b", "c"):
            w.hub.add("owner/repo", f"{name}.safetensors", DATA)
        w.hub.links_to = "https://huggingface.co"
        preflight = Preflight(open_sources(w.context))
        assert len(await preflight.expand(w.request("huggingface", "owner/repo", "x/"))) == 3
        w.hub.links_to = "https://example.com"
        with pytest.raises(PermanentTransferError, match="another host"):
            await preflight.expand(w.request("huggingface", "owner/repo", "x/"))


async def test_a_used_up_rate_limit_says_when_it_begins_anew(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        request = offer(w, "huggingface", DATA)
        w.hub.outages = [(429, {"RateLimit": '"resolvers";r=0;t=55'})]
        with pytest.raises(TransientTransferError) as caught:
            await w.resolve(request)
        assert caught.value.retry_after_s == 55
        w.hub.outages = [(500, {"RateLimit": '"resolvers";r=10;t=55'})]
        with pytest.raises(TransientTransferError) as caught:
            await w.resolve(request)
        assert caught.value.retry_after_s is None


@pytest.mark.parametrize(
    ("environ", "offline"),
    [
        ({}, False),
        ({"HF_HUB_OFFLINE": "1"}, True),
        ({"HF_HUB_OFFLINE": "on"}, True),
        ({"HF_HUB_OFFLINE": "0", "TRANSFORMERS_OFFLINE": "1"}, False),
        ({"HF_HUB_OFFLINE": "", "TRANSFORMERS_OFFLINE": "yes"}, True),
    ],
)
async def test_offline_and_token_are_read_as_the_library_reads_them(
    tmp_path: Path, environ: dict[str, str], *, offline: bool
) -> None:
    section = ModelsSection(hf_token=" hf_secret\r\n", hf_endpoint="https://mirror.example/hub/")
    async with world(tmp_path) as w:
        context = SourceContext.from_settings(section, session=w.context.session, environ=environ)
    assert context.hf_offline is offline
    assert context.hf_token == "hf_secret"
    assert context.hf_endpoint == "https://mirror.example/hub"


def test_which_hosts_may_see_the_token() -> None:
    assert same_host("https://Mirror.example/a", "https://mirror.example:443/b")
    assert not same_host("https://mirror.example", "http://mirror.example")
    assert not same_host("https://mirror.example", "https://mirror.example:8443")
    assert is_hub("https://huggingface.co/o/r/resolve/main/f")
    assert is_hub("https://hf.co/o/r")
    assert not is_hub("http://huggingface.co/o/r")
    assert not is_hub("https://huggingface.co.evil.example/")
    assert not is_hub("https://cdn-lfs.huggingface.co/")
    mirror = "https://mirror.example/hub"
    assert (
        at_endpoint("https://huggingface.co/api/x?cursor=a", mirror) == f"{mirror}/api/x?cursor=a"
    )
    assert at_endpoint("https://other.example/api", mirror) == "https://other.example/api"
    assert at_endpoint("https://hf.co/api", "https://huggingface.co") == "https://hf.co/api"
