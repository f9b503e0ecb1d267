"""The running pod. The nesting of the scopes is the order of the shutdown."""

from __future__ import annotations

import gc
import logging
import signal
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

import anyio
import anyio.to_thread

from supervisor import __version__
from supervisor.app.boot import Boot
from supervisor.app.downloads import MODEL_LIST
from supervisor.app.essentials import Essentials
from supervisor.app.gpu_memory import GpuMemory
from supervisor.app.ladder import Ladder
from supervisor.app.last_run import RunMark
from supervisor.app.links import links
from supervisor.app.nodes import NodeKeeper
from supervisor.app.notes import notes_of
from supervisor.app.preparation import prepare_machine
from supervisor.app.reload import Reloader
from supervisor.core.events import EventBus, Severity
from supervisor.core.retry import Backoff
from supervisor.core.state import StateStore
from supervisor.core.status import Phase, Snapshot, SyncStatus
from supervisor.errors import ExitCode, SupervisorError
from supervisor.services.logs import LogStore
from supervisor.services.machine import RESTING
from supervisor.services.manager import ServiceManager

if TYPE_CHECKING:
    from supervisor.app.components import Components

log = logging.getLogger("supervisor.app")

# Shares of the stop's time: services first, then the flush, and a reserve for the rest.
_SERVICES_SHARE = 0.65
_RESERVE_S = 0.5

# ComfyUI waits for its restored workflows and settings, but not for ever.
_RESTORE_PATIENCE_S = 60.0

# What is loaded after the first exec waits for it, but not for a slow preparation.
_LAUNCH_PATIENCE_S = 2.0

_LEVELS = {
    Severity.DEBUG: logging.DEBUG,
    Severity.INFO: logging.INFO,
    Severity.WARNING: logging.WARNING,
    Severity.ERROR: logging.ERROR,
}

# A part of the supervisor that fails is started again; the pod goes on without it.
_PART_BACKOFF = Backoff(initial_s=1.0, max_s=60.0)


