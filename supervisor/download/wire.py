"""One kept-alive HTTP/1.1 connection that a thread reads from: large receives, few calls.

Receiving on the event loop costs a turn of the loop for every 64 to 256 KiB. A blocking
socket waits in the kernel for a whole block, without the GIL. Only what the engine needs:
one GET at a time, answers told by their headers; whatever is unusual is declined, and
asked for again by way of aiohttp.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import struct
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

MAX_HEAD_BYTES = 64 * 1024
RAW_BYTES = 512 * 1024  # of TLS records that are read in one go
WAKE_BYTES = 256 * 1024
_RECORD_BYTES = 17 * 1024  # the longest TLS record with what is around it
TICK_S = 0.25  # the longest that a call waits: a stop is noticed, a slow block is saved


class DeclinedError(Exception):
    """The answer is not the plain one that was hoped for."""


class UnluckyError(DeclinedError):
    """It did not come to an answer this time; the next try may be luckier."""


class WireError(OSError):
    """The connection broke, or was shut."""


@dataclass(frozen=True, slots=True)
class Head:
    """Status and headers (names in lower case) of an answer."""

    status: int
    headers: Mapping[str, str]


class Wire:
    """A connected socket, perhaps with TLS above it. One thread at a time, but for ``shut``."""

    def __init__(
        self, connected: socket.socket, *, tls: ssl.SSLContext | None = None, host: str = ""
    ) -> None:
        """Take ``connected`` over; ``host`` is the name that its certificate must bear."""
        self._socket = connected
        connected.setblocking(True)
        interval = struct.pack("@ll", int(TICK_S), int(TICK_S % 1 * 1e6))
        connected.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, interval)
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._early = memoryview(b"")
        self._greeted = tls is None
        self._tls: ssl.SSLObject | None = None
        self._low = 1
        self.answers = 0  # that it has brought already
        self.stopped = False
        if tls is not None:
            self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
            self._raw = memoryview(bytearray(RAW_BYTES))
            self._tls = tls.wrap_bio(self._incoming, self._outgoing, server_hostname=host)

    def ask(self, target: str, headers: Mapping[str, str], *, timeout_s: float) -> Head:
        """Send a GET and read the head of its answer. Blocking.

        Raises:
            DeclinedError: what came is not HTTP/1.1 as expected.
            OSError: the connection broke, or nothing came in time.
        """
        deadline_s = time.monotonic() + timeout_s
        if self._tls is not None and not self._greeted:
            self._secure(self._tls.do_handshake, deadline_s)
            self._greeted = True
        lines = [f"GET {target} HTTP/1.1", *(f"{k}: {v}" for k, v in headers.items()), "", ""]
        if any("\r" in line or "\n" in line for line in lines):
            raise DeclinedError("a header with a line break")
        self._send("\r\n".join(lines).encode("latin-1"), deadline_s)
        return self._read_head(deadline_s)

    def receive(self, into: memoryview, *, expected: int) -> int:
        """Fill ``into`` as far as a quarter of a second allows; how many bytes came. Blocking.

        ``expected`` bytes of the body are still to come, at least as many as fit.

        Raises:
            OSError: the connection broke or was shut.
        """
        if self._early:
            count = min(len(into), len(self._early))
            into[:count] = self._early[:count]
            self._early = self._early[count:]
            return count
        if self._tls is not None:
            return self._receive_tls(self._tls, into, expected)
        return self._receive_raw(into, sure=expected)

    def shut(self) -> None:
        """Break the connection; a thread that waits on it returns. From any thread."""
        self.stopped = True
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Give the descriptor back; no thread may use the wire any more."""
        self._socket.close()

    def _receive_raw(self, into: memoryview, *, sure: int = 0) -> int:
        # Without a mark the kernel wakes the thread for every few packets, all for one
        # receive. But it never wakes it for less than the mark: as much must still follow.
        if sure > WAKE_BYTES:
            into = into[: sure - WAKE_BYTES]
            self._wake_at(WAKE_BYTES)
        else:
            into = into[:sure] if sure else into
            self._wake_at(1)
        try:
            count = self._socket.recv_into(into, 0, socket.MSG_WAITALL if sure else 0)
        except BlockingIOError:
            count = 0
        else:
            if count == 0:
                raise WireError("the connection was cut")
        if self.stopped:
            raise WireError("the connection was shut")
        return count

    def _wake_at(self, count: int) -> None:
        if count != self._low:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, count)
            self._low = count

    def _receive_tls(self, tls: ssl.SSLObject, into: memoryview, expected: int) -> int:
        got, until_s = 0, time.monotonic() + TICK_S
        while got < len(into):
            try:
                count = _read(tls, into[got:])
            except ssl.SSLWantReadError:
                self._flush()
                # Records only add to the body; what of it lies here undecoded is one at most.
                sure = expected - got - _RECORD_BYTES
                sure = sure if sure > WAKE_BYTES else 0
                if not self._fill(sure=sure) or time.monotonic() > until_s:
                    break
                continue
            except ssl.SSLError as exc:
                raise WireError(exc.reason or "TLS failed") from exc
            if count == 0:
                raise WireError("the connection was cut")
            got += count
        return got

    def _fill(self, *, sure: int = 0) -> int:
        count = self._receive_raw(self._raw, sure=sure)
        self._incoming.write(self._raw[:count])
        return count

    def _flush(self) -> None:
        if self._outgoing.pending:
            self._socket.sendall(self._outgoing.read())

    def _secure(self, step: Callable[[], None], deadline_s: float) -> None:
        while True:
            try:
                step()
            except ssl.SSLWantReadError:
                self._flush()
                self._fill()
                _check(deadline_s)
            except ssl.SSLError as exc:
                raise DeclinedError(f"no TLS: {exc.reason}") from exc
            else:
                self._flush()
                return

    def _send(self, data: bytes, deadline_s: float) -> None:
        if self._tls is not None:
            self._tls.write(data)
            self._flush()
        else:
            self._socket.sendall(data)
        _check(deadline_s)

    def _read_head(self, deadline_s: float) -> Head:
        buffer = memoryview(bytearray(MAX_HEAD_BYTES))
        have = 0
        while (end := bytes(buffer[:have]).find(b"\r\n\r\n")) < 0:
            if have == len(buffer):
                raise DeclinedError("endless headers")
            if self._tls is None:
                have += self._receive_raw(buffer[have:])
            else:
                have += self._read_some(self._tls, buffer[have:])
            _check(deadline_s)
        self._early = buffer[end + 4 : have]
        return parse_head(bytes(buffer[:end]))

    def _read_some(self, tls: ssl.SSLObject, into: memoryview) -> int:
        try:
            count = _read(tls, into)
        except ssl.SSLWantReadError:
            self._fill()
            return 0
        except ssl.SSLError as exc:
            raise WireError(exc.reason or "TLS failed") from exc
        if count == 0:
            raise WireError("the connection was cut")
        return count


def parse_head(data: bytes) -> Head:
    """Read the head of an answer, without its empty line.

    Raises:
        DeclinedError: not HTTP/1.1, a folded line, or a header twice where one counts.
    """
    first, *lines = data.decode("latin-1").split("\r\n")
    version, _, rest = first.partition(" ")
    code = rest[:3]
    if version != "HTTP/1.1" or not (len(code) == 3 and code.isdecimal()):
        raise DeclinedError("not HTTP/1.1")
    headers: dict[str, str] = {}
    for line in lines:
        name, colon, value = line.partition(":")
        if not colon or not name or name != name.strip():
            raise DeclinedError("a broken header")
        name = name.lower()
        if name in headers and name.startswith(("content-", "transfer-")):
            raise DeclinedError(f"{name} twice")
        headers[name] = value.strip()
    return Head(int(code), headers)


def _read(tls: ssl.SSLObject, into: memoryview) -> int:
    return int(tls.read(len(into), into))


def _check(deadline_s: float) -> None:
    if time.monotonic() > deadline_s:
        raise WireError("no answer")
