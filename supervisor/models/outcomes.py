"""Says how downloads end: log lines and events, from which the metrics are counted."""

from __future__ import annotations

import logging

from supervisor.core.events import EventBus, Severity
from supervisor.core.status import DownloadsStatus
from supervisor.download.request import DownloadRequest, TransferResult
from supervisor.errors import TransferError
from supervisor.models.room import human_bytes

log = logging.getLogger("supervisor.models")


class Outcomes:
    """Writes to the log and to the bus."""

    def __init__(self, bus: EventBus) -> None:
        self._bus = bus

    def done(self, request: DownloadRequest, result: TransferResult, *, took_s: float) -> None:
        """A file is in place."""
        source, fetched = request.source, result.bytes_fetched
        size = human_bytes(result.size_bytes)
        if fetched:
            rate = human_bytes(fetched / max(took_s, 0.001))
            message = f"{request.name}: {size} in {took_s:.1f} s ({rate}/s)"
        else:
            message = f"{request.name}: already in place ({size})"
        log.info("%s", message)
        self._bus.publish(
            "download.done",
            message,
            subject=request.name,
            source=source,
            bytes_fetched=fetched,
            size_bytes=result.size_bytes,
        )

    def kept(self, request: DownloadRequest, exc: TransferError) -> None:
        """A file is used as it is, because its source cannot be asked."""
        message = f"{request.name} is used as it is: {exc.message}"
        log.warning("%s", message)
        self._bus.publish(
            "download.kept",
            message,
            severity=Severity.WARNING,
            subject=request.name,
            source=request.source,
            hint=exc.hint,
        )

    def postponed(
        self, request: DownloadRequest, exc: TransferError, *, delay_s: float, attempt: int
    ) -> None:
        """A file is tried again later."""
        message = f"{exc.message}; next try in {delay_s:.0f} s"
        log.warning("%s", message)
        self._bus.publish(
            "download.retry",
            message,
            severity=Severity.WARNING,
            subject=request.name,
            source=request.source,
            reason="transient",
            attempt=attempt,
        )

    def failed(self, request: DownloadRequest, exc: TransferError) -> None:
        """A file is given up."""
        reason = type(exc).__name__.removesuffix("Error")
        log.error("%s%s", exc.message, f" (hint: {exc.hint})" if exc.hint else "")
        self._bus.publish(
            "download.failed",
            exc.message,
            severity=Severity.ERROR,
            subject=request.name,
            source=request.source,
            reason=reason,
            hint=exc.hint,
        )

    def refused(self, group: str, reason: str, *, source: str) -> None:
        """The disk cannot take some files that are of use only together."""
        log.error("%s is not fetched: %s", group, reason)
        self._bus.publish(
            "download.failed",
            f"{group} is not fetched: {reason}",
            severity=Severity.ERROR,
            subject=group,
            source=source,
            reason="DiskFull",
        )

    def cancelled(self, request: DownloadRequest) -> None:
        """A file is left out because somebody said so."""
        self._bus.publish("download.cancelled", f"{request.name}: cancelled", subject=request.name)

    def under_way(self, status: DownloadsStatus) -> None:
        """One line now and then while bytes move."""
        eta = f", {status.eta_s:.0f} s left" if status.eta_s is not None else ""
        log.info(
            "models: %d of %d files, %s of %s, %s/s%s",
            status.done,
            status.total,
            human_bytes(status.bytes_done),
            human_bytes(status.bytes_total),
            human_bytes(status.rate_bytes_per_s),
            eta,
        )
