"""Turning a spec into a running service: environment, preparation, port check, spawn."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import anyio.to_thread

from supervisor.errors import SpawnError
from supervisor.services import ports, procfs
from supervisor.services.life import Life, ServiceLife
from supervisor.services.logs import LogStore
from supervisor.services.notify import NotifySocket
from supervisor.services.prepare import prepare
from supervisor.services.process import Order, find_account, spawn
from supervisor.services.spec import LogProbe, NotifyProbe, ServiceKind, ServiceSpec

# ComfyUI-Manager touches <path>.reboot and exits 0 instead of replacing its process when
# this is set (CONTRACTS: ComfyUI-Manager reboot).
_SESSION = "__COMFY_CLI_SESSION__"


class PortTakenError(SpawnError):
    """Somebody else listens on the service's port."""

    def __init__(self, port: int, holder: str) -> None:
        super().__init__(f"Cannot start: port {port} is held by {holder}")
        self.port = port
        self.holder = holder


class Launcher:
    """Starts services in the surroundings of this pod; ``base_environment`` holds no secret."""

    def __init__(
        self,
        *,
        logs: LogStore,
        base_environment: Mapping[str, str],
        probed: Callable[[str, str, float], None] = lambda _service, _probe, _seconds: None,
    ) -> None:
        """``probed`` is told service, kind and seconds of every probe."""
        self.base_environment = dict(base_environment)
        self._probed = probed
        self._logs = logs
        self.instance = os.urandom(8).hex()

    async def launch(self, spec: ServiceSpec, generation: int, command: tuple[str, ...]) -> Life:
        """Start one life.

        Raises:
            SpawnError: it cannot be prepared or executed.
            PortTakenError: its port is in use.
        """
        cookie = f"{spec.name}/{generation}"
        environment = self._environment(spec, cookie)
        marker = _marker(environment)
        notify = self._notify_socket(spec, generation, environment)
        try:
            order = _order(spec, command, environment)
            if spec.prepare:
                await prepare(spec.prepare, order)
            if spec.port is not None and not ports.is_free(spec.port):
                holder = await anyio.to_thread.run_sync(ports.holder, spec.port)
                raise PortTakenError(spec.port, str(holder or "a process that has just ended"))
            child = spawn(order)
        except BaseException:
            if notify is not None:
                notify.close()
            raise
        probe = spec.readiness.probe if spec.readiness else None
        return ServiceLife(
            child,
            order=order,
            log=self._logs.service(spec.name),
            cookie=(cookie, self.instance),
            log_pattern=probe.pattern if isinstance(probe, LogProbe) else None,
            notify=notify,
            watchdog_s=probe.watchdog_s if isinstance(probe, NotifyProbe) else None,
            marker=marker,
            probed=partial(self._probed, spec.name),
        )

    def _environment(self, spec: ServiceSpec, cookie: str) -> dict[str, str]:
        environment = dict(self.base_environment)
        if spec.user is not None:
            account = find_account(spec.user)
            environment |= {"HOME": account.home, "USER": account.name, "LOGNAME": account.name}
        if spec.kind in (ServiceKind.COMFYUI, ServiceKind.JUPYTER):
            # Stacks of all threads in the log after a crash, and after the SIGABRT of a hang.
            environment.setdefault("PYTHONFAULTHANDLER", "1")
        return {
            **environment,
            **spec.environment,
            procfs.COOKIE: cookie,
            procfs.INSTANCE: self.instance,
        }

    def _notify_socket(
        self, spec: ServiceSpec, generation: int, environment: dict[str, str]
    ) -> NotifySocket | None:
        probe = spec.readiness.probe if spec.readiness else None
        if not isinstance(probe, NotifyProbe) or probe.descriptor:
            environment.pop("NOTIFY_SOCKET", None)
            return None
        address = f"supervisor/{spec.name}/{generation}/{os.urandom(8).hex()}"
        try:
            notify = NotifySocket(address)
        except OSError as exc:
            raise SpawnError(f"Cannot listen for notifications: {exc.strerror}") from exc
        environment["NOTIFY_SOCKET"] = notify.variable
        if probe.watchdog_s:
            environment["WATCHDOG_USEC"] = str(int(probe.watchdog_s * 1e6))
        return notify


def _order(spec: ServiceSpec, command: tuple[str, ...], environment: Mapping[str, str]) -> Order:
    return Order(
        command=command,
        environment=environment,
        user=spec.user,
        cwd=spec.cwd,
        umask=spec.umask,
        nice=spec.nice,
        limit_nofile=spec.limit_nofile,
        limit_core_bytes=spec.limit_core_bytes,
        notify_descriptor=spec.readiness is not None
        and isinstance(spec.readiness.probe, NotifyProbe)
        and spec.readiness.probe.descriptor,
    )


def _marker(environment: Mapping[str, str]) -> Path | None:
    """Where ComfyUI-Manager says that it wants to be restarted."""
    if (session := environment.get(_SESSION)) is None:
        return None
    marker = Path(f"{session}.reboot")
    marker.unlink(missing_ok=True)  # of a life that was killed before it could exit
    return marker
