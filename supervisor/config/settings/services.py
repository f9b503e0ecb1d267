"""`[services.NAME]`: services of the user, and how they are probed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from supervisor.config.settings.section import Seconds, Section

OnFailure = Literal["ignore", "restart", "shutdown"]

ON_FAILURE = (
    "When max_restarts is reached: leave it down, try again for ever at the longest delay, "
    "or end the container with its exit code."
)


class Check(Section):
    """A question put to a service; exactly one kind of probe asks it."""

    kinds: ClassVar[tuple[str, ...]] = ("http", "tcp", "exec", "file")

    http: str | None = Field(None, description="URL that must answer 2xx.")
    status: int | None = Field(None, description="Exact HTTP status instead of any 2xx.")
    body: str | None = Field(None, description="Regular expression the body must match.")
    tcp: str | None = Field(None, description="host:port that must accept a connection.")
    exec: tuple[str, ...] | None = Field(None, description="Command that must exit 0.")
    file: Path | None = Field(None, description="Path that must exist.")

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        given = [kind for kind in self.kinds if getattr(self, kind) not in (None, False)]
        if len(given) != 1:
            found = ", ".join(given) or "none"
            raise ValueError(f"give exactly one of {', '.join(self.kinds)} (found {found})")
        return self


class ReadyCheck(Check):
    """When a service counts as ready: exactly one kind of probe."""

    kinds = (*Check.kinds, "log", "notify")

    log: str | None = Field(None, description="Regular expression a log line must match.")
    notify: bool | Literal["fd"] | None = Field(
        None, description='true: sd_notify READY=1; "fd": a newline on descriptor 3 (s6).'
    )
    watchdog_s: Seconds = Field(
        0.0, description="With notify: WATCHDOG=1 must come at least so often; 0 never."
    )
    timeout_s: Seconds = Field(60.0, description="Seconds until the start counts as failed.")
    interval_s: Seconds = Field(0.25, description="Pause between tries.")


class LiveCheck(Check):
    """When a service counts as hung: exactly one kind of probe."""

    interval_s: Annotated[float, Field(gt=0)] = Field(10.0, description="Pause between checks.")
    timeout_s: Seconds = Field(5.0, description="Seconds for one check.")
    failures: Annotated[int, Field(ge=1)] = Field(
        3, description="Failures in a row that count as hung."
    )
    grace_s: Seconds = Field(0.0, description="Seconds after ready before the first check.")


class Limits(Section):
    """Resource limits of a service's processes."""

    nofile: int | None = Field(None, ge=1, description="Open files.")
    core_bytes: int | None = Field(None, ge=0, description="Core dump size in bytes.")


class ServiceSection(Section):
    """A service of the user."""

    command: tuple[str, ...] = Field(description="Program and arguments; no shell.", min_length=1)
    enabled: bool = Field(True, description="Run it.")
    after: tuple[str, ...] = Field(
        (), description='Services that come first: "name" (ready) or "name:started".'
    )
    required: bool = Field(False, description="/ping is 503 while it is down for good.")
    restart: Literal["always", "on-failure", "never"] = Field(
        "always", description="When it is started again after it ended."
    )
    on_failure: OnFailure = Field("ignore", description=ON_FAILURE)
    backoff_initial_s: Seconds = Field(
        1.0,
        description="Most seconds before the second restart in a row (the first comes at once), "
        "doubled for each further one.",
    )
    backoff_max_s: Seconds = Field(60.0, description="Most seconds before any restart.")
    max_restarts: int = Field(10, ge=0, description="Restarts per window before giving up.")
    window_s: Seconds = Field(600.0, description="Seconds in which max_restarts are counted.")
    healthy_after_s: Seconds = Field(
        30.0, description="Seconds of being ready after which delay and count start anew."
    )
    stop_signal: str = Field("SIGTERM", description="First signal of a stop.")
    stop_grace_s: Seconds = Field(5.0, description="Seconds before SIGKILL.")
    ready: ReadyCheck | None = Field(None, description="When it is ready; default at once.")
    live: LiveCheck | None = Field(None, description="When it is hung; default never.")
    environment: dict[str, str] = Field(default_factory=dict, description="Extra environment.")
    env_pass: tuple[str, ...] = Field((), description="Secrets handed over, by name.")
    user: str | None = Field(None, description="User (name or uid) to run as.")
    cwd: Path | None = Field(None, description="Working folder.")
    umask: str | None = Field(
        None, pattern="^0?[0-7]{3}$", description='File mode mask, octal, like "022".'
    )
    nice: int | None = Field(None, ge=-20, le=19, description="Scheduling priority.")
    limits: Limits = Field(default_factory=Limits, description="Resource limits.")
    log_file: Path | None = Field(None, description="Also append the output to this file.")
    url: str | None = Field(None, description="Address that the page links to.")
