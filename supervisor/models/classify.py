"""Which ComfyUI folder a model file belongs in, by its header, else by its name. Pure.

Tensor names: see ``tensors``. Metadata: https://github.com/Stability-AI/ModelSpec and the
``ss_*`` keys of kohya-ss/sd-scripts.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import PurePosixPath

from supervisor.models.folders import folder_from_path
from supervisor.models.header import Format, ModelHeader
from supervisor.models.tensors import folder_of_tensors


@dataclass(frozen=True, slots=True)
class Classification:
    """The folder, or None, and the evidence in a few words."""

    folder: str | None
    reason: str


_UNKNOWN = Classification(None, "neither header nor name tell what it is")


def classify(header: ModelHeader, path: str) -> Classification:
    """Classify one file; ``path`` is relative to the folder it was dropped into."""
    by_header = _by_header(header)
    if by_header is not None:
        return by_header
    if (folder := folder_from_path(path)) is not None:
        return Classification(folder, f"lies in a folder called {folder}")
    return classify_name(PurePosixPath(path).name) or _UNKNOWN


def _by_header(header: ModelHeader) -> Classification | None:
    if header.format is Format.SAFETENSORS:
        return _by_metadata(header) or _by_tensors(header)
    if header.format is Format.GGUF:
        return _by_gguf(header) or _by_tensors(header)
    return None


# -- metadata -----------------------------------------------------------------------------

# The part behind the slash of "stable-diffusion-xl-v1-base/lora".
_ADAPTERS = {
    "lora": "loras",
    "lycoris": "loras",
    "textual-inversion": "embeddings",
    "hypernetwork": "hypernetworks",
    "controlnet": "controlnet",
    "control-net": "controlnet",
    "controlnet-lllite": "controlnet",
    "vae": "vae",
}


def _by_metadata(header: ModelHeader) -> Classification | None:
    architecture = header.metadata.get("modelspec.architecture", "").lower()
    adapter = architecture.rpartition("/")[2] if "/" in architecture else ""
    if adapter in _ADAPTERS:
        return Classification(_ADAPTERS[adapter], f"modelspec.architecture = {architecture}")
    module = header.metadata.get("ss_network_module", "")
    if module:
        folder = "hypernetworks" if "hypernetwork" in module else "loras"
        return Classification(folder, f"ss_network_module = {module}")
    return None


# What city96/ComfyUI-GGUF accepts, by kind of loader.
_GGUF_DIFFUSION = frozenset(
    {
        "flux", "sd1", "sdxl", "sd3", "aura", "hidream", "cosmos", "ltxv", "hyvid", "wan",
        "lumina2", "qwen_image", "z_image", "chroma",
    }
)  # fmt: skip
_GGUF_TEXT = frozenset(
    {"t5", "t5encoder", "llama", "qwen2", "qwen2vl", "qwen3", "qwen3vl", "gemma2", "gemma3",
     "mistral3", "clip"}
)  # fmt: skip


def _by_gguf(header: ModelHeader) -> Classification | None:
    architecture = header.metadata.get("general.architecture", "").lower()
    reason = f"general.architecture = {architecture}"
    if architecture in _GGUF_DIFFUSION:
        return Classification("diffusion_models", reason)
    if architecture in _GGUF_TEXT:
        return Classification("text_encoders", reason)
    return None


def _by_tensors(header: ModelHeader) -> Classification | None:
    found = folder_of_tensors(header.shapes)
    return Classification(*found) if found else None


# -- names --------------------------------------------------------------------------------


def _compile(rules: Iterable[tuple[str, str]]) -> tuple[tuple[str, re.Pattern[str]], ...]:
    return tuple((folder, re.compile(pattern)) for folder, pattern in rules)


_NAMES = _compile(
    (
        ("loras", r"(?:^|[^a-z])(?:lora|loras|lycoris|locon|loha|lokr|dora)(?:[^a-z]|$)"),
        ("controlnet", r"control[_-]?(?:net|lora|v\d|sd)|t2i[_-]?adapter|^control_"),
        ("clip_vision", r"clip[_-]?vision|sigclip|siglip|image[_-]?encoder"),
        ("vae_approx", r"^tae(?:sd|f1|hv)|taesd"),
        ("vae", r"(?:^|[^a-z])vae(?:[^a-z]|$)|^ae\.|autoencoder"),
        ("latent_upscale_models", r"latent[_-]?upscal"),
        (
            "upscale_models",
            r"esrgan|swinir|upscal|(?:^|[^a-z0-9])[248]x[_-]|_x[248](?:[^a-z0-9]|$)",
        ),
        (
            "text_encoders",
            r"t5xxl|umt5|clip[_-][lgh](?:[^a-z]|$)|text[_-]?encoder|(?:^|[^a-z])t5[_-]",
        ),
        ("embeddings", r"embedding|textual[_-]?inversion|easynegative|negative|badhand"),
        ("hypernetworks", r"hyper[_-]?network"),
        ("gligen", r"gligen"),
        ("photomaker", r"photomaker"),
        ("audio_encoders", r"wav2vec|whisper"),
        ("style_models", r"redux|style[_-]?model"),
        ("detection", r"yolo|vitpose"),
        ("diffusion_models", r"unet|diffusion[_-]?model|(?:^|[^a-z])dit(?:[^a-z]|$)|\.gguf$"),
        ("checkpoints", r"checkpoint|\.ckpt$|sdxl|sd[_-]?(?:xl|1|v1|15)|pruned|emaonly"),
    )
)


def classify_name(name: str) -> Classification | None:
    """Classify by the file's name alone; the first rule that matches decides."""
    lower = name.lower()
    for folder, pattern in _NAMES:
        if pattern.search(lower):
            return Classification(folder, "by its name")
    return None
