"""Answers that no hub gives, but proxies, mirrors and login pages do: trouble of one file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import anyio
import pytest

from supervisor.config.settings import ModelsSection
from supervisor.core.events import EventBus
from supervisor.core.state import StateStore
from supervisor.core.status import DownloadState
from supervisor.errors import TransientTransferError
from supervisor.models.manager import ModelManager
from supervisor.models.preflight import Preflight
from supervisor.models.sources import base, open_sources
from supervisor.models.transfers import DirectDownloader
from tests.support.sources import World, offer, world

pytestmark = pytest.mark.anyio

TREE = "/api/models/owner/repo/tree/main"
VERSION = "/api/v1/model-versions/7"
FILE = {"name": "a.safetensors", "downloadUrl": "http://x/", "hashes": {}, "metadata": {}}
BODIES: list[tuple[str, Any]] = [
    (TREE, [{"type": "file", "path": "x", "size": None}]),
    (TREE, [{"type": "file", "path": "x", "size": "a"}]),
    (TREE, [{"type": "file", "path": "x", "size": 1, "lfs": "s"}]),
    (TREE, [{"type": "file", "path": "x", "lfs": {"size": None, "oid": None}}]),
    (TREE, {"error": "sorry"}),
    (TREE, None),
    (VERSION, {"files": [None]}),
    (VERSION, {"files": {"a": 1}}),
    (VERSION, {"files": "x"}),
    (VERSION, {"id": "abc", "files": [FILE]}),
    (VERSION, {"modelId": "q", "files": [FILE]}),
    (VERSION, {"model": "x", "files": [FILE]}),
    (VERSION, {"files": [FILE | {"metadata": "x"}]}),
    (VERSION, {"files": [FILE | {"hashes": [1]}]}),
    (VERSION, []),
]
TEXTS = [b"", b"<html>Sign in", b"\xff\xfe", b"[" * 100_000, b'{"files": [']


def wanted(w: World, path: str) -> Any:
    if path == TREE:
        return w.request("huggingface", "owner/repo", "vae/x/")
    return w.request("civitai", "7", "loras/")


def name(case: object) -> str:
    return json.dumps(case)[:40] if not isinstance(case, bytes) else repr(case[:12])


@pytest.mark.parametrize(("path", "body"), BODIES, ids=name)
async def test_json_of_another_shape_is_trouble_that_may_pass(
    tmp_path: Path, path: str, body: object
) -> None:
    async with world(tmp_path) as w:
        w.hub.odd[path] = 200, {"Content-Type": "application/json"}, json.dumps(body).encode()
        with pytest.raises(TransientTransferError, match="answer"):
            await Preflight(open_sources(w.context)).expand(wanted(w, path))


@pytest.mark.parametrize("path", [TREE, VERSION])
@pytest.mark.parametrize("text", TEXTS, ids=name)
async def test_what_is_no_json_is_trouble_that_may_pass(
    tmp_path: Path, path: str, text: bytes
) -> None:
    async with world(tmp_path) as w:
        w.hub.odd[path] = 200, {}, text
        with pytest.raises(TransientTransferError, match="not JSON"):
            await Preflight(open_sources(w.context)).expand(wanted(w, path))


async def test_an_answer_without_end_is_not_collected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(base, "_LONGEST_ANSWER_BYTES", 1000)
    async with world(tmp_path) as w:
        w.hub.odd[TREE] = 200, {}, b"[" + b" " * 5000 + b"]"
        with pytest.raises(TransientTransferError, match="too long"):
            await Preflight(open_sources(w.context)).expand(wanted(w, TREE))


@pytest.mark.parametrize("source", ["http", "huggingface", "civitai"])
async def test_a_redirect_to_nowhere(tmp_path: Path, source: str) -> None:
    async with world(tmp_path) as w:
        request = offer(w, source, b"x")
        path = {
            "http": "/files/f.safetensors",
            "huggingface": "/owner/repo/resolve/main/sub/f.safetensors",
            "civitai": "/api/download/models/77",
        }[source]
        w.hub.odd[path] = 302, {"Location": "http://[nowhere/f"}, b""
        with pytest.raises(TransientTransferError, match="cannot be understood"):
            await w.resolve(request)


async def test_the_other_files_arrive_all_the_same(tmp_path: Path) -> None:
    """The answer comes while names and sizes are asked for, before any file begins."""
    async with world(tmp_path) as w:
        w.hub.odd[TREE] = 200, {}, json.dumps(BODIES[0][1]).encode()
        good = offer(w, "file", b"data")

        class NoEngine:
            fetch: Any

        state = StateStore()
        manager = ModelManager(
            settings=ModelsSection(),
            state=state,
            bus=EventBus(),
            downloader=DirectDownloader(NoEngine()),
            resolvers=open_sources(w.context),
        )
        async with anyio.create_task_group() as group:
            await group.start(manager.run, [wanted(w, TREE), good])
            with anyio.fail_after(30):
                snapshot = await state.wait(
                    lambda s: (
                        {f.state for f in s.downloads.files}
                        == {DownloadState.DONE, DownloadState.QUEUED}
                        and any(f.error for f in s.downloads.files)
                    )
                )
            group.cancel_scope.cancel()
        (error,) = [f.error for f in snapshot.downloads.files if f.error]
        assert "cannot be understood" in error
