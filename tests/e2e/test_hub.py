"""A pod whose models come out of a workflow, from a hub that answers as the real one does."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path

import pytest
from anyio.from_thread import start_blocking_portal

from supervisor.demo.world import DemoWorld
from supervisor.models.embedded import read_workflow
from supervisor.models.references import HubReference, display_url, parse_hub, recognise
from supervisor.models.workflow import distinct
from tests.conftest import require
from tests.e2e.pod import Json, Pod, edit
from tests.support.hub import HF_TOKEN, Hub, serve, sha256
from tests.support.model_files import safetensors_bytes

GATED = "black-forest-labs/FLUX.2-klein-9b-kv-fp8"
CUT_AT = 3_000_017


@pytest.fixture
def template() -> Path:
    """A workflow of ComfyUI's templates; one of its three models is in a gated repository."""
    spec = importlib.util.find_spec("comfyui_workflow_templates_json")
    require(available=spec is not None, what="the package comfyui-workflow-templates-json")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent / "templates" / "image_flux2_klein_9b_kv_image_edit.json"


@pytest.fixture
def hub() -> Iterator[Hub]:
    """The stand-in, served by a thread of its own."""
    with (
        start_blocking_portal() as portal,
        portal.wrap_async_context_manager(serve(Hub())) as made,
    ):
        yield made


def stock(hub: Hub, template: Path) -> dict[str, tuple[HubReference, bytes]]:
    """Put what the workflow mentions into the hub; returns it by place."""
    wanted = {}
    for reference in distinct(read_workflow(template)):
        assert reference.url is not None
        source, where = recognise(display_url(reference.url))
        assert source == "huggingface"
        found = parse_hub(where)
        data = safetensors_bytes({f"{reference.name}.weight": (2_500, 2_500)})
        hub.add(found.repo, found.path, data)
        wanted[f"{reference.directory}/{reference.name}"] = (found, data)
    return wanted


def configure(world: DemoWorld, template: Path, *, require: str) -> None:
    """Only the workflow's models; one connection, so that the order of bytes is known."""
    text = world.config.read_text()
    world.config.write_text(text.partition("[[models.files]]")[0])
    edit(world, "models", workflows=[str(template)], require=require, connections=1)


def of(status: Json, name: str) -> Json:
    files: list[Json] = status["downloads"]["files"]
    return next(file for file in files if file["name"] == name)


def ended(status: Json) -> bool:
    downloads = status["downloads"]
    return (
        bool(downloads["total"]) and downloads["done"] + downloads["failed"] == downloads["total"]
    )


def test_a_workflow_of_the_templates_arrives_and_a_gated_model_is_told(
    world: DemoWorld, template: Path, hub: Hub
) -> None:
    wanted = stock(hub, template)
    hub.gated.add(GATED)
    (gated,) = (place for place, (found, _) in wanted.items() if found.repo == GATED)
    configure(world, template, require="all")
    with Pod(world, environment={"HF_ENDPOINT": hub.hub_url}) as pod:
        status = pod.wait(
            lambda s: ended(s) and s["missing"] == [gated], "only the refused file is missing"
        )
        assert {f["name"] for f in status["downloads"]["files"]} == wanted.keys()
        refused = of(status, gated)
        assert refused["state"] == "failed"
        assert f"{GATED} is gated" in refused["error"]
        assert refused["hint"] == f"accept the terms on {hub.hub_url}/{GATED}, then set HF_TOKEN"
        # It will not come by itself, and everything is required.
        assert pod.ping() == 503
        shown = pod.cli("models", "list").stdout
        assert f"{hub.hub_url}/{GATED}" in shown
        assert "HF_TOKEN" in shown
        models = world.comfyui_root / "models"
        for place, (_, data) in wanted.items():
            assert (models / place).exists() == (place != gated)
            assert place == gated or (models / place).read_bytes() == data

        edit(world, "models", require="required")  # and a workflow's models are not
        assert f"downloads retried: {gated}" in pod.cli("reload").stdout
        pod.wait(lambda s: s["ready"] and of(s, gated)["state"] == "failed", "ready without it")
        assert pod.ping() == 200

        edit(world, "models", hf_token=HF_TOKEN)
        assert "downloads settings: hf_token" in pod.cli("reload").stdout
        pod.wait(lambda s: s["downloads"]["done"] == len(wanted), "the token opens it")
        assert (models / gated).read_bytes() == wanted[gated][1]
        assert not [s for s in hub.seen if s.server == "cdn" and s.authorization]
        assert HF_TOKEN not in pod.text() + pod.get("/v1/status", token=True)[1]
        assert pod.stop() == 0


def test_an_address_that_expires_is_asked_for_again_and_the_token_stays_at_home(
    world: DemoWorld, template: Path, hub: Hub
) -> None:
    wanted = stock(hub, template)
    hub.gated.add(GATED)
    digest = {place: sha256(data) for place, (_, data) in wanted.items()}
    (gated,) = (place for place, (found, _) in wanted.items() if found.repo == GATED)
    hub.ends_at[digest[gated]] = CUT_AT
    configure(world, template, require="all")
    with Pod(world, environment={"HF_ENDPOINT": hub.hub_url, "HF_TOKEN": HF_TOKEN}) as pod:
        pod.wait(lambda s: s["ready"], "all models are in place")
        assert pod.ping() == 200
        models = world.comfyui_root / "models"
        for place, (_, data) in wanted.items():
            assert (models / place).read_bytes() == data
        assert pod.cli("models", "verify").returncode == 0
        assert HF_TOKEN not in pod.text() + pod.get("/v1/status", token=True)[1]
        assert pod.stop() == 0
    payload = [s for s in hub.seen if s.server == "cdn"]
    assert payload
    assert not [s for s in payload if s.authorization]
    ranges = [(s.query, s.range or "") for s in payload if digest[gated] in s.path]
    (first, start), *later = ranges
    assert start.startswith("bytes=0-")
    assert all(_first_byte(span) >= CUT_AT for _, span in later)
    # The old address is refused; a new one goes on where the old one ended.
    assert (first, CUT_AT) in [(q, _first_byte(span)) for q, span in later]
    fresh = [_first_byte(span) for query, span in later if query != first]
    assert fresh[0] == CUT_AT
    asked = [s for s in hub.seen if s.server == "hub" and GATED in s.path]
    assert len(asked) >= 2
    assert {s.authorization for s in asked} == {f"Bearer {HF_TOKEN}"}


def _first_byte(span: str) -> int:
    return int(span.removeprefix("bytes=").partition("-")[0])
