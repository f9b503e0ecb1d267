"""What every source shares: its settings, an HTTP call that never leaks a token, errors."""

from __future__ import annotations

import json
import logging
import math
import netrc
import os
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar, cast
from urllib.parse import urlsplit

import aiohttp
from pydantic import SecretStr

from supervisor.config.settings import ModelsSection
from supervisor.core.clock import wall_time_s
from supervisor.download.request import (
    DownloadRequest,
    Resolved,
)
from supervisor.download.transport import proxy_for
from supervisor.errors import (
    AuthRequiredError,
    NotFoundError,
    PermanentTransferError,
    TransferError,
    TransientTransferError,
)
from supervisor.models.references import display_url

REDIRECTS = frozenset({301, 302, 303, 307, 308})
MAX_REDIRECTS = 10
# For the small answers of APIs; bodies of models are the engine's business.
ANSWER_TIMEOUT_S = 30.0
_LONGEST_ANSWER_BYTES = 64 * 1024 * 1024
_PORTS = {"http": 80, "https": 443}
# The hub's form of the IETF draft: nothing remains, anew in t seconds.
_RATE_LIMIT = re.compile(r"\br\s*=\s*0\s*;\s*t\s*=\s*(\d+)")
USER_AGENT = "comfypod-supervisor"

Question = TypeVar("Question", bound=Callable[..., Awaitable[Any]])
T = TypeVar("T")
log = logging.getLogger("supervisor.models")


@dataclass(frozen=True, slots=True)
class Credentials:
    """User and password for one host."""

    user: str
    password: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class SourceContext:
    """Everything a source needs.

    ``session`` is made without ``trust_env``: with it aiohttp would add netrc's password to
    requests that carry a token, and refuse them.
    """

    session: aiohttp.ClientSession
    hf_endpoint: str = "https://huggingface.co"
    hf_token: str | None = field(default=None, repr=False)
    hf_offline: bool = False
    civitai_endpoint: str = "https://civitai.com"
    civitai_token: str | None = field(default=None, repr=False)
    netrc: Path | None = None
    answer_timeout_s: float = ANSWER_TIMEOUT_S

    @classmethod
    def from_settings(
        cls, section: ModelsSection, *, session: aiohttp.ClientSession, environ: Mapping[str, str]
    ) -> SourceContext:
        """Read endpoints and tokens; offline flags and NETRC come from ``environ``."""
        offline = environ.get("HF_HUB_OFFLINE") or environ.get("TRANSFORMERS_OFFLINE") or ""
        home = environ.get("HOME")
        default = Path(home) / ".netrc" if home else None
        return cls(
            session=session,
            hf_endpoint=section.hf_endpoint.rstrip("/"),
            hf_token=clean_token(section.hf_token),
            hf_offline=truthy(offline),
            civitai_endpoint=section.civitai_endpoint.rstrip("/"),
            civitai_token=clean_token(section.civitai_token),
            netrc=Path(environ["NETRC"]) if environ.get("NETRC") else default,
        )

    def credentials(self, host: str) -> Credentials | None:
        """Look ``host`` up in the netrc file; a broken or missing file has no entries."""
        if self.netrc is None:
            return None
        try:
            entry = netrc.netrc(str(self.netrc)).hosts.get(host)
        except (OSError, netrc.NetrcParseError):
            return None
        return Credentials(entry[0], entry[2]) if entry else None


def clean_token(secret: SecretStr | None) -> str | None:
    """A token fit for a header, as huggingface_hub cleans it: pasted ones end in a newline."""
    if secret is None:
        return None
    return secret.get_secret_value().replace("\r", "").replace("\n", "").strip() or None


def truthy(value: str) -> bool:
    """Read a flag as huggingface_hub does (1, ON, YES, TRUE)."""
    return value.strip().upper() in {"1", "ON", "YES", "TRUE"}


def same_host(one: str, other: str) -> bool:
    """Whether two URLs share scheme, host and port, so that a token may travel along."""
    return _origin(one) == _origin(other)


def _origin(url: str) -> tuple[str, str, int | None]:
    parts = urlsplit(url)
    try:
        port = parts.port
    except ValueError:
        port = -1  # equal to no usable one
    return parts.scheme, parts.hostname or "", port or _PORTS.get(parts.scheme)


@asynccontextmanager
async def call(
    context: SourceContext, method: str, url: str, *, headers: Mapping[str, str], doing: str
) -> AsyncIterator[aiohttp.ClientResponse]:
    """Send one request without following redirects; network trouble is transient.

    ``doing`` completes "Cannot …" and names no secret.

    Raises:
        TransientTransferError: no connection, or no answer in time.
    """
    timeout = aiohttp.ClientTimeout(total=context.answer_timeout_s)
    # The plain bytes are hashed, so they must travel as they are stored.
    merged = {"User-Agent": USER_AGENT, "Accept-Encoding": "identity", **headers}
    proxy, proxy_headers = proxy_for(url)
    if url.startswith("http:"):  # without a tunnel the proxy reads the request itself
        merged |= proxy_headers
    try:
        async with context.session.request(
            method,
            url,
            headers=merged,
            allow_redirects=False,
            timeout=timeout,
            proxy=proxy,
            proxy_headers=proxy_headers,
        ) as response:
            yield response
    except TransferError:
        raise
    except TimeoutError as exc:
        raise TransientTransferError(
            f"Cannot {doing}: {urlsplit(url).hostname} did not answer within "
            f"{context.answer_timeout_s:g} s"
        ) from exc
    except aiohttp.InvalidURL as exc:
        raise PermanentTransferError(
            f"Cannot {doing}: {display_url(url)} is not a usable address"
        ) from exc
    except (aiohttp.ClientError, OSError, UnicodeError) as exc:
        raise TransientTransferError(
            f"Cannot {doing}: no connection to {urlsplit(url).hostname} ({_cause(exc)})",
            hint="check the network and the address; it is tried again",
        ) from exc


