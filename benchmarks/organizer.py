"""Sorts 10 000 dropped files into ComfyUI's folders: this organiser against a shell script.

The script is what such pods use today: ``find``, a ``case`` on the name, ``mkdir``, ``ln``.
It reads no header, so a file whose name says nothing stays where it is.

    python -m benchmarks.organizer [--files N] [--json]
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from supervisor.models.organizer import organize
from tests.support.model_files import safetensors_bytes

SHELL = r"""
find "$1" -type f | while IFS= read -r file; do
  name=$(basename "$file")
  case "$name" in
    *lora*) kind=loras ;; *vae*) kind=vae ;; *control*) kind=controlnet ;;
    *upscale*|*4x*) kind=upscale_models ;; *clip*|*t5*) kind=text_encoders ;;
    *unet*|*flux*) kind=diffusion_models ;; *checkpoint*) kind=checkpoints ;;
    *) continue ;;
  esac
  mkdir -p "$2/$kind"
  [ -e "$2/$kind/$name" ] || ln "$file" "$2/$kind/$name"
done
"""

# (tensors as many as real files have, name). Every fourth name says nothing about the kind.
KINDS = (
    ([f"lora_unet_blocks_{i}_attn.lora_down.weight" for i in range(256)], "style_lora"),
    ([f"double_blocks.{i}.img_attn.qkv.weight" for i in range(256)], "flux"),
    ([f"decoder.up.{i}.conv.weight" for i in range(64)] + ["decoder.conv_in.weight"], "vae"),
    ([f"lora_te_text_{i}.lora_up.weight" for i in range(256)], "untitled"),
)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=10_000)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    root = Path(tempfile.mkdtemp(prefix="organizer-"))
    try:
        result = measure(root, args.files)
    finally:
        shutil.rmtree(root)
    if args.json:
        print(json.dumps(result))
        return
    for name, value in result.items():
        print(f"{name:<24} {value:.2f}" if isinstance(value, float) else f"{name:<24} {value}")


def measure(root: Path, files: int) -> dict[str, float | int]:
    """Run both on the same files, each into a fresh models folder."""
    downloads = root / "downloads"
    contents = [safetensors_bytes(tensors) for tensors, _ in KINDS]
    for index in range(files):
        kind = index % len(KINDS)
        folder = downloads / f"{index // 500:03d}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{KINDS[kind][1]}_{index}.safetensors").write_bytes(contents[kind])
    started = time.perf_counter()
    summary = organize(downloads, root / "ours")
    ours_s = time.perf_counter() - started
    started = time.perf_counter()
    again = organize(downloads, root / "ours")
    again_s = time.perf_counter() - started
    started = time.perf_counter()
    command = ["sh", "-c", SHELL, "sh", str(downloads), str(root / "shell")]
    subprocess.run(command, check=True)
    shell_s = time.perf_counter() - started
    return {
        "files": files,
        "organiser_s": ours_s,
        "organiser_again_s": again_s,
        "shell_s": shell_s,
        "times_faster": shell_s / ours_s,
        "organiser_sorted": summary.counts.get("linked", 0),
        "organiser_present_again": again.counts.get("present", 0),
        "shell_sorted": sum(1 for p in (root / "shell").rglob("*") if p.is_file()),
    }


if __name__ == "__main__":
    main()
