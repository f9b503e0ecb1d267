"""Sources of models that talk to the stand-in hub."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import aiohttp

from supervisor.config.settings import ModelFile, ModelsSection
from supervisor.download.request import DownloadRequest, Resolved
from supervisor.models.requests import file_request
from supervisor.models.sources import open_sources
from supervisor.models.sources.base import SourceContext
from tests.support.hub import Hub, serve


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
