"""Pieces received by threads: the same faults, told and repaired as on the event loop."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import ssl
import subprocess
import sys
import termios
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest

from supervisor.download.engine import SegmentedDownloader
from supervisor.download.wire import DeclinedError, Wire, WireError, parse_head
from tests.support.bad_origin import Ask, Fault, serve
from tests.support.downloads import QUICK, Direct, Log, only, random_bytes, wanted

MIB = 1024 * 1024
DATA = random_bytes(40 * MIB + 99)
LATER = random_bytes(40 * MIB + 99, seed=2)


def make(lanes: int, **options: Any) -> SegmentedDownloader:
    settings = {"stall_timeout_s": 1.0, "attempts": 8, "backoff": QUICK, "fsync": False}
    return SegmentedDownloader(**{**settings, **options}, lanes=lanes)


def lane_threads() -> int:
    return sum(thread.name.startswith("download-lane") for thread in threading.enumerate())


def second(fault: Fault) -> Callable[[Ask], Fault]:
    """Every third request from the second on, so never the one that shows the way."""
    return lambda ask: fault if ask.number % 3 == 1 else Fault()


FAULTS = {
    "cut": second(Fault(cut_after=3 * MIB + 17)),
    "cut at once": second(Fault(cut_after=0)),
    "stalled": lambda ask: Fault(stall_after=MIB) if ask.number in (1, 4) else Fault(),
    "shifted": lambda ask: Fault(shift=1) if ask.number == 2 else Fault(),
    "shifted often": second(Fault(shift=1)),
    "shifted always": lambda ask: Fault(shift=1) if ask.start else Fault(),
    "whole": lambda ask: Fault(ranges=False) if ask.number == 2 else Fault(),
    "chunked": lambda ask: Fault(chunked=True) if ask.number == 2 else Fault(),
    "compressed": lambda ask: Fault(gzipped=True) if ask.number == 2 else Fault(),
    "refused": second(Fault(status=503)),
    "too many": second(Fault(status=429, headers=(("Retry-After", "0"),))),
    "closing": lambda _: Fault(close=True),
}


@pytest.mark.anyio
@pytest.mark.parametrize("lanes", [0, 16], ids=["loop", "lanes"])
@pytest.mark.parametrize("fault", FAULTS)
async def test_a_bad_answer_to_a_piece_is_repaired(tmp_path: Path, lanes: int, fault: str) -> None:
    folder = tmp_path / "models"
    async with serve(DATA, FAULTS[fault]) as origin, make(lanes) as engine:
        request = wanted(folder, origin.url, sha256=origin.sha256)
        await engine.fetch(request, Direct(), Log())
        assert request.destination.read_bytes() == DATA
        assert (lane_threads() > 0) == (lanes > 0)
    only(folder, "model.bin")
    assert lane_threads() == 0


@pytest.mark.anyio
@pytest.mark.parametrize("lanes", [0, 16], ids=["loop", "lanes"])
async def test_versions_are_never_mixed(tmp_path: Path, lanes: int) -> None:
    def behave(ask: Ask) -> Fault:
        return Fault() if ask.number < 3 else Fault(etag='"v2"', data=LATER)

    async with serve(DATA, behave) as origin, make(lanes) as engine:
        request = wanted(tmp_path, origin.url)
        await engine.fetch(request, Direct(), Log())
        assert request.destination.read_bytes() == LATER
    only(tmp_path, "model.bin")


@pytest.mark.anyio
async def test_pieces_carry_the_same_headers_as_the_first_request(tmp_path: Path) -> None:
    async with serve(DATA) as origin, make(16) as engine:
        token = {"Authorization": "Bearer mine"}
        await engine.fetch(wanted(tmp_path, origin.url), Direct(headers=token), Log())
        assert lane_threads() > 0
    assert len(origin.asks) > 2
    first, *pieces = [ask.headers for ask in origin.asks]
    assert all(piece["if-range"] == '"v1"' for piece in pieces)
    for name in ("host", "authorization", "user-agent", "accept", "accept-encoding"):
        assert {piece[name] for piece in pieces} == {first[name]}


@pytest.mark.anyio
async def test_a_token_stays_with_its_host(tmp_path: Path) -> None:
    async with serve(DATA) as storage:
        moved = Fault(status=302, headers=(("Location", storage.url),))
        async with serve(b"", lambda _: moved) as hub, make(16) as engine:
            token = {"Authorization": "Bearer mine"}
            await engine.fetch(wanted(tmp_path, hub.url), Direct(headers=token), Log())
            assert lane_threads() > 0
        assert len(hub.asks) == 1  # pieces go to the address that answered
    assert len(storage.asks) > 2
    assert not any("authorization" in ask.headers for ask in storage.asks)


@pytest.mark.anyio
async def test_a_cancelled_transfer_ends_its_threads_work_at_once(tmp_path: Path) -> None:
    async with serve(DATA, lambda _: Fault(stall_after=MIB)) as origin:
        engine = make(16, stall_timeout_s=600.0)
        async with engine, anyio.create_task_group() as group:
            group.start_soon(engine.fetch, wanted(tmp_path, origin.url), Direct(), Log())
            while not (lane_threads() and origin.sent >= 2 * MIB):
                await anyio.sleep(0.01)
            group.cancel_scope.cancel()
    assert lane_threads() == 0  # within the suite's deadline, not after ten minutes
    only(tmp_path, ".model.bin.part", ".model.bin.part.journal")


def connected() -> tuple[socket.socket, socket.socket]:
    """Two ends of one TCP connection."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ours = socket.create_connection(listener.getsockname())
        return ours, listener.accept()[0]


