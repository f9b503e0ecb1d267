"""The plan for people and for programs; no secret is in either."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

from supervisor.core.status import to_jsonable
from supervisor.download.request import DownloadRequest
from supervisor.plan.model import Plan
from supervisor.services.spec import ServiceSpec

HIDDEN = "***"


def plan_to_json(plan: Plan) -> dict[str, Any]:
    """The shape of ``plan --json`` (INTERFACE: JSON shapes)."""
    return {
        "gpu": to_jsonable(plan.gpu),
        "services": [_service_to_json(spec, plan) for spec in plan.services if spec.enabled],
        "downloads": [_download_to_json(request) for request in plan.downloads],
        "skipped": to_jsonable(plan.skipped),
        "sync": to_jsonable(plan.sync),
        "health": to_jsonable(plan.health),
        "storage": {**to_jsonable(plan.storage), "workspace": to_jsonable(plan.workspace)},
        "environment": {
            name: {"value": plan.base_environment[name], "reason": reason}
            for name, reason in plan.environment_reasons.items()
        },
        "models_directory": to_jsonable(plan.models_directory),
        "output_directory": to_jsonable(plan.output_directory),
        "sysctl": dict(plan.sysctl),
        "notes": list(plan.notes),
    }


def render_plan(plan: Plan) -> str:
    """The plan as text, with the reason for everything."""
    parts = [
        ("GPU", _gpu_lines(plan)),
        ("Storage", _storage_lines(plan)),
        ("Environment", _environment_lines(plan)),
        ("Services", _all_service_lines(plan)),
        ("Downloads", _download_lines(plan)),
        ("Skipped", [f"{item.name}: {item.reason}" for item in plan.skipped]),
        ("Sync", _sync_lines(plan)),
        ("Health", [f"http://{plan.health.host}:{plan.health.port}/ping"]),
        ("Notes", list(plan.notes)),
    ]
    blocks = [
        "\n".join([title, *(f"  {line}" for line in lines)]) for title, lines in parts if lines
    ]
    return "\n\n".join(blocks)


def _all_service_lines(plan: Plan) -> list[str]:
    return [line for s in plan.services if s.enabled for line in _service_lines(s, plan)]


def service_environment(spec: ServiceSpec, plan: Plan) -> dict[str, str]:
    """What the supervisor adds for a service, secrets hidden; not what is inherited."""
    tuned = {n: plan.base_environment[n] for n in plan.environment_reasons}
    shown = {n: HIDDEN if n in spec.secret_names else v for n, v in spec.environment.items()}
    return {**tuned, **shown}


def human_size(size_bytes: int | None) -> str:
    """Bytes in decimal units, as model pages show them."""
    if size_bytes is None:
        return "size unknown"
    size = float(size_bytes)
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.2f} TB"


def _service_to_json(spec: ServiceSpec, plan: Plan) -> dict[str, Any]:
    return {
        "name": spec.name,
        "command": list(spec.command),
        "environment": service_environment(spec, plan),
        "after": [
            d.service if d.condition == "ready" else f"{d.service}:{d.condition}"
            for d in spec.after
        ],
        "required": spec.required,
        "kind": str(spec.kind),
        "port": spec.port,
        "url": spec.url,
        "cwd": to_jsonable(spec.cwd),
        "user": spec.user,
        "stop": to_jsonable(spec.stop),
        "reasons": list(spec.reasons),
        "unavailable": spec.unavailable,
        "hint": spec.hint,
    }


def _download_to_json(request: DownloadRequest) -> dict[str, Any]:
    return {
        "name": request.name,
        "url": request.url,
        "destination": str(request.destination),
        "size_bytes": request.size_bytes,
        "sha256": request.sha256,
        "bundle": request.bundle,
        "required": request.required,
        "source": request.source,
    }


def _gpu_lines(plan: Plan) -> list[str]:
    gpu = plan.gpu
    lines = [
        f"{d.index}: {d.name}, {d.memory_total_bytes // 1024**2} MiB"
        + (f", compute capability {d.compute_capability}" if d.compute_capability else "")
        for d in gpu.devices
    ]
    if gpu.driver:
        lines.append(f"driver {gpu.driver}, CUDA {gpu.cuda or 'unknown'}")
    lines.append(f"tier {gpu.tier or 'none'}, memory mode {gpu.mode}")
    return [*lines, *(f"because {reason}" for reason in gpu.reasons)]


def _storage_lines(plan: Plan) -> list[str]:
    storage = plan.storage
    free = f", {human_size(storage.free_bytes)} free" if storage.free_bytes is not None else ""
    return [f"{storage.mode}: {plan.workspace}{free}", f"because {storage.reason}"]


def _environment_lines(plan: Plan) -> list[str]:
    reasons: Mapping[str, str] = plan.environment_reasons
    return [f"{name}={plan.base_environment[name]}  ({why})" for name, why in reasons.items()]


def _service_lines(spec: ServiceSpec, plan: Plan) -> list[str]:
    lines = [f"{spec.name}{' (required)' if spec.required else ''}"]
    if spec.unavailable:
        lines.append(f"  {spec.unavailable}")
        lines += [f"  hint: {spec.hint}"] if spec.hint else []
    lines.append(f"  {shlex.join(spec.command)}")
    lines += [f"  {n}={HIDDEN if n in spec.secret_names else v}" for n, v in
              spec.environment.items()]  # fmt: skip
    if spec.after:
        lines.append(f"  after {', '.join(f'{d.service} ({d.condition})' for d in spec.after)}")
    return [*lines, *(f"  because {r}" for r in spec.reasons if r not in plan.gpu.reasons)]


def _download_lines(plan: Plan) -> list[str]:
    lines = [
        f"{r.name} ({human_size(r.size_bytes)}) from {r.url}{', required' if r.required else ''}"
        for r in plan.downloads
    ]
    known = sum(r.size_bytes or 0 for r in plan.downloads)
    return [f"{len(lines)} files, {human_size(known)} known", *lines] if lines else []


def _sync_lines(plan: Plan) -> list[str]:
    sync = plan.sync
    state = f"{sync.source} -> {sync.target}" if sync.enabled else "off"
    return [f"{state}  ({sync.reason})"]
