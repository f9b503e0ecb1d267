"""Tells a person's own service of alerts and of what needs a person, by HTTP POST."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import anyio

from supervisor.core.clock import iso_utc
from supervisor.core.events import Event, EventBus, Severity
from supervisor.core.retry import Backoff

if TYPE_CHECKING:
    import aiohttp

log = logging.getLogger("supervisor.monitor")

_TIMEOUT_S = 10.0
_TRIES = 6
_BACKOFF = Backoff(initial_s=2.0, max_s=60.0)
_MOST_WAITING = 100
# An alert says the same.
_ALERTED = frozenset({"sync.blocked"})


class Webhook:
    """Posts ``{"pod", "kind", "subject", "severity", "message", "at", "data"}`` as JSON.

    ``url`` is a secret (chat services put their key into it) and is never written anywhere.
    A message that is not accepted is tried again, in order, and given up after some minutes;
    while many wait the oldest are dropped and counted.
    """

    def __init__(self, *, url: str, pod: str, bus: EventBus) -> None:
        self._url = url
        self._pod = pod
        self._bus = bus

    async def run(self) -> None:
        """Post until cancelled."""
        import aiohttp  # noqa: PLC0415 - slow to import, and few people have a webhook

        limit = aiohttp.ClientTimeout(total=_TIMEOUT_S)
        lagged = 0
        with self._bus.subscribe(_MOST_WAITING) as events:
            async with aiohttp.ClientSession(trust_env=True, timeout=limit) as session:
                async for event in events:
                    if events.lagged != lagged:
                        log.warning("the webhook missed %d events", events.lagged - lagged)
                        lagged = events.lagged
                    if _is_for_people(event):
                        await self._post(session, self._message(event))

    def _message(self, event: Event) -> Mapping[str, Any]:
        return {
            "pod": self._pod,
            "kind": event.kind,
            "subject": event.subject,
            "severity": str(event.severity),
            "message": event.message,
            "at": iso_utc(event.at_s),
            "data": event.data,
        }

    async def _post(self, session: aiohttp.ClientSession, message: Mapping[str, Any]) -> None:
        for attempt in range(_TRIES):
            problem = await _once(session, self._url, message)
            if problem is None:
                return
            if attempt == 0:
                log.warning("the webhook does not take messages: %s", problem)
            await anyio.sleep(_BACKOFF.delay_s(attempt))
        log.error("gave up a message to the webhook: %s", message["message"])


def _is_for_people(event: Event) -> bool:
    if event.kind in _ALERTED:
        return False
    return event.kind.startswith("alert.") or event.severity is Severity.ERROR


async def _once(session: aiohttp.ClientSession, url: str, message: Mapping[str, Any]) -> str | None:
    """Post once; return what went wrong, without the address."""
    import aiohttp  # noqa: PLC0415 - see Webhook.run

    try:
        async with session.post(url, json=message, allow_redirects=False) as response:
            return None if response.status < 300 else f"HTTP {response.status}"
    except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
        return type(error).__name__  # the text of it may hold the address
