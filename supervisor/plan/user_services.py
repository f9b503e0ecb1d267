"""Services of the user: a table of ``supervisor.toml`` becomes a ``ServiceSpec``."""

from __future__ import annotations

import signal
from collections.abc import Sequence

from supervisor.config.secrets import is_secret_name
from supervisor.config.settings import LiveCheck, ReadyCheck, ServiceSection
from supervisor.core.retry import Backoff
from supervisor.errors import ConfigProblem
from supervisor.plan.context import PlanContext
from supervisor.services.spec import (
    ActiveProbe,
    Dependency,
    DependencyCondition,
    ExecProbe,
    FailureAction,
    FileProbe,
    HttpProbe,
    Liveness,
    LogProbe,
    NotifyProbe,
    Probe,
    Readiness,
    RestartPolicy,
    ServiceSpec,
    StopStep,
    TcpProbe,
)


def plan_user_service(
    context: PlanContext, name: str, section: ServiceSection
) -> tuple[ServiceSpec, list[ConfigProblem], list[str]]:
    """The spec, what is wrong with the table, and notes."""
    problems: list[ConfigProblem] = []
    key = f"services.{name}"
    secrets, notes = context.passed(section.env_pass, name)
    hidden = frozenset(secrets) | {n for n in section.environment if is_secret_name(n)}
    ready = _readiness(section.ready, key, problems) if section.ready else None
    live = _liveness(section.live, key, problems) if section.live else None
    stop_signal = _signal(section.stop_signal, key, problems)
    spec = ServiceSpec(
        name=name,
        command=section.command,
        environment={**section.environment, **secrets},
        secret_names=hidden,
        after=_dependencies(section.after, key, problems),
        required=section.required,
        restart=RestartPolicy(section.restart),
        on_failure=FailureAction(section.on_failure),
        backoff=Backoff(section.backoff_initial_s, section.backoff_max_s),
        max_restarts=section.max_restarts,
        window_s=section.window_s,
        healthy_after_s=section.healthy_after_s,
        readiness=ready,
        liveness=live,
        stop=(StopStep(stop_signal, section.stop_grace_s),),
        user=section.user,
        cwd=section.cwd,
        umask=int(section.umask, 8) if section.umask else None,
        nice=section.nice,
        limit_nofile=section.limits.nofile,
        limit_core_bytes=section.limits.core_bytes,
        log_file=section.log_file,
        url=section.url,
    )
    return spec, problems, notes


def _dependencies(
    after: Sequence[str], key: str, problems: list[ConfigProblem]
) -> tuple[Dependency, ...]:
    found: list[Dependency] = []
    for text in after:
        name, _, condition = text.partition(":")
        try:
            found.append(Dependency(name, DependencyCondition(condition or "ready")))
        except ValueError:
            problems.append(
                ConfigProblem(
                    key=f"{key}.after",
                    value=text,
                    reason=f"{condition!r} is not a condition",
                    hint=f'use "{name}" (ready) or "{name}:started"',
                )
            )
    return tuple(found)


def _readiness(check: ReadyCheck, key: str, problems: list[ConfigProblem]) -> Readiness | None:
    probe: Probe | None
    if check.log is not None:
        probe = LogProbe(check.log)
    elif check.notify:
        probe = NotifyProbe(descriptor=check.notify == "fd", watchdog_s=check.watchdog_s)
    else:
        probe = _active(check, f"{key}.ready", problems)
    if probe is None:
        return None
    return Readiness(probe, timeout_s=check.timeout_s, interval_s=check.interval_s)


def _liveness(check: LiveCheck, key: str, problems: list[ConfigProblem]) -> Liveness | None:
    probe = _active(check, f"{key}.live", problems)
    if probe is None:
        return None
    return Liveness(
        probe,
        interval_s=check.interval_s,
        timeout_s=check.timeout_s,
        failures=check.failures,
        grace_s=check.grace_s,
    )


def _active(
    check: ReadyCheck | LiveCheck, key: str, problems: list[ConfigProblem]
) -> ActiveProbe | None:
    if check.http is not None:
        if not check.http.startswith(("http://", "https://")):
            problems.append(
                ConfigProblem(
                    key=f"{key}.http",
                    value=check.http,
                    reason="is not an http address",
                    hint='write it like "http://127.0.0.1:8020/health"',
                )
            )
        return HttpProbe(check.http, status=check.status, body=check.body)
    if check.exec is not None:
        return ExecProbe(check.exec)
    if check.file is not None:
        return FileProbe(check.file)
    host, separator, port = (check.tcp or "").rpartition(":")
    if not separator or not port.isdigit() or not 0 < int(port) < 65536:
        problems.append(
            ConfigProblem(
                key=f"{key}.tcp",
                value=check.tcp,
                reason="is not host:port",
                hint='write it like "127.0.0.1:6379"',
            )
        )
        return None
    return TcpProbe(host.strip("[]") or "127.0.0.1", int(port))


def _signal(name: str, key: str, problems: list[ConfigProblem]) -> str:
    full = name.upper() if name.upper().startswith("SIG") else f"SIG{name.upper()}"
    if full not in signal.Signals.__members__:
        problems.append(
            ConfigProblem(
                key=f"{key}.stop_signal",
                value=name,
                reason="is not a signal",
                hint="use a name like SIGTERM, SIGINT or SIGQUIT",
            )
        )
    return full
