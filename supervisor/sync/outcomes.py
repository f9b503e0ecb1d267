"""What becomes of a try to store a file: its status, event and metric, and its next try."""

from __future__ import annotations

import logging
from dataclasses import replace

import anyio

from supervisor.core.clock import wall_time_s
from supervisor.core.events import EventBus, Severity
from supervisor.core.retry import Backoff
from supervisor.core.state import StateStore
from supervisor.errors import JournalError, PermanentTransferError, SupervisorError
from supervisor.sync.backlog import Backlog, PathKey, Work
from supervisor.sync.model import Identity, MetricsSink
from supervisor.sync.pacing import Gate
from supervisor.sync.target import TargetRefusedError
from supervisor.sync.transfer import Result

_log = logging.getLogger("supervisor.sync")

_FILE_BACKOFF = Backoff(0.5, 60.0)


class Outcomes:
    """Tells people what happened to files, and the backlog what follows.

    ``failed``: set apart until somebody asks for another try. ``refusal``: why the target
    refuses everything now.
    """

    def __init__(
        self,
        backlog: Backlog,
        gate: Gate,
        state: StateStore,
        bus: EventBus,
        metrics: MetricsSink,
    ) -> None:
        self._backlog = backlog
        self._gate = gate
        self._state = state
        self._bus = bus
        self._metrics = metrics
        self.failed: dict[PathKey, Work] = {}
        self.refusal: TargetRefusedError | None = None

    def succeeded(self, work: Work, result: Result) -> None:
        """Count a file that the target has now, and open the gate."""
        self._gate.succeed()
        self.failed.pop(work.key, None)
        if self.refusal is not None:
            self.refusal = None
            _log.info("The sync target accepts files again")
            self._bus.publish("sync.unblocked", "The sync target accepts files again")
        status = self._state.snapshot.sync
        size = work.identity.size_bytes
        latency_s = None if work.closed_at is None else anyio.current_time() - work.closed_at
        self.update(
            uploaded=status.uploaded + 1,
            uploaded_bytes=status.uploaded_bytes + (size if result.sent else 0),
            incomplete=status.incomplete + bool(work.fault),
            last_stored=result.key,
            last_error=self._last_failure(),
            hint=None,
            blocked=False,
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

    def refused(self, work: Work, exc: TargetRefusedError) -> None:
        """Hold everything back, and say why once."""
        self._metrics.failed(exc.reason)
        self._gate.refuse(exc.retry_after_s)
        if self.refusal is None or self.refusal.reason != exc.reason:
            # Said once, however many files run into it.
            severity = Severity.ERROR if exc.act else Severity.WARNING
            self.report("sync.blocked", exc, severity)
        self.refusal = exc
        self.update(last_error=exc.message, hint=exc.hint, blocked=exc.act)
        self._backlog.defer(work, 0.0)

    def later(self, work: Work, exc: SupervisorError) -> None:
        """Queue a file again, later each time."""
        self._metrics.failed("journal" if isinstance(exc, JournalError) else "transient")
        delay_s = max(_FILE_BACKOFF.delay_s(work.attempts), getattr(exc, "retry_after_s", 0) or 0)
        work.attempts += 1
        self.update(last_error=exc.message, hint=exc.hint)
        _log.info("%s; again in %.1f s", exc.message, delay_s)
        self._backlog.defer(work, delay_s)

    def give_up(self, work: Work, exc: PermanentTransferError) -> None:
        """Set a file apart until ``retry``, the next boot, or new content."""
        self._metrics.failed("permanent")
        self._backlog.finish(work)
        self.failed[work.key] = work
        self.report("sync.failed", exc, Severity.ERROR, subject=work.path)
        self.update(last_error=exc.message, hint=exc.hint)

    def gone(self, key: PathKey) -> None:
        """Forget a file that was deleted."""
        self.failed.pop(key, None)

    def set_apart(self, key: PathKey, identity: Identity) -> bool:
        """Whether this very content has failed for good."""
        work = self.failed.get(key)
        return work is not None and work.identity == identity

    def forgive(self) -> list[Work]:
        """Give back what had failed, to be tried again."""
        failed, self.failed = self.failed, {}
        return [*failed.values()]

    def update(self, **parts: object) -> None:
        """Change the status."""
        self._state.update(sync=replace(self._state.snapshot.sync, **parts))  # type: ignore[arg-type]

    def _last_failure(self) -> str | None:
        return self._state.snapshot.sync.last_error if self.failed else None

    def warn(self, message: str, hint: str | None) -> None:
        """Say that files are found by polling."""
        self.report("sync.polling", SupervisorError(message, hint=hint), Severity.WARNING)

    def report(
        self, kind: str, exc: SupervisorError, severity: Severity, *, subject: str | None = None
    ) -> None:
        """Log and publish what went wrong."""
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
