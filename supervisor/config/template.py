"""The commented ``supervisor.toml`` that template authors copy, made from the settings.

``# text`` explains, ``#key = value`` is a setting with its default, or with an example
where there is none, ready to be uncommented.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from enum import StrEnum
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from supervisor.config.keys import KeyPath, dotted, walk
from supervisor.config.settings import Section, ServiceSection, Settings

_HEAD = """\
# Configuration of the supervisor. Everything is optional: without this file the defaults hold.
# Lines that start with "#" and a name are settings with their default (or an example where it
# says so): uncomment what you change. `supervisor check` finds every mistake, and
# `supervisor plan` shows what a boot would do with it, and why.
#
# Environment variables win over this file: SUPERVISOR_<SECTION>__<KEY>, and the plain names
# that are listed in docs/configuration.md. Keep secrets out of this file: use variables, or
# <NAME>_FILE with the path of a mounted secret.
"""

_FILES = """\
# Single model files: one table each, with exactly one of url, huggingface, civitai.
#[[models.files]]
#huggingface = "Comfy-Org/Wan_2.1_ComfyUI_repackaged:split_files/vae/wan_2.1_vae.safetensors"
#to = "vae/"  # below the models folder; ending in / keeps the name
#required = true  # readiness waits for it
#[[models.files]]
#url = "https://example.com/models/style.safetensors"
#to = "loras/style.safetensors"
#sha256 = "0000000000000000000000000000000000000000000000000000000000000000"
#size_bytes = 151108832
#mirrors = ["https://mirror.example.com/style.safetensors"]
#[[models.files]]
#civitai = 128713
#to = "checkpoints/"
"""

_SERVICES = """\
# Services of your own: one table each, the name is yours. All keys but `command` are optional.
"""

_CHATTERBOX = """
# Another one, in short: it starts beside ComfyUI and is restarted when its page hangs.
#[services.chatterbox]
#command = ["python3", "/opt/chatterbox-api/main.py"]
#environment = { PORT = "4123" }
#ready = { tcp = "127.0.0.1:4123", timeout_s = 180 }
#live = { http = "http://127.0.0.1:4123/health" }
"""

# What stands where a setting has no default. Together they are a valid configuration.
_EXAMPLES: dict[str, Any] = {
    "storage.workspace": "/workspace",
    "comfyui.python": "/opt/venv/bin/python",
    "comfyui.args": "--cache-lru 5",
    "comfyui.output_directory": "/workspace/output",
    "comfyui.environment": {"HF_HUB_DISABLE_TELEMETRY": "1"},
    "comfyui.env_pass": ["HF_TOKEN"],
    "comfyui.user": "nobody",
    "jupyter.enabled": True,
    "jupyter.token": "better: JUPYTER_PASSWORD",
    "jupyter.root": "/workspace",
    "filebrowser.password": "better: FB_PASSWORD",
    "filebrowser.root": "/workspace",
    "ssh.enabled": True,
    "ssh.public_key": "ssh-ed25519 AAAA… me@home",
    "models.directory": "/workspace/models",
    "models.downloads_directory": "/workspace/downloads",
    "models.selectors": {"QWEN_EDIT_MODEL": "Q4_K_M"},
    "models.catalog": ["/etc/supervisor/my-models.toml"],
    "models.workflows": ["/workspace/workflows/portrait.json"],
    "models.civitai": [128713],
    "models.civitai_loras": [135867],
    "models.rate_limit": "100MB/s",
    "models.hf_token": "better: HF_TOKEN",
    "models.civitai_token": "better: CIVITAI_API_KEY",
    "models.store": "/workspace/model-store",
    "models.store_staging": "/opt/model-staging",
    "models.store_budget": "500GB",
    "sync.enabled": True,
    "sync.source": "/workspace/output",
    "sync.folder": "/workspace/outputs-copy",
    "sync.endpoint": "https://account.r2.cloudflarestorage.com",
    "sync.access_key_id": "better: R2_ACCESS_KEY_ID",
    "sync.secret_access_key": "better: R2_SECRET_ACCESS_KEY",
    "sync.cache_control": "private, max-age=31536000",
    "sync.rate_limit": "50MB/s",
    "sync.restore": ["workflows", "settings"],
    "health.token": "better: SUPERVISOR_HEALTH__TOKEN_FILE",
    "idle.command": ["/usr/local/bin/when-idle"],
    "idle.pod_id": "set by RunPod: RUNPOD_POD_ID",
    "idle.api_key": "better: RUNPOD_API_KEY",
    "alerts.webhook": "https://hooks.example.com/T000/B000",
    "worker.endpoint": "https://account.r2.cloudflarestorage.com/bucket",
    "worker.access_key_id": "better: BUCKET_ACCESS_KEY_ID",
    "worker.secret_access_key": "better: BUCKET_SECRET_ACCESS_KEY",
    "services.xtts.command": ["python3", "-m", "xtts_api_server", "--port", "8020"],
    "services.xtts.after": ["comfyui"],
    "services.xtts.ready": {"http": "http://127.0.0.1:8020/languages", "timeout_s": 120},
    "services.xtts.live": {"http": "http://127.0.0.1:8020/languages", "interval_s": 30},
    "services.xtts.environment": {"COQUI_TOS_AGREED": "1"},
    "services.xtts.env_pass": ["HF_TOKEN"],
    "services.xtts.user": "nobody",
    "services.xtts.cwd": "/opt/xtts",
    "services.xtts.umask": "022",
    "services.xtts.nice": 5,
    "services.xtts.limits.nofile": 65536,
    "services.xtts.limits.core_bytes": 0,
    "services.xtts.log_file": "/workspace/logs/xtts.log",
    "services.xtts.url": "http://127.0.0.1:8020/docs",
}


def commented_default() -> str:
    """Return the text of the template."""
    blocks = [_HEAD]
    for name, field in Settings.model_fields.items():
        if name == "services":
            keys = "\n".join(_keys(ServiceSection, ("services", "xtts")))
            blocks.append(f"{_SERVICES}#[services.xtts]\n{keys}\n{_CHATTERBOX}")
            continue
        section = field.annotation
        assert isinstance(section, type)  # noqa: S101 - every other field is a section
        assert issubclass(section, Section)  # noqa: S101
        keys = "\n".join(_keys(section, (name,)))
        blocks.append(f"# {_first_line(section)}\n[{name}]\n{keys}\n")
        if name == "models":
            blocks.append(_FILES)
    return "\n".join(blocks)


def to_toml(value: Any) -> str:
    """Render a JSON-like value as an inline TOML value."""
    if isinstance(value, dict):
        inner = ", ".join(
            f"{toml_key(str(k))} = {to_toml(v)}" for k, v in value.items() if v is not None
        )
        return f"{{ {inner} }}" if inner else "{}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(to_toml(item) for item in value)}]"
    if value is None or isinstance(value, bool | int | float):
        return json.dumps(value)
    # JSON texts are TOML basic strings, but for the DEL character that JSON leaves bare.
    return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")


def toml_key(name: str) -> str:
    """Quote a key where TOML wants it."""
    bare = name.isascii() and name.replace("-", "").replace("_", "").isalnum()
    return name if bare else json.dumps(name)


def _keys(section: type[Section], prefix: KeyPath) -> Iterator[str]:
    for path, field in walk(section, prefix):
        name = dotted(path[len(prefix) :])
        if path == ("models", "files"):
            continue  # tables of their own, below
        default = field.default_factory() if field.default_factory else field.default
        example = _EXAMPLES.get(dotted(path))
        is_example = default is None or default is PydanticUndefined or default in ((), {}, "")
        yield f"# {field.description}{_choices(field.annotation)}{' (example)' * is_example}"
        yield f"#{name} = {to_toml(_plain(example if is_example else default))}"


def _choices(annotation: Any) -> str:
    """What may be given, where that is one of a few words, or several of them."""
    for kind in (annotation, *get_args(annotation)):
        words = get_args(kind) if get_origin(kind) is Literal else ()
        if isinstance(kind, type) and issubclass(kind, StrEnum):
            words = tuple(kind)
        if words:
            return f" {'One' if kind is annotation else 'Any'} of {', '.join(words)}."
    return ""


def _plain(value: Any) -> Any:
    return value.model_dump() if isinstance(value, BaseModel) else value


def _first_line(section: type[Section]) -> str:
    return (section.__doc__ or "").strip().splitlines()[0]
