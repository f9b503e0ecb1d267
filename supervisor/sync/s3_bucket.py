"""One bucket as the uploads of this process see it: its client, its pace, what it allows."""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import anyio
from botocore.exceptions import ClientError

from supervisor.errors import TransientTransferError
from supervisor.sync.model import Upload
from supervisor.sync.pacing import ByteBudget, KeyPace, RateLimiter
from supervisor.sync.s3_errors import is_forbidden, is_missing
from supervisor.sync.target import KeyTakenError

T = TypeVar("T")

MTIME = "mtime-ns"
MEMORY_BYTES = 16 * 1024 * 1024  # of file contents at once, over all uploads

# A request that a server neither answers nor takes is given up after so long, plus the time
# of its body on the slowest line worth using. The client's own timeouts do not cover the wait
# for "100 Continue".
_SILENCE_S = 120.0
_SLOWEST_BYTES_PER_S = 20_000


@dataclass(slots=True)
class Bucket:
    """What all uploads to a bucket share.

    ``may_head``: HEAD was not refused so far. ``conditional``: the server honours
    If-None-Match; None while nobody knows.
    """

    name: str
    limiter: RateLimiter
    conditional: bool | None = None
    may_head: bool = True
    memory: ByteBudget = field(default_factory=lambda: ByteBudget(MEMORY_BYTES))
    pace: KeyPace = field(default_factory=KeyPace)

    async def head(self, s3: Any, key: str) -> dict[str, Any] | None:
        """Return what HEAD says, None when the key is free or nobody may look."""
        if not self.may_head:
            return None
        try:
            answer: dict[str, Any] = await s3.head_object(Bucket=self.name, Key=key)
        except ClientError as exc:
            if is_forbidden(exc):
                self.may_head = False
                return None
            if is_missing(exc):
                return None
            raise
        return answer

    async def matches(self, s3: Any, upload: Upload, md5: bytes | None) -> bool:
        found = await self.head(s3, upload.key)
        return found is not None and same(found, upload, md5)

    async def holds(self, s3: Any, upload: Upload, md5: bytes | None) -> bool:
        """Whether the very bytes are at the key.

        Raises:
            KeyTakenError: others are, and may not be replaced.
        """
        found = await self.head(s3, upload.key)
        if found is None:
            return False
        if same(found, upload, md5):
            return True
        if not upload.replace:
            raise KeyTakenError(f"Cannot store {upload.key}: another object has that key")
        return False


def headers_of(upload: Upload) -> dict[str, Any]:
    """Return what is kept with an object."""
    headers: dict[str, Any] = {
        "ContentType": upload.content_type,
        "Metadata": {
            **upload.metadata,
            "sha256": upload.sha256,
            MTIME: str(upload.identity.mtime_ns),
        },
    }
    if upload.cache_control:
        headers["CacheControl"] = upload.cache_control
    return headers


def same(found: dict[str, Any], upload: Upload, md5: bytes | None) -> bool:
    """Whether an object has the very bytes of an upload, by what HEAD says."""
    if found.get("ContentLength") != upload.identity.size_bytes:
        return False
    sha256 = found.get("Metadata", {}).get("sha256")
    if sha256 is not None:
        return bool(sha256 == upload.sha256)
    return md5 is not None and etag_of(found) == md5.hex()


async def bounded(request: Awaitable[T], upload: Upload, size_bytes: int) -> T:
    """Await a request that carries so many bytes, but not for ever.

    Raises:
        TransientTransferError: the server neither answers nor takes it.
    """
    with anyio.move_on_after(_SILENCE_S + size_bytes / _SLOWEST_BYTES_PER_S):
        return await request
    raise TransientTransferError(f"Cannot upload {upload.key}: the server does not answer")


def etag_of(answer: dict[str, Any]) -> str:
    """Return the ETag without its quotes."""
    return str(answer.get("ETag", "")).strip('"')


def md5_of(data: bytes) -> bytes:
    """Hash for Content-MD5 and to compare with an ETag."""
    return hashlib.md5(data, usedforsecurity=False).digest()
