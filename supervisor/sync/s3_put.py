"""Uploads in one piece: never over other bytes, and with one request where possible."""

from __future__ import annotations

import base64
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from functools import partial

from botocore.exceptions import ClientError

from supervisor.sync.keys import alternative_key
from supervisor.sync.model import Stored, Upload
from supervisor.sync.s3_body import STREAM_BYTES, Span, md5_of, send
from supervisor.sync.s3_bucket import Bucket, Link, metadata_of
from supervisor.sync.s3_errors import is_missing, is_precondition, status_of
from supervisor.sync.target import KeyTakenError

# An ETag that no object has: with If-Match it asks "do you honour conditions?".
_NO_ETAG = '"00000000000000000000000000000000"'


Put = Callable[..., Awaitable[str]]


class SinglePut:
    """Stores files with one request."""

    def __init__(self, bucket: Bucket) -> None:
        self._bucket = bucket

    async def store(self, link: Link, upload: Upload) -> Stored:
        """Store the file; see ``Target.store``. Raises what botocore raises, too."""
        size = upload.identity.size_bytes
        async with self._bucket.memory.hold(min(size, STREAM_BYTES)):
            md5 = await md5_of(upload, _whole(upload))
            if await self._there_already(link, upload, md5):
                return Stored(md5.hex(), verified=True, sent=False)
            etag = await self._put_carefully(link, upload, md5)
        if etag is None:
            return Stored(md5.hex(), verified=True, sent=False)
        return Stored(
            etag, verified=etag == md5.hex() or await self._bucket.matches(link, upload, md5)
        )

    async def _there_already(self, link: Link, upload: Upload, md5: bytes) -> bool:
        """Look before sending where that is useful: see ``Upload.look_first``."""
        unsure = not upload.replace and not self._bucket.conditional
        if not (upload.look_first or unsure):
            return False
        return await self._bucket.holds(link, upload, md5)

    async def _put_carefully(self, link: Link, upload: Upload, md5: bytes) -> str | None:
        """Put without ever replacing other bytes unless allowed; None: it was there."""
        put = partial(self._put, link, upload, md5)
        if upload.replace:
            return await put()
        if self._bucket.conditional is None and self._bucket.may_head:
            if (etag := await self._try_conditions(put)) is not None:
                return etag
        elif self._bucket.conditional is None:
            # Nobody may look whether the key is free: try on one that only these bytes have.
            own = replace(upload, key=alternative_key(upload.key, upload.sha256))
            await self._try_conditions(partial(self._put, link, own, md5))
        if not self._bucket.conditional:
            if not self._bucket.may_head:
                raise KeyTakenError(f"Cannot tell whether {upload.key} is free")
            return await put()
        try:
            return await put({"If-None-Match": "*"})
        except ClientError as exc:
            if not is_precondition(exc):
                raise
        return await self._settle_taken(link, upload, md5, put)

    async def _settle_taken(self, link: Link, upload: Upload, md5: bytes, put: Put) -> str | None:
        """Find out whose bytes are at a key that is not free; None: they are ours."""
        if self._bucket.may_head:
            seen = await self._bucket.look(link, upload, md5)
            if seen.ours:
                return None
            if not seen.other:
                raise KeyTakenError(f"Cannot store {upload.key}: another object had that key")
            return await put({"If-Match": f'"{seen.other}"'})
        # Nobody may look, but the server compares: writing the same bytes is harmless.
        try:
            return await put({"If-Match": f'"{md5.hex()}"'})
        except ClientError as exc:
            if is_precondition(exc) or is_missing(exc):
                raise KeyTakenError(f"Cannot store {upload.key}: the key is taken") from exc
            raise

    async def _try_conditions(self, put: Put) -> str | None:
        """Find out whether the server honours conditions, at the first upload.

        A condition that cannot hold is refused by a server that knows them. One that does
        not has stored the file, which is what we came for (the key was looked at before).
        """
        try:
            etag = await put({"If-Match": _NO_ETAG})
        except ClientError as exc:
            if is_precondition(exc) or is_missing(exc):
                self._bucket.conditional = True
                return None
            if status_of(exc) in (400, 501):
                self._bucket.conditional = False
                return None
            raise
        self._bucket.conditional = False
        return etag

    async def _put(
        self, link: Link, upload: Upload, md5: bytes, conditions: Mapping[str, str] | None = None
    ) -> str:
        await self._bucket.pace.wait(upload.key)
        headers = {
            "Content-Type": upload.content_type,
            "Content-MD5": base64.b64encode(md5).decode(),
            **{f"x-amz-meta-{name}": value for name, value in metadata_of(upload).items()},
            **({"Cache-Control": upload.cache_control} if upload.cache_control else {}),
            **(conditions or {}),
        }
        return await send(self._bucket, link.wire, upload, _whole(upload), headers=headers)


def _whole(upload: Upload) -> Span:
    return Span(upload.source, upload.identity, 0, upload.identity.size_bytes)
