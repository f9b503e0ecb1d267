"""The whole of models as a pod runs it: hub, engine, store, organiser, status."""

from __future__ import annotations

import asyncio
import importlib.util
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import anyio
import pytest

from supervisor.config.settings import ModelFile, ModelsSection
from supervisor.core.events import EventBus
from supervisor.core.state import StateStore
from supervisor.download.request import DownloadRequest
from supervisor.models.embedded import read_workflow
from supervisor.models.planning import plan_models
from supervisor.models.preflight import Preflight
from supervisor.models.references import display_url, parse_hub, recognise
from supervisor.models.runtime import opened_sources, run_models
from supervisor.models.workflow import distinct
from tests.conftest import require
from tests.support.hub import Hub, serve
from tests.support.model_files import safetensors, safetensors_bytes

pytestmark = pytest.mark.anyio

DATA = safetensors_bytes({"x.lora_up.weight": (400, 400)})


def section(hub: Hub, root: Path, pod: str) -> ModelsSection:
    return ModelsSection(
        directory=root / pod / "models",
        downloads_directory=root / pod / "downloads",
        bundles=(),
        files=(
            ModelFile(huggingface="o/r:a.safetensors", to="loras/", required=True),
            ModelFile(huggingface="o/tree", to="vibevoice/X/"),
            ModelFile(civitai=7),
        ),
        hf_endpoint=hub.hub_url,
        civitai_endpoint=hub.hub_url,
        store=root / "store",
    )


async def boot(hub: Hub, root: Path, pod: str) -> None:
    settings = section(hub, root, pod)
    models = root / pod / "models"
    plan = plan_models(settings, directory=models)
    state, bus = StateStore(), EventBus()
    async with anyio.create_task_group() as group:

        async def run(*, task_status: anyio.abc.TaskStatus[object]) -> None:
            await run_models(
                plan.requests,
                section=settings,
                environ={},
                state=state,
                bus=bus,
                directory=models,
                task_status=task_status,
            )

        await group.start(run)
        safetensors(root / pod / "downloads/v.safetensors", ["decoder.up.0.w", "decoder.conv_in.w"])
        with anyio.fail_after(60):
            snapshot = await state.wait(lambda s: s.downloads.done >= 4)
            assert not snapshot.missing
            while not (models / "vae/v.safetensors").exists():
                await anyio.sleep(0.05)
        group.cancel_scope.cancel()
    names = {f.name for f in snapshot.downloads.files}
    assert names == {
        "loras/a.safetensors",
        "vibevoice/X/config.json",
        "vibevoice/X/m.safetensors",
        "checkpoints/civitai.safetensors",
    }
    assert (models / "loras/a.safetensors").read_bytes() == DATA
    assert (models / "vibevoice/X/config.json").read_bytes() == b"{}"


async def test_two_pods_share_one_download(tmp_path: Path) -> None:
    async with serve(Hub()) as hub:
        hub.add("o/r", "a.safetensors", DATA)
        hub.add("o/tree", "config.json", b"{}")
        hub.add("o/tree", "m.safetensors", safetensors_bytes(["y.weight"]))
        hub.small = {"o/tree:config.json"}
        hub.add_version(
            7, "civitai.safetensors", safetensors_bytes(["z.weight"]), kind="Checkpoint"
        )
        async with anyio.create_task_group() as group:
            group.start_soon(boot, hub, tmp_path, "one")
            group.start_soon(boot, hub, tmp_path, "two")
        one, two = (tmp_path / p / "models/loras/a.safetensors" for p in ("one", "two"))
        assert one.samefile(two)
        blobs = [s.path for s in hub.seen if s.server == "cdn" and s.method == "GET"]
        assert len(blobs) == len(set(blobs)) == 3


