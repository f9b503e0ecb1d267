"""What a service is: pure values that the plan makes and the runner carries out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from supervisor.core.retry import Backoff


class ServiceKind(StrEnum):
    """Which knowledge applies: how exits are classified and what counts as busy."""

    GENERIC = "generic"
    COMFYUI = "comfyui"
    JUPYTER = "jupyter"
    FILEBROWSER = "filebrowser"
    SSH = "ssh"


class RestartPolicy(StrEnum):
    """When an exited service is started again."""

    ALWAYS = "always"
    ON_FAILURE = "on-failure"
    NEVER = "never"


class DependencyCondition(StrEnum):
    """What a dependency must have reached."""

    READY = "ready"
    STARTED = "started"


class FailureAction(StrEnum):
    """What happens when a service is down for good.

    RESTART: it never is; it goes on trying, at the longest delay.
    """

    IGNORE = "ignore"
    RESTART = "restart"
    SHUTDOWN = "shutdown"


@dataclass(frozen=True, slots=True)
class Dependency:
    """Start after ``service`` reached ``condition``."""

    service: str
    condition: DependencyCondition = DependencyCondition.READY


@dataclass(frozen=True, slots=True)
class HttpProbe:
    """GET must answer 2xx (or exactly ``status``), with a body matching ``body`` if given."""

    url: str
    status: int | None = None
    body: str | None = None


@dataclass(frozen=True, slots=True)
class TcpProbe:
    """A connection must be accepted."""

    host: str
    port: int


@dataclass(frozen=True, slots=True)
class ExecProbe:
    """A command must exit 0."""

    command: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class FileProbe:
    """A path must exist."""

    path: Path


@dataclass(frozen=True, slots=True)
class LogProbe:
    """A line of output must match (``re.search``)."""

    pattern: str


@dataclass(frozen=True, slots=True)
class NotifyProbe:
    """The service says so itself: sd_notify READY=1, or a newline on descriptor 3.

    With ``watchdog_s`` it must send WATCHDOG=1 at least so often (``WATCHDOG_USEC``).
    """

    descriptor: bool = False
    watchdog_s: float = 0.0


@dataclass(frozen=True, slots=True)
class EnsureDirectory:
    """Create a folder (with parents) and set its mode."""

    path: Path
    mode: int = 0o755


@dataclass(frozen=True, slots=True)
class EnsureLines:
    """Append the lines that a file does not hold yet; the file gets ``mode``."""

    path: Path
    lines: tuple[str, ...]
    mode: int = 0o600


@dataclass(frozen=True, slots=True)
class RunFirst:
    """Run a command to its end before the start, unless ``creates`` exists already.

    ``{secret}`` in an argument is replaced by ``secret`` at the last moment, so that the
    step can be shown.
    """

    command: tuple[str, ...]
    creates: Path | None = None
    secret: str | None = field(default=None, repr=False)
    timeout_s: float = 20.0


PrepareStep = EnsureDirectory | EnsureLines | RunFirst

ActiveProbe = HttpProbe | TcpProbe | ExecProbe | FileProbe
Probe = ActiveProbe | LogProbe | NotifyProbe


@dataclass(frozen=True, slots=True)
class Readiness:
    """How a start is known to have succeeded."""

    probe: Probe
    timeout_s: float = 60.0
    interval_s: float = 0.25


@dataclass(frozen=True, slots=True)
class Liveness:
    """How a hung service is known."""

    probe: ActiveProbe
    interval_s: float = 10.0
    timeout_s: float = 5.0
    failures: int = 3
    grace_s: float = 0.0


@dataclass(frozen=True, slots=True)
class StopStep:
    """Send ``signal`` (a name like SIGINT) and wait ``grace_s`` for the group to be gone."""

    signal: str
    grace_s: float


@dataclass(frozen=True, slots=True)
class ServiceSpec:
    """One service, completely decided.

    ``environment`` is everything added to the plan's base environment; values of the
    names in ``secret_names`` are never shown. ``command`` is executed as it is, no shell.
    ``reasons`` explains flags and settings to people.
    """

    name: str
    command: tuple[str, ...]
    kind: ServiceKind = ServiceKind.GENERIC
    enabled: bool = True  # False: shown as disabled, runs only when somebody starts it
    environment: Mapping[str, str] = field(default_factory=dict)
    secret_names: frozenset[str] = frozenset()
    after: tuple[Dependency, ...] = ()
    required: bool = False
    restart: RestartPolicy = RestartPolicy.ALWAYS
    on_failure: FailureAction = FailureAction.IGNORE
    backoff: Backoff = Backoff()
    max_restarts: int = 10
    window_s: float = 600.0
    healthy_after_s: float = 30.0
    readiness: Readiness | None = None
    liveness: Liveness | None = None
    stop: tuple[StopStep, ...] = (StopStep("SIGTERM", 5.0),)  # SIGKILL follows by itself
    user: str | None = None
    cwd: Path | None = None
    umask: int | None = None
    nice: int | None = None
    limit_nofile: int | None = None
    limit_core_bytes: int | None = None
    log_file: Path | None = None
    port: int | None = None  # checked to be free before the start
    url: str | None = None
    stall_timeout_s: float = 0.0  # ComfyUI only
    safe_mode: bool = False  # ComfyUI only
    planner_flags: tuple[str, ...] = ()  # flags the planner added: droppable on exit 2
    reasons: tuple[str, ...] = ()
    prepare: tuple[PrepareStep, ...] = ()  # done in order before every start
    unavailable: str | None = None  # why it cannot be started at all: shown as failed
    hint: str | None = None  # what to do about it
