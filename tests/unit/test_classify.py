"""Classifying by header and by name, and what the organiser does with the answer."""

from __future__ import annotations

import json
import os
from pathlib import Path

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from supervisor.core.events import EventBus
from supervisor.models.classify import classify, classify_name
from supervisor.models.folders import CORE_FOLDERS, safe_file_name, safe_relative
from supervisor.models.header import Format, read_header
from supervisor.models.organizer import Action, Organizer, Placed, organize
from tests.support.model_files import gguf, safetensors

# Names as they stand in real files of each kind.
TENSORS = {
    "kohya lora": (
        ["lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight", "lora_unet_x.alpha"],
        "loras",
    ),
    "peft lora of WAN": (
        ["diffusion_model.blocks.0.self_attn.q.lora_A.weight",
         "diffusion_model.blocks.0.self_attn.q.lora_B.weight"],
        "loras",
    ),
    "lycoris": (["lora_te1_x.hada_w1_a", "lora_te1_x.hada_w2_b"], "loras"),
    "sdxl checkpoint": (
        ["model.diffusion_model.input_blocks.0.0.weight",
         "first_stage_model.decoder.conv_in.weight",
         "conditioner.embedders.0.transformer.text_model.encoder.layers.0.mlp.fc1.weight"],
        "checkpoints",
    ),
    "flux": (["double_blocks.0.img_attn.qkv.weight", "single_blocks.0.linear1.weight"],
             "diffusion_models"),
    "wan": (["patch_embedding.weight", "blocks.0.self_attn.q.weight", "head.head.weight"],
            "diffusion_models"),
    "z-image": (["noise_refiner.0.attention.qkv.weight", "layers.0.attention.qkv.weight"],
                "diffusion_models"),
    "diffusers unet": (["down_blocks.0.resnets.0.conv1.weight", "up_blocks.0.x.weight",
                        "time_embedding.linear_1.weight"], "diffusion_models"),
    "sd vae": (["encoder.down.0.block.0.conv1.weight", "decoder.up.0.block.0.conv1.weight",
                "decoder.conv_in.weight"], "vae"),
    "wan vae": (["encoder.downsamples.0.residual.0.gamma", "decoder.upsamples.0.residual.0.gamma"],
                "vae"),
    "clip_l": (["text_model.encoder.layers.0.mlp.fc1.weight"], "text_encoders"),
    "t5": (["encoder.block.0.layer.0.SelfAttention.q.weight", "shared.weight"], "text_encoders"),
    "qwen vl": (["model.layers.0.self_attn.q_proj.weight", "model.norm.weight",
                 "visual.blocks.0.attn.qkv.weight"], "text_encoders"),
    "clip vision": (["vision_model.encoder.layers.0.mlp.fc1.weight"], "clip_vision"),
    "controlnet": (["control_model.input_blocks.0.0.weight", "control_model.zero_convs.0.0.weight"],
                   "controlnet"),
    "flux controlnet": (["controlnet_blocks.0.weight", "transformer_blocks.0.attn.to_q.weight"],
                        "controlnet"),
    "t2i adapter": (["adapter.body.0.resnets.0.block1.weight"], "controlnet"),
    "esrgan": (["conv_first.weight", "body.0.rdb1.conv1.weight", "conv_last.weight"],
               "upscale_models"),
    "old esrgan": (["model.0.weight", "model.1.sub.0.RDB1.conv1.0.weight"], "upscale_models"),
    "embedding": (["emb_params"], "embeddings"),
    "sdxl embedding": (["clip_g", "clip_l"], "embeddings"),
    "redux": (["redux_up.weight", "redux_down.weight"], "style_models"),
    "wav2vec2": (["wav2vec2.encoder.layers.0.attention.k_proj.weight"], "audio_encoders"),
}  # fmt: skip


@pytest.mark.parametrize("kind", sorted(TENSORS))
def test_tensor_names_tell(tmp_path: Path, kind: str) -> None:
    tensors, folder = TENSORS[kind]
    path = safetensors(tmp_path / "model.safetensors", tensors)
    assert classify(read_header(path), path.name).folder == folder


@pytest.mark.parametrize(
    ("metadata", "folder"),
    [
        ({"modelspec.architecture": "stable-diffusion-xl-v1-base/lora"}, "loras"),
        ({"modelspec.architecture": "stable-diffusion-v1/textual-inversion"}, "embeddings"),
        ({"modelspec.architecture": "stable-diffusion-xl-v1-base/controlnet"}, "controlnet"),
        ({"ss_network_module": "networks.lora"}, "loras"),
    ],
)
def test_metadata_tells_first(tmp_path: Path, metadata: dict[str, str], folder: str) -> None:
    path = safetensors(tmp_path / "vae.safetensors", ["something.weight"], metadata)
    assert classify(read_header(path), path.name).folder == folder


