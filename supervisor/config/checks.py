"""What single values cannot show: settings that contradict each other."""

from __future__ import annotations

import re
import shlex
import signal
from collections.abc import Iterator

from supervisor.config.keys import KeyPath, dotted, resolve, secret_paths
from supervisor.config.layers import Layers
from supervisor.config.problems import nearest, shown
from supervisor.config.settings import LiveCheck, ReadyCheck, ServiceSection, Settings
from supervisor.errors import ConfigProblem

BUILTIN_SERVICES = ("comfyui", "jupyter", "filebrowser", "ssh")
# Compiled when a service needs them: most boots have none, and every millisecond counts.
_SERVICE_NAME = r"[A-Za-z0-9][A-Za-z0-9_.-]*"
_TCP = r"(\[[^\]]+\]|[^:\s]+):\d{1,5}"
_HTTP = ("http://", "https://")


def cross_problems(settings: Settings, layers: Layers) -> Iterator[ConfigProblem]:
    """Find every contradiction and every text that its later user would refuse."""
    for path, value, reason, hint in _findings(settings):
        yield ConfigProblem(
            key=dotted(path),
            value=shown(path, value),
            source=layers.origin(path),
            reason=reason,
            hint=hint,
        )
    yield from _switches(layers)


def _secrets(settings: Settings) -> Iterator[_Finding]:
    """Secrets travel in headers and on command lines: one line, nothing invisible."""
    for path in secret_paths():
        value = getattr(getattr(settings, str(path[0])), str(path[1]))
        if value is not None and not value.get_secret_value().isprintable():
            hint = "copy it again, without the line break"
            yield path, "", "must be one line of visible characters", hint


def _switches(layers: Layers) -> Iterator[ConfigProblem]:
    """Find true and false where a number belongs: Python takes them for 1 and 0."""
    for path in layers.origins:
        value, key = layers.get(path), resolve(path)
        if isinstance(value, bool) and key is not None and key.wants_number():
            yield ConfigProblem(
                key=dotted(path),
                value=shown(path, value),
                source=layers.origin(path),
                reason="must be a number",
            )


def cross_warnings(settings: Settings) -> Iterator[str]:
    """Find what is probably not meant but can be lived with."""
    idle = settings.idle
    if idle.enabled and idle.action in ("stop", "terminate") and not idle.dry_run:
        missing = [
            variable
            for variable, value in (
                ("RUNPOD_POD_ID", idle.pod_id),
                ("RUNPOD_API_KEY", idle.api_key),
            )
            if not value
        ]
        if missing:
            yield (
                f"idle shutdown cannot call RunPod's API without {' and '.join(missing)}; "
                "only runpodctl can stop the pod then"
            )


_Finding = tuple[KeyPath, object, str, str | None]


def _findings(settings: Settings) -> Iterator[_Finding]:
    yield from _secrets(settings)
    yield from _ports(settings)
    yield from _sync(settings)
    for name, variable in (("hf_endpoint", "HF_ENDPOINT"), ("civitai_endpoint", None)):
        address = getattr(settings.models, name)
        if not address.startswith(_HTTP):
            hint = f"like https://{address}" if address else f"unset {variable or name}"
            yield ("models", name), address, "must be an http(s) URL", hint
    for path, text in ((("comfyui", "args"), settings.comfyui.args),):
        try:
            shlex.split(text)
        except ValueError as error:
            yield path, text, f"cannot be split like a shell does: {error}", "close the quotes"
    if settings.idle.enabled and settings.idle.action == "command" and not settings.idle.command:
        hint = 'set command = ["program", "argument"] in [idle]'
        yield ("idle", "action"), "command", "needs idle.command", hint
    if settings.comfyui.enabled:
        yield from _user(("comfyui", "user"), settings.comfyui.user)
    for name, service in settings.services.items():
        yield from _service(name, service)


def _user(path: KeyPath, user: str | None) -> Iterator[_Finding]:
    """Look the user up; a uid needs no entry."""
    if user is None or user.isdecimal():
        return
    import pwd  # noqa: PLC0415 - few services have a user

    try:
        pwd.getpwnam(user)
    except KeyError:
        names = (entry.pw_name for entry in pwd.getpwall())
        hint = nearest(user, names, cutoff=0.75) or "create it in the Dockerfile: useradd"
        yield path, user, "is not a user of this system", hint


