"""What every contender of ``benchmarks.sync`` meets: the S3 server, and who counts."""

from __future__ import annotations

import multiprocessing
import os
import re
import threading
import time
from http.client import HTTPConnection
from multiprocessing.connection import Connection
from pathlib import Path
from urllib.parse import urlsplit

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


def line_s(size_bytes: int, connections: int = 8) -> float:
    """How long a file takes in parts of 8 MiB over so many connections, with nothing else."""
    with Server() as server:
        host = urlsplit(server.endpoint).netloc
        sign = {"Authorization": "AWS4-HMAC-SHA256 Credential=key/x, "}
        part = os.urandom(MIB) * 8
        count = -(-size_bytes // len(part))
        first = HTTPConnection(host)
        started = time.monotonic()
        first.request("POST", "/bucket/a/b/c?uploads", headers=sign)
        upload = re.search(rb"<UploadId>(.*?)<", first.getresponse().read())
        assert upload is not None
        target = f"/bucket/a/b/c?uploadId={upload[1].decode()}"

        def send(numbers: range) -> None:
            connection = HTTPConnection(host)
            for number in numbers:
                connection.request("PUT", f"{target}&partNumber={number}", part, sign)
                connection.getresponse().read()

        threads = [
            threading.Thread(target=send, args=(range(1 + n, count + 1, connections),))
            for n in range(connections)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        listed = "".join(f"<PartNumber>{n}</PartNumber>" for n in range(1, count + 1))
        first.request("POST", target, listed, sign)
        first.getresponse().read()
        return time.monotonic() - started


class Meter:
    """Sums CPU and takes the peak RSS of a process group, ended children included."""

    def __init__(self, group: int) -> None:
        self.group = group
        self.rss_mib = 0.0
        self._cpu_s = 0.0
        self._before_s = 0.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Meter:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.sample()
        self._stop.set()
        self._thread.join()

    @property
    def cpu_s(self) -> float:
        """Seconds since ``reset``."""
        return self._cpu_s - self._before_s

    def reset(self) -> None:
        """Count CPU from now on."""
        self.sample()
        self._before_s = self._cpu_s

    def _run(self) -> None:
        while not self._stop.wait(0.25):
            self.sample()

    def sample(self) -> None:
        """Look at every living process of the group."""
        tick = os.sysconf("SC_CLK_TCK")
        cpu = rss = 0.0
        for entry in Path("/proc").iterdir():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                if int(fields[2]) != self.group:
                    continue
                status = (entry / "status").read_text()
            except OSError:
                continue
            # utime, stime and those of children that were waited for
            cpu += sum(map(int, fields[11:15])) / tick
            if peak := re.search(r"VmHWM:\s+(\d+) kB", status):
                rss = max(rss, int(peak[1]) / 1024)
        self._cpu_s = max(self._cpu_s, cpu)
        self.rss_mib = max(self.rss_mib, rss)
