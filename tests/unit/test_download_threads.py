"""Threads that write and hash: as many at a time as there are processors."""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from supervisor.download import threads
from supervisor.download.threads import Cores


def test_no_more_threads_than_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    monkeypatch.setattr(threads, "PATIENCE_S", 60.0)
    cores, lock, inside, most = Cores(), threading.Lock(), 0, 0
    pair = threading.Barrier(2, timeout=60)  # passes only when two are inside at once

    def work(_: int) -> None:
        nonlocal inside, most
        with cores.place():
            with lock:
                inside += 1
                most = max(most, inside)
            pair.wait()
            with lock:
                inside -= 1

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    assert most == 2


def test_a_slow_disk_does_not_stop_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0})
    cores, slow = Cores(), threading.Event()
    both = threading.Barrier(2, timeout=60)

    def work(_: int) -> None:
        with cores.place():
            both.wait()
            slow.wait(60)

    with ThreadPoolExecutor(2) as pool:
        jobs = [pool.submit(work, 0), pool.submit(work, 1)]
        slow.set()
        for job in jobs:
            job.result(60)
    with cores.place():  # every place was given back
        assert not cores._places.acquire(blocking=False)