@pytest.mark.parametrize(
    ("architecture", "folder"),
    [("wan", "diffusion_models"), ("flux", "diffusion_models"), ("t5encoder", "text_encoders")],
)
def test_gguf(tmp_path: Path, architecture: str, folder: str) -> None:
    path = gguf(tmp_path / "m.gguf", architecture)
    header = read_header(path)
    assert header.metadata["general.version"] == "7"
    assert classify(header, path.name).folder == folder


def test_header_beats_folder_beats_name(tmp_path: Path) -> None:
    lora, _ = TENSORS["kohya lora"]
    path = safetensors(tmp_path / "vae" / "my_vae.safetensors", lora)
    assert classify(read_header(path), "vae/my_vae.safetensors").folder == "loras"
    plain = safetensors(tmp_path / "vae" / "my_lora.safetensors", ["what.weight"])
    assert classify(read_header(plain), "vae/my_lora.safetensors").folder == "vae"
    assert classify(read_header(plain), "unet/x/my.safetensors").folder == "diffusion_models"
    assert classify(read_header(plain), "my_lora.safetensors").folder == "loras"
    assert classify(read_header(plain), "my.safetensors").folder is None


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("4x-UltraSharp.pth", "upscale_models"),
        ("RealESRGAN_x4plus.pth", "upscale_models"),
        ("EasyNegative.pt", "embeddings"),
        ("control_v11p_sd15_canny.pth", "controlnet"),
        ("sd-v1-5-pruned-emaonly.ckpt", "checkpoints"),
        ("taesdxl_decoder.pth", "vae_approx"),
        ("umt5-xxl-enc-bf16.pth", "text_encoders"),
        ("explorations.bin", None),  # holds "lora" inside a word
    ],
)
def test_names(name: str, folder: str | None) -> None:
    found = classify_name(name)
    assert (found.folder if found else None) == folder
    assert folder is None or folder in CORE_FOLDERS


@pytest.mark.parametrize(
    "data", [b"", b"\x08", b"\xff" * 64, b"\x02\0\0\0\0\0\0\0{}", b"\x02\0\0\0\0\0\0\0[]"]
)
def test_broken_headers_are_told_not_raised(tmp_path: Path, data: bytes) -> None:
    for suffix in (".safetensors", ".gguf"):
        path = tmp_path / f"x{suffix}"
        path.write_bytes(data)
        header = read_header(path)
        assert header.error or (header.complete and not header.shapes)


@pytest.mark.parametrize(
    "header",
    [
        None,
        "text",
        [1],
        {"a": None},
        {"a": {"shape": "ab", "data_offsets": [0, 4]}},
        {"a": {"shape": [-1], "data_offsets": [0, 4]}},
        {"a": {"shape": [1.5], "data_offsets": [0, 4]}},
        {"a": {"shape": [4], "data_offsets": [0, None]}},
        {"a": {"shape": [4], "data_offsets": 5}},
    ],
)
def test_a_header_that_is_json_and_no_header_ends_nothing(tmp_path: Path, header: object) -> None:
    text = json.dumps(header).encode()
    path = tmp_path / "d/x.safetensors"
    path.parent.mkdir()
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"0000")
    (file,) = organize(path.parent, tmp_path / "m").files
    assert file.action is Action.INCOMPLETE
    assert "unreadable header" in file.reason


def test_metadata_of_another_shape_is_none(tmp_path: Path) -> None:
    text = json.dumps({"__metadata__": ["x"], "a": {"shape": [1], "data_offsets": [0, 4]}}).encode()
    path = tmp_path / "x.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"0000")
    assert read_header(path).shapes == {"a": (1,)}
    assert read_header(path).complete


@given(st.binary(max_size=200))
def test_no_content_makes_the_reader_fail(
    tmp_path_factory: pytest.TempPathFactory, data: bytes
) -> None:
    path = tmp_path_factory.mktemp("h") / "x.gguf"
    path.write_bytes(b"GGUF\x03\0\0\0" + data)
    assert read_header(path).format is Format.GGUF


@given(st.text(max_size=300))
def test_safe_names_are_safe(name: str) -> None:
    safe = safe_file_name(name)
    if safe is not None:
        assert "/" not in safe
        assert "\\" not in safe
        assert safe not in (".", "..")
        assert len(safe.encode()) <= 255
        assert safe_file_name(safe) == safe
        assert str(safe_relative(safe)) == safe


