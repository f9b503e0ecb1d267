"""Any web server: redirects, basic authentication by netrc, names by content-disposition."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import unquote, unquote_to_bytes, urljoin, urlsplit, urlunsplit

from supervisor.download.request import DownloadRequest, Resolved
from supervisor.errors import PermanentTransferError, TransientTransferError
from supervisor.models.folders import name_from_url, safe_file_name
from supervisor.models.references import display_url
from supervisor.models.sources.base import (
    MAX_REDIRECTS,
    REDIRECTS,
    SourceContext,
    call,
    check_status,
    require_agreement,
    sha256_of,
    understood,
    whole_number,
)

# What a server says of itself: a GET would hear the same.
_OVERLOADED = frozenset({408, 425, 429, 503})
_HINTS = {
    401: "put the user and password for {host} into ~/.netrc",
    403: "put the user and password for {host} into ~/.netrc",
    404: "check the address, or the file was moved or deleted by its owner",
    410: "the file was deleted by its owner; find another address",
}


@dataclass(frozen=True, slots=True)
class _Answer:
    url: str
    status: int
    headers: Mapping[str, str]


class HttpSource:
    """Plain http and https addresses."""

    def __init__(self, context: SourceContext) -> None:
        self._context = context

    @understood
    async def resolve(self, request: DownloadRequest) -> Resolved:
        """Follow the redirects and read what the server says about the file.

        Raises:
            TransferError: see ``Resolver.resolve``.
        """
        url = request.reference or request.url
        doing = f"fetch {request.name} from {display_url(url)}"
        answer = await self._probe(url, doing=doing)
        host = urlsplit(answer.url).hostname
        if answer.status != 416:  # the first byte of an empty file
            hint = _HINTS.get(answer.status, "").format(host=host) or None
            check_status(answer.status, answer.headers, doing=doing, hint=hint)
        _refuse_web_page(answer, request, doing=doing)
        clean, headers = self._authorised(answer.url)
        return require_agreement(
            request,
            Resolved(
                url=clean,
                headers=headers,
                size_bytes=_size(answer),
                sha256=sha256_of(answer.headers.get("X-Linked-ETag")),
                etag=answer.headers.get("ETag"),
                file_name=_file_name(answer.headers) or name_from_url(url),
            ),
        )

    async def _probe(self, url: str, *, doing: str) -> _Answer:
        """Ask by HEAD; what is no good news is asked again by a GET of the first byte.

        Many servers do not know HEAD, or answer it wrongly: with 404, a page, or never.
        """
        try:
            answer = await self._ask("HEAD", url, doing=doing)
        except TransientTransferError:
            return await self._ask("GET", url, doing=doing)
        good = answer.status < 400 and not _is_web_page(answer)
        if good or answer.status in _OVERLOADED:
            return answer
        return await self._ask("GET", url, doing=doing)

    async def _ask(self, method: str, url: str, *, doing: str) -> _Answer:
        for _ in range(MAX_REDIRECTS):
            clean, headers = self._authorised(url)
            if method == "GET":
                headers = {**headers, "Range": "bytes=0-0"}
            async with call(self._context, method, clean, headers=headers, doing=doing) as response:
                location = response.headers.get("Location")
                if response.status not in REDIRECTS or not location:
                    return _Answer(url, response.status, response.headers.copy())
            target = urljoin(clean, location)
            if urlsplit(target).scheme not in ("http", "https"):
                raise PermanentTransferError(f"Cannot {doing}: redirected to something not http")
            if urlsplit(clean).scheme == "https" and urlsplit(target).scheme == "http":
                raise PermanentTransferError(
                    f"Cannot {doing}: redirected from https to unprotected http"
                )
            url = target
        raise PermanentTransferError(
            f"Cannot {doing}: more than {MAX_REDIRECTS} redirects",
            hint="the address is misconfigured at its host; use another one",
        )

    def _authorised(self, url: str) -> tuple[str, dict[str, str]]:
        """Take user and password out of the URL, else out of netrc, into a header."""
        parts = urlsplit(url)
        clean = urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))
        if parts.username:
            user, password = unquote(parts.username), unquote(parts.password or "")
        elif found := self._context.credentials(parts.hostname or ""):
            user, password = found.user, found.password
        else:
            return clean, {}
        encoded = b64encode(f"{user}:{password}".encode()).decode("ascii")
        return clean, {"Authorization": f"Basic {encoded}"}


def _is_web_page(answer: _Answer) -> bool:
    kind = answer.headers.get("Content-Type", "").partition(";")[0].strip().lower()
    return kind in ("text/html", "application/xhtml+xml")


def _refuse_web_page(answer: _Answer, request: DownloadRequest, *, doing: str) -> None:
    if not _is_web_page(answer):
        return
    if request.destination.suffix.lower() in (".html", ".htm"):
        return
    raise PermanentTransferError(
        f"Cannot {doing}: the server sent a web page instead of a file",
        hint="use the address behind the page's download button; a login may be needed",
    )


def _size(answer: _Answer) -> int | None:
    """Size of the file; None when it is not told, or only that of a compressed form."""
    if answer.headers.get("Content-Encoding", "identity").lower() not in ("", "identity"):
        return None
    if answer.status in (206, 416):
        return whole_number(answer.headers.get("Content-Range", "").rpartition("/")[2])
    # A length of 0 is also what servers say that make their answers as they go.
    return whole_number(answer.headers.get("Content-Length")) or None


def _file_name(headers: Mapping[str, str]) -> str | None:
    """The name of a ``Content-Disposition`` header (RFC 6266), made safe.

    ``filename*`` wins over ``filename``; its percent escapes are in the named charset.
    """
    plain = extended = None
    for part in _parameters(headers.get("Content-Disposition", "")):
        key, equals, value = part.partition("=")
        key, value = key.strip().lower(), value.strip()
        if not equals:
            continue
        if key == "filename":
            plain = value[1:-1].replace('\\"', '"') if value[:1] == value[-1:] == '"' else value
        elif key == "filename*" and value.count("'") >= 2:
            charset, _, encoded = value.split("'", 2)
            try:
                extended = unquote_to_bytes(encoded).decode(charset or "utf-8")
            except (LookupError, UnicodeDecodeError):
                extended = None
    name = extended or plain
    return safe_file_name(name) if name else None


def _parameters(header: str) -> list[str]:
    """Split at the semicolons outside quotes."""
    parts, current, quoted = [], "", False
    for index, char in enumerate(header):
        if char == '"' and header[index - 1 : index] != "\\":
            quoted = not quoted
        if char == ";" and not quoted:
            parts.append(current)
            current = ""
        else:
            current += char
    return [*parts, current]
