"""The status for people, by hand: ``rich`` alone would take ten times the command's time."""

from __future__ import annotations

TYPE_CHECKING = False  # spares the import of typing; type checkers know the name
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from typing import Any

_CODES = {"bold": "1", "dim": "2", "red": "31", "green": "32", "yellow": "33", "cyan": "36"}
_STATE_COLORS = {
    "ready": "green", "done": "green", "booting": "cyan", "starting": "cyan", "active": "cyan",
    "verifying": "cyan", "waiting": "dim", "queued": "dim", "stopped": "dim", "disabled": "dim",
    "skipped": "dim", "stopping": "yellow", "unhealthy": "yellow", "backoff": "yellow",
    "degraded": "yellow", "failed": "red", "rescue": "red",
}  # fmt: skip
_LABEL_WIDTH = 10
_NARROW = 60
_FILES_SHOWN = 8


class Paint:
    """Colours text, or leaves it alone."""

    __slots__ = ("enabled",)

    def __init__(self, *, enabled: bool) -> None:
        self.enabled = enabled

    def __call__(self, text: str, style: str | None) -> str:
        """Return ``text`` in a style such as ``red``."""
        if not self.enabled or not style:
            return text
        return f"\x1b[{_CODES[style]}m{text}\x1b[0m"

    def state(self, state: str, width: int = 0) -> str:
        """Return a state in its colour, padded to ``width``."""
        return self(f"{clean(state):<{width}}", _STATE_COLORS.get(state))


def render_status(status: Mapping[str, Any], paint: Paint, width: int) -> str:
    """Render ``status --json``'s document in at most ``width`` columns.

    Only the addresses of ``access`` may be longer: half a token opens nothing.
    """
    pod = [fold(line, width) for line in _pod(status, paint)]
    pod += _access(status, paint)
    blocks = (
        render_gpu(status, paint),
        _services(status, paint, width),
        _downloads(status, paint),
        _sync(status, paint),
        _host(status, paint),
        _concerns(status, paint),
    )
    lines = [line for block in blocks for line in block]
    return "\n".join((*pod, *(fold(line, width) for line in lines)))


def clean(text: object) -> str:
    """Drop what could drive the terminal: services and servers choose these texts."""
    shown = str(text)
    return shown if shown.isprintable() else "".join(c if c.isprintable() else " " for c in shown)


