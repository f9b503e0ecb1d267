"""HTTP as the engines need it: one ranged GET, redirects by hand, answers told apart.

Redirects are followed here because the caller's headers (a token) must never reach
another host, and because a signed address is worth keeping for the next range.
"""

from __future__ import annotations

import math
import re
import ssl
from base64 import b64encode
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import cache, lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit, urlunsplit
from urllib.request import getproxies, proxy_bypass

import aiohttp
import anyio
from anyio.to_thread import run_sync
from yarl import URL

from supervisor.core.clock import wall_time_s
from supervisor.download.request import Resolved
from supervisor.errors import (
    AuthRequiredError,
    NotFoundError,
    PermanentTransferError,
    TransferError,
    TransientTransferError,
)

MAX_REDIRECTS = 10
REDIRECTS = frozenset({301, 302, 303, 307, 308})
# aiohttp drops what it holds when a connection breaks: let it hold little.
READ_BUFFER_BYTES = 64 * 1024
MAX_RETRY_AFTER_S = 3600.0
_UNCLEAN = re.compile(r'[\x00- "<>\\^`{|}]')


class LinkExpiredError(TransientTransferError):
    """A signed address no longer works; ask the source for a new one."""


class RemoteChangedError(TransientTransferError):
    """The remote file is not the one whose first bytes are here."""


class NoRangeError(TransientTransferError):
    """The server does not serve the bytes that were asked for, only whole files."""


@dataclass(frozen=True, slots=True)
class Link:
    """Where to ask. ``headers`` belong to the host of ``url``; ``signed`` after a redirect."""

    url: str
    headers: Mapping[str, str]
    signed: bool = False

    @property
    def host(self) -> str:
        """Name and port of the host, without a user."""
        return urlsplit(self.url).netloc.rpartition("@")[2]

    @classmethod
    def of(cls, resolved: Resolved) -> Link:
        """Start at what the source said."""
        return cls(resolved.url, dict(resolved.headers), resolved.signed)


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer whose body is still to be read.

    The body holds the bytes from ``start`` on; ``length`` of them, when the server said so.
    ``total`` is the size of the whole file, None while unknown.
    """

    response: aiohttp.ClientResponse
    link: Link
    start: int
    length: int | None
    total: int | None
    ranged: bool
    encoded: bool
    etag: str | None
    modified: str | None


async def tls_context(ca_file: Path | None = None) -> ssl.SSLContext:
    """Read the certificates to trust: 50 to 150 ms for the system's, so in a thread."""
    cafile = str(ca_file) if ca_file else None
    return await run_sync(lambda: ssl.create_default_context(cafile=cafile))


def open_session(tls: ssl.SSLContext, *, connections: int = 0) -> aiohttp.ClientSession:
    """Make the session of one engine.

    Cookies are never kept: they would cross hosts. ``trust_env`` stays off: besides the
    proxies (see ``proxy_for``) it means that netrc's user and password are added to every
    request, signed addresses of storage hosts included.
    IPv6 is tried first and IPv4 a quarter of a second later (aiohttp's happy eyeballs).
    ``connections`` of 0 leaves the limit to the caller.
    """
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=connections, ssl=tls, ttl_dns_cache=60),
        cookie_jar=aiohttp.DummyCookieJar(),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=30),
        headers={"Accept-Encoding": "identity", "User-Agent": "comfypod-supervisor"},
    )


