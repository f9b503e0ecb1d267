"""Which model files a ComfyUI workflow names. Pure: documents in, references out.

Three shapes are read: the editor's own format (``nodes``, with ``definitions.subgraphs``),
API prompts (``{"12": {"class_type": …, "inputs": {…}}}``) and the body of ``POST /prompt``.
Shapes checked against comfyui-workflow-templates-json 0.1.123.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import Any

from supervisor.models.folders import ALIASES, MODEL_EXTENSIONS

# LiteGraph: NEVER (muted) and ComfyUI's BYPASS.
_INACTIVE_MODES = frozenset({2, 4})
_NOTES = frozenset({"Note", "MarkdownNote"})
# A word of a prompt as comfy/sd1_clip.py reads it, without what weights put around it.
_EMBEDDING = re.compile(r"(?<![\w-])embedding:([^\s,():\[\]{}<>|\"']*[^\s,():\[\]{}<>|\"'.])")

# Folders by the input's name; by the node's class where the name means several things.
INPUT_FOLDERS = {
    "ckpt_name": "checkpoints",
    "unet_name": "diffusion_models",
    "vae_name": "vae",
    "lora_name": "loras",
    "clip_name": "text_encoders",
    "control_net_name": "controlnet",
    "style_model_name": "style_models",
    "gligen_name": "gligen",
    "hypernetwork_name": "hypernetworks",
    "audio_encoder_name": "audio_encoders",
    "text_encoder": "text_encoders",
    "upscale_model": "upscale_models",
    "photomaker_model_name": "photomaker",
    "config_name": "configs",
    "lora": "loras",
    "vae": "vae",
    "unet": "diffusion_models",
    "clip_vision": "clip_vision",
}
CLASS_FOLDERS = {
    "UNETLoader": "diffusion_models",
    "UnetLoaderGGUF": "diffusion_models",
    "UnetLoaderGGUFAdvanced": "diffusion_models",
    "VAELoader": "vae",
    "CLIPLoader": "text_encoders",
    "DualCLIPLoader": "text_encoders",
    "TripleCLIPLoader": "text_encoders",
    "QuadrupleCLIPLoader": "text_encoders",
    "CLIPLoaderGGUF": "text_encoders",
    "DualCLIPLoaderGGUF": "text_encoders",
    "LoraLoader": "loras",
    "LoraLoaderModelOnly": "loras",
    "Power Lora Loader (rgthree)": "loras",
    "CheckpointLoaderSimple": "checkpoints",
    "CheckpointLoader": "checkpoints",
    "ImageOnlyCheckpointLoader": "checkpoints",
    "unCLIPCheckpointLoader": "checkpoints",
    "CLIPVisionLoader": "clip_vision",
    "ControlNetLoader": "controlnet",
    "DiffControlNetLoader": "controlnet",
    "StyleModelLoader": "style_models",
    "UpscaleModelLoader": "upscale_models",
    "LatentUpscaleModelLoader": "latent_upscale_models",
    "ModelPatchLoader": "model_patches",
    "AudioEncoderLoader": "audio_encoders",
    "GLIGENLoader": "gligen",
    "HypernetworkLoader": "hypernetworks",
    "PhotoMakerLoader": "photomaker",
    "LTXVAudioVAELoader": "checkpoints",
    "WanVideoModelLoader": "diffusion_models",
    "WanVideoVAELoader": "vae",
    "WanVideoLoraSelect": "loras",
    "LoadWanVideoT5TextEncoder": "text_encoders",
}


@dataclass(frozen=True, slots=True)
class Reference:
    """One mention of a file. ``name`` may hold a sub-folder of ``directory``.

    ``active`` is False when the node, or every instance of its subgraph, is bypassed.
    """

    name: str
    directory: str | None = None
    url: str | None = None
    sha256: str | None = None
    node: str = ""
    in_subgraph: bool = False
    active: bool = True

    @property
    def key(self) -> tuple[str | None, str]:
        """What makes two references mean one file."""
        return self.directory, self.name


def references(document: Any) -> list[Reference]:
    """List every mention, in the order of the document.

    Raises:
        ValueError: the document is no workflow.
    """
    if isinstance(document, dict):
        if isinstance(document.get("nodes"), list):
            return list(_editor(document))
        if isinstance(document.get("prompt"), dict):
            return _request_body(document)
        if document and all(_is_prompt_node(v) for v in document.values()):
            return list(_prompt(document))
    raise ValueError("it is neither a workflow nor an API prompt")


def distinct(mentions: Iterable[Reference]) -> list[Reference]:
    """Active mentions, each file once; one with an address or folder beats one without."""
    best: dict[str, list[Reference]] = {}
    for mention in mentions:
        if not mention.active:
            continue
        same_name = best.setdefault(mention.name, [])
        for index, other in enumerate(same_name):
            if mention.directory in (None, other.directory) and mention.url in (None, other.url):
                break
            if other.directory in (None, mention.directory) and other.url is None:
                same_name[index] = mention
                break
        else:
            same_name.append(mention)
    return [mention for group in best.values() for mention in group]


# -- the editor's format ------------------------------------------------------------------


def _editor(document: Mapping[str, Any]) -> Iterator[Reference]:
    definitions = document.get("definitions")
    subgraphs = {
        str(s.get("id")): s
        for s in _dicts(
            (definitions or {}).get("subgraphs") if isinstance(definitions, dict) else ()
        )
    }
    top = _dicts(document.get("nodes"))
    live = _live_subgraphs(top, subgraphs)
    for node in top:
        yield from _node(node, subgraphs, active=_enabled(node), in_subgraph=False)
    for number, subgraph in subgraphs.items():
        for node in _dicts(subgraph.get("nodes")):
            active = _enabled(node) and number in live
            yield from _node(node, subgraphs, active=active, in_subgraph=True)
    # Older files list their models once at the top.
    for entry in _dicts(document.get("models")):
        if (reference := _from_entry(entry)) is not None:
            yield reference


def _live_subgraphs(
    top: list[dict[str, Any]], subgraphs: Mapping[str, Mapping[str, Any]]
) -> frozenset[str]:
    """Subgraphs that some chain of enabled instances reaches."""
    live: set[str] = set()
    pending = [str(n.get("type")) for n in top if _enabled(n)]
    while pending:
        number = pending.pop()
        if number in subgraphs and number not in live:
            live.add(number)
            inner = _dicts(subgraphs[number].get("nodes"))
            pending += (str(n.get("type")) for n in inner if _enabled(n))
    return frozenset(live)


def _node(
    node: Mapping[str, Any],
    subgraphs: Mapping[str, Any],
    *,
    active: bool,
    in_subgraph: bool,
) -> Iterator[Reference]:
    kind = str(node.get("type") or "")
    properties = node.get("properties")
    declared = properties.get("models") if isinstance(properties, dict) else None
    names: set[str] = set()
    for entry in _dicts(declared):
        reference = _from_entry(entry)
        if reference is None:
            continue
        names.add(PurePosixPath(reference.name).name)
        yield replace(reference, node=kind, active=active, in_subgraph=in_subgraph)
    # An instance repeats the file names of its subgraph; what it says on top counts too.
    folder = None if kind in subgraphs else CLASS_FOLDERS.get(kind)
    for value in _strings(node.get("widgets_values")):
        for name, known in _mentions(value, folder, kind):
            if PurePosixPath(name).name not in names:
                names.add(PurePosixPath(name).name)
                yield Reference(name, known, node=kind, active=active, in_subgraph=in_subgraph)


def _from_entry(entry: Mapping[str, Any]) -> Reference | None:
    name, url, directory = (entry.get(k) for k in ("name", "url", "directory"))
    if not isinstance(name, str) or not name.strip():
        return None
    digest = entry.get("hash")
    kind = str(entry.get("hash_type") or "").lower().replace("-", "")
    folder = directory.strip("/") if isinstance(directory, str) and directory.strip("/") else None
    return Reference(
        name=name.replace("\\", "/"),
        directory=ALIASES.get(folder, folder) if folder else None,
        url=url if isinstance(url, str) and url else None,
        sha256=digest.lower() if isinstance(digest, str) and kind == "sha256" else None,
    )


# -- API prompts --------------------------------------------------------------------------


def _request_body(document: Mapping[str, Any]) -> list[Reference]:
    """``POST /prompt``: the prompt, and the editor's workflow when it came along."""
    extra = document.get("extra_data")
    info = extra.get("extra_pnginfo") if isinstance(extra, dict) else None
    workflow = info.get("workflow") if isinstance(info, dict) else None
    found = references(document["prompt"])
    if isinstance(workflow, dict) and isinstance(workflow.get("nodes"), list):
        found += references(workflow)
    return found