@pytest.fixture
def pair() -> Iterator[tuple[Wire, socket.socket]]:
    ours, theirs = connected()
    wire = Wire(ours)
    yield wire, theirs
    wire.close()
    theirs.close()


HEAD = b"HTTP/1.1 206 Partial Content\r\nContent-Length: 5\r\nX-A: 1\r\n\r\n"


def test_a_head_may_come_byte_by_byte_and_bring_the_body(
    pair: tuple[Wire, socket.socket],
) -> None:
    wire, server = pair

    def answer() -> None:
        while not server.recv(65536).endswith(b"\r\n\r\n"):
            pass
        for index in range(len(HEAD) - 1):
            server.send(HEAD[index : index + 1])
        server.send(HEAD[-1:] + b"he")
        server.send(b"llo")

    thread = threading.Thread(target=answer)
    thread.start()
    head = wire.ask("/m", {"Host": "h"}, timeout_s=30)
    body = bytearray(5)
    got = 0
    while got < 5:
        got += wire.receive(memoryview(body)[got:], expected=5 - got)
    thread.join()
    assert (head.status, head.headers["x-a"], bytes(body)) == (206, "1", b"hello")


def test_a_silent_server_is_given_up_after_the_timeout(pair: tuple[Wire, socket.socket]) -> None:
    with pytest.raises(WireError, match="no answer"):
        pair[0].ask("/m", {}, timeout_s=0.3)


def test_endless_headers_are_declined(pair: tuple[Wire, socket.socket]) -> None:
    wire, server = pair

    def flood() -> None:
        with contextlib.suppress(OSError):
            while True:
                server.sendall(b"X-A: 1\r\n" * 512)

    thread = threading.Thread(target=flood)
    thread.start()
    with pytest.raises(DeclinedError, match="endless"):
        wire.ask("/m", {}, timeout_s=30)
    wire.close()  # unread bytes: the flood ends in a reset
    thread.join()


def test_shutting_wakes_the_thread_that_waits(pair: tuple[Wire, socket.socket]) -> None:
    wire, _ = pair
    waiting = threading.Event()
    caught: list[BaseException] = []

    def receive() -> None:
        waiting.set()
        try:
            while True:
                wire.receive(memoryview(bytearray(MIB)), expected=MIB)
        except WireError as exc:
            caught.append(exc)

    thread = threading.Thread(target=receive)
    thread.start()
    waiting.wait()
    wire.shut()
    thread.join(30)
    assert not thread.is_alive()
    assert caught


