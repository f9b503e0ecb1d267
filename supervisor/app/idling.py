"""Makes the idle watcher of this pod."""

from __future__ import annotations

from typing import TYPE_CHECKING

import anyio

from supervisor.core.status import ServiceState, Snapshot, SyncStatus
from supervisor.pod.idle import Ending, IdleWatcher, PodEndError, run_command
from supervisor.pod.looks import Addresses, Looks
from supervisor.pod.runpod import RunPod
from supervisor.services.machine import RESTING
from supervisor.services.spec import HttpProbe, ServiceKind, ServiceSpec

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from supervisor.app.essentials import Essentials
    from supervisor.sync.syncer import Syncer

_WHAT = {
    "stop": "the pod is stopped",
    "terminate": "the pod is terminated",
    "exit": "the container ends",
    "command": "idle.command is run",
}


def make_idle(base: Essentials, syncer: Callable[[], Syncer | None]) -> IdleWatcher:
    """Wire the watcher; ``syncer`` gives the sync of the moment, None without one."""
    section = base.boot.settings.idle

    async def flush(timeout_s: float) -> SyncStatus | None:
        current = syncer()
        return await current.flush(timeout_s) if current is not None else None

    ending = Ending(
        flush=flush,
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
        return lambda: run_command(section.command, dict(base.boot.source.environ))

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
    )


def address_of(spec: ServiceSpec | None) -> str | None:
    """Where a service answers the supervisor: as its readiness probe asks it."""
    probe = spec.readiness.probe if spec is not None and spec.readiness else None
    if not isinstance(probe, HttpProbe):
        return None
    scheme, _, rest = probe.url.partition("://")
    return f"{scheme}://{rest.partition('/')[0]}"
