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
from supervisor.core.clock import wall_time_s
from supervisor.core.events import EventBus, Severity
from supervisor.core.retry import Backoff
from supervisor.core.state import StateStore
from supervisor.core.status import SyncStatus
from supervisor.errors import (
    JournalError,
    PermanentTransferError,
    SupervisorError,
    TransferError,
    TransientTransferError,
)
from supervisor.sync import cleanup, restore
from supervisor.sync.backlog import Backlog, PathKey, Work
from supervisor.sync.examine import Examiner
from supervisor.sync.ledger import Ledger
from supervisor.sync.model import FileState, MetricsSink, NoMetrics, Tree
from supervisor.sync.pacing import Gate
from supervisor.sync.target import FileChangedError, Target, TargetRefusedError
from supervisor.sync.targets import describe_target, make_target
from supervisor.sync.tracker import Tracker
from supervisor.sync.transfer import Result, Transfer
from supervisor.sync.trees import KeyScheme, user_tree, watched_trees

_log = logging.getLogger("supervisor.sync")

_FILE_BACKOFF = Backoff(0.5, 60.0)
_GATE_BACKOFF = Backoff(0.5, 60.0)
_JOURNAL_BACKOFF = Backoff(1.0, 60.0)
Kind = Literal["workflows", "input", "settings"]


