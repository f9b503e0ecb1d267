"""Workflows in files that real programs wrote, and names in the places where people put them.

The pictures in data/workflows were saved by Pillow 13.0 with the options that ComfyUI's
savers use; videos and sound are written by the installed ffmpeg.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from supervisor.config.settings import ModelsSection
from supervisor.models.catalog import load_catalog
from supervisor.models.embedded import WorkflowError, read_workflow
from supervisor.models.planning import plan_models
from supervisor.models.workflow import references
from supervisor.models.workflow_plan import Finding, WorkflowModels, workflow_requests

PICTURES = Path(__file__).parent / "data/workflows"
HUB = "https://huggingface.co"
WORKFLOW = {
    "nodes": [
        {
            "type": "LoraLoader",
            "mode": 0,
            "properties": {
                "models": [
                    {
                        "name": "émbedded.safetensors",
                        "url": f"{HUB}/o/r/resolve/main/x",
                        "directory": "loras",
                    }
                ]
            },
        }
    ]
}
PROMPT = {"1": {"class_type": "VAELoader", "inputs": {"vae_name": "from prompt.safetensors"}}}
BOTH = {"émbedded.safetensors", "from prompt.safetensors"}


def names(path: Path) -> set[str]:
    return {r.name for r in read_workflow(path)}


@pytest.mark.parametrize(
    "name",
    ["text.png", "zipped.png", "lossy.webp", "lossless.webp", "animated.webp", "exif.jpg"],
)
def test_pictures_of_pillow(name: str) -> None:
    assert names(PICTURES / name) == BOTH


def test_a_picture_of_a1111_says_what_it_is() -> None:
    with pytest.raises(WorkflowError, match="A1111 parameters and no workflow") as caught:
        read_workflow(PICTURES / "a1111.png")
    assert caught.value.hint is not None
    assert caught.value.hint.endswith("v1-5-pruned, detail")


def test_what_is_no_known_file_is_said(tmp_path: Path) -> None:
    path = tmp_path / "picture.gif"
    path.write_bytes(b"GIF89a\x10\0\x10\0\x81\0\0")
    with pytest.raises(WorkflowError, match="neither JSON nor a PNG"):
        read_workflow(path)


def ffmpeg(path: Path, source: str, *options: str) -> None:
    program = shutil.which("ffmpeg") or "ffmpeg"
    subprocess.run(
        [program, "-v", "error", "-f", "lavfi", "-i", source, *options, str(path)],
        check=True,
        capture_output=True,
    )


@pytest.mark.needs("ffmpeg")
@pytest.mark.parametrize(
    ("ending", "options"),
    [
        ("mp4", ["-movflags", "use_metadata_tags+faststart"]),
        ("mp4", ["-movflags", "use_metadata_tags+frag_keyframe+empty_moov"]),
        ("mov", ["-movflags", "use_metadata_tags"]),
        ("mkv", []),
        ("flac", []),
    ],
)
def test_tags_of_ffmpeg(tmp_path: Path, ending: str, options: list[str]) -> None:
    path = tmp_path / f"out.{ending}"
    sound = ending == "flac"
    source = "sine=duration=0.1" if sound else "color=size=16x16:duration=0.3:rate=10"
    codec = [] if sound else ["-c:v", "mpeg4", "-g", "1"]
    tags = [f"workflow={json.dumps(WORKFLOW)}", f"prompt={json.dumps(PROMPT)}"]
    ffmpeg(path, source, *codec, *options, *(w for t in tags for w in ("-metadata", t)))
    assert names(path) == BOTH


@pytest.mark.needs("ffmpeg")
@pytest.mark.parametrize("ending", ["mp4", "mov", "mkv"])
def test_the_comment_of_videohelpersuite(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"out.{ending}"
    comment = json.dumps({"prompt": json.dumps(PROMPT), "workflow": WORKFLOW})
    source = "color=size=16x16:duration=0.1:rate=10"
    ffmpeg(path, source, "-c:v", "mpeg4", "-metadata", f"comment={comment}")
    assert names(path) == BOTH


@pytest.mark.needs("ffmpeg")
def test_cut_files_are_explained_and_never_crash(tmp_path: Path) -> None:
    video, sound = tmp_path / "a.mkv", tmp_path / "a.flac"
    tag = ["-metadata", f"workflow={json.dumps(WORKFLOW)}"]
    ffmpeg(video, "color=size=16x16:duration=0.1:rate=10", "-c:v", "mpeg4", *tag)
    ffmpeg(sound, "sine=duration=0.01", *tag)
    cut = tmp_path / "cut"
    whole, complaints = 0, set()
    for path in (video, sound, *sorted(PICTURES.iterdir())):
        data = path.read_bytes()
        for end in range(0, len(data), 7):
            cut.write_bytes(data[:end])
            try:
                whole += bool(read_workflow(cut))
            except WorkflowError as error:
                complaints.add(error.message.partition("/")[0])
    assert whole  # what stands before the cut is read
    assert complaints == {"Cannot read the workflow "}


# -- names ----------------------------------------------------------------------------------


def judged(document: Any, directory: Path = Path("/models")) -> WorkflowModels:
    found = workflow_requests(
        references(document),
        load_catalog(),
        section=ModelsSection(),
        directory=directory,
        known={"embeddings/EasyNegative.safetensors": ("o/r:EasyNegative.safetensors",)},
    )
    return found.with_files_in(directory)


def prompt(kind: str, **inputs: Any) -> dict[str, Any]:
    return {"1": {"class_type": kind, "inputs": inputs}}


def test_a_stack_of_loras_without_those_that_are_off() -> None:
    stack = [
        {},
        {"type": "PowerLoraLoaderHeaderWidget"},
        {"on": True, "lora": "style\\a.safetensors", "strength": 0.8},
        {"on": False, "lora": "b.safetensors", "strength": 1},
    ]
    kind = "Power Lora Loader (rgthree)"
    drawn = references({"nodes": [{"type": kind, "mode": 0, "widgets_values": stack}]})
    sent = references(prompt(kind, lora_1=stack[2], lora_2=stack[3]))
    for found in (drawn, sent):
        assert [(r.name, r.directory) for r in found] == [("style/a.safetensors", "loras")]


def test_embeddings_named_in_a_prompt() -> None:
    text = (
        "photo, (embedding:EasyNegative:1.2), embedding:Stable_Yogis_Illustrious_Negatives,\n"
        "embedding:mine/other.pt, embedding:unheard-of. not_embedding:x"
    )
    items = {i.key: i for i in judged(prompt("CLIPTextEncode", text=text)).items}
    assert {key: item.finding for key, item in items.items()} == {
        "embeddings/EasyNegative.safetensors": Finding.FETCHABLE,
        "embeddings/Stable_Yogis_Illustrious_Negatives.safetensors": Finding.FETCHABLE,
        "embeddings/mine/other.pt": Finding.UNKNOWN,
        "embeddings/unheard-of": Finding.UNKNOWN,
    }
    note = {"nodes": [{"type": "MarkdownNote", "mode": 0, "widgets_values": [text]}]}
    assert references(note) == []


def test_what_is_in_place_is_not_unknown(tmp_path: Path) -> None:
    for place in ("loras/mine.safetensors", "embeddings/my.pt", "unet/old.gguf", "ipadapter/i.bin"):
        (tmp_path / place).parent.mkdir(parents=True)
        (tmp_path / place).write_bytes(b"x")
    document = {
        "nodes": [
            {"type": "LoraLoader", "mode": 0, "widgets_values": ["mine.safetensors"]},
            {"type": "Odd", "mode": 0, "widgets_values": ["old.gguf", "absent.gguf"]},
            {"type": "CLIPTextEncode", "mode": 0, "widgets_values": ["embedding:my"]},
            {
                "type": "IPAdapterModelLoader",
                "mode": 0,
                "properties": {
                    "models": [
                        {
                            "name": "i.bin",
                            "url": f"{HUB}/o/r/resolve/main/i",
                            "directory": "ipadapter",
                        }
                    ]
                },
            },
        ]
    }
    models = judged(document, tmp_path)
    found = {item.reference.name: item.finding for item in models.items}
    assert found == {
        "mine.safetensors": Finding.THERE,
        "old.gguf": Finding.THERE,
        "absent.gguf": Finding.UNKNOWN,
        "my": Finding.THERE,
        "i.bin": Finding.THERE,
    }
    assert [line.split(":")[0] for line in models.complaints] == ["absent.gguf"]

    path = tmp_path / "w.json"
    path.write_text(json.dumps(document))
    plan = plan_models(ModelsSection(bundles=(), workflows=(path,)), directory=tmp_path)
    assert [note for note in plan.notes if "mine" in note] == []
    assert [note for note in plan.notes if "absent.gguf" in note]


def test_one_name_from_two_addresses_is_told() -> None:
    def node(repo: str) -> dict[str, Any]:
        url = f"{HUB}/{repo}/resolve/main/same.safetensors"
        entry = {"name": "same.safetensors", "url": url, "directory": "loras"}
        return {"type": "LoraLoader", "mode": 0, "properties": {"models": [entry]}}

    models = judged({"nodes": [node("o/r"), node("p/q")]})
    (request,) = models.requests
    assert "/o/r/" in request.url
    (line,) = models.complaints
    assert line.startswith("loras/same.safetensors: is also said to come from")
    assert "/p/q/" in line
