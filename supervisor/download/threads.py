"""Work of the disk and of the processor, off the event loop."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from contextlib import contextmanager
from typing import Generic, TypeVar

import anyio

T = TypeVar("T")

PATIENCE_S = 0.02  # many times what the work on a block takes


async def in_thread(threads: Executor, work: Callable[[], T]) -> T:
    """Run ``work`` to its end, also when cancelled: it uses a file that will be closed."""
    job = asyncio.get_running_loop().run_in_executor(threads, work)
    with anyio.CancelScope(shield=True):
        await asyncio.wait([job])
    return job.result()


class Cores:
    """Lets as many threads compute as there are processors.

    More get nothing done sooner, but the event loop waits behind each of them: one that
    holds the GIL may not have a processor. Who waits for a slow disk and not for a processor
    does not stop the others: they go on without a place.
    """

    def __init__(self) -> None:
        self._places = threading.Semaphore(len(os.sched_getaffinity(0)))

    @contextmanager
    def place(self) -> Iterator[None]:
        """While a thread copies, hashes or writes."""
        placed = self._places.acquire(timeout=PATIENCE_S)
        try:
            yield
        finally:
            if placed:
                self._places.release()


class Call(Generic[T]):
    """Work in a thread that somebody on the event loop waits for.

    An executor's future, chained to one of asyncio, does the same in three times the steps;
    for a thousand small files a second that is what counts.
    """

    def __init__(self, work: Callable[[], T]) -> None:
        self.ended = False
        self._loop = asyncio.get_running_loop()
        self.waiter: asyncio.Future[None] = self._loop.create_future()
        self._work = work
        self._result: tuple[T] | BaseException | None = None

    def run(self) -> None:
        """Do it, in the thread."""
        try:
            self._result = (self._work(),)
        except BaseException as exc:  # noqa: BLE001  (raised again by ``result``)
            self._result = exc
        self._loop.call_soon_threadsafe(self._end)

    def again(self) -> asyncio.Future[None]:
        """Another future of the end: the first was cancelled."""
        self.waiter = self._loop.create_future()
        return self.waiter

    def result(self) -> T:
        """What the work gave, or raise what it raised."""
        result, self._result = self._result, None
        if isinstance(result, tuple):
            return result[0]
        assert result is not None  # noqa: S101  (only asked for when it has ended)
        try:
            raise result
        finally:
            del result  # it holds this frame

    def _end(self) -> None:
        self.ended = True
        if not self.waiter.done():
            self.waiter.set_result(None)
