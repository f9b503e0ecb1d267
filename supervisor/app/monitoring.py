"""Watches what the pod uses: sampler, alerts, webhook."""

from __future__ import annotations

import platform
from typing import TYPE_CHECKING

import anyio

from supervisor.app.idling import address_of
from supervisor.monitor.alerts import Alerts
from supervisor.monitor.sampler import Limits, Sampler
from supervisor.monitor.webhook import Webhook
from supervisor.services.spec import ServiceKind

if TYPE_CHECKING:
    from supervisor.app.essentials import Essentials


async def monitor(base: Essentials) -> None:
    """Sample, judge and tell until cancelled."""
    boot = base.boot
    section, host = boot.settings.alerts, boot.facts.host
    comfyui = next((s for s in boot.plan.services if s.kind is ServiceKind.COMFYUI), None)
    address = address_of(comfyui)
    sampler = Sampler(
        state=base.state,
        limits=Limits(host.cpu_limit, host.memory_bytes),
        pids=base.manager.live_pids,
        disks=sorted({m.mount_point for m in host.mounts.values() if m.writable}),
        read_gpu=base.gpu_memory.samples if boot.facts.gpu.devices else None,
        comfyui_url=f"{address}/prompt" if address else None,
    )
    alerts = Alerts(settings=section, state=base.state, bus=base.bus)
    async with anyio.create_task_group() as tasks:
        if section.webhook is not None:
            pod = boot.source.environ.get("RUNPOD_POD_ID") or platform.node()
            url = section.webhook.get_secret_value()
            tasks.start_soon(Webhook(url=url, pod=pod, bus=base.bus).run)
        while True:
            await sampler.sample()
            alerts.check()
            await anyio.sleep(section.interval_s)
