"""The plain environment variables that images and users already set.

They keep working as aliases of settings (SCOPE: environment variables). Each stands in
one table, which the README's table is made from. The defaults are those of the settings;
the few that are switches for several things at once have a function of their own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from supervisor.config.keys import KeyPath
from supervisor.config.layers import Layers, bool_from_text

# Bundles that are on unless somebody turns them off stand in ModelsSection.bundles.
_BUNDLES = {
    "ENABLE_VIBEVOICE": ("true", "VibeVoice speech"),
    "ENABLE_CONTROLNET": ("true", "ControlNet, fp16"),
    "ENABLE_ZIMAGE": ("false", "Z-Image Turbo"),
    "ENABLE_STEADYDANCER": ("false", "SteadyDancer"),
    "ENABLE_SCAIL": ("false", "SCAIL"),
    "ENABLE_XTTS": ("false", "XTTS voices"),
    "ENABLE_TURBODIFFUSION": ("false", "TurboDiffusion"),
    "ENABLE_I2V": ("false", "image-to-video encoder"),
    "ENABLE_VACE": ("false", "WAN VACE"),
    "ENABLE_FUN_INP": ("false", "WAN Fun InP"),
    "ENABLE_ILLUSTRIOUS": ("false", "Illustrious"),
    "ENABLE_WAN22_DISTILL": ("false", "WAN 2.2, distilled"),
    "ENABLE_GENFOCUS": ("false", "Genfocus"),
    "ENABLE_QWEN_EDIT": ("false", "Qwen image edit"),
    "ENABLE_MVINVERSE": ("false", "MVInverse"),
    "ENABLE_FLASHPORTRAIT": ("false", "FlashPortrait (24 GB and more)"),
    "ENABLE_STORYMEM": ("false", "StoryMem (24 GB and more)"),
    "ENABLE_INFCAM": ("false", "InfCam (48 to 80 GB)"),
    "ENABLE_FLUX": ("false", "FLUX.1 dev"),
    "ENABLE_DWPOSE": ("false", "DWPose"),
    "WAN_720P": ("true", "WAN video 720p, about 25 GB"),
    "WAN_480P": ("false", "WAN video 480p, about 12 GB"),
}


@dataclass(frozen=True, slots=True)
class Alias:
    """One plain variable. ``apply`` is for those that are more than another name of a key."""

    name: str
    path: KeyPath
    meaning: str
    default: str | None = None  # where the setting's own default does not say it
    apply: Callable[[Layers, str, str], None] | None = None


def apply_alias(alias: Alias, layers: Layers, text: str, origin: str) -> None:
    """Lay the special variable's effect over the layers below.

    Raises:
        ValueError: the text cannot be read.
    """
    assert alias.apply is not None  # noqa: S101 - callers choose by it; for the type checker
    alias.apply(layers, text, origin)


def bundle_name(variable: str) -> str:
    """Return the catalog's name of the bundle that a variable switches."""
    return variable.removeprefix("ENABLE_").lower()


def _toggle(variable: str) -> Callable[[Layers, str, str], None]:
    bundle = bundle_name(variable)

    def apply(layers: Layers, text: str, origin: str) -> None:
        wanted = bool_from_text(text)
        present = _listed(layers, "bundles")
        if present is None or (bundle in present) == wanted:
            return
        changed = [*present, bundle] if wanted else [b for b in present if b != bundle]
        _put_list(layers, "bundles", changed, origin)

    return apply


def _listed(layers: Layers, name: str) -> list[Any] | None:
    """Return a list of ``[models]`` as set so far; None when it is not a list at all."""
    # Deferred: the default belongs to the settings, and only a toggle needs it here.
    from supervisor.config.settings import ModelsSection  # noqa: PLC0415

    value = layers.get(("models", name))
    if value is None:
        return list(ModelsSection.model_fields[name].default)
    return list(value) if isinstance(value, list | tuple) else None


def _put_list(layers: Layers, name: str, value: list[Any], origin: str) -> None:
    """Lay a changed list of ``[models]``; what is wrong in it may be from below."""
    path = ("models", name)
    below = layers.set_at(path)
    layers.put(path, value, f"{below}, {origin}" if below else origin)