async def test_a_file_that_rots_is_found_and_fetched_again(tmp_path: Path) -> None:
    models = tmp_path / "models"
    async with serve(Hub()) as hub:
        hub.add("o/r", "a.safetensors", DATA)
        settings = ModelsSection(
            bundles=(),
            files=(ModelFile(huggingface="o/r:a.safetensors", to="loras/"),),
            hf_endpoint=hub.hub_url,
            store=tmp_path / "store",
            verify_interval_h=0.2 / 3600,
        )
        plan = plan_models(settings, directory=models)
        state, bus = StateStore(), EventBus()

        async def run() -> None:
            await run_models(
                plan.requests, section=settings, environ={}, state=state, bus=bus, directory=models
            )

        place = models / "loras/a.safetensors"
        async with anyio.create_task_group() as group:
            group.start_soon(run)
            with anyio.fail_after(60):
                await state.wait(lambda s: s.downloads.done == 1)
                rotten = b"\x00rot" + DATA[4:]
                with place.open("r+b") as file:
                    file.write(rotten)
                while place.exists() and place.read_bytes() == rotten:
                    await anyio.sleep(0.05)
                while not (place.exists() and place.read_bytes() == DATA):
                    await anyio.sleep(0.05)
            group.cancel_scope.cancel()
    told = {event.kind: event.message for event in bus.recent()}
    assert told["models.damaged"] == (
        "loras/a.safetensors is fetched again: the bytes have changed"
    )


@pytest.fixture
def template() -> Path:
    """A real workflow of ComfyUI's templates with models in subgraphs and bypassed nodes."""
    spec = importlib.util.find_spec("comfyui_workflow_templates_json")
    require(available=spec is not None, what="the package comfyui-workflow-templates-json")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent / "templates" / "video_wan2_2_14B_i2v.json"


async def test_a_template_boots_with_what_it_needs(tmp_path: Path, template: Path) -> None:
    async with serve(Hub()) as hub:
        wanted: dict[str, bytes] = {}
        for reference in distinct(read_workflow(template)):
            assert reference.url is not None
            source, where = recognise(display_url(reference.url))
            assert source == "huggingface"
            hubs = parse_hub(where)
            data = safetensors_bytes([f"{reference.name}.weight"])
            hub.add(hubs.repo, hubs.path, data)
            wanted[f"{reference.directory}/{reference.name}"] = data
        assert len(wanted) >= 4
        models = tmp_path / "models"
        # A cut-off leftover of an older tool stands where one of them belongs.
        first = models / next(iter(wanted))
        first.parent.mkdir(parents=True)
        first.write_bytes(b"cut off")
        settings = ModelsSection(bundles=(), workflows=(template,), hf_endpoint=hub.hub_url)
        plan = plan_models(settings, directory=models, free_bytes=10**12)
        assert {r.name for r in plan.requests} == wanted.keys()
        # The catalog knows the real files; the stand-in's are smaller.
        small = [replace(r, size_bytes=None, sha256=None) for r in plan.requests]
        state = StateStore()
        async with anyio.create_task_group() as group:

            async def run() -> None:
                await run_models(small, section=settings, environ={}, state=state, bus=EventBus())

            group.start_soon(run)
            with anyio.fail_after(60):
                await state.wait(lambda s: s.downloads.done == len(wanted))
            group.cancel_scope.cancel()
        for name, data in wanted.items():
            assert (models / name).read_bytes() == data


async def test_questions_keep_to_the_connections_of_a_host(tmp_path: Path) -> None:
    now = most = 0

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal now, most
        with suppress(asyncio.IncompleteReadError):
            while await reader.readuntil(b"\r\n\r\n"):
                now += 1
                most = max(most, now)
                await asyncio.sleep(0.02)
                now -= 1
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    address = "http://127.0.0.1:{}/{}".format(server.sockets[0].getsockname()[1], "{}")
    wanted = [
        DownloadRequest(str(n), address.format(n), tmp_path / str(n), reference=address.format(n))
        for n in range(8)
    ]
    section = ModelsSection(directory=tmp_path, per_host=2)
    async with server, opened_sources(section, {}) as sources:
        answers = await Preflight(sources).check(wanted)
        assert [a.size_bytes for a in answers] == [9] * 8
    assert most == 2
