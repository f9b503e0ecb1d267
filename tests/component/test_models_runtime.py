"""The whole of models as a pod runs it: hub, engine, store, organiser, status."""

from __future__ import annotations

from pathlib import Path

import anyio
import pytest

from supervisor.config.settings import ModelFile, ModelsSection
from supervisor.core.events import EventBus
from supervisor.core.state import StateStore
from supervisor.models.planning import plan_models
from supervisor.models.runtime import run_models
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
