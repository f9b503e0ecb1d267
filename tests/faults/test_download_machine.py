"""What the machine does to a download: a disk that fails for real, a clock that jumps, IPv6."""

from __future__ import annotations

import os
import random
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest

from supervisor.download.engine import SegmentedDownloader
from tests.conftest import require
from tests.support.bad_origin import Fault, serve
from tests.support.downloads import QUICK, Direct, Log, only, random_bytes, wanted

pytestmark = pytest.mark.anyio

MIB = 1024 * 1024
DATA = random_bytes(24 * MIB + 99)

# Sits between the interpreter and the C library: every write and flush of a partial file
# passes here, in whatever thread, and a few of them get the answer of a dying disk.
SHIM = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

static atomic_int writes, flushes;

static int partial(int fd) {
    char link[64], path[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 5) return 0;
    path[length] = 0;
    return strcmp(path + length - 5, ".part") == 0;
}

static int fails(const char *what) { fprintf(stderr, "EIO %s\n", what); errno = EIO; return 1; }

ssize_t pwrite64(int fd, const void *data, size_t count, off_t offset) {
    static ssize_t (*real)(int, const void *, size_t, off_t);
    if (!real) real = dlsym(RTLD_NEXT, "pwrite64");
    if (partial(fd) && atomic_fetch_add(&writes, 1) % 9 == 4 && writes < 40 && fails("write"))
        return -1;
    return real(fd, data, count, offset);
}
ssize_t pwrite(int fd, const void *data, size_t count, off_t offset) {
    return pwrite64(fd, data, count, offset);
}
int fdatasync(int fd) {
    static int (*real)(int);
    if (!real) real = dlsym(RTLD_NEXT, "fdatasync");
    if (partial(fd) && atomic_fetch_add(&flushes, 1) == 1 && fails("flush")) return -1;
    return real(fd);
}
"""

CHILD = """
import asyncio, sys
from pathlib import Path
from supervisor.download.engine import SegmentedDownloader
from tests.support.downloads import QUICK, Direct, wanted

async def main(folder, url, sha256):
    async with SegmentedDownloader(attempts=30, backoff=QUICK) as engine:
        await engine.fetch(wanted(Path(folder), url, sha256=sha256), Direct(), lambda _: None)

asyncio.run(main(*sys.argv[1:]))
"""


@pytest.mark.needs("gcc")
async def test_errors_of_a_dying_disk_are_tried_again_until_the_file_is_right(
    tmp_path: Path,
) -> None:
    source, library, folder = tmp_path / "eio.c", tmp_path / "eio.so", tmp_path / "models"
    source.write_text(SHIM)
    build = ["gcc", "-shared", "-fPIC", "-O1", "-o", str(library), str(source), "-ldl"]
    await anyio.run_process(build)
    async with serve(DATA) as origin:
        command = [sys.executable, "-c", CHILD, str(folder), origin.url, origin.sha256]
        environment = {**os.environ, "LD_PRELOAD": str(library)}
        done = await anyio.run_process(command, env=environment, check=False)
    told = done.stderr.decode()
    assert done.returncode == 0, told
    assert "EIO write" in told
    assert "EIO flush" in told
    assert (folder / "model.bin").read_bytes() == DATA
    only(folder, "model.bin")


async def test_a_clock_that_jumps_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng, real = random.Random(5), time.time
    monkeypatch.setattr(time, "time", lambda: real() + rng.choice((-1e8, 0.0, 3600.0, 1e8)))
    engine = SegmentedDownloader(stall_timeout_s=20.0, attempts=1, backoff=QUICK)
    async with serve(DATA, lambda _: Fault(bytes_per_s=3e7)) as origin, engine:
        request = wanted(tmp_path, origin.url, sha256=origin.sha256)
        result = await engine.fetch(request, Direct(), Log())
    assert result.bytes_fetched == len(DATA)  # nothing was taken for stalled or old
    only(tmp_path, "model.bin")


@pytest.fixture(params=["refuses", "is silent"])
def dead_ipv6(request: pytest.FixtureRequest) -> Iterator[Any]:
    """Makes ``::1`` at a port refuse, or take a connection and say nothing to the next ones."""
    sockets: list[socket.socket] = []

    def at(port: int) -> None:
        if request.param == "refuses":
            return
        listener = socket.socket(socket.AF_INET6)
        sockets.append(listener)
        try:
            listener.bind(("::1", port))
        except OSError as exc:
            require(available=False, what=f"::1 at a port of its own ({exc.strerror})")
        listener.listen(0)
        for _ in range(4):  # the queue is full: the kernel drops further SYNs
            client = socket.socket(socket.AF_INET6)
            client.setblocking(False)
            client.connect_ex(("::1", port))
            sockets.append(client)

    yield at
    for opened in sockets:
        opened.close()


async def test_a_host_whose_ipv6_is_dead_is_reached_over_ipv4(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dead_ipv6: Any
) -> None:
    real = socket.getaddrinfo

    def both(host: Any, port: Any, *args: Any, **kwargs: Any) -> Any:
        if host != "models.example":
            return real(host, port, *args, **kwargs)
        stream = (socket.SOCK_STREAM, socket.IPPROTO_TCP, "")
        return [
            (socket.AF_INET6, *stream, ("::1", port, 0, 0)),
            (socket.AF_INET, *stream, ("127.0.0.1", port)),
        ]

    monkeypatch.setattr(socket, "getaddrinfo", both)
    async with serve(DATA) as origin:
        dead_ipv6(origin.port)
        async with SegmentedDownloader(stall_timeout_s=20.0, attempts=1) as engine:
            url = f"http://models.example:{origin.port}/model.bin"
            await engine.fetch(wanted(tmp_path, url, sha256=origin.sha256), Direct(), Log())
    assert {ask.headers["host"] for ask in origin.asks} == {f"models.example:{origin.port}"}
    assert len(origin.asks) > 1  # pieces too go to the address that answered
    only(tmp_path, "model.bin")