def show_url(url: str) -> str:
    """Render an address for people: no user, no query, where signatures and tokens live."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    port = f":{parts.port}" if parts.port else ""
    return f"{parts.scheme}://{host}{port}{parts.path}"


@asynccontextmanager
async def open_range(
    session: aiohttp.ClientSession,
    link: Link,
    *,
    start: int,
    end: int | None = None,
    if_range: str | None = None,
    timeout_s: float,
    sock_read_s: float | None = None,
    buffer_bytes: int = READ_BUFFER_BYTES,
) -> AsyncIterator[Reply]:
    """GET the bytes [start, end) and yield the answer once its headers are here.

    Raises:
        TransferError: by class, see ``check_status``.
    """
    headers = {"Range": f"bytes={start}-{'' if end is None else end - 1}"}
    if if_range is not None:
        headers["If-Range"] = if_range
    options = {
        "timeout": aiohttp.ClientTimeout(total=None, sock_connect=30, sock_read=sock_read_s),
        "read_bufsize": buffer_bytes,
    }
    with network_errors(link.url):
        response, final = await _follow(session, link, headers, timeout_s, options)
        if start == 0 and _whole_is_better(response, link):
            response.close()
            response, final = await _follow(session, link, {}, timeout_s, options)
        try:
            yield _read_headers(response, final, start)
        finally:
            response.close()


async def _follow(
    session: aiohttp.ClientSession,
    link: Link,
    headers: Mapping[str, str],
    timeout_s: float,
    options: Mapping[str, Any],
) -> tuple[aiohttp.ClientResponse, Link]:
    seen: set[str] = set()
    for _ in range(MAX_REDIRECTS + 1):
        proxy, proxy_headers = proxy_for(link.url)
        # Without a tunnel the proxy reads the request itself.
        plain = proxy_headers if link.url.startswith("http:") else {}
        with anyio.fail_after(timeout_s):
            response = await session.get(
                literal_url(link.url),
                headers={**link.headers, **headers, **plain},
                allow_redirects=False,
                proxy=proxy,
                proxy_headers=proxy_headers,
                **options,
            )
        if response.status not in REDIRECTS:
            return response, link
        location = response.headers.get("Location", "")
        response.release()
        seen.add(link.url)
        link = _redirected(link, location)
        if link.url in seen:
            break
    raise PermanentTransferError(
        f"Cannot download {show_url(link.url)}: the redirects never end",
        hint="the address is misconfigured at its host; use another one",
    )


@cache
def _proxies() -> Mapping[str, str]:
    # Walks the whole environment, which does not change: not for each of 2 000 files.
    return getproxies()


def proxy_for(url: str) -> tuple[str | None, dict[str, str]]:
    """The proxy that the environment names for ``url``, and the headers meant for it.

    Raises:
        PermanentTransferError: that is a proxy of another kind.
    """
    parts = urlsplit(url)
    proxies = _proxies()
    proxy = proxies.get(parts.scheme) or proxies.get("all")
    if not proxy or proxy_bypass(parts.hostname or ""):
        return None, {}
    target = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    if target.scheme not in ("http", "https"):
        raise PermanentTransferError(
            f"Cannot reach {parts.hostname}: its proxy speaks {target.scheme}, not HTTP",
            hint="set http_proxy and https_proxy to an HTTP proxy, or name the host in no_proxy",
        )
    headers = {}
    if target.username:
        login = f"{unquote(target.username)}:{unquote(target.password or '')}"
        headers["Proxy-Authorization"] = f"Basic {b64encode(login.encode()).decode('ascii')}"
    return urlunsplit(target._replace(netloc=target.netloc.rpartition("@")[2])), headers


def _redirected(link: Link, location: str) -> Link:
    try:
        target = literal_url(link.url).join(literal_url(location)) if location else None
    except ValueError:
        target = None
    if target is None or not target.host or target.scheme not in ("http", "https"):
        raise PermanentTransferError(
            f"Cannot download {show_url(link.url)}: it redirects to nowhere usable"
        )
    source = literal_url(link.url)
    upgraded = (source.scheme, target.scheme) == ("http", "https")
    same_port = source.port == target.port or (upgraded and target.is_default_port())
    keeps = source.host == target.host and same_port
    keeps = keeps and (source.scheme == target.scheme or upgraded)
    return Link(str(target), link.headers if keeps else {}, signed=True)


@lru_cache(maxsize=64)
def literal_url(url: str) -> URL:
    """Parse an address; a clean one is taken literally: re-quoting may break a signature."""
    return URL(url, encoded=url.isascii() and _UNCLEAN.search(url) is None)


def _is_encoded(response: aiohttp.ClientResponse) -> bool:
    encoding = response.headers.get("Content-Encoding", "identity").strip().lower()
    return encoding not in ("", "identity")


def _whole_is_better(response: aiohttp.ClientResponse, link: Link) -> bool:
    """Whether the file must be asked for without a range.

    An empty file has no first byte (416). A compressed part, one of a file of unknown size,
    or one that does not say where it belongs could pass for the whole file.
    """
    if response.status != 206:
        return response.status == 416
    try:
        first, _, total = content_range(response.headers.get("Content-Range", ""), link)
    except NoRangeError:
        return True
    return first != 0 or total is None or _is_encoded(response)


def _read_headers(response: aiohttp.ClientResponse, link: Link, start: int) -> Reply:
    headers, encoded = response.headers, _is_encoded(response)
    length = response.content_length
    if response.status == 206:
        if encoded:
            raise NoRangeError(f"Cannot resume {show_url(link.url)}: its parts are compressed")
        first, last, total = content_range(headers.get("Content-Range", ""), link)
        if first != start or (length is not None and length != last - first + 1):
            raise NoRangeError(
                f"Cannot resume {show_url(link.url)}: asked for byte {start}, got byte {first}"
            )
        begins, length, ranged = first, last - first + 1, True
    elif response.status == 200:
        begins, ranged = 0, False
        total = None if encoded else length
    else:
        check_status(response, link, started=start > 0)
        raise AssertionError("unreachable")
    return Reply(
        response=response,
        link=link,
        start=begins,
        length=None if encoded else length,
        total=total,
        ranged=ranged,
        encoded=encoded,
        etag=headers.get("ETag"),
        modified=headers.get("Last-Modified"),
    )


def content_range(value: str, link: Link) -> tuple[int, int, int | None]:
    """First byte, last byte and size of the whole (None while unknown).

    Raises:
        NoRangeError: nothing of that kind.
    """
    try:
        unit, _, rest = value.strip().partition(" ")
        span, _, total = rest.partition("/")
        first, _, last = span.partition("-")
        begin, end, size = int(first), int(last), None if total.strip() == "*" else int(total)
    except ValueError:
        begin, end, size = -1, -1, None
    if unit != "bytes" or not 0 <= begin <= end or (size is not None and end >= size):
        raise NoRangeError(f"Cannot resume {show_url(link.url)}: its Content-Range is wrong")
    return begin, end, size


def check_status(response: aiohttp.ClientResponse, link: Link, *, started: bool) -> None:
    """Raise what an answer without the wanted bytes means.

    ``started`` or a redirect on the way turns 401, 403, 404 and 410 into an expired
    address: the source decides when it is asked again.
    """
    status, where = response.status, show_url(link.url)
    if status == 416:
        raise RemoteChangedError(f"Cannot resume {where}: the remote file has another size")
    if status in (401, 403, 404, 410) and (link.signed or started):
        raise LinkExpiredError(f"Cannot download {where}: the address has expired ({status})")
    if status in (401, 403):
        raise AuthRequiredError(
            f"Cannot download {where}: access denied ({status})",
            hint="set the token of this host, and accept the model's terms on its page",
        )
    if status in (404, 410):
        raise NotFoundError(
            f"Cannot download {where}: there is no such file ({status})",
            hint="check the address, or the file was moved or deleted by its owner",
        )
    if status in (408, 425, 429) or status >= 500:
        raise TransientTransferError(
            f"Cannot download {where}: the server answered {status}",
            retry_after_s=retry_after_s(response.headers.get("Retry-After")),
        )
    raise PermanentTransferError(f"Cannot download {where}: the server answered {status}")


def retry_after_s(value: str | None) -> float | None:
    """Seconds of a Retry-After header (RFC 9110, 10.2.3), at most an hour."""
    if not value:
        return None
    try:
        delay_s = float(value)
    except ValueError:
        try:
            at = parsedate_to_datetime(value)
        except (ValueError, TypeError, OverflowError):
            return None
        at = at if at.tzinfo else at.replace(tzinfo=UTC)
        delay_s = (at - datetime.fromtimestamp(wall_time_s(), tz=UTC)).total_seconds()
    return None if math.isnan(delay_s) else min(max(delay_s, 0.0), MAX_RETRY_AFTER_S)


def validator(etag: str | None, modified: str | None) -> str | None:
    """What If-Range may carry: a strong ETag, else a date (RFC 9110, 13.1.5)."""
    if etag and not etag.startswith("W/"):
        return etag
    return modified


class network_errors:  # noqa: N801  (a context manager that reads as a statement)
    """Turns the exceptions of aiohttp and of the socket into transfer errors."""

    def __init__(self, url: str) -> None:
        self._where = show_url(url)

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if error is None or isinstance(error, TransferError):
            return
        if isinstance(error, aiohttp.InvalidURL):
            raise PermanentTransferError(f"Cannot download {self._where}: not an address") from None
        if isinstance(error, aiohttp.ClientConnectorCertificateError):
            raise PermanentTransferError(
                f"Cannot download {self._where}: its certificate is not trusted",
                hint="check the clock and SSL_CERT_FILE",
            ) from error
        if isinstance(error, TimeoutError):
            raise TransientTransferError(f"Cannot download {self._where}: no answer") from error
        if isinstance(error, aiohttp.ClientError | ConnectionError | ssl.SSLError):
            reason = str(error) or type(error).__name__
            if isinstance(error, aiohttp.ClientResponseError):
                reason = "the answer is not HTTP"  # its text holds the whole address
            elif isinstance(error, aiohttp.ClientPayloadError):
                reason = "the answer was cut"
            raise TransientTransferError(f"Cannot download {self._where}: {reason}") from error
