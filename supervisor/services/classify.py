"""Why a process ended, told from its exit, its last lines and a few facts. Pure.

The patterns are messages of ComfyUI (main.py, server.py, app/assets), argparse, PyTorch
and CPython as of autumn 2026; ``tests/unit/data/logs`` has a log of each.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from supervisor.services.spec import ServiceKind


class ExitReason(StrEnum):
    """Identifiers that users count by (``supervisor_service_restarts_total{reason}``)."""

    STOPPED = "stopped"
    RESTARTED = "restart-asked"
    EXITED = "exited"
    PLANNED = "planned-restart"
    IN_PLACE = "restart-in-place"
    BAD_FLAG = "bad-flag"
    PORT_TAKEN = "port-taken"
    DATABASE_LOCKED = "database-locked"
    ASSETS = "assets-startup"
    CUDA_OOM = "cuda-oom"
    CUDA_ERROR = "cuda-error"
    OOM_KILL = "oom-kill"
    MEMORY = "out-of-memory"
    DISK_FULL = "disk-full"
    MISSING_MODULE = "missing-module"
    SEGFAULT = "segfault"
    TERMINATED = "terminated"
    KILLED = "killed"
    SIGNAL = "signal"
    EXIT_CODE = "exit-code"
    SPAWN = "spawn-failed"
    NOT_READY = "not-ready"
    HUNG = "hung"
    STALLED = "stalled"
    WATCHDOG = "watchdog"


@dataclass(frozen=True, slots=True)
class ExitFacts:
    """What is known about an exit.

    ``signal`` is a name such as SIGKILL; ``tail`` the last lines of output, oldest first;
    ``oom_kills`` how often the cgroup's OOM killer struck during this life; ``left_behind``
    how many processes outlived its leader; ``cause`` is set when the supervisor ended it
    and ``detail`` says why.
    """

    code: int | None = None
    signal: str | None = None
    tail: Sequence[str] = ()
    kind: ServiceKind = ServiceKind.GENERIC
    oom_kills: int = 0
    marker: bool = False
    left_behind: int = 0
    port: int | None = None
    port_holder: str | None = None
    planner_flags: tuple[str, ...] = ()
    cause: ExitReason | None = None
    detail: str = ""
    hint: str | None = None


@dataclass(frozen=True, slots=True)
class Classification:
    """An exit explained. ``drop_flags`` are to be left out of the next command; ``port`` is
    the one that somebody else holds."""

    reason: ExitReason
    message: str
    hint: str | None = None
    success: bool = False
    planned: bool = False
    permanent: bool = False
    drop_flags: tuple[str, ...] = ()
    port: int | None = None


# Strings, which ``re`` compiles at the first use: that costs 3 ms, and not at boot.
_UNKNOWN_FLAG = r"error: unrecognized arguments: (?P<flags>.+)"
_USAGE = r"(?m)^\S+: error: (?P<message>.+)"
_ASSETS = r"ASSETS_STARTUP_FAILED:? ?(?P<code>[a-z_]+)"
_PORT = r"[Pp]ort \d+ is already in use|[Aa]ddress already in use|EADDRINUSE|\[Errno 98\]"
_PORT_NUMBER = (  # ComfyUI, asyncio, sshd, and what writes an address
    r"(?i)port (\d+) (?:is already in use|on )|\('[^']*', (\d+)[,)]"
    r"|(?:[\d.]+|\]|localhost|\*):(\d+)"
)
_CUDA_OOM = (
    r"CUDA out of memory|OutOfMemoryError: (?:CUDA|Allocation on device)"
    r"|CUDA error: out of memory|torch\.OutOfMemoryError|CUBLAS_STATUS_ALLOC_FAILED"
    r"|Allocation on device"
)
_CUDA_ERROR = (
    r"CUDA error: (?P<cuda>[^\n]+)|CUDNN_STATUS_\w+|CUBLAS_STATUS_\w+|cudaErrorUnknown"
    r"|NVIDIA driver on your system is too old|Found no NVIDIA driver on your system"
    r"|no kernel image is available|Xid \d+"
    r"|Torch not compiled with CUDA enabled|No CUDA GPUs are available"
)
_DATABASE = (
    r"(?i)database is locked|Could not acquire lock on database|already using this database"
    r"|database lock held by|comfyui\.db.*lock"
)
_DISK = r"No space left on device|\[Errno 28\]|Disk quota exceeded|database or disk is full"
_MODULE = r"(?:ModuleNotFoundError|ImportError): (?P<what>[^\n]+)"
_MEMORY = (
    r"(?m)^MemoryError|DefaultCPUAllocator: can't allocate memory|std::bad_alloc"
    r"|Cannot allocate memory"
)

_LAST_LINES = 80
_HANGS = frozenset({ExitReason.HUNG, ExitReason.STALLED, ExitReason.WATCHDOG})

_ASSET_HINTS = {
    "in_use": "another pod or process uses this volume's user/comfyui.db: add "
    "--database-url sqlite:////tmp/comfyui.db to COMFYUI_ARGS",
    "locked": "the asset database is locked: end the other ComfyUI, or add "
    "--database-url sqlite:////tmp/comfyui.db to COMFYUI_ARGS",
    "newer_revision": "the database was written by a newer ComfyUI: update ComfyUI, or move "
    "user/comfyui.db away",
    "path_blocked": "the database's path is blocked: check user/ below ComfyUI",
    "not_writable": "make ComfyUI's user folder writable",
    "corrupt": "move user/comfyui.db away: ComfyUI makes a new one",
    "unsupported_url": "correct --database-url",
    "missing_packages": "run pip install -r requirements.txt in ComfyUI's environment",
}


def classify(facts: ExitFacts) -> Classification:
    """Explain an exit. What the supervisor did itself comes first, then what the kernel
    and the service said, the most specific before the general."""
    if facts.cause is not None:
        return _own_doing(facts.cause, facts)
    text = _last_words(facts)
    if facts.signal is not None:
        return _by_signal(facts, text)
    if facts.code == 0:
        if facts.marker:
            return Classification(
                ExitReason.PLANNED, "it asked to be restarted", success=True, planned=True
            )
        return _done(facts)
    if facts.code == 2 and (found := _usage(facts, text)) is not None:
        return found
    if facts.code in (137, 139, 143):  # a shell in between reports the signal so
        name = {137: "SIGKILL", 139: "SIGSEGV", 143: "SIGTERM"}[facts.code]
        return _by_signal(facts, text, name)
    return _by_text(facts, text) or Classification(
        ExitReason.EXIT_CODE, f"exited with {facts.code}", _last_error(facts.tail)
    )


def _done(facts: ExitFacts) -> Classification:
    if not facts.left_behind:
        return Classification(ExitReason.EXITED, "exited with 0", success=True)
    return Classification(
        ExitReason.EXITED,
        f"exited with 0 and left {facts.left_behind} of its processes running",
        "does it put itself into the background? Start it in the foreground (often -D, -f, "
        "--foreground or --no-daemon)",
        success=True,
    )


def _last_words(facts: ExitFacts) -> str:
    """What may have to do with the end: an error of long ago has not."""
    return "\n".join(facts.tail[-_LAST_LINES:])


def _own_doing(cause: ExitReason, facts: ExitFacts) -> Classification:
    if cause in (ExitReason.STOPPED, ExitReason.RESTARTED):
        message = "stopped as asked" if cause is ExitReason.STOPPED else "restarted as asked"
        return Classification(cause, message, success=True)
    if cause is ExitReason.PORT_TAKEN:
        return _port_taken(facts)
    if cause is ExitReason.NOT_READY:
        # It may have said why: an out-of-memory during the start is not a slow start.
        told = _by_text(facts, _last_words(facts))
        hint = (told.hint if told else None) or facts.hint
        return Classification(told.reason if told else cause, facts.detail, hint)
    place = _hang_place(facts.tail) if cause in _HANGS else ""
    return Classification(cause, facts.detail + place, facts.hint)


def _by_signal(facts: ExitFacts, text: str, name: str | None = None) -> Classification:
    name = name or facts.signal or ""
    if name == "SIGKILL":
        if facts.oom_kills > 0:
            return Classification(
                ExitReason.OOM_KILL,
                "killed by the kernel: the container's memory limit was reached",
                "use a pod with more RAM, smaller models or --cache-none; a cache sized from "
                "the host's RAM is limited by --cache-ram",
            )
        return Classification(
            ExitReason.KILLED,
            "killed by SIGKILL from outside",
            "a kill -9 in this container, or the host ran out of memory: compare the pod's "
            "memory with what it needs",
        )
    if name in ("SIGSEGV", "SIGBUS", "SIGILL", "SIGFPE"):
        if (told := _cuda(text)) is not None:
            return told
        return Classification(
            ExitReason.SEGFAULT,
            f"crashed with {name}{_crash_place(facts.tail)}",
            "a custom node's native code or a torch that does not fit the driver; the stack is "
            "in the log",
        )
    if name in ("SIGTERM", "SIGINT", "SIGHUP"):
        return Classification(
            ExitReason.TERMINATED,
            f"ended by {name} from outside",
            "another program of this container sent it; to stop or restart it for good use "
            "supervisor stop or restart",
        )
    if (told := _by_text(facts, text)) is not None:
        return told
    return Classification(ExitReason.SIGNAL, f"ended by {name}", _last_error(facts.tail))


def _usage(facts: ExitFacts, text: str) -> Classification | None:
    """What argparse refused: flags of the plan are dropped, those of people are told."""
    unknown = re.search(_UNKNOWN_FLAG, text)
    usage = re.search(_USAGE, text)
    if usage is None:
        return None
    words = re.findall(r"--?[A-Za-z][\w-]*", unknown["flags"] if unknown else usage["message"])
    droppable = tuple(word for word in dict.fromkeys(words) if word in facts.planner_flags)
    if droppable:
        how = "does not know" if unknown else "refuses"
        return Classification(
            ExitReason.BAD_FLAG,
            f"{how} {', '.join(droppable)}, which the plan added: starting without",
            None if unknown else f"it said: {usage['message']}",
            drop_flags=droppable,
        )
    if unknown is not None:
        message, hint = f"does not know {unknown['flags'].strip()}", "remove it"
    else:
        message, hint = f"refuses its arguments: {usage['message']}", "correct its arguments"
    return Classification(ExitReason.BAD_FLAG, message, hint + _where(facts.kind), permanent=True)


def _where(kind: ServiceKind) -> str:
    return " (COMFYUI_ARGS)" if kind is ServiceKind.COMFYUI else " (command in supervisor.toml)"


def _by_text(facts: ExitFacts, text: str) -> Classification | None:
    if facts.kind is ServiceKind.COMFYUI and (match := re.search(_ASSETS, text)) is not None:
        code = match["code"]
        locked = code in ("in_use", "locked")
        return Classification(
            ExitReason.DATABASE_LOCKED if locked else ExitReason.ASSETS,
            f"its asset database cannot be used: {code}",
            _ASSET_HINTS.get(code, "see its log"),
        )
    if (taken := re.search(rf"(?m)^.*(?:{_PORT}).*$", text)) is not None:
        return _port_taken(replace(facts, port=_port_number(taken[0]) or facts.port))
    if (told := _cuda(text)) is not None:
        return told
    if re.search(_DATABASE, text):
        return Classification(
            ExitReason.DATABASE_LOCKED, "its database is locked", _ASSET_HINTS["locked"]
        )
    if re.search(_DISK, text):
        return Classification(
            ExitReason.DISK_FULL, "the disk is full", "free space, or use a larger volume"
        )
    if re.search(_MEMORY, text):
        return Classification(
            ExitReason.MEMORY, "out of memory (RAM)", "use a pod with more RAM or smaller models"
        )
    if (missing := re.findall(_MODULE, text)) and facts.code == 1:
        return Classification(
            ExitReason.MISSING_MODULE,
            f"a Python module is missing: {missing[-1]}",
            "install the requirements into the environment it runs in",
        )
    return None


def _cuda(text: str) -> Classification | None:
    if re.search(_CUDA_OOM, text):
        return Classification(
            ExitReason.CUDA_OOM,
            "the GPU's memory is used up (CUDA out of memory)",
            "lower GPU_MEMORY_MODE, or use smaller models, batches or resolutions",
        )
    if (match := re.search(_CUDA_ERROR, text)) is not None:
        return Classification(
            ExitReason.CUDA_ERROR,
            f"CUDA failed: {(match['cuda'] or match[0]).strip()}",
            "supervisor doctor checks GPU, driver and torch; a card that keeps failing needs "
            "another machine",
        )
    return None


def _port_taken(facts: ExitFacts) -> Classification:
    holder = facts.port_holder or "another process"
    where = f"port {facts.port}" if facts.port is not None else "its port"
    return Classification(
        ExitReason.PORT_TAKEN,
        f"{where} is held by {holder}",
        "end that process, or give one of them another port",
        port=facts.port,
    )


def _port_number(line: str) -> int | None:
    match = re.search(_PORT_NUMBER, line)
    return int(next(filter(None, match.groups()))) if match else None


def _crash_place(tail: Sequence[str]) -> str:
    """Where the thread that crashed was: its custom node if in one, else its last frame."""
    current = next(iter(_stacks(tail)), [])
    return _place(next(filter(_of_node, current), next(iter(current), "")))


def _hang_place(tail: Sequence[str]) -> str:
    """Where a hung one was when it was ended: in a custom node if any thread was in one,
    else where the event loop's thread was."""
    of_nodes = (frame for stack in _stacks(tail) for frame in stack if _of_node(frame))
    frame = next(of_nodes, None)
    return _place(frame) if frame else _crash_place(tail)


def _stacks(tail: Sequence[str]) -> list[list[str]]:
    """The frames of each thread in a dump of faulthandler, the current thread's first."""
    found: list[list[str]] = []
    frames: list[str] | None = None
    for line in tail:
        if line.endswith("(most recent call first):"):
            frames = []
            found.insert(0 if line.startswith("Current thread") else len(found), frames)
        elif frames is not None and line.lstrip().startswith("File "):
            frames.append(line.strip())
        else:
            frames = None
    return found


def _of_node(frame: str) -> bool:
    return "/custom_nodes/" in frame


def _place(frame: str) -> str:
    return f" at {frame}" if frame else ""


def _last_error(tail: Sequence[str]) -> str | None:
    """The last line that looks like an error, as a hint of what to look for."""
    for line in reversed(tail):
        if re.match(r"[\w.]*(Error|Exception|error|fatal|FATAL)\b", line.strip()):
            return line.strip()[:300]
    return None
