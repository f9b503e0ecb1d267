"""Makes the idle watcher of this pod."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import anyio
import anyio.to_thread

from supervisor.app.idle_outputs import outlives, outputs_at_risk
from supervisor.core.status import ServiceState, Snapshot, SyncStatus
from supervisor.pod.idle import Ending, IdleWatcher, PodEndError, run_command
from supervisor.pod.looks import Addresses, Looks
from supervisor.pod.runpod import RunPod
from supervisor.pod.terminals import DIRECTORY
from supervisor.services.machine import RESTING
from supervisor.services.spec import HttpProbe, ServiceKind, ServiceSpec

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from supervisor.app.essentials import Essentials
    from supervisor.sync.syncer import Syncer

log = logging.getLogger("supervisor.idle")

_AT_RISK = "they are only on a disk that ends with the pod"
_AT_RISK_HINT = "turn the sync on, or set idle.ignore_unsynced = true"
_WHAT = {
    "stop": "the pod is stopped",
    "terminate": "the pod is terminated",
    "exit": "the container ends",
    "command": "idle.command is run",
}


def make_idle(base: Essentials, syncer: Callable[[], Syncer | None]) -> IdleWatcher:
    """Wire the watcher; ``syncer`` gives the sync of the moment, None without one."""
    section = base.boot.settings.idle
    _warn_early(base)
    ending = Ending(
        flush=lambda timeout_s: _flush(base, syncer(), timeout_s),
        drain=lambda: _drain(base),
        resume=lambda names: _resume(base, names),
        stop=_stop(base),
        exit=base.shutdown,
        what=_WHAT[section.action],
        dry_run=section.dry_run,
        ignore_unsynced=section.ignore_unsynced,
    )
    return IdleWatcher(
        limit_s=section.minutes * 60,
        looks=Looks(_addresses(base), base.state),
        ending=ending,
        state=base.state,
        bus=base.bus,
    )


async def _flush(base: Essentials, syncer: Syncer | None, timeout_s: float) -> SyncStatus | None:
    """Store everything; the answer's ``retained`` counts what the end would delete, too.

    Raises:
        PodEndError: the sync is on but does not run, so that nobody knows what is stored.
    """
    settings, plan = base.boot.settings, base.boot.plan.sync
    status = None
    if syncer is not None and syncer.running:
        status = await syncer.flush(timeout_s)
    if plan.enabled and not settings.idle.ignore_unsynced and not (syncer and syncer.running):
        cause = base.state.snapshot.sync.last_error or "see the log"
        raise PodEndError(
            f"The idle pod is not stopped: the output sync does not run: {cause}",
            hint="mend it (`supervisor sync status`), or set idle.ignore_unsynced = true",
        )
    if status is not None and status.retained:
        return status
    left = await anyio.to_thread.run_sync(outputs_at_risk, settings, plan)
    if not left:
        return status
    return SyncStatus(retained=left, last_error=_AT_RISK, hint=_AT_RISK_HINT)


def _warn_early(base: Essentials) -> None:
    """Say at the start what would only be found out after an hour of idleness."""
    settings, sync = base.boot.settings, base.boot.plan.sync
    idle = settings.idle
    if sync.enabled or sync.source is None or idle.ignore_unsynced or idle.action == "exit":
        return
    if not outlives(settings, sync.source):
        note = f"The idle pod will not be stopped once there are outputs: {_AT_RISK}"
        shown = f"{note} (hint: {_AT_RISK_HINT})"
        log.warning("%s", shown)
        notes = base.state.snapshot.notes
        if shown not in notes:
            base.state.update(notes=(*notes, shown))


async def _drain(base: Essentials) -> list[str]:
    """Stop ComfyUI, whose queue is empty, so that no job begins any more."""
    services = base.state.snapshot.services
    names = [
        spec.name
        for spec in base.boot.plan.services
        if spec.kind is ServiceKind.COMFYUI and services[spec.name].state not in RESTING
    ]
    for name in names:
        await base.manager.stop(name)
    return names


async def _resume(base: Essentials, names: Sequence[str]) -> None:
    for name in names:
        await base.manager.start(name)

    def up(snapshot: Snapshot) -> bool:
        states = {snapshot.services[name].state for name in names}
        return states <= {ServiceState.READY, ServiceState.FAILED}

    with anyio.move_on_after(base.boot.settings.comfyui.start_timeout_s):
        await base.state.wait(up)


def _stop(base: Essentials) -> Callable[[], Awaitable[object]] | None:
    section = base.boot.settings.idle
    action = section.action
    if action == "exit":
        return None
    if action == "command":
        environment, redact = dict(base.boot.source.environ), base.boot.redactor.redact
        return lambda: run_command(section.command, environment, redact=redact)

    async def stop() -> None:
        if not section.pod_id:
            raise PodEndError(
                f"Cannot {action} the pod: its id is not known",
                hint='set RUNPOD_POD_ID, or idle.action = "exit"',
            )
        key = section.api_key.get_secret_value() if section.api_key else ""
        runpod = RunPod(
            pod_id=section.pod_id,
            api_key=key,
            environ=base.boot.source.environ,
            api_url=section.api_url,
        )
        await runpod.end(action)

    return stop


def _addresses(base: Essentials) -> Addresses:
    settings, plan = base.boot.settings, base.boot.plan
    specs = {spec.kind: spec for spec in plan.services}
    comfyui, jupyter = specs.get(ServiceKind.COMFYUI), specs.get(ServiceKind.JUPYTER)
    token = settings.jupyter.token
    return Addresses(
        comfyui=address_of(comfyui),
        jupyter=address_of(jupyter),
        jupyter_token=token.get_secret_value() if token else base.boot.generated.jupyter_token,
        ssh_port=settings.ssh.port,
        page_port=comfyui.port if comfyui is not None and settings.idle.pages_count else None,
        terminals=DIRECTORY if settings.idle.terminals_count else None,
    )


def address_of(spec: ServiceSpec | None) -> str | None:
    """Where a service answers the supervisor: as its readiness probe asks it."""
    probe = spec.readiness.probe if spec is not None and spec.readiness else None
    if not isinstance(probe, HttpProbe):
        return None
    scheme, _, rest = probe.url.partition("://")
    return f"{scheme}://{rest.partition('/')[0]}"
