"""What the API talks to: the daemon's parts, each by the few methods that are used.

The parts are protocols, so that the API knows no component and a test can hand it small
real objects. Any control may be None: in rescue mode, or when the feature is off.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from supervisor.api.metrics import Recorder
from supervisor.config.settings import ModelFile
from supervisor.core.events import EventBus
from supervisor.core.state import StateStore
from supervisor.core.status import SyncStatus
from supervisor.download.request import DownloadRequest


class LogRecord(Protocol):
    """One line of a service's output; ``seq`` grows without gaps per store."""

    @property
    def service(self) -> str: ...
    @property
    def at_s(self) -> float: ...
    @property
    def stream(self) -> str: ...
    @property
    def text(self) -> str: ...
    @property
    def seq(self) -> int: ...


class LogFollower(Protocol):
    """Lines as they come. ``lagged`` counts those that a slow reader lost."""

    @property
    def lagged(self) -> int: ...

    def __aiter__(self) -> AsyncIterator[LogRecord]: ...


class LogSource(Protocol):
    """The lines kept in memory, already redacted, and those to come."""

    def tail(self, service: str | None, limit: int) -> Sequence[LogRecord]: ...

    def subscribe(self, service: str | None) -> AbstractContextManager[LogFollower]: ...

    def names(self) -> Sequence[str]: ...


class ServiceControl(Protocol):
    """Actions on services; each raises ``ControlError`` or ``ServiceError``."""

    async def start(self, name: str) -> None: ...
    async def stop(self, name: str) -> None: ...
    async def restart(self, name: str, *, now: bool = False) -> None: ...
    async def signal(self, name: str, signal_name: str) -> None: ...


class ModelControl(Protocol):
    """Downloads on demand."""

    def add(self, request: DownloadRequest, *, now: bool = False) -> None: ...
    def prioritise(self, name: str) -> None: ...
    def retry(self, name: str) -> None: ...
    def cancel(self, name: str) -> None: ...


class SyncControl(Protocol):
    """Output sync on demand."""

    async def flush(self, timeout_s: float) -> SyncStatus: ...
    def waiting(self) -> Sequence[str]: ...
    async def retry(self) -> Any: ...
    async def restore(self, kinds: Sequence[RestoreKind]) -> Any: ...


RestoreKind = Literal["workflows", "input", "settings"]


class IdleControl(Protocol):
    """The idle watcher."""

    def keep(self, seconds: float) -> None: ...


class LadderControl(Protocol):
    """The VRAM ladder."""

    async def reset(self, *, now: bool = False) -> int: ...


def _no_shutdown(reason: str) -> None:
    """Stand in until the app can be shut down."""


@dataclass(slots=True)
class ApiContext:
    """The parts the API serves. ``app`` fills in the late ones while the pod boots.

    ``token`` opens the health port's page and ``/v1``; ``request_for`` turns what a user
    asked for into a download and raises ``ValueError`` when it cannot; ``reload`` takes
    ``dry_run`` and returns what it changed. ``access`` holds addresses with their secrets:
    it goes over the owner's socket and nowhere else.
    """

    state: StateStore
    bus: EventBus
    token: str = field(repr=False)
    logs: LogSource | None = None
    services: ServiceControl | None = None
    models: ModelControl | None = None
    syncer: SyncControl | None = None
    idle: IdleControl | None = None
    ladder: LadderControl | None = None
    request_for: Callable[[ModelFile], DownloadRequest] | None = None
    shutdown: Callable[[str], None] = _no_shutdown
    reload: Callable[[bool], Awaitable[Mapping[str, Any]]] | None = None
    redact: Callable[[str], str] = str
    recorder: Recorder = field(default_factory=Recorder)
    dashboard: bool = True
    access: Mapping[str, str] = field(default_factory=dict, repr=False)
    session_key: str = field(default="", repr=False)  # empty: sessions end with the process