# -- the organiser --------------------------------------------------------------------------


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    downloads, models = tmp_path / "downloads", tmp_path / "models"
    downloads.mkdir()
    models.mkdir()
    return downloads, models


def by_name(files: tuple[Placed, ...]) -> dict[str, Placed]:
    return {f.source.name: f for f in files}


def test_links_and_says_so(folders: tuple[Path, Path]) -> None:
    downloads, models = folders
    lora = safetensors(downloads / "a.safetensors", TENSORS["kohya lora"][0])
    (downloads / "4x.notes.txt").write_text("x")
    (downloads / "4x-UltraSharp.pth").write_bytes(b"\x80pickle")
    (downloads / "mystery.bin").write_bytes(b"x")
    summary = organize(downloads, models)
    files = by_name(summary.files)
    assert (models / "loras/a.safetensors").samefile(lora)
    assert (models / "loras/a.safetensors").stat().st_nlink == 2
    assert files["a.safetensors"].action is Action.LINKED
    assert files["4x-UltraSharp.pth"].pickle
    assert files["mystery.bin"].action is Action.UNKNOWN
    assert "pickle" in summary.line()
    again = organize(downloads, models)
    assert by_name(again.files)["a.safetensors"].action is Action.PRESENT


def test_dry_run_touches_nothing(folders: tuple[Path, Path]) -> None:
    downloads, models = folders
    for sub in ("x", "y"):
        safetensors(downloads / sub / "same.safetensors", TENSORS["kohya lora"][0], fill=ord(sub))
    summary = organize(downloads, models, dry_run=True)
    assert [f.action for f in summary.files] == [Action.LINKED, Action.CONFLICT]
    assert not list(models.iterdir())


def test_a_different_file_is_never_replaced(folders: tuple[Path, Path]) -> None:
    downloads, models = folders
    mine = safetensors(models / "loras/a.safetensors", TENSORS["lycoris"][0], fill=1)
    before = mine.read_bytes()
    safetensors(downloads / "a.safetensors", TENSORS["kohya lora"][0])
    dangling = models / "loras/b.safetensors"
    dangling.symlink_to(models / "nowhere")
    safetensors(downloads / "b.safetensors", TENSORS["kohya lora"][0])
    actions = {f.action for f in organize(downloads, models).files}
    assert actions == {Action.CONFLICT}
    assert mine.read_bytes() == before
    assert dangling.is_symlink()


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_two_trainings_with_one_header_are_two_files(
    folders: tuple[Path, Path], suffix: str
) -> None:
    """Same name, same size, same tensors: an equal copy is there, another training is not."""
    downloads, models = folders
    tensors = {f"lora_unet_{n}.lora_down.weight": (64, 64) for n in range(40)}
    target = models / f"loras/lora_a{suffix}"
    first = safetensors(target, tensors).read_bytes()
    dropped = downloads / f"lora_a{suffix}"
    dropped.write_bytes(first)
    assert [f.action for f in organize(downloads, models).files] == [Action.PRESENT]
    other = bytearray(first)
    start = len(first) // 2  # one tensor of forty
    other[start : start + 8192] = b"\1" * 8192
    dropped.write_bytes(other)
    (file,) = organize(downloads, models).files
    assert file.action is Action.CONFLICT
    assert target.read_bytes() == first


def test_what_is_incomplete_waits(folders: tuple[Path, Path]) -> None:
    downloads, models = folders
    safetensors(downloads / "cut.safetensors", TENSORS["kohya lora"][0], truncate=1)
    safetensors(downloads / "busy.safetensors", TENSORS["kohya lora"][0])
    (downloads / "busy.safetensors.aria2").write_bytes(b"")
    (downloads / ".hidden.safetensors").write_bytes(b"")
    repo = downloads / "repo"
    safetensors(repo / "unet.safetensors", TENSORS["flux"][0])
    (repo / "model_index.json").write_text("{}")
    files = by_name(organize(downloads, models).files)
    assert files.keys() == {"cut.safetensors"}
    assert files["cut.safetensors"].action is Action.INCOMPLETE
    growing = organize(downloads, models, settled=lambda *_: False)
    assert {f.action for f in growing.files} == {Action.INCOMPLETE}


