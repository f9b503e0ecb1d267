"""What every contender of ``benchmarks.sync`` meets: the S3 server, and who counts."""

from __future__ import annotations

import multiprocessing
import os
import threading
from multiprocessing.connection import Connection
from pathlib import Path

from tests.support.s3_strict import StrictS3

LATENCY_S = 0.1
LINE_BYTES_PER_S = 125e6  # a pod with 1 Gbit/s
MIB = 1024 * 1024
Objects = dict[str, tuple[str, float]]


class Server:
    """The S3 server in a process of its own, and what it has stored: checksum and time."""

    def __init__(self) -> None:
        self._ours, theirs = multiprocessing.Pipe()
        self._process = multiprocessing.Process(target=_serve, args=(theirs,), daemon=True)

    def __enter__(self) -> Server:
        self._process.start()
        self.endpoint: str = self._ours.recv()
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.join()

    def count(self) -> int:
        """How many objects there are."""
        self._ours.send("count")
        return int(self._ours.recv())

    def objects(self) -> Objects:
        """Everything that is stored, by path."""
        self._ours.send("objects")
        stored: Objects = self._ours.recv()
        return stored


def _serve(pipe: Connection) -> None:
    with StrictS3(pace_s=0, latency_s=LATENCY_S, rate_bytes_per_s=LINE_BYTES_PER_S) as server:
        pipe.send(server.endpoint)
        while True:
            if pipe.recv() == "count":
                pipe.send(len(server.objects))
            else:
                kept = list(server.objects.items())
                pipe.send({key.split("/", 2)[2]: (o.sha256, o.at) for key, o in kept})


class Meter:
    """Sums CPU and takes the peak RSS of a process group, ended children included."""

    def __init__(self, group: int) -> None:
        self.group = group
        self.cpu_s = 0.0
        self.rss_mib = 0.0
        self._seen: dict[int, float] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Meter:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.sample()
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(0.25):
            self.sample()

    def sample(self) -> None:
        """Look at every living process of the group."""
        tick, page = os.sysconf("SC_CLK_TCK"), os.sysconf("SC_PAGE_SIZE")
        cpu = rss = 0.0
        for entry in Path("/proc").iterdir():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[2]) != self.group:
                continue
            # utime, stime and those of children that were waited for
            cpu += sum(map(int, fields[11:15])) / tick
            rss = max(rss, int(fields[21]) * page / MIB)
        self.cpu_s = max(self.cpu_s, cpu)
        self.rss_mib = max(self.rss_mib, rss)
