"""Where a file comes from, what a failure means for the next try, and what may be resumed."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

import anyio

from supervisor.core.retry import Backoff
from supervisor.download.meter import Meter
from supervisor.download.partial import Identity
from supervisor.download.request import DownloadRequest, Resolved, Resolver
from supervisor.download.transport import (
    LinkExpiredError,
    NoRangeError,
    RemoteChangedError,
    Reply,
    show_url,
    validator,
)
from supervisor.errors import (
    AuthRequiredError,
    ChecksumMismatchError,
    PermanentTransferError,
    TransientTransferError,
)

# A server that wants more time than this is left to the caller, who has other files.
LONGEST_PAUSE_S = 10.0
_UNSAFE = re.compile(r'[\x00-\x1f\x7f/\\:*?"<>|]')


class Sources:
    """The address of a file and its mirrors, tried in turn."""

    def __init__(self, request: DownloadRequest, resolver: Resolver) -> None:
        self._request = request
        self._resolver = resolver
        self._index = 0
        self.denied = 0  # refusals in a row
        self.mismatches = 0
        self.changes = 0  # times that the remote file seemed to be another one
        self.one_stream = False  # its host was found to be unable to serve parts
        self._parts_refused_at = -1

    async def resolve(self) -> Resolved:
        """Ask the source whose turn it is; the request's own size and hash win."""
        if self._index == 0:
            resolved = await self._resolver.resolve(self._request)
        else:
            resolved = Resolved(self._request.mirrors[self._index - 1])
        given, url = self._request.url, resolved.url
        handed_out = self._index == 0 and url != given and _host(url) != _host(given)
        size, sha256 = self._request.size_bytes, self._request.sha256
        return Resolved(
            url,
            resolved.headers,
            resolved.size_bytes if size is None else size,
            sha256 or resolved.sha256,
            resolved.etag,
            resolved.file_name,
            signed=resolved.signed or handed_out,
        )

    def parts_refused(self, meter: Meter) -> bool:
        """Whether parts were refused twice without a byte between: resuming is hopeless.

        Then the file comes in one stream from its start.
        """
        hopeless = self._parts_refused_at == meter.fetched
        self._parts_refused_at = meter.fetched
        self.one_stream = self.one_stream or hopeless
        return hopeless

    def rotate(self) -> bool:
        """Go to the next address; False when the first one's turn has come again."""
        self._index = (self._index + 1) % (1 + len(self._request.mirrors))
        self.one_stream = self.one_stream and not self._request.mirrors
        return self._index != 0


class Tries:
    """Decides after a failure whether to try again, where, and when."""

    def __init__(self, attempts: int, backoff: Backoff) -> None:
        self._attempts = attempts
        self._backoff = backoff
        self._failures = 0
        self._most = 0

    async def again(self, error: Exception, sources: Sources, meter: Meter) -> None:
        """Wait before the next try, or raise ``error``.

        What has arrived and was dropped again is no progress, as of a small file that is cut
        each time, or of one that seems to change for ever.
        """
        moved, self._most = meter.kept > self._most, max(meter.kept, self._most)
        self._failures = 1 if moved else self._failures + 1
        if moved:
            sources.denied = 0
        if isinstance(error, PermanentTransferError):
            self._second_chance(error, sources)
            return
        assert isinstance(error, TransientTransferError)  # noqa: S101
        sources.changes += isinstance(error, RemoteChangedError)
        if isinstance(error, RemoteChangedError | NoRangeError) and self._failures <= 2:
            return  # nothing is overloaded: begin anew at once
        if isinstance(error, LinkExpiredError):
            if moved:
                return
            sources.denied += 1
            if sources.denied > 2 and not sources.rotate():
                raise AuthRequiredError(
                    error.message, hint="the host refuses even fresh addresses; check the token"
                ) from error
        if (error.retry_after_s or 0.0) > LONGEST_PAUSE_S:
            if sources.rotate():
                return
            raise error
        if self._failures >= self._attempts:
            raise error
        if self._failures > 1:
            sources.rotate()
        delay_s = self._backoff.delay_s(self._failures - 1)
        if error.retry_after_s is not None:
            # Everybody was told the same second: spread out a little.
            delay_s = error.retry_after_s + delay_s / 4
        meter.say(f"{error.message}; next try in {delay_s:.0f} s")
        await anyio.sleep(delay_s)

    def _second_chance(self, error: PermanentTransferError, sources: Sources) -> None:
        if isinstance(error, ChecksumMismatchError):
            sources.mismatches += 1
            sources.rotate()
            if sources.mismatches > 1:
                raise error
        elif not sources.rotate():
            raise error


def _host(url: str) -> str:
    return urlsplit(url).netloc.rpartition("@")[2]


def place(request: DownloadRequest, resolved: Resolved) -> Path:
    """The destination; a folder takes the announced name, made safe."""
    if not request.directory:
        return request.destination
    announced = resolved.file_name or unquote(urlsplit(resolved.url).path)
    name = _UNSAFE.sub("_", announced.replace("\\", "/").rsplit("/", 1)[-1]).strip(" .")
    if not name:
        raise PermanentTransferError(
            f"Cannot place {request.name}: its source announces no file name",
            hint="give the file name in its destination",
        )
    return request.destination / name


def resumable(identity: Identity | None, resolved: Resolved) -> bool:
    """Whether bytes of ``identity`` may be continued with those of ``resolved``.

    Without a validator of the server only a known hash can tell a changed file.
    """
    if identity is None:
        return False
    if resolved.size_bytes is not None and identity.size_bytes not in (None, resolved.size_bytes):
        return False
    if resolved.sha256 and identity.sha256:
        return resolved.sha256.lower() == identity.sha256.lower()
    same = identity.origin == show_url(resolved.url)
    return same and validator(identity.etag, identity.modified) is not None


def identify(reply: Reply, resolved: Resolved) -> Identity:
    """Describe the remote file that answered."""
    return Identity(
        show_url(resolved.url), reply.total, reply.etag, reply.modified, resolved.sha256
    )


def check_size(size: int | None, resolved: Resolved, url: str) -> None:
    """Refuse a file of another size than the announced one before its bytes come.

    Raises:
        ChecksumMismatchError: with both sizes.
    """
    if size is not None and resolved.size_bytes is not None and size != resolved.size_bytes:
        raise ChecksumMismatchError(
            f"Cannot use {show_url(url)}: it has {size} bytes, announced were "
            f"{resolved.size_bytes}",
            hint="the remote file was replaced or truncated",
        )
