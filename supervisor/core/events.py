"""Edges: what happened, for people and for streams.

State decides, events inform. A subscriber that cannot keep up loses the oldest events
and is told how many (``lagged``); it never slows the publisher down.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import anyio

from supervisor.core.clock import iso_utc, wall_time_s


class Severity(StrEnum):
    """How much a person should care; ``error`` means that somebody must act."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that happened.

    ``kind`` is dotted (``service.state``, ``download.done``, ``sync.stored``,
    ``gpu.ladder``), ``subject`` the service, file or alert it is about.
    """

    seq: int
    at_s: float
    kind: str
    message: str
    severity: Severity = Severity.INFO
    subject: str | None = None
    data: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Render for the wire."""
        return {
            "seq": self.seq,
            "at": iso_utc(self.at_s),
            "kind": self.kind,
            "severity": str(self.severity),
            "subject": self.subject,
            "message": self.message,
            "data": dict(self.data),
        }


class Subscription:
    """A bounded queue of events; iterate over it to receive them."""

    def __init__(self, limit: int) -> None:
        self._queue: deque[Event] = deque(maxlen=limit)
        self._wake = anyio.Event()
        self.lagged = 0

    def push(self, event: Event) -> None:
        """Add an event, dropping the oldest when the reader is too slow."""
        if len(self._queue) == self._queue.maxlen:
            self.lagged += 1
        self._queue.append(event)
        self._wake.set()

    async def __aiter__(self) -> AsyncIterator[Event]:
        """Yield events until cancelled."""
        while True:
            while self._queue:
                yield self._queue.popleft()
            self._wake = anyio.Event()
            await self._wake.wait()


class EventBus:
    """Publishes events to subscribers and keeps the last ``history`` of them."""

    def __init__(self, history: int = 1000, clock: Callable[[], float] = wall_time_s) -> None:
        self._history: deque[Event] = deque(maxlen=history)
        self._subscriptions: set[Subscription] = set()
        self._clock = clock
        self._seq = 0

    def publish(
        self,
        kind: str,
        message: str,
        *,
        severity: Severity = Severity.INFO,
        subject: str | None = None,
        **data: Any,
    ) -> Event:
        """Record an event and hand it to every subscriber; never blocks."""
        self._seq += 1
        event = Event(self._seq, self._clock(), kind, message, severity, subject, data)
        self._history.append(event)
        for subscription in self._subscriptions:
            subscription.push(event)
        return event

    def recent(self, limit: int | None = None) -> list[Event]:
        """Return the last events, oldest first."""
        events = list(self._history)
        return events if limit is None else events[len(events) - min(limit, len(events)) :]

    @contextmanager
    def subscribe(self, limit: int = 1000) -> Iterator[Subscription]:
        """Receive every event published while the context is open."""
        subscription = Subscription(limit)
        self._subscriptions.add(subscription)
        try:
            yield subscription
        finally:
            self._subscriptions.discard(subscription)
