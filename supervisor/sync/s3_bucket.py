"""One bucket as the uploads of this process see it: its client, its pace, what it allows."""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

import anyio
from anyio import to_thread
from botocore.exceptions import ClientError

from supervisor.errors import TransientTransferError
from supervisor.sync.model import Upload
from supervisor.sync.pacing import ByteBudget, KeyPace, RateLimiter
from supervisor.sync.s3_errors import is_missing, no_s3, tells_nothing
from supervisor.sync.s3_wire import Wire
from supervisor.sync.target import KeyTakenError, hash_span

T = TypeVar("T")

MTIME = "mtime-ns"
MEMORY_BYTES = 16 * 1024 * 1024  # of file contents at once, over all uploads

# A request that a server neither answers nor takes is given up after so long, plus the time
# of its body on the slowest line worth using. The client's own timeouts do not cover the wait
# for "100 Continue".
_SILENCE_S = 120.0
_SLOWEST_BYTES_PER_S = 20_000


@dataclass(frozen=True, slots=True)
class Link:
    """Both ways to the server: the client's calls, and what each file needs."""

    api: Any
    wire: Wire


class Seen(NamedTuple):
    """What is at a key: our bytes, or others that may be replaced (their ETag), or nothing."""

    ours: bool = False
    other: str = ""


@dataclass(slots=True)
class Bucket:
    """What all uploads to a bucket share.

    ``may_head``: HEAD was not refused so far. ``conditional``: the server honours
    If-None-Match; None while nobody knows. ``asks``: it answers "Expect: 100-continue".
    """

    name: str
    limiter: RateLimiter
    conditional: bool | None = None
    may_head: bool = True
    asks: bool = True
    memory: ByteBudget = field(default_factory=lambda: ByteBudget(MEMORY_BYTES))
    pace: KeyPace = field(default_factory=KeyPace)

    async def head(self, link: Link, key: str) -> Mapping[str, str] | None:
        """Return the headers of an object, None when the key is free or nobody may look."""
        if not self.may_head:
            return None
        try:
            answer = await link.wire.head(key)
        except ClientError as exc:
            if tells_nothing(exc):
                self.may_head = False
                return None
            if is_missing(exc):
                return None
            raise
        if not etag_of(answer):
            raise no_s3(self.name)
        return answer

    async def look(self, link: Link, upload: Upload, md5: bytes | None) -> Seen:
        """Look what is at the key of an upload.

        Raises:
            KeyTakenError: other bytes are, and may not be replaced.
        """
        found = await self.head(link, upload.key)
        if found is None:
            return Seen()
        if same(found, upload, md5):
            return Seen(ours=True)
        if upload.replace or await to_thread.run_sync(is_torn, found, upload):
            return Seen(other=etag_of(found))
        raise KeyTakenError(f"Cannot store {upload.key}: another object has that key")

    async def matches(self, link: Link, upload: Upload, md5: bytes | None) -> bool:
        found = await self.head(link, upload.key)
        return found is not None and same(found, upload, md5)

    async def holds(self, link: Link, upload: Upload, md5: bytes | None) -> bool:
        """Whether the very bytes are at the key; see ``look``."""
        return (await self.look(link, upload, md5)).ours


def metadata_of(upload: Upload) -> dict[str, str]:
    """Return the metadata of an object."""
    return {
        **upload.metadata,
        "sha256": upload.sha256,
        MTIME: str(upload.identity.mtime_ns),
    }


def same(found: Mapping[str, str], upload: Upload, md5: bytes | None) -> bool:
    """Whether an object has the very bytes of an upload, by its headers."""
    if found.get("Content-Length") != str(upload.identity.size_bytes):
        return False
    sha256 = found.get("x-amz-meta-sha256")
    if sha256 is not None:
        return bool(sha256 == upload.sha256)
    return md5 is not None and etag_of(found) == md5.hex()


def is_torn(found: Mapping[str, str], upload: Upload) -> bool:
    """Whether an object is the beginning of what an earlier try had sent; blocking.

    S3 keeps whole objects or none. A server that writes into the object while it receives
    (s3rver) leaves what it has when the client dies. Nobody but that try can miss it.
    """
    size = int(found.get("Content-Length", -1))
    if not upload.retried or not 0 <= size <= upload.identity.size_bytes:
        return False
    digest = hashlib.md5(usedforsecurity=False)
    hash_span(upload.source, upload.identity, digest, offset=0, size_bytes=size)
    return etag_of(found) == digest.hexdigest()


async def bounded(request: Awaitable[T], upload: Upload, size_bytes: int) -> T:
    """Await a request that carries so many bytes, but not for ever.

    Raises:
        TransientTransferError: the server neither answers nor takes it.
    """
    with anyio.move_on_after(_SILENCE_S + size_bytes / _SLOWEST_BYTES_PER_S):
        return await request
    raise TransientTransferError(f"Cannot upload {upload.key}: the server does not answer")


def etag_of(answer: Mapping[str, Any]) -> str:
    """Return the ETag without its quotes, of an answer or its headers."""
    return str(answer.get("ETag", "")).strip('"')
