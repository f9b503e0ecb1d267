"""The checks of ``supervisor doctor``: each looks at one thing and gives advice."""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from urllib.parse import urlsplit

from supervisor.app.facts import probe_nvenc_now
from supervisor.cli.planning import make_plan, read_facts
from supervisor.config.load import LoadedSettings
from supervisor.hardware.facts import HardwareFacts
from supervisor.plan.model import Plan
from supervisor.plan.render import human_size

# Room that ComfyUI, logs and journals need besides the models.
_LOW_DISK_BYTES = 5 * 10**9
_HTTP_TIMEOUT_S = 10.0


class Verdict(StrEnum):
    """What a check found."""

    OK = "ok"
    WARNING = "warning"
    WRONG = "wrong"
    SKIPPED = "skipped"


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report."""

    name: str
    verdict: Verdict
    message: str
    hint: str | None = None


Check = Callable[[], Iterator[Finding]]


def examine(
    loaded: LoadedSettings, environ: Mapping[str, str], *, offline: bool = False
) -> list[Finding]:
    """Run all checks side by side and return their findings in a fixed order.

    Raises:
        ConfigError: services or model files that make no sense.
    """
    facts = read_facts(loaded, environ)
    plan = make_plan(loaded, facts, environ)
    checks: list[Check] = [
        lambda: check_gpu(facts),
        lambda: check_nvenc(facts, environ),
        lambda: check_services(plan),
        lambda: check_disk(loaded, plan),
        lambda: check_ports(loaded),
    ]
    if not offline:
        checks += [lambda: check_dns(loaded), lambda: check_tokens(loaded)]
        checks.append(lambda: check_bucket(loaded))
    with ThreadPoolExecutor(max_workers=len(checks)) as pool:
        results = list(pool.map(lambda check: list(check()), checks))
    return [finding for result in results for finding in result]


def check_gpu(facts: HardwareFacts) -> Iterator[Finding]:
    """Is there a GPU, and does its driver answer?"""
    gpu = facts.gpu
    for device in gpu.devices:
        yield Finding("gpu", Verdict.OK, f"{device.name}, {device.memory_total_mib} MiB")
    if not gpu.devices:
        hint = "start the container with --gpus all, or rent a pod with a GPU"
        yield Finding("gpu", Verdict.WRONG, gpu.error or "no GPU", hint)


def check_nvenc(facts: HardwareFacts, environ: Mapping[str, str]) -> Iterator[Finding]:
    """Do the video encoders work?"""
    if not facts.gpu.devices:
        yield Finding("nvenc", Verdict.SKIPPED, "there is no GPU")
        return
    nvenc = probe_nvenc_now(facts, environ)
    working = [codec for codec, works in nvenc.codecs.items() if works]
    if working:
        yield Finding("nvenc", Verdict.OK, f"encodes {', '.join(working)}")
    else:
        hint = "NVIDIA_DRIVER_CAPABILITIES must hold `video`; videos are encoded on the CPU"
        yield Finding("nvenc", Verdict.WARNING, nvenc.error or "no codec works", hint)


def check_services(plan: Plan) -> Iterator[Finding]:
    """Can every service be started?"""
    for spec in plan.services:
        if spec.unavailable:
            yield Finding(spec.name, Verdict.WRONG, spec.unavailable, spec.hint)
        else:
            yield Finding(spec.name, Verdict.OK, "can be started")


def check_disk(loaded: LoadedSettings, plan: Plan) -> Iterator[Finding]:
    """Can the folders be written, and is there room?"""
    folders = {
        "state": loaded.settings.supervisor.state_dir,
        "output": plan.output_directory,
        "models": plan.models_directory,
    }
    for name, folder in folders.items():
        if folder is not None:
            yield _check_folder(name, folder)


def check_ports(loaded: LoadedSettings) -> Iterator[Finding]:
    """Are the ports free, or the supervisor's own?"""
    settings = loaded.settings
    if settings.supervisor.socket.exists():
        yield Finding("ports", Verdict.SKIPPED, "a supervisor is running: they are its own")
        return
    wanted = {"health": settings.health.port}
    for name in ("comfyui", "jupyter", "filebrowser", "ssh"):
        section = getattr(settings, name)
        if section.enabled:
            wanted[name] = section.port
    for name, port in wanted.items():
        try:
            with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(("0.0.0.0", port))  # noqa: S104 - that is what will be bound
        except OSError as error:
            hint = f"set {name}.port to another one, or stop what holds it"
            message = f"port {port} of {name}: {error.strerror}"
            yield Finding("ports", Verdict.WRONG, message, hint)
        else:
            yield Finding("ports", Verdict.OK, f"port {port} of {name} is free")


