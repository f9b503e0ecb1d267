"""The composition root: configuration, facts, plan, and the pod that carries it out.

``main`` is what the init's child runs. Everything that decides is elsewhere and pure; here
the parts are made, wired and put into nested scopes whose order is the shutdown order.
"""

from __future__ import annotations

import gc
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from supervisor.errors import ConfigError, ExitCode

if TYPE_CHECKING:
    from supervisor.app.boot import Boot, Source

__all__ = ["main"]


def main(*, config: Path | None, overrides: Sequence[str], environ: Mapping[str, str]) -> int:
    """Boot the pod and run it until it is asked to stop; returns the exit code.

    A configuration that cannot be used is served by rescue mode, which ends when a reload
    finds it mended (the boot goes on) or when the container is stopped (78).

    Raises:
        ConfigError: of a dry run, which has nobody to serve.
    """
    # What is loaded now stays: looking for garbage in it only delays the first service.
    gc.disable()
    # NVML answers while the libraries for reading the configuration are still loading.
    from supervisor.hardware.gpu import GpuProbe  # noqa: PLC0415

    probe = GpuProbe()
    from supervisor.services.isolation import hide_process  # noqa: PLC0415

    with suppress(OSError):  # a sandbox may forbid it; docs/services.md says what holds then
        hide_process()
    from supervisor.app.boot import Source, prepare  # noqa: PLC0415
    from supervisor.app.timeline import Timeline  # noqa: PLC0415

    timeline = Timeline.since_exec()
    timeline.mark("imports")
    source = Source(config, tuple(overrides), environ)
    while True:
        try:
            boot = prepare(source, probe, timeline)
        except ConfigError as error:
            if source.wants_dry_run:
                raise
            if not _rescue(source, error):
                return ExitCode.CONFIG
        else:
            return _show(boot) if boot.settings.supervisor.dry_run else _run(boot)


def _run(boot: Boot) -> int:
    import anyio  # noqa: PLC0415 - a dry run needs no event loop

    from supervisor.app.pod import Pod  # noqa: PLC0415

    async def run() -> int:
        return await Pod(boot).run()

    return anyio.run(run)


def _rescue(source: Source, error: ConfigError) -> bool:
    import anyio  # noqa: PLC0415

    from supervisor.app.rescue import Rescue  # noqa: PLC0415

    async def run() -> bool:
        return await Rescue(source, error).run()

    return anyio.run(run)


def _show(boot: Boot) -> int:
    """Print the plan of a dry run."""
    from supervisor.app.boot import with_models  # noqa: PLC0415
    from supervisor.plan.render import render_plan  # noqa: PLC0415

    plan = with_models(boot.plan, boot.settings, boot.facts)
    print(boot.redactor.redact(render_plan(plan)))  # noqa: T201 - results go to stdout
    return ExitCode.DONE