def _civitai_switch(layers: Layers, text: str, origin: str) -> None:
    if not bool_from_text(text):
        layers.put(("models", "civitai_loras"), [], origin)


def _civitai_ids(layers: Layers, text: str, origin: str) -> None:
    present = _listed(layers, "civitai_loras")
    ids = [part.strip() for part in text.split(",") if part.strip()]
    if present is not None:
        _put_list(layers, "civitai_loras", [*present, *ids], origin)


def _illustrious_ids(layers: Layers, text: str, origin: str) -> None:
    if "illustrious" in (_listed(layers, "bundles") or ()):
        _civitai_ids(layers, text, origin)


def _r2_switch(layers: Layers, text: str, origin: str) -> None:
    if bool_from_text(text):
        layers.put(("sync", "enabled"), True, origin)
        layers.put(("sync", "target"), "s3", origin)
    elif layers.get(("sync", "target")) == "s3":
        layers.put(("sync", "enabled"), False, origin)  # a folder target stays as it is


def _embeddings_switch(layers: Layers, text: str, origin: str) -> None:
    value = "on" if bool_from_text(text) else "off"
    layers.put(("models", "selectors", "ILLUSTRIOUS_EMBEDDINGS"), value, origin)


def _selector(variable: str, default: str, meaning: str) -> Alias:
    return Alias(variable, ("models", "selectors", variable), meaning, default)