@pytest.mark.parametrize(
    "head",
    [
        b"HTTP/1.0 206 OK",
        b"HTTP/1.1 20 OK",
        b"<html>",
        b"HTTP/1.1 206 OK\r\n folded: 1",
        b"HTTP/1.1 206 OK\r\nno colon",
        b"HTTP/1.1 206 OK\r\nContent-Length: 1\r\ncontent-length: 2",
        b"HTTP/1.1 206 OK\r\nName : 1",
    ],
)
def test_what_is_not_plain_http_is_declined(head: bytes) -> None:
    with pytest.raises(DeclinedError):
        parse_head(head)


def test_a_header_with_a_line_break_is_never_sent(pair: tuple[Wire, socket.socket]) -> None:
    with pytest.raises(DeclinedError):
        pair[0].ask("/m", {"A": "1\r\nB: 2"}, timeout_s=1)


def certified(folder: Path) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """A client's and a server's context; the certificate is for other.example."""
    pem = folder / "cert.pem"
    command = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=o"
    command += f" -addext subjectAltName=DNS:other.example -keyout {folder}/key -out {pem}"
    subprocess.run(command.split(), check=True, capture_output=True)
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(pem, folder / "key")
    return ssl.create_default_context(cafile=str(pem)), server


@pytest.mark.needs("openssl")
@pytest.mark.parametrize("secure", [False, True], ids=["plain", "tls"])
def test_the_last_bytes_of_a_body_are_not_waited_for_in_vain(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, secure: bool
) -> None:
    monkeypatch.setattr("supervisor.download.wire.TICK_S", 600)  # hides no lost wake-up
    client, server = certified(tmp_path)
    ours, theirs = connected()
    wire = Wire(ours, tls=client if secure else None, host="other.example")
    data = random_bytes(600 * 1024)  # a receive over TLS ends shortly before its end
    body, got = memoryview(bytearray(len(data))), 0
    first, tail = data[: -100 * 1024], data[-100 * 1024 :]
    tail_sent, received = threading.Event(), threading.Event()

    def answer() -> None:
        peer = server.wrap_socket(theirs, server_side=True) if secure else theirs
        while not peer.recv(65536).endswith(b"\r\n\r\n"):
            pass
        peer.sendall(b"HTTP/1.1 206 OK\r\nContent-Length: %d\r\n\r\n" % len(data) + first)
        while _unread(ours):  # until the client has taken all of it, and waits for more
            os.sched_yield()
        peer.sendall(tail)
        tail_sent.set()
        received.wait(60)
        peer.close()

    def receive() -> None:
        nonlocal got
        wire.ask("/m", {"Host": "h"}, timeout_s=30)
        while got < len(data):
            got += wire.receive(body[got:], expected=len(data) - got)
        received.set()

    threads = [threading.Thread(target=work) for work in (answer, receive)]
    for thread in threads:
        thread.start()
    assert tail_sent.wait(60)
    whole = received.wait(60)
    wire.shut()
    for thread in threads:
        thread.join()
    wire.close()
    assert whole
    assert bytes(body) == data


def _unread(sock: socket.socket) -> int:
    waiting = bytearray(4)
    fcntl.ioctl(sock, termios.FIONREAD, waiting)
    return int.from_bytes(waiting, sys.byteorder)


@pytest.mark.needs("openssl")
def test_a_certificate_of_another_name_is_declined(tmp_path: Path) -> None:
    client, server = certified(tmp_path)
    ours, theirs = connected()

    def answer() -> None:
        try:
            server.wrap_socket(theirs, server_side=True).close()
        except OSError:
            theirs.close()

    thread = threading.Thread(target=answer)
    thread.start()
    wire = Wire(ours, tls=client, host="models.example")
    with pytest.raises(DeclinedError, match="CERTIFICATE"):
        wire.ask("/m", {}, timeout_s=30)
    wire.close()
    thread.join()
