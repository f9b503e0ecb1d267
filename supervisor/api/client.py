"""The command line's way to the daemon: HTTP/1.1 over the Unix socket, stdlib only.

``http.client`` costs 25 ms to import (it brings ``email``), more than the rest of
``supervisor status`` together, so the few needed parts of HTTP are read here: a status
line, headers, and a body that is sized, chunked or ends with the connection.
"""

from __future__ import annotations

import socket

from supervisor.errors import ControlError, DaemonUnreachableError

TYPE_CHECKING = False  # spares the import of typing; type checkers know the name
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

_CHUNK_BYTES = 65536
_MAX_LINE_BYTES = 65536


def connect(socket_path: str) -> Client:
    """Return a client after making sure that a daemon listens.

    Raises:
        DaemonUnreachableError: nobody answers there.
    """
    client = Client(socket_path)
    client.ping()
    return client


class Client:
    """Requests to one daemon, a connection each. ``timeout_s`` bounds each wait for bytes."""

    def __init__(self, socket_path: str, *, timeout_s: float | None = 30.0) -> None:
        self.socket_path = str(socket_path)
        self.timeout_s = timeout_s

    def ping(self) -> None:
        """Connect and hang up.

        Raises:
            DaemonUnreachableError: nobody answers.
        """
        self._open(self.timeout_s).close()

    def get(self, path: str) -> Any:
        """GET a JSON document.

        Raises:
            ControlError: the daemon refused.
            DaemonUnreachableError: nobody answers, or it stopped half-way.
        """
        return _parse(self.request("GET", path))

    def post(self, path: str, body: Any = None, *, timeout_s: float | None = None) -> Any:
        """POST a JSON document; by default wait for the answer without a limit.

        Raises:
            ControlError: the daemon refused.
            DaemonUnreachableError: nobody answers, or it stopped half-way.
        """
        import json  # noqa: PLC0415 - requests without a body do without it

        data = b"" if body is None else json.dumps(body).encode()
        return _parse(self.request("POST", path, data, timeout_s=timeout_s))

    def request(
        self, method: str, path: str, body: bytes = b"", *, timeout_s: float | None = None
    ) -> bytes:
        """Send a request and return the body as it came.

        Raises:
            ControlError: the daemon refused.
            DaemonUnreachableError: nobody answers, or it stopped half-way.
        """
        limit_s = self.timeout_s if method == "GET" else timeout_s
        with _Exchange(self, limit_s) as exchange:
            exchange.send(method, path, body)
            return b"".join(exchange.body())

    def stream(self, path: str) -> Iterator[dict[str, Any]]:
        """GET JSON lines and yield each as it arrives, until the daemon ends the stream.

        Raises:
            ControlError: the daemon refused.
            DaemonUnreachableError: nobody answers, or it stopped half-way.
        """
        import json  # noqa: PLC0415 - see post

        with _Exchange(self, None) as exchange:
            exchange.send("GET", path, b"")
            rest = b""
            for chunk in exchange.body():
                *lines, rest = (rest + chunk).split(b"\n")
                for line in lines:
                    if line:  # a blank line is the heartbeat
                        yield json.loads(line)

    def _open(self, timeout_s: float | None) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.settimeout(timeout_s)
        try:
            connection.connect(self.socket_path)
        except OSError as exc:
            connection.close()
            raise _unreachable(self.socket_path, exc) from exc
        return connection


class _Exchange:
    """One request and its response on a connection of its own."""

    def __init__(self, client: Client, timeout_s: float | None) -> None:
        self._path = client.socket_path
        self._socket = client._open(timeout_s)
        self._buffer = b""
        self._headers: dict[str, str] = {}

    def __enter__(self) -> _Exchange:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def send(self, method: str, path: str, body: bytes) -> None:
        """Send the request and read the head; a refusal raises ``ControlError``."""
        head = (
            f"{method} {path} HTTP/1.1\r\nHost: supervisor\r\nConnection: close\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        try:
            self._socket.sendall(head.encode() + body)
        except OSError as exc:
            raise self._broken(exc) from exc
        status = int(self._line().split(b" ", 2)[1])
        while line := self._line():
            name, _, value = line.decode("latin-1").partition(":")
            self._headers[name.lower()] = value.strip()
        if status >= 400:
            raise _refused(status, b"".join(self.body()))

    def body(self) -> Iterator[bytes]:
        """Yield the body piece by piece."""
        if self._headers.get("transfer-encoding", "").lower() == "chunked":
            while size := int(self._line().split(b";")[0], 16):
                yield self._exactly(size)
                self._line()
        elif "content-length" in self._headers:
            yield self._exactly(int(self._headers["content-length"]))
        else:
            yield self._buffer
            while data := self._receive():
                yield data

    def _line(self) -> bytes:
        while b"\r\n" not in self._buffer:
            if len(self._buffer) > _MAX_LINE_BYTES:
                raise self._broken(ValueError("it does not speak HTTP"))
            self._fill()
        line, _, self._buffer = self._buffer.partition(b"\r\n")
        return line

    def _exactly(self, size: int) -> bytes:
        pieces = [self._buffer]
        have = len(self._buffer)
        while have < size:
            pieces.append(self._receive() or self._ended())
            have += len(pieces[-1])
        data = b"".join(pieces)
        self._buffer = data[size:]
        return data[:size]

    def _fill(self) -> None:
        self._buffer += self._receive() or self._ended()

    def _receive(self) -> bytes:
        try:
            return self._socket.recv(_CHUNK_BYTES)
        except OSError as exc:
            raise self._broken(exc) from exc

    def _ended(self) -> bytes:
        raise self._broken(EOFError("it ended the connection"))

    def _broken(self, cause: Exception) -> DaemonUnreachableError:
        reason = "it gave no answer in time" if isinstance(cause, TimeoutError) else cause
        return DaemonUnreachableError(
            f"Cannot talk to the supervisor at {self._path}: {reason}",
            hint="it may be stopping; try again or look at the container's log",
        )


def _parse(body: bytes) -> Any:
    import json  # noqa: PLC0415 - see Client.post

    return json.loads(body) if body else None


def _refused(status: int, body: bytes) -> ControlError:
    try:
        error = _parse(body)["error"]
        return ControlError(
            str(error["message"]), hint=error.get("hint"), status=status, code=str(error["code"])
        )
    except (ValueError, KeyError, TypeError):
        return ControlError(f"the daemon answered HTTP {status}", status=status, code="http")


def _unreachable(path: str, exc: OSError) -> DaemonUnreachableError:
    hint = "start it with 'supervisor run', or name its socket with SUPERVISOR_SOCKET"
    if isinstance(exc, PermissionError):
        hint = "use root or the user that the supervisor runs as"
    return DaemonUnreachableError(
        f"Cannot reach a supervisor at {path}: {exc.strerror or exc}", hint=hint
    )
