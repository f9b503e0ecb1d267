"""Request bodies for the bucket: small ones in memory, the rest read while it is sent."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import anyio
from aiohttp.abc import AbstractStreamWriter
from aiohttp.payload import Payload
from anyio import to_thread

from supervisor.errors import TransientTransferError
from supervisor.sync.model import Identity, Upload
from supervisor.sync.pacing import RateLimiter
from supervisor.sync.s3_bucket import Bucket, bounded, etag_of
from supervisor.sync.s3_errors import no_s3
from supervisor.sync.s3_wire import Wire
from supervisor.sync.target import FileChangedError, hash_span, open_exactly

# Below malloc's mmap threshold: the pieces come from the heap, without page faults.
_PIECE_BYTES = 512 * 1024
STREAM_BYTES = 2 * _PIECE_BYTES  # in memory for one body: a piece and what the socket holds
# No timeout of the client covers the time before its last byte is written: how long a
# server may take to say "100 Continue", and to take one piece.
CONTINUE_S = 20.0
STALL_S = 60.0


@dataclass(frozen=True, slots=True)
class Span:
    """The bytes of one request."""

    source: Path
    identity: Identity
    offset: int
    size_bytes: int


class FileBody(Payload):
    """A span of a file as a request body, as often as it is asked for.

    The md5 that goes with it makes the server refuse what has changed meanwhile.
    """

    def __init__(self, span: Span, limiter: RateLimiter) -> None:
        super().__init__(span, content_type="application/octet-stream")
        self._size = span.size_bytes
        self._span = span
        self._limiter = limiter
        self.failure: FileChangedError | None = None
        self.unasked = anyio.CancelScope()  # ends the wait for "100 Continue"

    def decode(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        """Refuse: nobody needs the whole body in memory."""
        raise NotImplementedError

    async def write(self, writer: AbstractStreamWriter) -> None:
        """Write all of it."""
        await self.write_with_length(writer, None)

    async def write_with_length(
        self, writer: AbstractStreamWriter, content_length: int | None
    ) -> None:
        """Write all of it, a piece at a time.

        Raises:
            FileChangedError: the file is no longer what was announced.
            TimeoutError: the server has stopped reading.
        """
        span = self._span
        self.unasked.deadline = math.inf
        try:
            fd = await to_thread.run_sync(open_exactly, span.source, span.identity)
            try:
                position, end = span.offset, span.offset + span.size_bytes
                while position < end:
                    size = min(self._limiter.piece_bytes(_PIECE_BYTES), end - position)
                    await self._limiter.spend(size)
                    piece = await to_thread.run_sync(os.pread, fd, size, position)
                    if not piece:
                        raise FileChangedError(f"Cannot read {span.source.name}: it has shrunk")
                    position += len(piece)
                    with anyio.fail_after(STALL_S):
                        await writer.write(piece)
            finally:
                os.close(fd)
        except FileChangedError as exc:
            self.failure = exc  # aiohttp tells its caller of a broken connection
            raise


async def send(
    bucket: Bucket,
    wire: Wire,
    upload: Upload,
    span: Span,
    *,
    headers: Mapping[str, str],
    query: Mapping[str, str] | None = None,
) -> str:
    """Put a span of the file; returns its ETag.

    Raises:
        FileChangedError: the file is no longer what was announced.
        TargetRefusedError: it answers as no S3 server would.
        TransientTransferError: the server did not ask for the body, or does not answer.
    """
    sha256 = upload.sha256 if span.size_bytes == upload.identity.size_bytes else None
    put = partial(wire.put, upload.key, headers=headers, query=query, sha256=sha256)
    if upload.body is not None:
        await bucket.limiter.spend(span.size_bytes)
        # Head and body leave in one piece. To be asked for the body is a round trip, which
        # pays only where a refusal would otherwise come after megabytes.
        return _etag_of(await bounded(put(upload.body), upload, span.size_bytes), bucket)
    body = FileBody(span, bucket.limiter)
    body.unasked.deadline = anyio.current_time() + CONTINUE_S
    try:
        with body.unasked:
            return _etag_of(await put(body, ask=bucket.asks), bucket)
    except Exception as exc:
        if body.failure is not None:
            raise body.failure from exc
        raise
    # Some proxies do not know "Expect"; from now on nobody waits for their word.
    bucket.asks = False
    raise TransientTransferError(f"Cannot upload {upload.key}: the server does not answer")


def _etag_of(answer: Mapping[str, str], bucket: Bucket) -> str:
    etag = etag_of(answer)
    if not etag:
        raise no_s3(bucket.name)
    return etag


async def md5_of(upload: Upload, span: Span) -> bytes:
    """Hash a span for Content-MD5 and to compare with an ETag.

    Raises:
        FileChangedError: the file is no longer what was announced.
    """
    digest = hashlib.md5(upload.body or b"", usedforsecurity=False)
    if upload.body is None:
        read = partial(hash_span, offset=span.offset, size_bytes=span.size_bytes)
        await to_thread.run_sync(read, span.source, span.identity, digest)
    return digest.digest()
