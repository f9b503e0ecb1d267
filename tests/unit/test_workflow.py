"""Workflow files: every shape, and the real templates of ComfyUI."""

from __future__ import annotations

import importlib.util
import json
import shutil
import struct
import subprocess
import zlib
from collections import Counter
from pathlib import Path, PurePosixPath
from typing import Any

import pytest

from supervisor.config.settings import ModelsSection
from supervisor.models.catalog import Catalog, load_catalog
from supervisor.models.embedded import WorkflowError, read_workflow
from supervisor.models.folders import CORE_FOLDERS
from supervisor.models.known import load_known_models
from supervisor.models.workflow import Reference, distinct, references
from supervisor.models.workflow_plan import Finding, WorkflowModels, workflow_requests
from tests.conftest import require

HUB = "https://huggingface.co"
MODELS = Path("/models")


def entry(
    name: str, directory: str = "loras", url: str | None = None, **more: str
) -> dict[str, str]:
    return {
        "name": name,
        "url": url or f"{HUB}/o/r/resolve/main/{name}",
        "directory": directory,
        **more,
    }


def node(
    *entries: dict[str, str], kind: str = "LoraLoader", mode: int = 0, **more: Any
) -> dict[str, Any]:
    return {"type": kind, "mode": mode, "properties": {"models": list(entries)}, **more}


def subgraph(number: str, *nodes: dict[str, Any]) -> dict[str, Any]:
    return {"id": number, "nodes": list(nodes)}


def editor(*nodes: dict[str, Any], subgraphs: tuple[dict[str, Any], ...] = ()) -> dict[str, Any]:
    return {"nodes": list(nodes), "definitions": {"subgraphs": list(subgraphs)}, "version": 0.4}


def judged(
    document: Any, catalog: Catalog | None = None, **known: tuple[str, ...]
) -> WorkflowModels:
    return workflow_requests(
        references(document),
        catalog or Catalog(),
        section=ModelsSection(),
        directory=MODELS,
        known=known,
    )


# -- the editor's format --------------------------------------------------------------------


def test_top_level_and_nested_subgraphs() -> None:
    document = editor(
        node(entry("a.safetensors")),
        node(kind="outer"),
        subgraphs=(
            subgraph("outer", node(entry("b.safetensors")), node(kind="inner")),
            subgraph("inner", node(entry("c.safetensors"))),
        ),
    )
    found = references(document)
    assert [(r.name, r.in_subgraph, r.active) for r in found] == [
        ("a.safetensors", False, True),
        ("b.safetensors", True, True),
        ("c.safetensors", True, True),
    ]


@pytest.mark.parametrize("mode", [2, 4])
def test_bypassed_nodes_and_instances_do_not_count(mode: int) -> None:
    document = editor(
        node(entry("a.safetensors"), mode=mode),
        node(kind="one", mode=mode),
        node(kind="two", mode=mode),
        node(kind="two"),
        subgraphs=(
            subgraph("one", node(entry("b.safetensors")), node(kind="three")),
            subgraph("two", node(entry("c.safetensors")), node(entry("d.safetensors"), mode=mode)),
            subgraph("three", node(entry("e.safetensors"))),
        ),
    )
    assert {r.name for r in references(document) if r.active} == {"c.safetensors"}
    assert [i.key for i in judged(document).items] == ["loras/c.safetensors"]


def test_subgraphs_that_hold_each_other_end() -> None:
    document = editor(
        node(kind="x"),
        subgraphs=(
            subgraph("x", node(kind="y")),
            subgraph("y", node(kind="x"), node(entry("a.pt"))),
        ),
    )
    assert [r.name for r in references(document)] == ["a.pt"]


def test_widgets_without_metadata_are_names_only() -> None:
    document = editor(
        {"type": "UNETLoader", "widgets_values": ["flux1-dev.safetensors", "default"]},
        {"type": "SomethingElse", "widgets_values": {"a": ["x.gguf"], "text": "a photo.\nx.pt"}},
        {"type": "MarkdownNote", "widgets_values": [f"see {HUB}/o/r/resolve/main/x.safetensors"]},
    )
    assert [(r.name, r.directory, r.url) for r in references(document)] == [
        ("flux1-dev.safetensors", "diffusion_models", None),
        ("x.gguf", None, None),
    ]


