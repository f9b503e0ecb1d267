"""The step that copies ComfyUI onto a volume, run for real."""

from __future__ import annotations

import subprocess
from pathlib import Path

from supervisor.plan.storage import seed_step


def installation(root: Path) -> Path:
    (root / "comfy").mkdir(parents=True)
    (root / "main.py").write_text("image", encoding="utf-8")
    (root / "comfy" / "cli_args.py").write_text("image", encoding="utf-8")
    (root / "models" / "loras").mkdir(parents=True)
    (root / "models" / "loras" / "put_loras_here").touch()
    return root


def seed(source: Path, target: Path) -> None:
    subprocess.run(seed_step(source, target).command, check=True)
    assert sorted(p.name for p in target.parent.iterdir() if p != source) == [target.name]


def test_onto_an_empty_volume(tmp_path: Path) -> None:
    source = installation(tmp_path / "image" / "ComfyUI")
    target = tmp_path / "volume" / "ComfyUI"
    seed(source, target)
    assert (target / "main.py").read_text(encoding="utf-8") == "image"
    assert (source / "main.py").exists()


def test_a_copy_that_was_cut_short_is_started_anew(tmp_path: Path) -> None:
    source = installation(tmp_path / "image" / "ComfyUI")
    target = tmp_path / "volume" / "ComfyUI"
    half = tmp_path / "volume" / "ComfyUI.seeding"
    half.mkdir(parents=True)
    (half / "main.py").write_text("half", encoding="utf-8")
    seed(source, target)
    assert (target / "main.py").read_text(encoding="utf-8") == "image"


def test_models_and_outputs_that_are_there_already_stay(tmp_path: Path) -> None:
    source = installation(tmp_path / "image" / "ComfyUI")
    target = tmp_path / "volume" / "ComfyUI"
    (target / "models" / "loras").mkdir(parents=True)
    (target / "models" / "loras" / "mine.safetensors").write_text("mine", encoding="utf-8")
    (target / "comfy").mkdir()
    (target / "comfy" / "cli_args.py").write_text("mine", encoding="utf-8")
    seed(source, target)
    assert (target / "main.py").read_text(encoding="utf-8") == "image"
    assert (target / "models" / "loras" / "mine.safetensors").exists()
    assert (target / "models" / "loras" / "put_loras_here").exists()
    assert (target / "comfy" / "cli_args.py").read_text(encoding="utf-8") == "mine"
