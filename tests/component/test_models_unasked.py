"""Boots with a warm volume and nobody to ask: ready all the same, and asked again later."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio
import pytest

from supervisor.config.settings import ModelFile, ModelsSection
from supervisor.core.events import EventBus
from supervisor.core.state import StateStore
from supervisor.core.status import DownloadState, Snapshot
from supervisor.download.request import DownloadRequest, Resolved, Resolver
from supervisor.errors import TransferError, TransientTransferError
from supervisor.models.manager import ModelManager
from supervisor.models.planning import plan_models
from supervisor.models.preflight import Preflight
from supervisor.models.runtime import opened_downloader, opened_sources
from supervisor.models.transfers import ResolvedAhead
from supervisor.models.unasked import Unasked
from tests.support.hub import Hub, serve, sha256
from tests.support.model_files import safetensors, safetensors_bytes

pytestmark = pytest.mark.anyio

PINNED = safetensors_bytes(["pinned.weight"])
FILES = {
    "loras/a.safetensors",
    "loras/pinned.safetensors",
    "vibevoice/X/config.json",
    "vibevoice/X/sub/m.safetensors",
    "checkpoints/civitai.safetensors",
}


def offers() -> Hub:
    hub = Hub()
    hub.add("o/r", "a.safetensors", safetensors_bytes(["a.weight"]))
    hub.add("o/r", "pinned.safetensors", PINNED)
    hub.add("o/tree", "config.json", b"{}")
    hub.add("o/tree", "sub/m.safetensors", safetensors_bytes(["m.weight"]))
    hub.small = {"o/tree:config.json"}
    return hub


def section(root: Path, url: str, *, store: bool) -> ModelsSection:
    return ModelsSection(
        bundles=(),
        require="all",
        files=(
            ModelFile(huggingface="o/r:a.safetensors", to="loras/"),
            ModelFile(huggingface="o/r:pinned.safetensors", to="loras/", sha256=sha256(PINNED)),
            ModelFile(huggingface="o/tree", to="vibevoice/X/"),
            ModelFile(civitai=7),
        ),
        hf_endpoint=url,
        civitai_endpoint=url,
        store=root / "store" if store else None,
    )


@dataclass
class Pod:
    """One boot of the models, without what only the daemon does with them."""

    root: Path
    url: str
    store: bool = False
    environ: Mapping[str, str] = field(default_factory=dict)
    ask_again_s: float = 300.0
    state: StateStore = field(default_factory=StateStore)
    bus: EventBus = field(default_factory=EventBus)

    async def run(self, *, task_status: anyio.abc.TaskStatus[None]) -> None:
        settings = section(self.root, self.url, store=self.store)
        requests = plan_models(settings, directory=self.root / "models").requests
        async with (
            opened_sources(settings, self.environ) as resolvers,
            opened_downloader(settings, self.environ) as downloader,
        ):
            manager = ModelManager(
                settings=settings,
                state=self.state,
                bus=self.bus,
                downloader=downloader,
                resolvers=resolvers,
                ask_again_s=self.ask_again_s,
            )
            await manager.run(requests, task_status=task_status)

    async def ready(self) -> Snapshot:
        with anyio.fail_after(60):
            return await self.state.wait(
                lambda s: (
                    not s.missing
                    and {f.name for f in s.downloads.files} >= FILES
                    and s.downloads.done == s.downloads.total
                )
            )

    @property
    def kept(self) -> set[str | None]:
        return {event.subject for event in self.bus.recent() if event.kind == "download.kept"}


async def boot(pod: Pod) -> Snapshot:
    async with anyio.create_task_group() as group:
        await group.start(pod.run)
        snapshot = await pod.ready()
        group.cancel_scope.cancel()
    return snapshot


async def warm_up(root: Path, *, store: bool) -> str:
    """Fill the volume; return the address at which nobody answers any more."""
    async with serve(offers()) as hub:
        civitai = safetensors_bytes(["z.weight"])
        hub.add_version(7, "civitai.safetensors", civitai, kind="Checkpoint")
        await boot(Pod(root, hub.hub_url, store))
        return hub.hub_url


@pytest.mark.parametrize("disk", ["models", "store", "store, new container"])
async def test_a_warm_volume_without_a_network_is_ready(tmp_path: Path, disk: str) -> None:
    store = disk != "models"
    gone = await warm_up(tmp_path, store=store)
    if disk == "store, new container":
        shutil.rmtree(tmp_path / "models")
    pod = Pod(tmp_path, gone, store)
    await boot(pod)
    # What has the hash that the configuration names is no question to anybody.
    assert pod.kept >= {"loras/a.safetensors", "vibevoice/X/o--tree", "civitai-7"}
    assert "loras/pinned.safetensors" not in pod.kept
    assert all((tmp_path / "models" / name).is_file() for name in FILES)


async def test_offline_on_purpose_is_ready_too(tmp_path: Path) -> None:
    gone = await warm_up(tmp_path, store=False)
    pod = Pod(tmp_path, gone, environ={"HF_HUB_OFFLINE": "1"})
    await boot(pod)
    events = {e.subject: e.message for e in pod.bus.recent() if e.kind == "download.kept"}
    assert "HF_HUB_OFFLINE is set" in events["vibevoice/X/o--tree"]


async def test_half_a_folder_waits_for_its_source(tmp_path: Path) -> None:
    gone = await warm_up(tmp_path, store=False)
    (tmp_path / "models/vibevoice/X/sub/m.safetensors").unlink()
    pod = Pod(tmp_path, gone)
    async with anyio.create_task_group() as group:
        await group.start(pod.run)
        with anyio.fail_after(60):
            snapshot = await pod.state.wait(
                lambda s: any(
                    f.name == "vibevoice/X/o--tree" and f.error and f.state is DownloadState.QUEUED
                    for f in s.downloads.files
                )
            )
        group.cancel_scope.cancel()
    assert "vibevoice/X/o--tree" in snapshot.missing


async def test_a_known_hash_in_place_asks_nobody(tmp_path: Path) -> None:
    async with serve(offers()) as hub:
        hub.add_version(
            7, "civitai.safetensors", safetensors_bytes(["z.weight"]), kind="Checkpoint"
        )
        await boot(Pod(tmp_path, hub.hub_url))
        hub.seen.clear()
        await boot(Pod(tmp_path, hub.hub_url))
        assert not [s for s in hub.seen if "pinned" in s.path]
        assert [s for s in hub.seen if "a.safetensors" in s.path]
        assert not hub.payload_requests()


async def test_a_hub_that_is_back_is_asked_what_has_changed(tmp_path: Path) -> None:
    """Down at the boot, there again afterwards: what is new comes, what has changed too."""
    async with serve(offers()) as hub:
        hub.add_version(
            7, "civitai.safetensors", safetensors_bytes(["z.weight"]), kind="Checkpoint"
        )
        await boot(Pod(tmp_path, hub.hub_url))
        changed, new = safetensors_bytes(["m.weight", "n.weight"]), safetensors_bytes(["new"])
        hub.add("o/tree", "sub/m.safetensors", changed)
        hub.add("o/tree", "new.safetensors", new)
        hub.silent = True
        pod = Pod(tmp_path, hub.hub_url, ask_again_s=0.05)
        async with anyio.create_task_group() as group:
            await group.start(pod.run)
            await pod.ready()
            assert "vibevoice/X/o--tree" in pod.kept
            hub.silent = False
            place = tmp_path / "models/vibevoice/X"
            with anyio.fail_after(60):
                await pod.state.wait(
                    lambda s: any(
                        f.name == "vibevoice/X/new.safetensors" and f.state is DownloadState.DONE
                        for f in s.downloads.files
                    )
                )
                while (place / "sub/m.safetensors").read_bytes() != changed:
                    await anyio.sleep(0.05)
            await pod.ready()
            group.cancel_scope.cancel()
        assert (place / "new.safetensors").read_bytes() == new


# -- pieces ---------------------------------------------------------------------------------


class Mute(Resolver):
    """A source that takes questions and never answers."""

    def __init__(self) -> None:
        self.asked = 0

    async def resolve(self, request: DownloadRequest) -> Resolved:
        self.asked += 1
        await anyio.sleep_forever()
        raise AssertionError

    async def expand(self, request: DownloadRequest) -> tuple[DownloadRequest, ...]:
        raise TransientTransferError("Cannot list it: the hub is down")


def folder(root: Path) -> DownloadRequest:
    return DownloadRequest(
        name="vae/o--tree",
        url="https://hub.example/o/tree",
        destination=root / "vae",
        source="huggingface",
        reference="o/tree:",
        directory=True,
    )


def files(root: Path, names: Sequence[str]) -> tuple[DownloadRequest, ...]:
    made = [safetensors(root / "vae" / name, ["w"]) for name in names]
    return tuple(
        DownloadRequest(
            name=f"vae/{name}",
            url=f"https://hub.example/{name}",
            destination=path,
            source="huggingface",
            reference=f"o/tree:{name}",
            size_bytes=path.stat().st_size,
        )
        for name, path in zip(names, made, strict=True)
    )


async def test_who_is_silent_is_not_waited_for_with_every_file(tmp_path: Path) -> None:
    mute, kept = Mute(), list[str]()

    def keep(request: DownloadRequest, exc: TransferError) -> None:
        kept.append(exc.message)

    unasked = Unasked(Preflight({"huggingface": mute}), keep, answer_s=0.05)
    with anyio.fail_after(30):
        for request in files(tmp_path, ["a.safetensors", "b.safetensors"]):
            engine: Any = None  # never gets to it
            await unasked.fetch(engine, request, ResolvedAhead(mute, None), lambda _: None)
    assert mute.asked == 1
    assert "no answer from hub.example" in kept[0]
    assert "hub.example is silent" in kept[1]


@pytest.mark.parametrize(
    "change",
    [
        {"path": "../outside.safetensors"},
        {"path": "/etc/passwd"},
        {"sha256": "../../x"},
        {"size_bytes": "many"},
    ],
)
async def test_a_note_of_somebody_else_is_not_believed(
    tmp_path: Path, change: dict[str, object]
) -> None:
    preflight = Preflight({"huggingface": Mute()})
    children = files(tmp_path, ["a.safetensors"])
    preflight.memory.remember(folder(tmp_path), children)
    assert preflight.memory.recall(folder(tmp_path)) == children
    (note,) = (tmp_path / "vae").glob(".files-*.json")
    rows = json.loads(note.read_bytes())["files"]
    note.write_text(json.dumps({"files": [rows[0] | change]}))
    assert preflight.memory.recall(folder(tmp_path)) == ()
    with pytest.raises(TransientTransferError):
        await Unasked(preflight, lambda *_: None).unfold(folder(tmp_path))