def test_an_instance_may_name_another_file_than_its_subgraph() -> None:
    document = editor(
        {"type": "x", "widgets_values": ["a.safetensors", "other.safetensors"]},
        subgraphs=(subgraph("x", node(entry("a.safetensors"))),),
    )
    wanted = distinct(references(document))
    assert [(r.name, r.url is not None) for r in wanted] == [
        ("a.safetensors", True),
        ("other.safetensors", False),
    ]


def test_windows_separators_old_folders_and_hashes() -> None:
    digest = "A" * 64
    document = editor(
        node(entry("wan\\x.safetensors", "unet", hash=digest, hash_type="SHA256")),
    )
    (request,) = judged(document).requests
    assert request.name == "diffusion_models/wan/x.safetensors"
    assert request.sha256 == "a" * 64


@pytest.mark.parametrize("junk", [None, [], 3, "text", {}, {"nodes": 3}, {"a": 1}, {"prompt": 3}])
def test_what_is_no_workflow_is_refused(junk: Any) -> None:
    with pytest.raises(ValueError, match="workflow"):
        references(junk)


def test_damaged_nodes_do_no_harm() -> None:
    document = {
        "nodes": [
            3,
            {},
            {"type": None, "properties": None},
            {"properties": {"models": [{"name": 3}]}},
            {"mode": {}, "type": "VAELoader", "widgets_values": ["odd.safetensors"]},
            {"mode": [4]},
        ],
        "definitions": {"subgraphs": [None, {"nodes": None}]},
        "models": [entry("top.safetensors")],
    }
    assert [r.name for r in references(document)] == ["odd.safetensors", "top.safetensors"]


# -- API prompts ----------------------------------------------------------------------------

PROMPT = {
    "4": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "model.safetensors"}},
    "57:28": {
        "class_type": "DualCLIPLoader",
        "inputs": {"clip_name1": "clip_l.safetensors", "clip_name2": "t5.gguf", "type": "flux"},
    },
    "9": {
        "class_type": "Odd",
        "inputs": {"lora_name_2": "l.safetensors", "seed": 3, "m": ["4", 0]},
    },
    "8": {"class_type": "CLIPVisionLoader", "inputs": {"clip_name": "v.safetensors"}},
    "7": {"class_type": "Custom", "inputs": {"thing": "sub/deep.pt"}, "is_changed": [float("nan")]},
}


def test_api_prompt() -> None:
    assert [(r.name, r.directory) for r in references(PROMPT)] == [
        ("model.safetensors", "checkpoints"),
        ("clip_l.safetensors", "text_encoders"),
        ("t5.gguf", "text_encoders"),
        ("l.safetensors", "loras"),
        ("v.safetensors", "clip_vision"),
        ("sub/deep.pt", None),
    ]


def test_request_body_with_workflow() -> None:
    workflow = editor(node(entry("model.safetensors", "checkpoints")))
    body = {"prompt": PROMPT, "extra_data": {"extra_pnginfo": {"workflow": workflow}}}
    models = judged(body)
    by_key = {i.key: i for i in models.items}
    assert by_key["checkpoints/model.safetensors"].finding is Finding.FETCHABLE
    assert by_key["clip_vision/v.safetensors"].finding is Finding.UNKNOWN


# -- judging --------------------------------------------------------------------------------


def test_names_are_looked_up_in_catalog_and_templates() -> None:
    prompt = {
        "1": {"class_type": "VAELoader", "inputs": {"vae_name": "ae.safetensors"}},
        "2": {"class_type": "LoraLoader", "inputs": {"lora_name": "mine/known.safetensors"}},
        "3": {"class_type": "LoraLoader", "inputs": {"lora_name": "two.safetensors"}},
        "4": {"class_type": "LoraLoader", "inputs": {"lora_name": "none.safetensors"}},
    }
    known = {
        "loras/known.safetensors": ("o/r:known.safetensors",),
        "loras/two.safetensors": ("o/r:two.safetensors", "p/q:two.safetensors"),
    }
    models = judged(prompt, load_catalog(), **known)
    by_key = {i.key: i for i in models.items}
    vae = by_key["vae/ae.safetensors"].request
    assert vae is not None
    assert vae.sha256 is not None
    placed = by_key["loras/mine/known.safetensors"].request
    assert placed is not None
    assert placed.destination == MODELS / "loras/mine/known.safetensors"
    assert "ambiguous" in by_key["loras/two.safetensors"].reason
    assert by_key["loras/none.safetensors"].finding is Finding.UNKNOWN
    assert len(models.complaints) == 2