# The order matters where one looks at the effect of another: ids after their switches.
ALIASES: tuple[Alias, ...] = (
    *(
        Alias(name, ("models", "bundles"), f"bundle {bundle_name(name)}: {meaning}", default,
              _toggle(name))
        for name, (default, meaning) in _BUNDLES.items()
    ),
    _selector("VIBEVOICE_MODEL", "Large", "1.5B, Large or Large-Q8"),
    _selector("CONTROLNET_MODELS", "canny,depth,openpose", "which ones (also lineart, normal)"),
    _selector(
        "QWEN_EDIT_MODEL", "Q4_K_M", "Q2_K, Q3_K_M, Q4_K_M, Q5_K_M, Q6_K, Q8_0 or full"
    ),
    _selector("STEADYDANCER_VARIANT", "fp8", "fp8, fp16 (bf16 means the same) or gguf"),
    _selector("FLUX_MODEL", "dev", "dev or fp8-all-in-one"),
    _selector("FLUX_TEXT_ENCODER", "fp8-scaled", "fp8-scaled, fp8, fp16 or none"),
    _selector("SCAIL_MODEL", "preview", "preview, preview-bf16, 2, 2-int8 or 2-nvfp4"),
    _selector("VACE_MODEL", "14B", "14B or 1.3B"),
    _selector("ZIMAGE_MODEL", "bf16", "bf16, int8 or nvfp4"),
    _selector("ZIMAGE_TEXT_ENCODER", "bf16", "bf16 or fp8"),
    Alias("ENABLE_ILLUSTRIOUS_EMBEDDINGS", ("models", "selectors", "ILLUSTRIOUS_EMBEDDINGS"),
          "embeddings with the bundle illustrious", "false", _embeddings_switch),
    Alias("CIVITAI_LORAS", ("models", "civitai_loras"), "CivitAI version ids, comma separated",
          None, _civitai_ids),
    Alias("ENABLE_CIVITAI", ("models", "civitai_loras"),
          "false ignores CIVITAI_LORAS", "true when ids are given",
          _civitai_switch),
    Alias("ILLUSTRIOUS_LORAS", ("models", "civitai_loras"),
          "CivitAI version ids, used when the bundle illustrious is on", None, _illustrious_ids),
    Alias("CIVITAI_API_KEY", ("models", "civitai_token"), "CivitAI API key"),
    Alias("HUGGING_FACE_HUB_TOKEN", ("models", "hf_token"), "older name of HF_TOKEN"),
    Alias("HF_TOKEN", ("models", "hf_token"), "Hugging Face token"),
    Alias("HF_ENDPOINT", ("models", "hf_endpoint"), "Hugging Face mirror"),
    Alias("MAX_CONCURRENT_DOWNLOADS", ("models", "concurrent_files"), "files at once"),
    Alias("DOWNLOAD_TIMEOUT", ("models", "stall_timeout_s"),
          "seconds without a byte until a new connection is made"),
    Alias("RETRY_ATTEMPTS", ("models", "retry_attempts"),
          "tries before the pace slows down; downloads never give up"),
    Alias("UPDATE_NODES_ON_START", ("comfyui", "update_nodes"), "git pull of custom nodes"),
    Alias("STORAGE_MODE", ("storage", "mode"), "auto, ephemeral or persistent"),
    Alias("COMFYUI_PORT", ("comfyui", "port"), "ComfyUI's port"),
    Alias("COMFYUI_ARGS", ("comfyui", "args"), "extra ComfyUI arguments; they win"),
    Alias("COMFYUI_OUTPUT_DIR", ("comfyui", "output_directory"), "output folder",
          "ComfyUI's own"),
    Alias("GPU_TIER", ("gpu", "tier"), "auto, consumer, prosumer or datacenter"),
    Alias("GPU_MEMORY_MODE", ("gpu", "memory_mode"),
          "auto, full, model_cpu_offload, sequential_cpu_offload, low or none"),
    Alias("R2_ENDPOINT", ("sync", "endpoint"), "S3 endpoint URL of the output sync"),
    Alias("R2_BUCKET", ("sync", "bucket"), "bucket of the output sync"),
    Alias("R2_ACCESS_KEY_ID", ("sync", "access_key_id"), "access key of that bucket"),
    Alias("R2_SECRET_ACCESS_KEY", ("sync", "secret_access_key"), "secret key of that bucket"),
    Alias("ENABLE_R2_SYNC", ("sync", "enabled"), "output sync to the bucket", "false",
          _r2_switch),
    Alias("BUCKET_ENDPOINT_URL", ("worker", "endpoint"), "bucket of the serverless worker"),
    Alias("BUCKET_ACCESS_KEY_ID", ("worker", "access_key_id"), "access key of that bucket"),
    Alias("BUCKET_SECRET_ACCESS_KEY", ("worker", "secret_access_key"), "secret key of that bucket"),
    Alias("FORCE_S3_VIDEO", ("worker", "force_s3_video"), "videos never travel as base64"),
    Alias("WEBSOCKET_RECONNECT_ATTEMPTS", ("worker", "reconnect_attempts"),
          "reconnects of the worker's websocket"),
    Alias("WEBSOCKET_RECONNECT_DELAY_S", ("worker", "reconnect_delay_s"), "seconds between them"),
    Alias("REFRESH_WORKER", ("worker", "refresh"), "a fresh worker after every job"),
    Alias("JUPYTER_PASSWORD", ("jupyter", "token"), "JupyterLab's token (set by RunPod)"),
    Alias("PUBLIC_KEY", ("ssh", "public_key"), "SSH key (set by RunPod)"),
    Alias("FILEBROWSER", ("filebrowser", "enabled"), "run FileBrowser"),
    Alias("FB_USERNAME", ("filebrowser", "username"), "FileBrowser's user"),
    Alias("FB_PASSWORD", ("filebrowser", "password"), "FileBrowser's password", "generated"),
    Alias("ENABLE_IDLE_SHUTDOWN", ("idle", "enabled"), "stop the pod when nobody needs it"),
    Alias("IDLE_SHUTDOWN_MINUTES", ("idle", "minutes"), "minutes until an idle pod is stopped"),
    Alias("RUNPOD_API_KEY", ("idle", "api_key"), "RunPod API key (set by RunPod)"),
    Alias("RUNPOD_POD_ID", ("idle", "pod_id"), "this pod (set by RunPod)"),
    Alias("DRY_RUN", ("supervisor", "dry_run"), "`run` prints the plan and exits"),
)  # fmt: skip

# The health port alone is the other way round: SUPERVISOR_HEALTH__PORT wins over these.
PORT_ALIASES: tuple[Alias, ...] = (
    Alias("PORT", ("health", "port"), "health port of load-balanced endpoints"),
    Alias("PORT_HEALTH", ("health", "port"), "the same, and it wins over PORT"),
)