def _ports(settings: Settings) -> Iterator[_Finding]:
    jupyter, ssh = settings.jupyter, settings.ssh
    candidates = (
        ("health", settings.health.port, settings.health.port != 0),
        ("comfyui", settings.comfyui.port, settings.comfyui.enabled),
        ("jupyter", jupyter.port, _on(jupyter.enabled, implied=jupyter.token)),
        ("filebrowser", settings.filebrowser.port, settings.filebrowser.enabled),
        ("ssh", ssh.port, _on(ssh.enabled, implied=ssh.public_key)),
    )
    taken: dict[int, str] = {}
    for section, port, used in candidates:
        if not used:
            continue
        if port in taken:
            reason = f"is also the port of {taken[port]}.port"
            yield (section, "port"), port, reason, "give one of the two another port"
        taken.setdefault(port, section)


def _on(enabled: bool | None, *, implied: object) -> bool:
    return bool(implied) if enabled is None else enabled


def _sync(settings: Settings) -> Iterator[_Finding]:
    sync = settings.sync
    if sync.target != "s3" or sync.enabled is False:
        return
    needed = (
        ("endpoint", sync.endpoint, "R2_ENDPOINT"),
        ("access_key_id", sync.access_key_id, "R2_ACCESS_KEY_ID"),
        ("secret_access_key", sync.secret_access_key, "R2_SECRET_ACCESS_KEY"),
    )
    missing = [(key, variable) for key, value, variable in needed if not value]
    if missing:
        keys = ", ".join(f"sync.{key}" for key, _ in missing)
        variables = ", ".join(variable for _, variable in missing)
        hint = f"set {variables} (or their _FILE variants), or ENABLE_R2_SYNC=false"
        yield ("sync", "target"), "s3", f"needs {keys}", hint
    if sync.endpoint and not sync.endpoint.startswith(_HTTP):
        hint = "like https://<account>.r2.cloudflarestorage.com"
        yield ("sync", "endpoint"), sync.endpoint, "must be an http(s) URL", hint


def _service(name: str, service: ServiceSection) -> Iterator[_Finding]:
    path: KeyPath = ("services", name)
    if not re.fullmatch(_SERVICE_NAME, name):
        reason = "must be made of letters, digits, dots, dashes and underscores"
        yield path, None, f"as a service's name {reason}", "like [services.xtts]"
    if name in BUILTIN_SERVICES:
        hint = f"change the built-in one in [{name}], or choose another name"
        yield path, None, "is the name of a built-in service", hint
    known = signal.Signals.__members__
    stop_signal = service.stop_signal
    if stop_signal not in known:
        wanted = f"SIG{stop_signal.upper().removeprefix('SIG')}"
        suggestion = f"did you mean {wanted}?" if wanted in known else nearest(wanted, known)
        yield (*path, "stop_signal"), stop_signal, "is not a signal", suggestion
    yield from _user((*path, "user"), service.user)
    if service.restart == "never" and service.on_failure == "restart":
        yield (*path, "on_failure"), "restart", 'contradicts restart = "never"', None
    for part in ("ready", "live"):
        check = getattr(service, part)
        if check is not None:
            yield from _check((*path, part), check)


def _check(path: KeyPath, check: ReadyCheck | LiveCheck) -> Iterator[_Finding]:
    if check.http is not None and not check.http.startswith(_HTTP):
        yield (*path, "http"), check.http, "must be an http(s) URL", "like http://127.0.0.1:8020/"
    if check.tcp is not None and not re.fullmatch(_TCP, check.tcp):
        yield (*path, "tcp"), check.tcp, "must be host:port", "like 127.0.0.1:8020"
    for part in ("status", "body"):
        if getattr(check, part) is not None and check.http is None:
            yield (*path, part), getattr(check, part), "is for http checks only", None
    if getattr(check, "watchdog_s", 0) and getattr(check, "notify", None) is not True:
        hint = "the watchdog's messages come over NOTIFY_SOCKET: notify = true"
        yield (*path, "watchdog_s"), getattr(check, "watchdog_s", 0), "needs notify = true", hint
    for part in ("body", "log"):
        pattern = getattr(check, part, None)
        try:
            re.compile(pattern or "")
        except re.error as error:
            yield (*path, part), pattern, f"is not a regular expression: {error}", None