def _is_prompt_node(value: Any) -> bool:
    return isinstance(value, dict) and isinstance(value.get("class_type"), str)


def _prompt(document: Mapping[str, Any]) -> Iterator[Reference]:
    for number, node in document.items():
        inputs = node.get("inputs")
        kind = node["class_type"]
        for input_name, value in inputs.items() if isinstance(inputs, dict) else ():
            folder = CLASS_FOLDERS.get(kind) or folder_of_input(input_name)
            for text in _strings(value):
                for name, known in _mentions(text, folder, kind):
                    # "57:28" is node 28 of the flattened subgraph 57.
                    yield Reference(name, known, node=kind, in_subgraph=":" in str(number))


def folder_of_input(name: str) -> str | None:
    return INPUT_FOLDERS.get(name.rstrip("0123456789").rstrip("_"))


# -- values -------------------------------------------------------------------------------


def _enabled(node: Mapping[str, Any]) -> bool:
    mode = node.get("mode")
    return not (isinstance(mode, int) and mode in _INACTIVE_MODES)


def _dicts(value: Any) -> list[dict[str, Any]]:
    return [v for v in value if isinstance(v, dict)] if isinstance(value, list | tuple) else []


def _strings(value: Any) -> Iterator[str]:
    """Strings in a value; some nodes nest their widgets in lists and objects."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        # Stacks of LoRAs keep the ones that are switched off.
        for inner in value.values() if value.get("on") is not False else ():
            yield from _strings(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _strings(inner)


def _mentions(text: str, folder: str | None, kind: str) -> Iterator[tuple[str, str | None]]:
    """(name, folder) of the files that one value names: itself, or embeddings in a prompt."""
    name = _file_name(text)
    if name is not None:
        yield name, folder
    elif kind not in _NOTES:
        for found in _EMBEDDING.findall(text):
            yield found.replace("\\", "/"), "embeddings"


def _file_name(value: str) -> str | None:
    """The value when it looks like a model file's name, with "/" as separator."""
    name = value.strip().replace("\\", "/")
    if "\n" in name or "://" in name or len(name) > 400:
        return None
    return name if PurePosixPath(name).suffix.lower() in MODEL_EXTENSIONS else None
