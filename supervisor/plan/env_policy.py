"""The environment that services start from, and what is tuned in it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from supervisor.config.secrets import is_secret_name
from supervisor.config.settings import Settings, TuningSection
from supervisor.hardware.facts import HardwareFacts

# Settings of the supervisor itself and of its buckets: of no use to a service.
OWN_PREFIXES = ("SUPERVISOR_", "R2_", "BUCKET_", "FB_", "RUNPOD_SECRET_")

THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
)

# Receive and send buffers for fast long-distance transfers (ESnet's host tuning advice,
# https://fasterdata.es.net/host-tuning/linux/).
NETWORK_SYSCTL = {
    "net.core.rmem_max": "67108864",
    "net.core.wmem_max": "67108864",
    "net.ipv4.tcp_rmem": "4096 87380 33554432",
    "net.ipv4.tcp_wmem": "4096 65536 33554432",
}


@dataclass(frozen=True, slots=True)
class EnvironmentPlan:
    """``base`` is what every service inherits; ``reasons`` explains each added variable."""

    base: Mapping[str, str]
    reasons: Mapping[str, str]
    notes: tuple[str, ...] = ()


def plan_environment(
    settings: Settings,
    facts: HardwareFacts,
    environ: Mapping[str, str],
    *,
    secrets: Collection[str] = (),
    workspace: Path | None = None,
) -> EnvironmentPlan:
    """Strip secrets and the supervisor's own variables, then add the tuning.

    A variable that the container was started with is never overwritten.
    """
    inherited = {k: v for k, v in environ.items() if not _stripped(k, secrets)}
    wanted = _tuning(settings.tuning, facts, workspace)
    base = dict(inherited)
    reasons: dict[str, str] = {}
    notes: list[str] = []
    for name, (value, reason) in wanted.items():
        if name in inherited:
            if inherited[name] != value:
                notes.append(f"{name}={inherited[name]} was set outside and is kept")
            continue
        base[name] = value
        reasons[name] = reason
    if facts.nvenc is not None or not facts.gpu.devices:
        works = facts.nvenc is not None and facts.nvenc.available
        base["SUPERVISOR_NVENC"] = "1" if works else "0"
        reasons["SUPERVISOR_NVENC"] = (
            "a test encode on the GPU worked" if works else "no test encode on a GPU worked"
        )
    return EnvironmentPlan(base, reasons, tuple(notes))


def handed_over(
    names: Collection[str], environ: Mapping[str, str], settings: Settings
) -> tuple[dict[str, str], tuple[str, ...]]:
    """Values for ``env_pass``, and the names for which there is none.

    A secret may stand in the environment or in the settings (TOML or ``*_FILE``).
    """
    found: dict[str, str] = {}
    missing: list[str] = []
    for name in names:
        value = environ.get(name) or _from_settings(name, settings)
        if value:
            found[name] = value
        else:
            missing.append(name)
    return found, tuple(missing)


def _stripped(name: str, secrets: Collection[str]) -> bool:
    return (
        name in secrets
        or name.removesuffix("_FILE") in secrets
        or name.startswith(OWN_PREFIXES)
        or is_secret_name(name.removesuffix("_FILE"))
    )


def _tuning(
    tuning: TuningSection, facts: HardwareFacts, workspace: Path | None
) -> dict[str, tuple[str, str]]:
    """Variable → value and reason, for everything that is switched on and makes sense."""
    wanted: dict[str, tuple[str, str]] = {}
    host, devices = facts.host, facts.gpu.devices
    if tuning.tcmalloc and host.tcmalloc is not None:
        wanted["LD_PRELOAD"] = (
            str(host.tcmalloc),
            "tcmalloc gives memory back after large models are freed; it was seen to load",
        )
    if tuning.threads:
        threads = str(max(1, int(host.cpu_limit)))
        for name in THREAD_VARIABLES:
            wanted[name] = (threads, f"the container may use {host.cpu_limit:g} CPU cores")
    if tuning.allocator and devices:
        wanted["PYTORCH_CUDA_ALLOC_CONF"] = (
            "expandable_segments:True",
            "less fragmentation in PyTorch's own allocator; cudaMallocAsync ignores it",
        )
    if tuning.cuda and devices:
        wanted["CUDA_DEVICE_ORDER"] = ("PCI_BUS_ID", "GPU numbers are those of nvidia-smi")
        capabilities = sorted({d.compute_capability for d in devices if d.compute_capability})
        if capabilities:
            text = ";".join(f"{major}.{minor}" for major, minor in capabilities)
            wanted["TORCH_CUDA_ARCH_LIST"] = (text, "compile extensions for these GPUs only")
    if tuning.hf_cache and workspace is not None:
        wanted["HF_HOME"] = (
            str(workspace / ".cache" / "huggingface"),
            "models that nodes fetch by themselves land on the workspace",
        )
    wanted["PYTHONUNBUFFERED"] = ("1", "log lines appear when they are written")
    return wanted


def _from_settings(name: str, settings: Settings) -> str | None:
    """A secret that the configuration holds under its well-known variable name."""
    known: dict[str, SecretStr | str | None] = {
        "HF_TOKEN": settings.models.hf_token,
        "HUGGING_FACE_HUB_TOKEN": settings.models.hf_token,
        "CIVITAI_API_KEY": settings.models.civitai_token,
        "R2_ACCESS_KEY_ID": settings.sync.access_key_id,
        "R2_SECRET_ACCESS_KEY": settings.sync.secret_access_key,
        "R2_ENDPOINT": settings.sync.endpoint,
        "R2_BUCKET": settings.sync.bucket,
        "RUNPOD_API_KEY": settings.idle.api_key,
        "BUCKET_ENDPOINT_URL": settings.worker.endpoint,
        "BUCKET_ACCESS_KEY_ID": settings.worker.access_key_id,
        "BUCKET_SECRET_ACCESS_KEY": settings.worker.secret_access_key,
        "JUPYTER_PASSWORD": settings.jupyter.token,
        "FB_PASSWORD": settings.filebrowser.password,
    }
    return plain(known.get(name))


def plain(value: Any) -> str | None:
    """The text of a secret or of a string; None when empty."""
    if isinstance(value, SecretStr):
        value = value.get_secret_value()
    return str(value) if value else None