def test_symbolic_where_hard_links_fail(
    folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    downloads, models = folders
    source = safetensors(downloads / "a.safetensors", TENSORS["kohya lora"][0])

    def refuse(*_: object, **__: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    (file,) = organize(downloads, models).files
    assert file.action is Action.SYMLINKED
    assert file.target is not None
    assert file.target.readlink() == source
    file.target.unlink()
    (copied,) = organize(downloads, models, copy=True).files
    assert copied.action is Action.COPIED
    assert copied.target is not None
    assert not copied.target.is_symlink()
    assert copied.target.read_bytes() == source.read_bytes()


def test_models_below_downloads_are_not_sorted_again(tmp_path: Path) -> None:
    downloads = tmp_path
    models = tmp_path / "models"
    safetensors(models / "vae/a.safetensors", TENSORS["kohya lora"][0])
    assert not organize(downloads, models).files


@pytest.mark.anyio
async def test_watching(folders: tuple[Path, Path]) -> None:
    downloads, models = folders
    bus = EventBus()
    watcher = Organizer(downloads, models, bus=bus)
    with anyio.fail_after(60):
        async with anyio.create_task_group() as group:
            await group.start(watcher.run)
            half = safetensors(downloads / "a.safetensors", TENSORS["sd vae"][0], truncate=3)
            temporary = safetensors(downloads / "x.tmp", TENSORS["sd vae"][0])
            await anyio.sleep(0.3)
            temporary.replace(half)
            while not (models / "vae/a.safetensors").exists():
                await anyio.sleep(0.05)
            group.cancel_scope.cancel()
    assert any(e.kind == "models.organized" for e in bus.recent())


@pytest.mark.anyio
async def test_a_name_that_is_no_text_ends_neither_the_watch_nor_anything_else(
    folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("supervisor.models.organizer._RESCAN_INTERVAL_S", 0.2)
    monkeypatch.setattr("supervisor.models.organizer._SETTLE_S", 0.1)
    downloads, models = folders
    watcher = Organizer(downloads, models, bus=EventBus())
    with anyio.fail_after(60):
        async with anyio.create_task_group() as group:
            await group.start(watcher.run)
            named = safetensors(downloads / "a.safetensors", TENSORS["sd vae"][0])
            await anyio.sleep(0.3)
            named.rename(Path(os.fsdecode(os.fsencode(downloads) + b"/\xff.safetensors")))
            safetensors(downloads / "b.safetensors", TENSORS["sd vae"][0])
            while not (models / "vae/b.safetensors").exists():
                await anyio.sleep(0.05)
            group.cancel_scope.cancel()


async def _no_watch(_: Organizer) -> None:
    """Rescans alone; a watch takes seconds to end."""


@pytest.mark.anyio
async def test_what_still_changes_waits_though_it_looks_whole(
    folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another machine writes into a file of the full length: nothing else shows it."""
    downloads, models = folders
    file = safetensors(downloads / "a.safetensors", TENSORS["sd vae"][0])
    watcher = Organizer(downloads, models, bus=EventBus())

    async def look() -> Action:
        (placed,) = (await watcher.sort()).files
        return placed.action

    monkeypatch.setattr("supervisor.models.organizer._SETTLE_S", 3600)
    assert await look() is Action.INCOMPLETE
    assert await look() is Action.INCOMPLETE  # a look right after the other says nothing
    monkeypatch.setattr("supervisor.models.organizer._SETTLE_S", 0.01)
    with file.open("r+b") as other:
        other.seek(-1, os.SEEK_END)
        other.write(b"\1")
    later = file.stat().st_mtime_ns + 10**9
    os.utime(file, ns=(later, later))
    assert await look() is Action.INCOMPLETE
    assert not (models / "vae/a.safetensors").exists()
    await anyio.sleep(0.02)
    assert await look() is Action.LINKED


@pytest.mark.anyio
async def test_a_file_that_stays_half_is_told_once(
    folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("supervisor.models.organizer._RESCAN_INTERVAL_S", 0.2)
    monkeypatch.setattr("supervisor.models.organizer._SETTLE_S", 0.1)
    monkeypatch.setattr(Organizer, "_watch", _no_watch)
    downloads, models = folders
    bus = EventBus()
    safetensors(downloads / "cut.safetensors", TENSORS["sd vae"][0], truncate=3)

    def told() -> list[str]:
        return [e.message for e in bus.recent() if e.subject == "cut.safetensors"]

    with anyio.fail_after(60):
        async with anyio.create_task_group() as group:
            await group.start(Organizer(downloads, models, bus=bus).run)
            while not told():
                await anyio.sleep(0.05)
            for _ in range(3):  # further looks
                safetensors(downloads / "b.safetensors", TENSORS["sd vae"][0])
                while not (models / "vae/b.safetensors").exists():
                    await anyio.sleep(0.05)
                (models / "vae/b.safetensors").unlink()
            group.cancel_scope.cancel()
    (message,) = told()
    assert "is not whole and does not grow" in message