def test_the_catalog_knows_the_hash_of_the_same_address() -> None:
    url = f"{HUB}/Comfy-Org/z_image_turbo/resolve/main/split_files/vae/ae.safetensors?download=true"
    (request,) = judged(editor(node(entry("ae.safetensors", "vae", url))), load_catalog()).requests
    assert request.source == "huggingface"
    assert request.sha256 is not None


@pytest.mark.parametrize(
    ("name", "directory", "url"),
    [
        ("../x.safetensors", "loras", ""),
        ("/etc/x.safetensors", "loras", ""),
        ("x.safetensors", "../..", ""),
        ("x.safetensors", "custom_nodes", ""),
        ("x.safetensors", "loras", "ftp://e.com/x"),
        ("x.safetensors", "loras", "https://huggingface.co/o/r/resolve/main/../../x"),
    ],
)
def test_unsafe_references_are_refused(name: str, directory: str, url: str) -> None:
    models = judged(editor(node(entry(name, directory, url or None))))
    assert [i.finding for i in models.items] == [Finding.REFUSED]
    assert not models.requests


def test_one_name_with_two_hashes_is_an_error() -> None:
    two = editor(
        node(
            entry(
                "f.safetensors", url=f"{HUB}/o/r/resolve/main/f", hash="a" * 64, hash_type="SHA256"
            )
        ),
        node(
            entry(
                "f.safetensors", url=f"{HUB}/p/q/resolve/main/f", hash="b" * 64, hash_type="SHA256"
            )
        ),
    )
    (item,) = judged(two).items
    assert item.finding is Finding.REFUSED
    assert "two different files" in item.reason


# -- embedded workflows ---------------------------------------------------------------------

WORKFLOW = editor(node(entry("embedded.safetensors")))


def png(*chunks: tuple[bytes, bytes]) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        crc = zlib.crc32(kind + data)
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", crc)

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 8, 2, 0, 0, 0))
    body = b"".join(chunk(*c) for c in chunks)
    pixels = chunk(b"IDAT", zlib.compress(b"\0\0\0\0"))
    return b"\x89PNG\r\n\x1a\n" + head + body + pixels + chunk(b"IEND", b"")


def webp(order: str) -> bytes:
    values = [f"prompt:{json.dumps(PROMPT)}", f"workflow:{json.dumps(WORKFLOW)}"]
    count = len(values)
    offset = 8 + 2 + 12 * count + 4
    entries, data = b"", b""
    for tag, value in zip((0x0110, 0x010F), values, strict=True):
        text = value.encode() + b"\0"
        entries += struct.pack(order + "HHII", tag, 2, len(text), offset + len(data))
        data += text
    mark = b"II*\0" if order == "<" else b"MM\0*"
    tiff = mark + struct.pack(order + "I", 8) + struct.pack(order + "H", count)
    tiff += entries + struct.pack(order + "I", 0) + data
    exif = b"Exif\0\0" + tiff
    vp8 = b"VP8L" + struct.pack("<I", 5) + b"\x2f\0\0\0\0\0"
    chunks = vp8 + b"EXIF" + struct.pack("<I", len(exif)) + exif + b"\0" * (len(exif) & 1)
    return b"RIFF" + struct.pack("<I", len(chunks) + 4) + b"WEBP" + chunks


@pytest.mark.parametrize(
    "chunk",
    [
        (b"tEXt", b"workflow\0" + json.dumps(WORKFLOW).encode()),
        (b"zTXt", b"workflow\0\0" + zlib.compress(json.dumps(WORKFLOW).encode())),
        (b"iTXt", b"workflow\0\0\0\0\0" + json.dumps(WORKFLOW).encode()),
        (b"iTXt", b"workflow\0\1\0en\0\0" + zlib.compress(json.dumps(WORKFLOW).encode())),
    ],
)
def test_png(tmp_path: Path, chunk: tuple[bytes, bytes]) -> None:
    path = tmp_path / "out.png"
    path.write_bytes(png((b"tEXt", b"prompt\0" + json.dumps(PROMPT).encode()), chunk))
    found = {r.name for r in read_workflow(path)}
    assert {"embedded.safetensors", "model.safetensors"} <= found


@pytest.mark.parametrize("order", ["<", ">"])
def test_webp(tmp_path: Path, order: str) -> None:
    path = tmp_path / "out.webp"
    path.write_bytes(webp(order))
    found = {r.name for r in read_workflow(path)}
    assert {"embedded.safetensors", "model.safetensors"} <= found


