"""ComfyUI's model folders, and paths below them that are safe to write to. Pure.

Folder keys: ``folder_paths.py`` of Comfy-Org/ComfyUI at 1df2885e (autumn 2026).
"""

from __future__ import annotations

import re
from pathlib import PurePosixPath
from urllib.parse import unquote

CORE_FOLDERS = frozenset(
    {
        "checkpoints", "configs", "loras", "vae", "text_encoders", "diffusion_models",
        "clip_vision", "style_models", "embeddings", "diffusers", "vae_approx", "controlnet",
        "gligen", "upscale_models", "latent_upscale_models", "hypernetworks", "photomaker",
        "classifiers", "model_patches", "audio_encoders", "background_removal",
        "frame_interpolation", "geometry_estimation", "optical_flow", "detection",
    }
)  # fmt: skip

# Older names that ComfyUI still scans; new files belong under the new ones.
ALIASES = {"unet": "diffusion_models", "clip": "text_encoders", "t2i_adapter": "controlnet"}

# ``supported_pt_extensions`` plus .gguf, which ComfyUI-GGUF adds over the same folders.
MODEL_EXTENSIONS = frozenset(
    {".ckpt", ".pt", ".pt2", ".bin", ".pth", ".safetensors", ".pkl", ".sft", ".gguf", ".onnx"}
)

# Formats that run code when they are loaded.
PICKLE_EXTENSIONS = frozenset({".ckpt", ".pt", ".pt2", ".pth", ".bin", ".pkl"})

_UNSAFE = re.compile(r'[\x00-\x1f\x7f<>:"|?*\\/]+')
_BEGINNING = re.compile(r"^[\s.~-]+")  # hidden, an option, a home directory
_MAX_NAME_BYTES = 255  # NAME_MAX of every Linux file system in use
# Room for the suffixes of partial files and their state.
_RESERVED_BYTES = 32


def safe_relative(path: str) -> PurePosixPath:
    """Check a path that is to be joined to the models folder.

    Raises:
        ValueError: it is empty, absolute, leaves the folder, or holds a control character.
    """
    if not path.strip() or "\\" in path or any(ord(c) < 32 or ord(c) == 127 for c in path):
        raise ValueError("not a usable path")
    pure = PurePosixPath(path)
    if pure.is_absolute() or path.startswith("~"):
        raise ValueError("must be relative to the models folder")
    if ".." in pure.parts:
        raise ValueError("must not contain '..'")
    if not pure.parts:
        raise ValueError("not a usable path")
    if any(len(part.encode()) > _MAX_NAME_BYTES - _RESERVED_BYTES for part in pure.parts):
        raise ValueError("a part of the path is too long")
    return pure


def safe_file_name(name: str) -> str | None:
    """Turn a name that a server sent into one that is safe to create, or None.

    Only the last component counts, whichever separator was used; characters that some
    file system refuses become ``_``; leading dots, dashes and tildes go.
    """
    tail = re.split(r"[/\\]", name.encode(errors="ignore").decode())[-1]
    cleaned = _BEGINNING.sub("", _UNSAFE.sub("_", tail)).rstrip()
    room = _MAX_NAME_BYTES - _RESERVED_BYTES
    if len(cleaned.encode()) > room:
        stem, dot, suffix = cleaned.rpartition(".")
        ending = dot + suffix if dot and len(suffix) < 16 else ""
        base = (stem if ending else cleaned).encode()[: room - len(ending.encode())]
        cleaned = base.decode(errors="ignore") + ending
    return cleaned or None


def name_from_url(url: str) -> str | None:
    """The file name at the end of a URL's path, if it looks like one."""
    tail = unquote(url.split("?", 1)[0].split("#", 1)[0].rstrip("/").rsplit("/", 1)[-1])
    return safe_file_name(tail) if "." in tail else None


def folder_from_path(path: str) -> str | None:
    """The ComfyUI folder that a component of a repository path names, if any.

    Repositories for ComfyUI are laid out as ``split_files/diffusion_models/x.safetensors``.
    """
    for part in reversed(PurePosixPath(path).parts[:-1]):
        folder = ALIASES.get(part.lower(), part.lower())
        if folder in CORE_FOLDERS:
            return folder
    return None