def _cause(exc: Exception) -> str:
    """A few words; the text of some aiohttp errors holds the whole URL, signature included."""
    if not isinstance(exc, OSError):
        return type(exc).__name__
    if exc.errno is not None and exc.errno > 0:  # asyncio writes an address into its own words
        return os.strerror(exc.errno)
    return exc.strerror or type(exc).__name__


async def read_json(response: aiohttp.ClientResponse, kind: type[T], *, doing: str) -> T:
    """The answer of an API, when it is of that kind.

    Raises:
        TransientTransferError: it is something else, or endless.
    """
    body = bytearray()
    async for chunk in response.content.iter_any():
        body += chunk
        if len(body) > _LONGEST_ANSWER_BYTES:
            raise TransientTransferError(f"Cannot {doing}: the answer is too long")
    try:
        data = json.loads(body)
    except (ValueError, RecursionError) as exc:
        raise TransientTransferError(f"Cannot {doing}: the answer is not JSON") from exc
    if not isinstance(data, kind):
        raise TransientTransferError(f"Cannot {doing}: the answer is not a {kind.__name__}")
    return data


def understood(question: Question) -> Question:
    """Make what cannot be read out of an answer trouble of its server, that may pass."""

    @wraps(question)
    async def ask(source: object, request: DownloadRequest) -> Any:
        try:
            return await question(source, request)
        except (AttributeError, LookupError, TypeError, ValueError, OverflowError) as exc:
            log.debug("unexpected answer about %s", request.name, exc_info=exc)
            raise TransientTransferError(
                f"Cannot fetch {request.name}: the answer of {urlsplit(request.url).hostname} "
                f"cannot be understood ({type(exc).__name__})",
                hint="check the address, and whether a proxy or a login page stands in between",
            ) from exc

    return cast(Question, ask)


def check_status(
    status: int, headers: Mapping[str, str], *, doing: str, hint: str | None = None
) -> None:
    """Raise what a status of 400 and above means for a source without codes of its own.

    ``hint``: what helps where access is denied.

    Raises:
        TransferError: transient for 408, 425, 429 and 5xx, permanent for the others.
    """
    if status < 400:
        return
    if status in (408, 425, 429) or status >= 500:
        raise TransientTransferError(
            f"Cannot {doing}: the server answered {status}", retry_after_s=retry_after_s(headers)
        )
    if status in (401, 403):
        raise AuthRequiredError(f"Cannot {doing}: access denied ({status})", hint=hint)
    if status in (404, 410):
        raise NotFoundError(
            f"Cannot {doing}: there is no such file ({status})", hint="check the address"
        )
    raise PermanentTransferError(
        f"Cannot {doing}: the server answered {status}", hint="check the address"
    )


def retry_after_s(headers: Mapping[str, str]) -> float | None:
    """Seconds that ``Retry-After`` or ``RateLimit`` asks for; at most an hour."""
    value = headers.get("Retry-After", "").strip()
    if not value:
        used_up = _RATE_LIMIT.search(headers.get("RateLimit", ""))
        value = used_up[1] if used_up else ""
    if not value:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(value).timestamp() - wall_time_s()
        except (ValueError, TypeError, OverflowError):
            return None
    if math.isnan(seconds):
        return None
    return min(max(seconds, 0.0), 3600.0)


def sha256_of(value: str | None) -> str | None:
    """The value as a lower-case sha256, or None when it is something else."""
    text = (value or "").strip().removeprefix("W/").strip('"').lower()
    hexadecimal = len(text) == 64 and all(c in "0123456789abcdef" for c in text)
    return text if hexadecimal else None


def whole_number(value: str | None) -> int | None:
    """A non-negative integer header, or None."""
    text = (value or "").strip()
    return int(text) if text.isascii() and text.isdigit() else None


def require_agreement(request: DownloadRequest, resolved: Resolved) -> Resolved:
    """Refuse before the first byte when the server announces another file than wanted.

    Raises:
        PermanentTransferError: the hash, or without one the size, differs.
    """
    if request.sha256 and resolved.sha256:
        if request.sha256 == resolved.sha256:
            return resolved
        expected, found, what = request.sha256, resolved.sha256, "sha256"
    elif request.size_bytes is not None and resolved.size_bytes not in (None, request.size_bytes):
        expected, found = str(request.size_bytes), str(resolved.size_bytes)
        what = "size"
    else:
        return resolved
    raise PermanentTransferError(
        f"Cannot fetch {request.name}: {what} {found} is announced, {expected} is expected",
        hint="the remote file was replaced: pin a revision, or update the entry",
    )
