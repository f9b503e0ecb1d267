"""Models by the names of real tensors; files that are not whole; pickles are never loaded."""

from __future__ import annotations

import os
import pickle
import struct
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest

from supervisor.models.classify import classify
from supervisor.models.folders import CORE_FOLDERS
from supervisor.models.header import Format, ModelHeader, read_header
from supervisor.models.organizer import Action, Placed, organize
from tests.support.model_files import gguf, safetensors

REAL: dict[str, dict[str, Any]] = tomllib.loads(
    (Path(__file__).parent / "data/tensors.toml").read_text(encoding="utf-8")
)


@pytest.mark.parametrize("kind", REAL)
def test_real_tensor_names(tmp_path: Path, kind: str) -> None:
    case = REAL[kind]
    path = safetensors(tmp_path / "untitled.safetensors", case["names"])
    found = classify(read_header(path), path.name)
    assert (found.folder or "") == case["folder"], found.reason
    assert case["folder"] in CORE_FOLDERS | {""}


def test_the_table_covers_the_folders() -> None:
    folders = {case["folder"] for case in REAL.values()}
    assert len(REAL) > 180
    assert folders >= {
        "checkpoints", "loras", "vae", "text_encoders", "diffusion_models", "clip_vision",
        "style_models", "embeddings", "vae_approx", "controlnet", "gligen", "upscale_models",
        "latent_upscale_models", "photomaker", "model_patches", "audio_encoders",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("architecture", "folder"),
    [
        *((name, "diffusion_models") for name in ("flux", "wan", "qwen_image", "hyvid", "ltxv",
                                                  "lumina2", "z_image", "sdxl", "chroma")),
        *((name, "text_encoders") for name in ("t5encoder", "qwen2vl", "qwen3vl", "gemma3",
                                               "llama", "clip")),
    ],
)  # fmt: skip
def test_gguf_architectures(architecture: str, folder: str) -> None:
    header = ModelHeader(Format.GGUF, 1, {"general.architecture": architecture}, {"x": (2,)})
    assert classify(header, "untitled.gguf").folder == folder


def test_gguf_without_a_name_for_its_architecture() -> None:
    flux = {"double_blocks.0.img_attn.qkv.weight": (2,), "single_blocks.0.linear1.weight": (2,)}
    assert classify(ModelHeader(Format.GGUF, 1, {}, flux), "x.gguf").folder == "diffusion_models"


# -- files that are not whole ---------------------------------------------------------------


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    downloads, models = tmp_path / "downloads", tmp_path / "models"
    downloads.mkdir()
    models.mkdir()
    return downloads, models


def only(files: tuple[Placed, ...]) -> Placed:
    (file,) = files
    return file


@pytest.mark.parametrize("kind", [0, 12, 8])  # F32, Q4_K, Q8_0
def test_a_gguf_is_whole_to_the_byte(tmp_path: Path, kind: int) -> None:
    path = gguf(tmp_path / "m.gguf", "flux")
    lengths = {0: 1024 * 4, 12: 4 * 144, 8: 32 * 34}
    data = path.read_bytes()
    entry = struct.pack("<IQQIQ", 2, 4, 4, 0, 0)
    head = data[: data.index(entry)] + struct.pack("<IQQIQ", 2, 256, 4, kind, 0)
    head += bytes(-len(head) % 32)
    whole = head + bytes(lengths[kind])
    for size, complete in ((len(whole), True), (len(whole) + 31, True), (len(whole) - 1, False)):
        path.write_bytes(whole.ljust(size, b"\0")[:size])
        assert read_header(path).complete is complete


def test_a_quantisation_nobody_knows_yet(tmp_path: Path) -> None:
    path = gguf(tmp_path / "m.gguf", "flux")
    entry = struct.pack("<IQQIQ", 2, 4, 4, 0, 0)
    path.write_bytes(path.read_bytes().replace(entry, struct.pack("<IQQIQ", 2, 4, 4, 999, 0)))
    assert read_header(path).complete is None


def test_a_file_with_a_writer_waits_though_its_length_is_right(
    folders: tuple[Path, Path],
) -> None:
    """Downloaders reserve the whole length before they write."""
    downloads, models = folders
    path = safetensors(downloads / "a.safetensors", REAL["lora hunyuan"]["names"])
    with path.open("r+b"):
        file = only(organize(downloads, models).files)
        assert file.action is Action.INCOMPLETE
        assert "written" in file.reason
        assert not list(models.iterdir())
    assert only(organize(downloads, models).files).action is Action.LINKED


def test_a_pickle_whose_end_is_missing_waits(folders: tuple[Path, Path]) -> None:
    downloads, models = folders
    path = downloads / "4x-UltraSharp.pth"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", b"x" * 5000)
    whole = path.read_bytes()
    path.write_bytes(whole[:-30])
    file = only(organize(downloads, models).files)
    assert (file.action, file.pickle) == (Action.INCOMPLETE, True)
    path.write_bytes(whole)
    file = only(organize(downloads, models).files)
    assert (file.action, file.pickle, file.folder) == (Action.LINKED, True, "upscale_models")


class Trap:
    """Leaves a trace when somebody unpickles it."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return os.mkdir, (str(self.trace),)


def test_pickles_are_flagged_and_never_loaded(folders: tuple[Path, Path], tmp_path: Path) -> None:
    downloads, models = folders
    trace = tmp_path / "trace"
    for name in ("style_lora.pt", "vae.ckpt", "x.bin", "controlnet.pth", "t5xxl.pkl"):
        (downloads / name).write_bytes(pickle.dumps(Trap(trace)))
    summary = organize(downloads, models)
    assert all(file.pickle for file in summary.files)
    assert summary.counts == {"linked": 4, "unknown": 1}
    assert "5 in pickle format" in summary.line()
    assert not trace.exists()


def test_somebody_puts_a_file_there_in_the_last_moment(
    folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where only symbolic links work, too, nothing is replaced."""
    downloads, models = folders
    safetensors(downloads / "a.safetensors", REAL["lora hunyuan"]["names"])
    theirs = models / "loras/a.safetensors"

    def link(*_: object, **__: object) -> None:
        theirs.write_bytes(b"theirs")
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", link)
    assert only(organize(downloads, models).files).action is Action.CONFLICT
    assert theirs.read_bytes() == b"theirs"