def fold(line: str, width: int) -> str:
    """Break a line at spaces into lines of ``width`` visible columns: nothing is left out.

    What is continued stands below its beginning; a word that is too long is cut in two.
    """
    if len(line) <= width or len(_bare(line)) <= width:
        return line
    start = len(line) - len(line.lstrip(" "))
    indent = " " * min(start or _LABEL_WIDTH + 1, width // 2)
    lines: list[str] = []
    current, filled = " " * start, False
    for word in line[start:].split(" "):
        rest = word
        if filled and len(_bare(current)) + 1 + len(_bare(rest)) > width:
            lines.append(current.rstrip())
            current, filled = indent, False
        while (room := width - len(_bare(current))) < len(_bare(rest)):
            head, rest = _cut(rest, room)
            lines.append(current + head)
            current = indent
        current += f" {rest}" if filled else rest
        filled = filled or bool(rest) or not lines
    return "\n".join((*lines, current))


def _cut(word: str, room: int) -> tuple[str, str]:
    """Split after ``room`` visible characters."""
    position = visible = 0
    while visible < room:
        if word[position] == "\x1b":
            position = word.index("m", position)
        else:
            visible += 1
        position += 1
    return word[:position], word[position:]


def size(size_bytes: float | None) -> str:
    """Render bytes in decimal units, as downloads and disks count."""
    value = float(size_bytes or 0)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"


def gib(size_bytes: float | None) -> str:
    """Render memory in GiB or MiB, as cards and cgroups count."""
    known = size_bytes or 0
    return f"{known / 2**20:.0f} MiB" if known < 2**30 else f"{known / 2**30:.1f} GiB"


def duration(seconds: float | None) -> str:
    """Render seconds as ``45s``, ``12m``, ``3h05m`` or ``2d4h``."""
    total = int(seconds or 0)
    if total < 60:
        return f"{total}s"
    if total < 3600:
        return f"{total // 60}m{total % 60:02d}s" if total < 600 else f"{total // 60}m"
    if total < 86400:
        return f"{total // 3600}h{total % 3600 // 60:02d}m"
    return f"{total // 86400}d{total % 86400 // 3600}h"


def _bare(text: str) -> str:
    while "\x1b" in text:
        start = text.index("\x1b")
        text = text[:start] + text[text.index("m", start) + 1 :]
    return text


def _line(paint: Paint, label: str, text: str) -> str:
    return f"{paint(f'{label:<{_LABEL_WIDTH}}', 'bold')} {text}"


def _under(text: str) -> str:
    return " " * (_LABEL_WIDTH + 1) + text


def _pod(status: Mapping[str, Any], paint: Paint) -> Iterator[str]:
    parts = [paint.state(status["phase"])]
    if status.get("version"):
        parts.append(f"supervisor {status['version']}")
    parts.append(clean(status.get("config_file") or "no configuration file"))
    boot = status.get("boot") or {}
    if status.get("ready") and (boot.get("spans_s") or {}).get("ready"):
        usual = (boot.get("median_s") or {}).get("ready")
        usually = f" (usually {_brief(usual)})" if usual is not None else ""
        parts.append(f"ready after {_brief(boot['spans_s']['ready'])}{usually}")
    yield _line(paint, "pod", "  ".join(parts))
    missing = [clean(name) for name in status.get("missing") or ()]
    if missing:
        yield _under(f"waits for {', '.join(missing)}")


def _brief(seconds: float) -> str:
    return f"{seconds:.1f}s" if seconds < 10 else duration(seconds)


def _access(status: Mapping[str, Any], paint: Paint) -> Iterator[str]:
    for name, address in (status.get("access") or {}).items():
        yield _line(paint, clean(name), clean(address))


def render_gpu(status: Mapping[str, Any], paint: Paint) -> Iterator[str]:
    """Render the GPU part of a status."""
    gpu = status.get("gpu") or {}
    label = "gpu"
    for device in gpu.get("devices") or ():
        total = device.get("memory_total_bytes")
        used = device.get("memory_used_bytes")
        memory = f"{gib(used)} of {gib(total)}" if used is not None else gib(total)
        parts = [clean(device["name"]), memory]
        if device.get("utilization_ratio") is not None:
            parts.append(f"{device['utilization_ratio'] * 100:.0f} %")
        if device.get("temperature_celsius") is not None:
            parts.append(f"{device['temperature_celsius']:.0f} °C")
        yield _line(paint, label, "  ".join(parts))
        label = ""
    if gpu.get("error"):
        yield _line(paint, label, paint(clean(gpu["error"]), "yellow"))
        label = ""
    facts = [f"{name} {clean(gpu[name])}" for name in ("tier", "mode") if gpu.get(name)]
    working = [clean(codec) for codec, works in (gpu.get("nvenc") or {}).items() if works]
    if working:
        facts.append(f"nvenc {' '.join(working)}")
    if gpu.get("ladder_step"):
        facts.append(paint(f"VRAM ladder step {gpu['ladder_step']}", "yellow"))
    if facts:
        yield _line(paint, label, "  ".join(facts))
    for reason in gpu.get("ladder_reasons") or ():
        yield _under(paint(clean(reason), "yellow"))


def _services(status: Mapping[str, Any], paint: Paint, width: int) -> Iterator[str]:
    services = status.get("services") or {}
    if not services:
        return
    links = status.get("links") or {}
    memory = (status.get("host") or {}).get("service_memory_bytes") or {}
    longest = max(len(clean(name)) for name in services)
    yield ""
    for name, service in services.items():
        mark = "!" if service.get("required") and not service.get("ready") else " "
        parts = [f"{mark} {clean(name):<{longest}}", paint.state(service["state"], 9)]
        if width >= _NARROW:
            parts.append(f"{'pid ' + str(service['pid']) if service.get('pid') else '':<11}")
        if name in memory:
            parts.append(gib(memory[name]))
        if count := service.get("restarts"):
            parts.append(paint(f"{count} restart{'s' if count > 1 else ''}", "yellow"))
        link = links.get(name) or service.get("url")
        if link and service.get("ready"):
            parts.append(clean(link))
        yield "  ".join(parts).rstrip()
        yield from _service_notes(service, paint, longest + 4)


def _service_notes(service: Mapping[str, Any], paint: Paint, indent: int) -> Iterator[str]:
    space = " " * indent
    if service.get("message"):
        yield f"{space}{paint(clean(service['message']), 'dim')}"
    last = service.get("last_exit")
    if last and service["state"] in ("backoff", "failed", "unhealthy", "stopped"):
        reason = clean(last.get("reason") or "unknown")
        how = clean(last.get("signal") or f"exit {last['code']}")
        never = last.get("signal") is None and last.get("code") is None
        yield f"{space}{'did not start' if never else f'ended by {how}'}: {reason}"
    if service.get("hint"):
        yield f"{space}hint: {clean(service['hint'])}"


def _downloads(status: Mapping[str, Any], paint: Paint) -> Iterator[str]:
    downloads = status.get("downloads") or {}
    files: Sequence[Mapping[str, Any]] = downloads.get("files") or ()
    if not files:
        return
    parts = [f"{downloads['done']} of {downloads['total']} files"]
    if downloads.get("bytes_total"):
        parts.append(f"{size(downloads['bytes_done'])} of {size(downloads['bytes_total'])}")
    if downloads.get("rate_bytes_per_s"):
        parts.append(f"{size(downloads['rate_bytes_per_s'])}/s")
    if downloads.get("eta_s"):
        parts.append(f"{duration(downloads['eta_s'])} left")
    if downloads.get("failed"):
        parts.append(paint(f"{downloads['failed']} failed", "red"))
    yield ""
    yield _line(paint, "downloads", ", ".join(parts))
    order = ("failed", "active", "verifying")
    moving = sorted(
        (file for file in files if file["state"] in order), key=lambda f: order.index(f["state"])
    )
    for file in moving[:_FILES_SHOWN]:
        yield from _download(file, paint)
    if len(moving) > _FILES_SHOWN:
        yield _under(f"and {len(moving) - _FILES_SHOWN} more")


def _download(file: Mapping[str, Any], paint: Paint) -> Iterator[str]:
    total = file.get("bytes_total")
    share = f" {100 * file['bytes_done'] / total:.0f} %" if total else ""
    yield _under(f"{paint.state(file['state'])}{share} {clean(file['name'])}")
    if file.get("error"):
        yield _under(f"  {clean(file['error'])}")
    if file.get("hint"):
        yield _under(f"  hint: {clean(file['hint'])}")


def _sync(status: Mapping[str, Any], paint: Paint) -> Iterator[str]:
    sync = status.get("sync") or {}
    if not sync.get("enabled"):
        return
    parts = [f"{sync['uploaded']} stored", f"{sync['pending']} pending"]
    if sync.get("failed"):
        parts.append(paint(f"{sync['failed']} failed", "red"))
    if sync.get("incomplete"):
        parts.append(paint(f"{sync['incomplete']} incomplete", "yellow"))
    yield ""
    yield _line(paint, "sync", f"{clean(sync.get('target') or '')}  {', '.join(parts)}")
    if any(alert.get("name") == "sync blocked" for alert in status.get("alerts") or ()):
        return  # it tells what is wrong
    if sync.get("last_error"):
        yield _under(paint(clean(sync["last_error"]), "red"))
    if sync.get("hint"):
        yield _under(f"hint: {clean(sync['hint'])}")


def _host(status: Mapping[str, Any], paint: Paint) -> Iterator[str]:
    host, idle = status.get("host") or {}, status.get("idle") or {}
    parts = []
    if host.get("cpu_ratio") is not None:
        parts.append(f"cpu {host['cpu_ratio'] * 100:.0f} %")
    if host.get("memory_used_bytes") is not None:
        limit = host.get("memory_limit_bytes")
        of = f" of {gib(limit)}" if limit else ""
        parts.append(f"memory {gib(host['memory_used_bytes'])}{of}")
    if host.get("comfyui_queue_length") is not None:
        parts.append(f"queue {host['comfyui_queue_length']}")
    silent = host.get("silent_disks") or ()
    disks = {mount: d for mount, d in (host.get("disks") or {}).items() if mount not in silent}
    parts += [f"{clean(mount)} {size(disk['free_bytes'])} free" for mount, disk in disks.items()]
    parts += [paint(f"{clean(mount)} does not answer", "red") for mount in silent]
    if parts:
        yield _line(paint, "host", "  ".join(parts))
    yield from _nodes(status, paint)
    if idle.get("enabled"):
        yield _line(paint, "idle", idle_text(idle))
        if idle.get("problem"):
            yield _under(paint(clean(idle["problem"]), "red"))


def idle_text(idle: Mapping[str, Any]) -> str:
    """Write why the pod counts as in use, or when it ends."""
    if idle.get("ending"):
        return f"unused: {clean(idle['ending'])} now"
    if idle.get("busy_because"):
        return f"in use: {', '.join(clean(reason) for reason in idle['busy_because'])}"
    text = f"unused for {duration(idle.get('idle_s'))} of {duration(idle.get('limit_s'))}"
    left = idle.get("ends_in_s")
    return text if left is None else f"{text}, ends in {duration(left)}"


def _nodes(status: Mapping[str, Any], paint: Paint) -> Iterator[str]:
    nodes = status.get("nodes") or {}
    states = [str(node["state"]) for node in nodes.get("nodes") or ()]
    told = [
        f"{states.count(s)} {s}" for s in ("updated", "current", "kept", "failed") if s in states
    ]
    if nodes.get("updating"):
        told.append("updating")
    if told:
        yield _line(paint, "nodes", ", ".join(told))


def _last(advice: Mapping[str, Any]) -> str:
    seen = clean(advice.get("last_seen") or "")
    return f", last at {seen[11:16]} UTC" if seen else ""


def _concerns(status: Mapping[str, Any], paint: Paint) -> Iterator[str]:
    for problem in status.get("rescue") or ():
        for number, line in enumerate(str(problem).splitlines()):
            text = clean(line)
            yield _line(paint, "error", paint(text, "red")) if number == 0 else _under(text)
    for alert in status.get("alerts") or ():
        yield _line(paint, "alert", paint(clean(alert["message"]), "yellow"))
        if alert.get("hint"):
            yield _under(f"hint: {clean(alert['hint'])}")
    for advice in status.get("advice") or ():
        count = f" ({advice['count']} times{_last(advice)})" if advice.get("count", 1) > 1 else ""
        style = {"error": "red", "warning": "yellow"}.get(advice.get("severity") or "")
        yield _line(paint, "advice", paint(clean(advice["message"]), style) + count)
        if advice.get("hint"):
            yield _under(f"hint: {clean(advice['hint'])}")
        if advice.get("link"):
            yield _under(paint(f"see {clean(advice['link'])}", "dim"))
    for note in status.get("notes") or ():
        yield _line(paint, "note", clean(note))
