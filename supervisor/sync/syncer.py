"""Output sync: every finished file reaches the target, once, whatever happens."""

from __future__ import annotations

import logging
import socket
from collections.abc import Iterable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

import anyio
from anyio import to_thread
from anyio.abc import TaskStatus

from supervisor.config.settings import SyncSection
from supervisor.core.events import EventBus, Severity
from supervisor.core.retry import Backoff
from supervisor.core.state import StateStore
from supervisor.core.status import Phase, SyncStatus
from supervisor.errors import (
    JournalError,
    PermanentTransferError,
    SupervisorError,
    TransferError,
    TransientTransferError,
)
from supervisor.sync import restore
from supervisor.sync.backlog import Backlog, PathKey, Work
from supervisor.sync.cleanup import Cleanup
from supervisor.sync.examine import Examiner
from supervisor.sync.ledger import Ledger
from supervisor.sync.model import MetricsSink, NoMetrics, Tree
from supervisor.sync.orphans import abandon_orphans
from supervisor.sync.outcomes import Outcomes
from supervisor.sync.pacing import Gate
from supervisor.sync.target import FileChangedError, Target, TargetRefusedError
from supervisor.sync.targets import describe_target, make_target
from supervisor.sync.tracker import Tracker
from supervisor.sync.transfer import Transfer
from supervisor.sync.trees import OUTPUTS, KeyScheme, user_tree, watched_trees
from supervisor.sync.waiting import why

_log = logging.getLogger("supervisor.sync")

_GATE_BACKOFF = Backoff(0.5, 60.0)
_JOURNAL_BACKOFF = Backoff(1.0, 60.0)
_FLUSH_STEP_S = 0.02  # thousands of files are not counted anew for each of them
_PREPARE_AFTER_S = 2.0  # others have work to do at the moment the pod becomes ready
Kind = Literal["workflows", "input", "settings"]


@dataclass(slots=True)
class _Running:
    """What exists while ``run`` runs."""

    ledger: Ledger
    target: Target
    transfer: Transfer
    tracker: Tracker
    cleanup: Cleanup