@dataclass(slots=True)
class _Running:
    """What exists while ``run`` runs."""

    ledger: Ledger
    target: Target
    transfer: Transfer
    tracker: Tracker


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
        self._metrics: MetricsSink = metrics or NoMetrics()
        self._host = host or socket.gethostname()
        self._custom_target = target
        self._backlog = Backlog(settings.concurrency)
        self._gate = Gate(_GATE_BACKOFF)
        self._failed: dict[PathKey, Work] = {}
        self._refusal: TargetRefusedError | None = None
        self._running: _Running | None = None
        self._active = False
        self._progress = anyio.Event()

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Sync until cancelled; what is under way then is resumed by the next run.

        Trouble with journal or target is shown in status and waited out, never raised.
        """
        self._update(enabled=True, target=describe_target(self._settings))
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
        examiners = self._examiners(ledger)
        tracker = Tracker(
            examiners,
            self._backlog,
            rescan_interval_s=self._settings.rescan_interval_s,
            changed=self._refresh,
            gone=self._gone,
            tell=self._warn,
        )
        self._running = _Running(ledger, target, transfer, tracker)
        self._refresh()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._abandon_orphans)
            tasks.start_soon(tracker.run)
            tasks.start_soon(self._dispatch)
            if self._settings.delete_after_upload:
                tasks.start_soon(partial(cleanup.run, ledger, examiners, self._settings))

    async def _open_ledger(self) -> Ledger:
        attempt = 0
        while True:
            try:
                ledger = await to_thread.run_sync(Ledger, self._journal)
            except JournalError as exc:
                if attempt == 0:
                    self._report("sync.journal", exc, Severity.ERROR)
                self._update(last_error=exc.message, hint=exc.hint)
                await anyio.sleep(_JOURNAL_BACKOFF.delay_s(attempt))
                attempt += 1
                continue
            if attempt:
                self._update(last_error=None, hint=None)
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

    def _examiners(self, ledger: Ledger) -> dict[str, Examiner]:
        exclude = self._settings.folder if self._settings.target == "folder" else None
        return {t.name: Examiner(t, ledger, exclude=exclude) for t in self._trees()}

    async def _abandon_orphans(self) -> None:
        """Abort the uploads of dead runs whose files are gone."""
        running = self._running
        if running is None:
            return
        for row in await to_thread.run_sync(running.ledger.unfinished):
            tree = next((t for t in self._trees() if t.name == row.tree), None)
            if tree is not None and await to_thread.run_sync(tree.locate(row.path).exists):
                continue
            try:
                if row.state is FileState.UPLOADING:
                    await running.target.abandon(row.key, row.upload_id or "")
                await to_thread.run_sync(running.ledger.forget, row.tree, row.path)
            except SupervisorError as exc:
                _log.info("%s", exc)

    # One file

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
            self._refused(work, exc)
        except PermanentTransferError as exc:
            self._give_up(work, exc)
        except (TransientTransferError, TransferError, JournalError) as exc:
            self._later(work, exc)
        except Exception as exc:  # noqa: BLE001 (a bug in one file must not stop the others)
            _log.exception("Cannot upload %s", work.path)
            self._later(work, TransferError(f"Cannot upload {work.path}: {type(exc).__name__}"))
        else:
            self._succeeded(work, result)
            if self._backlog.finish(work):
                running.tracker.look_again(work.key)

    def _succeeded(self, work: Work, result: Result) -> None:
        self._gate.succeed()
        self._failed.pop(work.key, None)
        if self._refusal is not None:
            self._refusal = None
            self._bus.publish("sync.unblocked", "The sync target accepts files again")
        status = self._state.snapshot.sync
        size = work.identity.size_bytes
        latency_s = None if work.closed_at is None else anyio.current_time() - work.closed_at
        self._update(
            uploaded=status.uploaded + 1,
            uploaded_bytes=status.uploaded_bytes + (size if result.sent else 0),
            incomplete=status.incomplete + bool(work.fault),
            last_stored=result.key,
            last_error=self._last_failure(),
            hint=None,
        )
        if result.sent:
            self._metrics.stored(size_bytes=size, latency_s=latency_s)
        note = f" (incomplete: {work.fault})" if work.fault else ""
        self._bus.publish(
            "sync.stored",
            f"Stored {result.key}{note}",
            severity=Severity.WARNING if work.fault else Severity.INFO,
            subject=work.path,
            key=result.key,
            size_bytes=size,
            sent=result.sent,
            latency_s=latency_s,
        )

    def _refused(self, work: Work, exc: TargetRefusedError) -> None:
        self._metrics.failed(exc.reason)
        self._gate.refuse(exc.retry_after_s)
        if self._refusal is None or self._refusal.reason != exc.reason:
            # Said once, however many files run into it.
            severity = Severity.ERROR if exc.act else Severity.WARNING
            self._report("sync.blocked", exc, severity)
        self._refusal = exc
        self._update(last_error=exc.message, hint=exc.hint)
        self._backlog.defer(work, 0.0)

    def _later(self, work: Work, exc: SupervisorError) -> None:
        self._metrics.failed("journal" if isinstance(exc, JournalError) else "transient")
        delay_s = max(_FILE_BACKOFF.delay_s(work.attempts), getattr(exc, "retry_after_s", 0) or 0)
        work.attempts += 1
        self._update(last_error=exc.message, hint=exc.hint)
        _log.info("%s; again in %.1f s", exc.message, delay_s)
        self._backlog.defer(work, delay_s)

    def _give_up(self, work: Work, exc: PermanentTransferError) -> None:
        """Set a file apart until ``retry``, the next boot, or new content."""
        self._metrics.failed("permanent")
        self._backlog.finish(work)
        self._failed[work.key] = work
        self._report("sync.failed", exc, Severity.ERROR, subject=work.path)
        self._update(last_error=exc.message, hint=exc.hint)

    def _gone(self, key: PathKey) -> None:
        self._failed.pop(key, None)

    # Asked from outside

    @property
    def running(self) -> bool:
        """Whether outputs are seen and stored now; what a flush tells means nothing without."""
        return self._running is not None

    async def flush(self, timeout_s: float, *, final: bool = False) -> SyncStatus:
        """Store everything that is finished, small and old first, for at most so long.

        ``final``: no writer is left, so that quiet periods end now and broken files count
        as such. The result's ``retained`` is what waits for the next boot.
        """
        with anyio.move_on_after(timeout_s):
            while self._active and self._running is None:  # the journal is being opened
                await self._progress.wait()
            if self._running is not None:
                await self._flush(self._running.tracker, final=final)
        self._refresh()
        pending = self._state.snapshot.sync.pending
        self._update(retained=pending)
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
        refusal = self._refusal
        self._hurry(stay=final)
        try:
            await tracker.scan()
        except JournalError as exc:
            self._update(last_error=exc.message, hint=exc.hint)
        tracker.hurry()
        while len(self._backlog) or tracker.undecided:
            if self._refusal is not None and self._refusal.act and self._refusal is not refusal:
                return  # it was asked once more: only a person can help now
            await self._progress.wait()

    def _hurry(self, *, stay: bool = False) -> None:
        self._backlog.hurry(stay=stay)
        self._gate.hurry()

    async def retry(self) -> int:
        """Try everything that failed or waits again now; returns how many files that are."""
        failed, self._failed = self._failed, {}
        for work in failed.values():
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
            f"Restored {restored.files} files, kept {restored.kept} that are as new here",
            files=restored.files,
            kept=restored.kept,
        )
        return restored

    def _refresh(self) -> None:
        unfinished = self._running.tracker.unfinished if self._running is not None else 0
        self._update(
            pending=len(self._backlog) + unfinished + len(self._failed), failed=len(self._failed)
        )
        self._progress.set()
        self._progress = anyio.Event()

    def _update(self, **parts: object) -> None:
        self._state.update(sync=replace(self._state.snapshot.sync, **parts))  # type: ignore[arg-type]

    def _last_failure(self) -> str | None:
        return self._state.snapshot.sync.last_error if self._failed else None

    def _warn(self, message: str, hint: str | None) -> None:
        self._report("sync.polling", SupervisorError(message, hint=hint), Severity.WARNING)

    def _report(
        self, kind: str, exc: SupervisorError, severity: Severity, *, subject: str | None = None
    ) -> None:
        level = logging.ERROR if severity is Severity.ERROR else logging.WARNING
        _log.log(level, "%s%s", exc.message, f" (hint: {exc.hint})" if exc.hint else "")
        self._bus.publish(
            kind,
            exc.message,
            severity=severity,
            subject=subject,
            hint=exc.hint,
            at=wall_time_s(),
        )
