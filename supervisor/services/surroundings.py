"""What the runners of all services share."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from supervisor.core.events import EventBus
from supervisor.core.state import StateStore
from supervisor.services.classify import Classification
from supervisor.services.life import Life
from supervisor.services.process import Exit
from supervisor.services.spec import ServiceSpec


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What every runner needs from outside.

    ``hold`` returns when the service may start, first or again.
    ``released`` returns when the GPU memory of the former life was given back, or a
    sentence when it was not.
    ``adjust`` may return another spec after an exit (a step down the VRAM ladder).
    ``given_up`` is told of a service that is down for good.
    """

    state: StateStore
    bus: EventBus
    launch: Callable[[ServiceSpec, int, tuple[str, ...]], Awaitable[Life]]
    note: Callable[[str, str], None]
    given_up: Callable[[ServiceSpec, Classification, Exit | None], None]
    rng: random.Random
    hold: Callable[[ServiceSpec], Awaitable[None]] | None = None
    released: Callable[[ServiceSpec], Awaitable[str | None]] | None = None
    adjust: Callable[[ServiceSpec, Classification], ServiceSpec | None] | None = None
    gpu_busy: Callable[[], bool] = lambda: False
