"""Asking a service how it is. Every probe answers with a ``ProbeResult``, never an error."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import assert_never
from urllib.parse import urlsplit

import anyio
import anyio.abc

from supervisor.services.spec import ActiveProbe, ExecProbe, FileProbe, HttpProbe, TcpProbe

_HEAD_BYTES = 32 * 1024
_BODY_BYTES = 256 * 1024

RunCommand = Callable[[tuple[str, ...]], Awaitable[int]]


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """One answer. ``refused``: nobody listens; ``body`` is what an http probe received."""

    ok: bool
    detail: str = ""
    refused: bool = False
    body: bytes = b""


class ProbeError(Exception):
    """An answer that is not HTTP."""


async def check(probe: ActiveProbe, *, timeout_s: float, run_command: RunCommand) -> ProbeResult:
    """Ask once. ``run_command`` executes an exec probe's command in the service's
    surroundings and returns its exit code."""
    result = ProbeResult(ok=False, detail=f"no answer within {timeout_s:g} s")
    with anyio.move_on_after(timeout_s):
        try:
            result = await _ask(probe, run_command)
        except (OSError, ProbeError, anyio.EndOfStream, anyio.BrokenResourceError) as exc:
            refused = isinstance(exc, ConnectionRefusedError) or isinstance(
                exc.__cause__, ConnectionRefusedError
            )
            detail = "connection refused" if refused else str(exc) or type(exc).__name__
            result = ProbeResult(ok=False, detail=detail, refused=refused)
    return result


async def _ask(probe: ActiveProbe, run_command: RunCommand) -> ProbeResult:
    match probe:
        case HttpProbe():
            return await _ask_http(probe)
        case TcpProbe():
            stream = await anyio.connect_tcp(probe.host, probe.port)
            await anyio.aclose_forcefully(stream)
            return ProbeResult(ok=True, detail="accepts connections")
        case ExecProbe():
            code = await run_command(probe.command)
            return ProbeResult(ok=code == 0, detail=f"{probe.command[0]} exited with {code}")
        case FileProbe():
            exists = await anyio.Path(probe.path).exists()
            return ProbeResult(
                ok=exists, detail=f"{probe.path} {'exists' if exists else 'is missing'}"
            )
        case _:
            assert_never(probe)


async def _ask_http(probe: HttpProbe) -> ProbeResult:
    status, body = await http_get(probe.url, want_body=True)
    wanted = status == probe.status if probe.status is not None else 200 <= status < 300
    if not wanted:
        return ProbeResult(ok=False, detail=f"answered {status}", body=body)
    if probe.body is not None and not re.search(probe.body, body.decode("utf-8", "replace")):
        return ProbeResult(ok=False, detail=f"answered {status} without the expected body")
    return ProbeResult(ok=True, detail=f"answered {status}", body=body)


async def http_get(url: str, *, want_body: bool = True) -> tuple[int, bytes]:
    """GET ``url`` once; return the status and up to 256 KiB of the body.

    A few lines of HTTP/1.1 by hand: an HTTP library would cost more start-up time than
    the whole supervisor has.

    Raises:
        OSError: nobody answers. ProbeError: what answers does not speak HTTP.
    """
    parts = urlsplit(url)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    host = parts.hostname or ""
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    name = f"[{host}]" if ":" in host else host
    request = (
        f"GET {target} HTTP/1.1\r\nHost: {name}:{port}\r\nAccept: */*\r\n"
        "User-Agent: supervisor\r\nConnection: close\r\n\r\n"
    )
    stream = await _connect(host, port, secure=parts.scheme == "https")
    try:
        await stream.send(request.encode())
        return await _read_response(stream, want_body=want_body)
    finally:
        with anyio.CancelScope(shield=True):
            await anyio.aclose_forcefully(stream)


async def _connect(host: str, port: int, *, secure: bool) -> anyio.abc.ByteStream:
    if not secure:
        return await anyio.connect_tcp(host, port)
    import ssl  # noqa: PLC0415 - rare, and slow to import

    # A service of this container, reached over loopback: its certificate says nothing more.
    # Without the system's authorities, whose loading takes 10 ms of the event loop.
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return await anyio.connect_tcp(
        host, port, tls=True, ssl_context=context, tls_standard_compatible=False
    )


async def _read_response(stream: anyio.abc.ByteStream, *, want_body: bool) -> tuple[int, bytes]:
    data = b""
    while b"\r\n\r\n" not in data:
        if len(data) > _HEAD_BYTES:
            raise ProbeError("the HTTP header is too long")
        data += await stream.receive()
    head, _, body = data.partition(b"\r\n\r\n")
    match = re.match(rb"HTTP/1\.[01] (\d{3})", head)
    if match is None:
        raise ProbeError("the answer is not HTTP")
    status = int(match[1])
    if not want_body:
        return status, b""
    length = re.search(rb"(?im)^content-length:\s*(\d+)", head)
    expected = min(int(length[1]), _BODY_BYTES) if length else _BODY_BYTES
    chunked = re.search(rb"(?im)^transfer-encoding:.*chunked", head) is not None
    with contextlib.suppress(anyio.EndOfStream):
        while len(body) < expected and not (chunked and body.endswith(b"0\r\n\r\n")):
            body += await stream.receive()
    return status, (_dechunk(body) if chunked else body[:expected])


def _dechunk(data: bytes) -> bytes:
    parts = []
    while data:
        size_text, _, rest = data.partition(b"\r\n")
        try:
            size = int(size_text.partition(b";")[0], 16)
        except ValueError:
            break
        if size == 0:
            break
        parts.append(rest[:size])
        data = rest[size + 2 :]
    return b"".join(parts)
