"""What stands before the first service starts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from supervisor.app.boot import Boot
    from supervisor.app.gpu_memory import GpuMemory
    from supervisor.app.ladder import Ladder
    from supervisor.app.reload import Reloader
    from supervisor.core.events import EventBus
    from supervisor.core.state import StateStore
    from supervisor.services.logs import LogStore
    from supervisor.services.manager import ServiceManager


@dataclass(frozen=True, slots=True)
class Essentials:
    """What the pod makes first and every later part works with.

    ``shutdown`` takes the reason for the stop that it asks for.
    """

    boot: Boot
    state: StateStore
    bus: EventBus
    logs: LogStore
    manager: ServiceManager
    reloader: Reloader
    ladder: Ladder
    gpu_memory: GpuMemory
    shutdown: Callable[[str], None]