class Syncer:
    """Watches folders and stores what is finished; the target is opened when first needed."""

    def __init__(
        self,
        *,
        settings: SyncSection,
        source: Path,
        state_directory: Path,
        state: StateStore,
        bus: EventBus,
        comfyui_root: Path | None = None,
        logs_directory: Path | None = None,
        credential_files: Mapping[str, Path] | None = None,
        metrics: MetricsSink | None = None,
        host: str | None = None,
        target: Target | None = None,
    ) -> None:
        """Describe a sync; nothing is touched before ``run``.

        ``comfyui_root`` holds ``user/`` and ``input/`` (default: the source's parent);
        ``logs_directory`` is uploaded when ``settings.logs`` says so; ``target`` replaces
        the configured one.
        """
        self._settings = settings
        self._source = source
        self._comfyui = comfyui_root or source.parent
        self._logs = logs_directory
        self._journal = state_directory / "sync.db"
        self._state = state
        self._bus = bus
        self._credential_files = credential_files or {}
        self._host = host or socket.gethostname()
        self._custom_target = target
        self._backlog = Backlog(settings.concurrency)
        self._gate = Gate(_GATE_BACKOFF)
        self._outcomes = Outcomes(self._backlog, self._gate, state, bus, metrics or NoMetrics())
        self._running: _Running | None = None
        self._active = False
        self._progress = anyio.Event()
        self._unflushed: set[PathKey] = set()

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Sync until cancelled; what is under way then is resumed by the next run.

        Trouble with journal or target is shown in status and waited out, never raised.
        """
        self._outcomes.update(enabled=True, target=describe_target(self._settings))
        self._backlog.clear()  # of a run that was ended in the middle; the sweep finds all of it
        self._active = True
        task_status.started()
        try:
            async with AsyncExitStack() as stack:
                ledger = await self._open_ledger()
                stack.callback(ledger.close)
                target = await stack.enter_async_context(self._make_target())
                await self._run(ledger, target)
        finally:
            self._running = None
            self._active = False

    async def _run(self, ledger: Ledger, target: Target) -> None:
        scheme = KeyScheme(self._settings, self._host)
        transfer = Transfer(ledger, target, scheme, cache_control=self._settings.cache_control)
        exclude = self._settings.folder if self._settings.target == "folder" else None
        examiners = {t.name: Examiner(t, ledger, exclude=exclude) for t in self._trees()}
        tracker = Tracker(
            examiners,
            self._backlog,
            rescan_interval_s=self._settings.rescan_interval_s,
            changed=self._refresh,
            gone=self._outcomes.gone,
            set_apart=self._outcomes.set_apart,
            tell=self._outcomes.warn,
        )
        told = partial(self._outcomes.report, "sync.undeleted", severity=Severity.WARNING)
        cleanup = Cleanup(ledger, examiners[OUTPUTS], self._settings, told)
        self._running = _Running(ledger, target, transfer, tracker, cleanup)
        self._refresh()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(abandon_orphans, ledger, target, self._trees())
            tasks.start_soon(tracker.run)
            tasks.start_soon(self._dispatch)
            tasks.start_soon(self._prepare, target)
            if self._settings.delete_after_upload:
                tasks.start_soon(cleanup.run)

    async def _prepare(self, target: Target) -> None:
        """Load what the target needs once the pod is up: the first image must not wait for it."""
        await self._state.wait(lambda s: s.phase in (Phase.READY, Phase.DEGRADED))
        await anyio.sleep(_PREPARE_AFTER_S)
        try:
            await target.prepare()
        except SupervisorError as exc:
            _log.info("%s", exc)  # the first upload meets it, too, and tells

    async def _open_ledger(self) -> Ledger:
        attempt = 0
        while True:
            try:
                ledger = await to_thread.run_sync(Ledger, self._journal)
            except JournalError as exc:
                if attempt == 0:
                    self._outcomes.report("sync.journal", exc, Severity.ERROR)
                self._outcomes.update(last_error=exc.message, hint=exc.hint)
                await anyio.sleep(_JOURNAL_BACKOFF.delay_s(attempt))
                attempt += 1
                continue
            if attempt:
                self._outcomes.update(last_error=None, hint=None)
            if ledger.set_aside:
                self._bus.publish(
                    "sync.journal",
                    f"The sync journal was damaged; it was kept as {ledger.set_aside.name}"
                    " and is rebuilt",
                    severity=Severity.WARNING,
                )
            return ledger

    def _make_target(self) -> Target:
        return self._custom_target or make_target(self._settings, self._credential_files)

    def _trees(self) -> list[Tree]:
        return watched_trees(self._settings, self._source, self._comfyui, self._logs)

    async def _dispatch(self) -> None:
        """Start a task for every file that is due, as far as lanes are free."""
        async with anyio.create_task_group() as tasks:
            while True:
                work = await self._backlog.take()
                if not self._gate.closed:
                    tasks.start_soon(self._try, work)
                    continue
                # The target refuses everybody: one file finds out when that is over.
                await self._gate.wait()
                await self._try(work)

    async def _try(self, work: Work) -> None:
        running = self._running
        if running is None:
            return
        await self._carry(work, running)
        self._refresh()

    async def _carry(self, work: Work, running: _Running) -> None:
        try:
            result = await running.transfer.carry(work)
        except FileChangedError:
            self._backlog.finish(work)
            running.tracker.look_again(work.key)
        except TargetRefusedError as exc:
            self._outcomes.refused(work, exc)
        except PermanentTransferError as exc:
            self._outcomes.give_up(work, exc)
        except (TransientTransferError, TransferError, JournalError) as exc:
            self._outcomes.later(work, exc)
        except Exception as exc:  # noqa: BLE001 (a bug in one file must not stop the others)
            _log.exception("Cannot upload %s", work.path)
            self._outcomes.later(
                work, TransferError(f"Cannot upload {work.path}: {type(exc).__name__}")
            )
        else:
            self._outcomes.succeeded(work, result)
            if self._backlog.finish(work):
                running.tracker.look_again(work.key)

    @property
    def running(self) -> bool:
        """Whether outputs are seen and stored now; what a flush tells means nothing without."""
        return self._running is not None

    async def flush(self, timeout_s: float, *, final: bool = False) -> SyncStatus:
        """Store everything that is finished, small and old first, for at most so long.

        What comes meanwhile is stored as well, but not waited for. ``final``: no writer is
        left, so that quiet periods end now and broken files count as such. The result's
        ``retained`` is all that is not stored, ``unflushed`` what was waited for in vain.
        """
        self._unflushed = set()
        with anyio.move_on_after(timeout_s):
            while self._active and self._running is None:  # the journal is being opened
                await self._progress.wait()
            if self._running is not None:
                await self._flush(self._running.tracker, final=final)
        self._refresh()
        pending = self._state.snapshot.sync.pending
        unflushed = len(self._unflushed.union(self._outcomes.failed))
        if self._running is not None:
            unflushed += self._running.tracker.spilled
        self._outcomes.update(retained=pending, unflushed=unflushed)
        status = self._state.snapshot.sync
        self._bus.publish(
            "sync.flushed",
            f"{status.uploaded} files stored, {pending} wait",
            severity=Severity.WARNING if pending and final else Severity.INFO,
            uploaded=status.uploaded,
            retained=pending,
        )
        return status

    async def _flush(self, tracker: Tracker, *, final: bool) -> None:
        tracker.final = final
        before = self._outcomes.refusal
        self._hurry(stay=final)
        try:
            await tracker.scan()
        except JournalError as exc:
            self._outcomes.update(last_error=exc.message, hint=exc.hint)
        asked = self._unflushed = self._open(tracker)
        tracker.hurry()
        while self._unflushed or tracker.spilled:
            refusal = self._outcomes.refusal
            if refusal is not None and refusal.act and refusal is not before:
                return  # it was asked once more: only a person can help now
            spilled = tracker.spilled
            await self._progress.wait()
            await anyio.sleep(_FLUSH_STEP_S)
            left = self._open(tracker)
            if spilled:  # what has come back from the disk was asked for, too
                asked = left
            self._unflushed = left if final else left & asked

    def _open(self, tracker: Tracker) -> set[PathKey]:
        return self._backlog.keys() | tracker.undecided

    def waiting(self) -> list[str]:
        """Say what waits and why."""
        if self._running is None:
            return []
        watched, queued = self._running.tracker.watched, self._backlog.works()
        refused = self._outcomes.refusal is not None
        told = [*why(watched, queued, self._outcomes.failed, refused=refused)]
        if more := self._running.tracker.spilled:
            told.append(f"{more} more files wait for their turn")
        undeleted = self._running.cleanup.undeleted
        told += [f"{r.named('stored files')} cannot be deleted: {r.cause}" for r in undeleted]
        return told

    def _hurry(self, *, stay: bool = False) -> None:
        self._backlog.hurry(stay=stay)
        self._gate.hurry()

    async def retry(self) -> int:
        """Try everything that failed or waits again now; returns how many files that are."""
        failed = self._outcomes.forgive()
        for work in failed:
            self._backlog.add(replace(work, attempts=0, due_at=0.0, taken=False, again=False))
        self._hurry()
        if self._running is not None:
            self._running.tracker.rescan()
        self._refresh()
        return len(self._backlog)

    async def restore(self, kinds: Iterable[Kind]) -> restore.Restored:
        """Bring user files back from the target; newer local files stay.

        Raises:
            TransferError: the target cannot be listed or read.
        """
        trees = [user_tree(self._settings, kind, self._comfyui) for kind in kinds]
        async with AsyncExitStack() as stack:
            target = self._running.target if self._running is not None else None
            if target is None:
                target = await stack.enter_async_context(self._make_target())
            restored = await restore.restore(target, trees)
        self._bus.publish(
            "sync.restored",
            f"Restored {restored.files} files, kept {restored.kept} that are as new here"
            + (f", left {restored.skipped} out" if restored.skipped else ""),
            severity=Severity.WARNING if restored.skipped else Severity.INFO,
            files=restored.files,
            kept=restored.kept,
        )
        return restored

    def _refresh(self) -> None:
        unfinished = 0
        if self._running is not None:
            unfinished = self._running.tracker.unfinished
            self._running.tracker.refill()
        self._outcomes.update(
            pending=len(self._backlog) + unfinished + len(self._outcomes.failed),
            failed=len(self._outcomes.failed),
        )
        self._progress.set()
        self._progress = anyio.Event()