class Pod:
    """Owns the task groups; the parts own their own work."""

    def __init__(self, boot: Boot) -> None:
        self.boot = boot
        self.bus = EventBus()
        self.state = StateStore(_first_snapshot(boot))
        section = boot.settings.supervisor
        self.logs = LogStore(
            section.state_dir / "logs",
            boot.redactor.redact,
            console_json=section.log_format == "json",
        )
        self.ladder = Ladder(boot, self.state, self.bus)
        self.gpu_memory = GpuMemory(boot)
        self.nodes = NodeKeeper(boot, self.state, self.bus)
        self.manager = ServiceManager(
            state=self.state,
            bus=self.bus,
            logs=self.logs,
            base_environment=boot.plan.base_environment,
            hold=self.nodes.hold,
            released=self.gpu_memory.wait_released,
            adjust=self.ladder.adjust,
            gpu_busy=self.gpu_memory.busy,
            probed=self._probed,
        )
        self.mark = RunMark(section.state_dir, self.manager.instance)
        self.reloader = Reloader(
            boot,
            manager=self.manager,
            state=self.state,
            bus=self.bus,
            applied=self.ladder.replaced,
        )
        self._components: Components | None = None
        self._stop = anyio.Event()
        self._stop_reason = ""
        self._stops = 0
        self._stop_by_s = 0.0

    def shutdown(self, reason: str) -> None:
        """Begin the stop; a second request makes it hurry."""
        self._stops += 1
        if self._stops == 1:
            log.info("stopping: %s", reason)
        self._stop_reason = self._stop_reason or reason
        self._stop.set()

    @property
    def components(self) -> Components:
        """The parts that come after the launch, made when first needed."""
        if self._components is None:
            from supervisor.app.components import Components  # noqa: PLC0415 - see above

            self._components = Components(
                Essentials(
                    boot=self.boot,
                    state=self.state,
                    bus=self.bus,
                    logs=self.logs,
                    manager=self.manager,
                    reloader=self.reloader,
                    ladder=self.ladder,
                    gpu_memory=self.gpu_memory,
                    shutdown=self.shutdown,
                )
            )
        return self._components

    async def run(self) -> int:
        """Run until asked to stop; returns the exit code of the container."""
        prepare_machine(self.boot.plan, self._complain)
        self._recall()
        async with anyio.create_task_group() as infra:
            infra.start_soon(self._watch_signals)
            infra.start_soon(self._narrate)
            infra.start_soon(self.logs.run)
            await self._restore()
            async with anyio.create_task_group() as transfers:
                async with anyio.create_task_group() as services:
                    await services.start(self.manager.run, self.boot.plan.services)
                    await self._launched()
                    infra.start_soon(self._part, "api", self.components.serve)
                    infra.start_soon(self._part, "facts", self.components.late_facts)
                    infra.start_soon(self._part, "diagnosis", self.components.diagnose)
                    infra.start_soon(self._part, "ladder", self.components.ladder.run)
                    infra.start_soon(self._part, "monitor", self.components.monitor)
                    infra.start_soon(self._part, "nodes", self.nodes.watch)
                    infra.start_soon(self._watch_failure)
                    infra.start_soon(self._mark_ready)
                    if self.boot.settings.idle.enabled:
                        infra.start_soon(self._part, "idle shutdown", self.components.watch_idle)
                    transfers.start_soon(self._part, "downloads", self.components.downloads.run)
                    transfers.start_soon(self._part, "sync", self.components.sync)
                    await self._stop.wait()
                    await self._stop_services()
                await self._finish_transfers()
                transfers.cancel_scope.cancel()
            self._say_goodbye()
            self.mark.end()
            infra.cancel_scope.cancel()
        failure = self.manager.failure
        return failure.code if failure is not None else ExitCode.DONE

    # -- start --------------------------------------------------------------------------

    def _recall(self) -> None:
        """Tell of a run before this one that was killed."""
        death = self.mark.begin()
        if death is not None:
            log.warning("%s", death)
            self.bus.publish("pod.died", str(death), severity=Severity.WARNING)
            self._complain(str(death))

    async def _restore(self) -> None:
        """Bring user files back before ComfyUI reads them; a slow bucket does not hold it up."""
        kinds = self.boot.settings.sync.restore
        syncer = self.components.make_syncer() if kinds else None
        if syncer is None or self._stop.is_set():
            return
        with anyio.move_on_after(_RESTORE_PATIENCE_S) as scope:
            try:
                await syncer.restore(kinds)
            except SupervisorError as error:
                self._tell("restore", error.message, error.hint)
        if scope.cancelled_caught:
            self._tell("restore", "The bucket was too slow to restore from", "sync restore")
        self.boot.timeline.mark("restore")

    async def _launched(self) -> None:
        """Wait for the first exec, so that nothing that is loaded now gets in its way."""
        # Node updates hold ComfyUI back by seconds: the page shall show them.
        updating = self.boot.settings.comfyui.update_nodes
        with anyio.move_on_after(0.0 if updating else _LAUNCH_PATIENCE_S):
            await self.state.wait(_started)
        gc.freeze()
        gc.enable()  # see app.main
        took_s = self.boot.timeline.mark("launch")
        self.state.update(boot=self.boot.timeline.status)
        log.info("launched after %.0f ms", took_s * 1000)
        for note in (*self.boot.loaded.warnings, *self.boot.plan.notes):
            log.warning("%s", note)

    async def _mark_ready(self) -> None:
        from supervisor.monitor.history import BootHistory  # noqa: PLC0415 - after the launch

        await self.state.wait(lambda s: s.phase is Phase.READY)
        gc.freeze()  # the parts are loaded now: looking through them holds the loop for 40 ms
        took_s = self.boot.timeline.mark("ready")
        timeline = self.boot.timeline.status
        history = BootHistory(self.boot.settings.supervisor.state_dir / "boots.json")
        median_s = await anyio.to_thread.run_sync(history.median)
        self.state.update(boot=replace(timeline, median_s=median_s))
        usual = f" (usually {median_s['ready']:.1f} s)" if "ready" in median_s else ""
        log.info("ready after %.1f s%s", took_s, usual)
        self.bus.publish("pod.ready", f"The pod is ready after {took_s:.1f} s", seconds=took_s)
        with suppress(OSError):  # a state directory that cannot be written is told elsewhere
            await anyio.to_thread.run_sync(history.record, timeline.spans_s)
            await self._report()

    async def _report(self) -> None:
        """Write what this boot decided beside the logs that go to the bucket.

        Raises:
            OSError: the folder cannot be written.
        """
        if not self.boot.settings.sync.logs:
            return
        from supervisor.app.boot_report import boot_report, write_report  # noqa: PLC0415 - rare

        document = boot_report(self.boot, self.reloader.plan)
        directory = self.boot.settings.supervisor.state_dir / "logs"
        await anyio.to_thread.run_sync(write_report, directory, document)

    # -- while it runs --------------------------------------------------------------------

    async def _part(self, name: str, run: Callable[[], Awaitable[None]]) -> None:
        """Run a part of the supervisor; its failure is told and the part tried again."""
        attempt = 0
        while True:
            try:
                await run()
            except SupervisorError as error:
                self._tell(name, error.message, error.hint)
            except Exception as error:
                log.exception("%s failed", name)
                self._tell(name, f"{name} failed: {type(error).__name__}", "see the log")
            else:
                return
            await anyio.sleep(_PART_BACKOFF.delay_s(attempt))
            attempt += 1

    def _tell(self, name: str, message: str, hint: str | None) -> None:
        shown = f"{message} (hint: {hint})" if hint else message
        log.error("%s", shown)
        self.bus.publish("supervisor.part", shown, severity=Severity.ERROR, subject=name)
        self._complain(shown)

    def _complain(self, note: str) -> None:
        """Show a note in the status, once."""
        if note not in self.state.snapshot.notes:
            self.state.update(notes=(*self.state.snapshot.notes, note))

    async def _narrate(self) -> None:
        """Write a line for what happens to services; the other parts write their own."""
        with self.bus.subscribe() as events:
            async for event in events:
                # How a life ended is told by the state that follows, too.
                if event.kind.startswith("service.") and event.kind != "service.exit":
                    logging.getLogger("supervisor.services").log(
                        _LEVELS[event.severity], "%s", event.message
                    )

    def _probed(self, service: str, probe: str, seconds: float) -> None:
        self.components.context.recorder.probe(service, probe, seconds)

    async def _watch_signals(self) -> None:
        # The init passes everything on; a signal without a meaning here must not kill.
        ignored = (signal.SIGUSR1, signal.SIGUSR2, signal.SIGALRM, signal.SIGVTALRM, signal.SIGPROF)
        for number in ignored:
            signal.signal(number, signal.SIG_IGN)
        with anyio.open_signal_receiver(
            signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGHUP
        ) as received:
            async for number in received:
                if number != signal.SIGHUP:
                    self.shutdown(f"received {number.name}")
                    continue
                try:
                    await self.reloader.reload(dry_run=False)
                except SupervisorError as error:
                    self._tell("reload", error.message, error.hint)

    async def _watch_failure(self) -> None:
        failure = await self.manager.wait_failure()
        self.shutdown(f"{failure.service} is down for good: {failure.reason}")

    # -- stop -----------------------------------------------------------------------------

    async def _stop_services(self) -> None:
        grace_s = self.boot.settings.supervisor.shutdown_grace_s
        self._stop_by_s = anyio.current_time() + grace_s
        self.state.update(phase=Phase.STOPPING)
        self.bus.publish("pod.stopping", f"The pod stops: {self._stop_reason}")
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._hurry)
            await self.manager.stop_all(grace_s * _SERVICES_SHARE)
            tasks.cancel_scope.cancel()

    async def _hurry(self) -> None:
        """Cut the graces when somebody asks again."""
        while self._stops < 2:
            await anyio.sleep(0.1)
        log.warning("asked again: stopping at once")
        self._stop_by_s = min(self._stop_by_s, anyio.current_time() + 1.0)
        await self.manager.stop_all(0.0)

    async def _finish_transfers(self) -> None:
        """Store what is finished, as far as the time goes; the rest waits for the next boot."""
        left_s = self._stop_by_s - anyio.current_time() - _RESERVE_S
        syncer = self._components.syncer if self._components else None
        if syncer is None or left_s <= 0:
            return
        with anyio.move_on_after(left_s + _RESERVE_S / 2, shield=True):
            if self.boot.settings.sync.logs:
                with anyio.move_on_after(left_s / 4), suppress(OSError):  # a disk that hangs
                    await self._report()  # where it never became ready
                    await self.logs.release_files()
            try:
                status = await syncer.flush(left_s, final=True)
            except SupervisorError as error:
                log.error("%s", error.message)
            else:
                self.state.update(sync=status)

    def _say_goodbye(self) -> None:
        sync = self.state.snapshot.sync
        line = ""
        if sync.enabled:
            line = f"; outputs: {sync.uploaded} stored, {sync.pending} wait for the next boot"
        self.bus.publish("pod.stopped", f"The pod has stopped ({self._stop_reason})")
        log.info("stopped (%s)%s", self._stop_reason, line)


def _started(snapshot: Snapshot) -> bool:
    """Whether a service runs, or none will."""
    services = snapshot.services.values()
    return any(s.pid for s in services) or all(s.state in RESTING for s in services)


def _first_snapshot(boot: Boot) -> Snapshot:
    plan, settings = boot.plan, boot.settings
    models = settings.models
    wanted = models.files or models.bundles or models.workflows
    expected = models.require != "none" and bool(wanted or models.civitai or models.civitai_loras)
    return Snapshot(
        version=__version__,
        config_file=str(boot.loaded.path) if boot.loaded.path else None,
        health={"host": plan.health.host, "port": plan.health.port},
        links=links(plan, boot.source.environ),
        gpu=plan.gpu,
        sync=SyncStatus(enabled=plan.sync.enabled, target=plan.sync.target),
        notes=notes_of(plan, boot),
        boot=boot.timeline.status,
        host=replace(Snapshot().host, storage_mode=plan.storage.mode),
        # Until the catalog has been read, readiness must not be claimed.
        required_downloads=frozenset({MODEL_LIST}) if expected else frozenset(),
    )