@pytest.mark.needs("ffmpeg")
@pytest.mark.parametrize("saver", ["comfyui", "videohelpersuite"])
def test_mp4(tmp_path: Path, saver: str) -> None:
    path = tmp_path / "out.mp4"
    text = json.dumps(WORKFLOW)
    if saver == "comfyui":
        tags = ["-movflags", "use_metadata_tags", "-metadata", f"workflow={text}"]
    else:
        comment = json.dumps({"workflow": text, "prompt": PROMPT})
        tags = ["-metadata", f"comment={comment}"]
    source = ["-f", "lavfi", "-i", "color=size=16x16:duration=0.1:rate=10"]
    program = shutil.which("ffmpeg") or "ffmpeg"
    subprocess.run(
        [program, "-v", "error", *source, "-c:v", "mpeg4", *tags, str(path)],
        check=True,
        capture_output=True,
    )
    assert "embedded.safetensors" in {r.name for r in read_workflow(path)}


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"[]",
        png(),
        png((b"tEXt", b"workflow\0not json")),
        png()[:20],
        b"RIFF\0\0\0\0WEBP",
        b"\0\0\0\x10ftypisom\0\0\0\0",
        b"\0\0\0\x01ftyp\0\0\0\0\0\0\0\2",
        b"\xff\xfe\x00",
    ],
)
def test_files_without_a_workflow_are_explained(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "file"
    path.write_bytes(data)
    with pytest.raises(WorkflowError, match="Cannot read the workflow"):
        read_workflow(path)


def test_a_bomb_in_a_picture_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bomb.png"
    bomb = zlib.compress(b" " * (80 * 1024 * 1024), 9)
    path.write_bytes(png((b"zTXt", b"workflow\0\0" + bomb)))
    with pytest.raises(WorkflowError):
        read_workflow(path)


# -- the real templates ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def templates() -> dict[str, list[Reference]]:
    spec = importlib.util.find_spec("comfyui_workflow_templates_json")
    require(available=spec is not None, what="the package comfyui-workflow-templates-json")
    assert spec is not None
    assert spec.origin is not None
    folder = Path(spec.origin).parent / "templates"
    found = {}
    for path in sorted(folder.glob("*.json")):
        document = json.loads(path.read_text())
        if isinstance(document, dict) and "nodes" in document:
            found[path.name] = read_workflow(path)
    return found


def test_every_reference_of_the_templates_is_found(templates: dict[str, list[Reference]]) -> None:
    """The counts are those of release 0.1.123, taken with another program."""
    declared = [r for refs in templates.values() for r in refs if r.url is not None]
    assert len(templates) == 644
    assert len(declared) == 1204
    assert Counter(r.in_subgraph for r in declared).total() == 1204
    assert len({(r.name, r.url, r.directory, r.sha256) for r in declared}) == 399
    assert len({r.url for r in declared}) == 389
    assert len({r.name for r in declared}) == 353
    assert {r.directory for r in declared} <= CORE_FOLDERS
    assert {PurePosixPath(r.name).suffix for r in declared} == {".safetensors"}
    with_models = [refs for refs in templates.values() if any(r.url for r in refs)]
    assert len(with_models) == 261


def test_names_and_folders_are_kept(templates: dict[str, list[Reference]]) -> None:
    catalog, known = load_catalog(), load_known_models()
    for name, refs in templates.items():
        wanted = {f"{r.directory}/{r.name}" for r in refs if r.url is not None and r.active}
        models = workflow_requests(
            refs, catalog, section=ModelsSection(), directory=MODELS, known=known
        )
        assert wanted <= {r.name for r in models.requests}, name
        assert all(r.source == "huggingface" for r in models.requests if r.name in wanted)


def test_bypassed_alternatives_are_left_out(templates: dict[str, list[Reference]]) -> None:
    declared = [r for refs in templates.values() for r in refs if r.url is not None]
    assert 0 < sum(1 for r in declared if not r.active) < 200


def test_names_alone_find_the_same_files(templates: dict[str, list[Reference]]) -> None:
    """An API prompt made of a template's names leads to the template's files."""
    known = load_known_models()
    refs = next(refs for refs in templates.values() if sum(1 for r in refs if r.url) >= 3)
    bare = [Reference(r.name, r.directory) for r in refs if r.url and r.active]
    models = workflow_requests(
        bare, Catalog(), section=ModelsSection(), directory=MODELS, known=known
    )
    single = {f"{r.directory}/{r.name}" for r in bare if len(known[f"{r.directory}/{r.name}"]) == 1}
    assert single
    assert single <= {r.name for r in models.requests}
