"""Messages of a service about itself: systemd's sd_notify protocol and s6's descriptor.

https://www.freedesktop.org/software/systemd/man/latest/sd_notify.html and
https://skarnet.org/software/s6/notifywhenup.html, read 2026-11.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass

import anyio

_CREDENTIALS = struct.Struct("iII")  # struct ucred of unix(7): pid, uid, gid


@dataclass(frozen=True, slots=True)
class Notification:
    """One message. Times in seconds; a field that was not sent is None or False."""

    ready: bool = False
    status: str | None = None
    watchdog: bool = False
    watchdog_failed: bool = False
    watchdog_s: float | None = None
    extend_timeout_s: float | None = None


def parse(data: bytes) -> Notification:
    """Read a datagram; unknown and malformed assignments are passed over."""
    fields: dict[str, str] = {}
    for line in data.decode("utf-8", "replace").split("\n"):
        key, separator, value = line.partition("=")
        if separator:
            fields[key] = value
    return Notification(
        ready=fields.get("READY") == "1",
        status=fields.get("STATUS"),
        watchdog=fields.get("WATCHDOG") == "1",
        watchdog_failed=fields.get("WATCHDOG") == "trigger",
        watchdog_s=_microseconds(fields.get("WATCHDOG_USEC")),
        extend_timeout_s=_microseconds(fields.get("EXTEND_TIMEOUT_USEC")),
    )


def _microseconds(value: str | None) -> float | None:
    return int(value) / 1e6 if value is not None and value.isascii() and value.isdigit() else None


class NotifySocket:
    """The datagram socket of one life of a service.

    Its address is abstract, so that a service of any user reaches it; only messages from
    the service's own session count.
    """

    def __init__(self, address: str) -> None:
        """Bind to ``address`` (without the leading @).

        Raises:
            OSError: the address is taken.
        """
        self.variable = f"@{address}"
        self._socket = socket.socket(
            socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
        )
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        self._socket.bind(f"\0{address}")

    async def listen(self, leader: int, receive: Callable[[Notification], None]) -> None:
        """Hand over messages until cancelled."""
        while True:
            await anyio.wait_readable(self._socket)
            try:
                data, ancillary, _, _ = self._socket.recvmsg(
                    65536, socket.CMSG_SPACE(_CREDENTIALS.size)
                )
            except BlockingIOError:
                continue
            for _level, kind, content in ancillary:
                if kind == socket.SCM_CREDENTIALS and _belongs(
                    _CREDENTIALS.unpack(content[: _CREDENTIALS.size])[0], leader
                ):
                    receive(parse(data))

    def close(self) -> None:
        """Release the address."""
        self._socket.close()


def _belongs(pid: int, leader: int) -> bool:
    if pid == leader:
        return True
    try:
        return os.getsid(pid) == leader
    except ProcessLookupError:
        # A helper such as systemd-notify has ended by the time its message is read. The
        # address holds a random part that only the service's environment tells.
        return True


async def read_descriptor(descriptor: int) -> bool:
    """Wait for a newline on an s6 notification pipe; False when it was closed without one."""
    while True:
        await anyio.wait_readable(descriptor)
        try:
            data = os.read(descriptor, 4096)
        except BlockingIOError:
            continue
        if not data or b"\n" in data:
            return bool(data)
