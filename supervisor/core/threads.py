"""Blocking calls that may never come back: drivers that hang, network disks that died."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Generic, TypeVar

import anyio
from anyio import from_thread, lowlevel

T = TypeVar("T")


class LoneThread(Generic[T]):
    """Calls ``function`` in a thread, one call at a time, each for at most ``timeout_s``.

    A call that hangs is left behind, and no other is made until it has ended: a dead disk costs
    one thread, not one per look. The thread is a daemon, so the exit of the process does not
    wait for it either. (anyio's own worker threads do both: its limiter is free again as soon
    as the caller gives up, and the interpreter joins them.)
    """

    def __init__(self, function: Callable[[], T], *, name: str, timeout_s: float) -> None:
        self._function = function
        self._name = name
        self._timeout_s = timeout_s
        self._lock = anyio.Lock()
        self._running = False

    async def call(self) -> T:
        """Return what the function returns, or raise what it raises.

        Raises:
            TimeoutError: it takes too long, or an earlier call has not come back yet.
        """
        async with self._lock:
            if self._running:
                raise TimeoutError(f"{self._name} still hangs")
            outcome: list[Callable[[], T]] = []
            done, token = anyio.Event(), lowlevel.current_token()

            def work() -> None:
                outcome.append(_attempt(self._function))
                self._running = False
                with suppress(RuntimeError):  # the loop may be gone by now
                    from_thread.run_sync(done.set, token=token)

            self._running = True
            threading.Thread(target=work, name=self._name, daemon=True).start()
            with anyio.move_on_after(self._timeout_s):
                await done.wait()
        if not outcome:
            raise TimeoutError(f"{self._name} did not answer within {self._timeout_s:g} s")
        return outcome[0]()


def _attempt(function: Callable[[], T]) -> Callable[[], T]:
    """Call now, and return what gives the result, or raises the error, where it is wanted."""
    try:
        value = function()
    except Exception as error:  # noqa: BLE001 - it is raised again in the caller's task
        caught = error

        def fail() -> T:
            raise caught

        return fail
    return lambda: value