def check_dns(loaded: LoadedSettings) -> Iterator[Finding]:
    """Do the names of the configured hosts resolve?"""
    settings = loaded.settings
    addresses = (settings.models.hf_endpoint, settings.sync.endpoint, settings.idle.api_url)
    hosts = {urlsplit(address).hostname for address in addresses if address}
    for host in sorted(host for host in hosts if host):
        try:
            socket.getaddrinfo(host, 443, type=socket.SOCK_STREAM)
        except OSError as error:
            hint = "look at /etc/resolv.conf and the container's network"
            yield Finding("dns", Verdict.WRONG, f"{host}: {error.strerror}", hint)
        else:
            yield Finding("dns", Verdict.OK, f"{host} resolves")


def check_tokens(loaded: LoadedSettings) -> Iterator[Finding]:
    """Does Hugging Face accept the token?"""
    section = loaded.settings.models
    if section.hf_token is None:
        hint = "gated models need HF_TOKEN"
        yield Finding("tokens", Verdict.SKIPPED, "no Hugging Face token is set", hint)
        return
    url = f"{section.hf_endpoint.rstrip('/')}/api/whoami-v2"
    status = _get_status(url, {"Authorization": f"Bearer {section.hf_token.get_secret_value()}"})
    if status == 200:
        yield Finding("tokens", Verdict.OK, "Hugging Face accepts the token")
    elif status in (401, 403):
        hint = "make a new one at https://huggingface.co/settings/tokens and set HF_TOKEN"
        yield Finding("tokens", Verdict.WRONG, f"Hugging Face refuses the token ({status})", hint)
    else:
        what = f"answered {status}" if status else "did not answer"
        yield Finding("tokens", Verdict.WARNING, f"{urlsplit(url).hostname} {what}")


def check_bucket(loaded: LoadedSettings) -> Iterator[Finding]:
    """Can an object be written to, read from and deleted in the bucket?"""
    sync = loaded.settings.sync
    if sync.target != "s3" or sync.enabled is False:
        yield Finding("bucket", Verdict.SKIPPED, "no bucket is configured")
        return
    from supervisor.cli.bucket_check import check_bucket_access  # noqa: PLC0415 - botocore is slow

    fault, hint = check_bucket_access(sync)
    if fault is None:
        yield Finding("bucket", Verdict.OK, f"{sync.bucket}: written, read back and deleted")
    else:
        yield Finding("bucket", Verdict.WRONG, f"{sync.bucket}: {fault}", hint)


def _get_status(url: str, headers: Mapping[str, str]) -> int | None:
    """Return the status of a GET, None without an answer; redirects are not followed."""
    from http.client import HTTPConnection, HTTPException, HTTPSConnection  # noqa: PLC0415

    parts = urlsplit(url)
    maker = HTTPSConnection if parts.scheme == "https" else HTTPConnection
    connection = maker(parts.netloc, timeout=_HTTP_TIMEOUT_S)
    try:
        connection.request("GET", parts.path, headers=dict(headers))
        return connection.getresponse().status
    except (OSError, HTTPException):
        return None
    finally:
        connection.close()


def _check_folder(name: str, folder: Path) -> Finding:
    existing = folder
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    try:
        # Written and not only asked: a full disk or a read-only mount passes access().
        with tempfile.TemporaryFile(dir=existing) as probe:
            probe.write(b"doctor")
            probe.flush()
            os.fsync(probe.fileno())
    except OSError as error:
        hint = "mount it writable, free some space, or choose another folder"
        return Finding(name, Verdict.WRONG, f"{folder}: {error.strerror}", hint)
    free = shutil.disk_usage(existing).free
    message = f"{folder}: {human_size(free)} free"
    if free < _LOW_DISK_BYTES:
        return Finding(name, Verdict.WARNING, message, "models need more room than that")
    return Finding(name, Verdict.OK, message)
