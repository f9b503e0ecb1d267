"""Which ComfyUI folder a model file belongs in, by its header, else by its name. Pure.

Tensor names: the state-dict prefixes that ComfyUI's own ``model_detection.py``, ``sd.py``
and ``controlnet.py`` look for. Metadata: https://github.com/Stability-AI/ModelSpec and the
``ss_*`` keys of kohya-ss/sd-scripts.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import PurePosixPath

from supervisor.models.folders import folder_from_path
from supervisor.models.header import Format, ModelHeader


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
        return Classification("loras", f"ss_network_module = {module}")
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


# -- tensors ------------------------------------------------------------------------------

_LORA = re.compile(
    r"\.lora_(?:up|down|A|B|mid)\.(?:default\.)?weight$|\.lora\.(?:up|down)\.weight$"
    r"|\.hada_w[12]_[ab]$|\.lokr_w[12](?:_[ab])?$|\.oft_blocks$|\.lora_(?:A|B)$|\.dora_scale$"
    r"|\.glora\.|\.boft_"
)


class _Names:
    """Questions about the tensor names, asked of the set and of all prefixes at once."""

    def __init__(self, header: ModelHeader) -> None:
        self.shapes = header.shapes

    @cached_property
    def prefixes(self) -> frozenset[str]:
        """Every beginning of a name that ends in a dot."""
        found: set[str] = set()
        for name in self.shapes:
            end = name.rfind(".")
            # Siblings share their beginnings: stop at the first one that is known.
            while end >= 0 and (prefix := name[: end + 1]) not in found:
                found.add(prefix)
                end = name.rfind(".", 0, end)
        return frozenset(found)

    def under(self, *prefixes: str) -> bool:
        """Whether some tensor lies below each of these dotted prefixes."""
        return all(p in self.prefixes for p in prefixes)

    def any_under(self, *prefixes: str) -> bool:
        return any(p in self.prefixes for p in prefixes)

    def has(self, *names: str) -> bool:
        return all(n in self.shapes for n in names)

    def any_matches(self, pattern: re.Pattern[str]) -> bool:
        return any(pattern.search(n) for n in self.shapes)

    def any_starts(self, *prefixes: str) -> bool:
        return any(n.startswith(prefixes) for n in self.shapes)


def _is_lora(n: _Names) -> bool:
    return n.any_starts("lora_unet_", "lora_te") or n.any_matches(_LORA)


def _is_control(n: _Names) -> bool:
    return (
        n.any_under(
            "control_model.", "controlnet_cond_embedding.", "controlnet_blocks.",
            "controlnet_down_blocks.", "input_hint_block.", "zero_convs.",
            "controlnet_x_embedder.", "adapter.body.",
        )
        or n.any_starts("lllite_")
        or n.under("body.0.resnets.", "conv_in.")
    )  # fmt: skip


def _is_checkpoint(n: _Names) -> bool:
    parts = ("first_stage_model.", "cond_stage_model.", "conditioner.", "text_encoders.", "vae.")
    return n.under("model.diffusion_model.") and n.any_under(*parts)


def _is_embedding(n: _Names) -> bool:
    few = 0 < len(n.shapes) <= 4
    plain = all(len(shape) <= 2 for shape in n.shapes.values())
    names = {"emb_params", "clip_g", "clip_l", "t5xxl", "string_to_param.*", "<concept>", "*"}
    return few and plain and not names.isdisjoint(n.shapes)


def _is_vae(n: _Names) -> bool:
    return (
        n.under("decoder.up.", "decoder.conv_in.")
        or n.under("decoder.up_blocks.", "decoder.conv_in.")
        or n.under("decoder.upsamples.", "encoder.downsamples.")
        or n.under("decoder.upsamples.", "decoder.head.")
        or (n.under("first_stage_model.") and not n.under("model.diffusion_model."))
    )


def _is_vision(n: _Names) -> bool:
    vision = n.any_under("vision_model.encoder.", "visual.transformer.", "vision_model.embeddings.")
    language = n.any_under("text_model.", "model.layers.", "model.embed_tokens.", "transformer.")
    return vision and not language


def _is_text(n: _Names) -> bool:
    return (
        n.any_under(
            "text_model.encoder.", "transformer.text_model.", "encoder.block.",
            "transformer.resblocks.", "model.embed_tokens.", "token_embd.", "enc.blk.",
            "model.language_model.", "language_model.model.",
        )
        or n.under("model.layers.", "model.norm.")
    )  # fmt: skip


def _is_upscaler(n: _Names) -> bool:
    return (
        n.under("conv_first.", "conv_last.", "body.")
        or n.under("model.1.sub.")
        or n.under("conv_first.", "layers.0.residual_group.")
        or n.under("conv_first.", "RRDB_trunk.")
        or n.under("to_feat.", "to_img.")
    )


_DIFFUSION_ROOTS = (
    "model.diffusion_model.", "double_blocks.", "single_blocks.", "joint_blocks.",
    "transformer_blocks.", "single_transformer_blocks.", "noise_refiner.", "context_refiner.",
    "input_blocks.", "double_layers.", "diffusion_model.", "net.blocks.",
)  # fmt: skip


def _is_diffusion(n: _Names) -> bool:
    return (
        n.any_under(*_DIFFUSION_ROOTS)
        or n.under("patch_embedding.", "blocks.")
        or n.under("down_blocks.", "up_blocks.", "time_embedding.")
        or n.under("blk.", "patch_embedding.")
    )


def _is_audio(n: _Names) -> bool:
    return n.any_under("wav2vec2.", "feature_extractor.conv_layers.") or n.under(
        "encoder.conv1.", "encoder.layers."
    )


_RULES: tuple[tuple[str | None, str, Callable[[_Names], bool]], ...] = (
    # The first match decides, so that parts come before the whole they are named after.
    ("loras", "low-rank pairs", _is_lora),
    (None, "an IP-Adapter: its custom node says where", lambda n: n.any_under("ip_adapter.")),
    ("embeddings", "a few token vectors", _is_embedding),
    ("controlnet", "control layers", _is_control),
    ("style_models", "Redux layers", lambda n: n.under("redux_up.", "redux_down.")),
    ("gligen", "a position net", lambda n: n.under("position_net.") and len(n.shapes) < 1000),
    ("checkpoints", "diffusion model with VAE or text encoder", _is_checkpoint),
    ("vae_approx", "a tiny autoencoder", lambda n: n.any_starts("taesd_")),
    ("vae", "encoder and decoder", _is_vae),
    ("audio_encoders", "audio layers", _is_audio),
    ("diffusion_models", "diffusion blocks", _is_diffusion),
    ("clip_vision", "a vision model alone", _is_vision),
    ("text_encoders", "language model layers", _is_text),
    ("upscale_models", "upscaler layers", _is_upscaler),
)


def _by_tensors(header: ModelHeader) -> Classification | None:
    if not header.shapes:
        return None
    names = _Names(header)
    for folder, reason, matches in _RULES:
        if matches(names):
            return Classification(folder, f"tensors: {reason}")
    return None


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
