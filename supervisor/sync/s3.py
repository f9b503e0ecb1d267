"""A bucket of R2, or of any other S3 server, as the target. Imported when first needed:
botocore costs half a second and 40 MiB.

R2's rules, in one place (https://developers.cloudflare.com/r2/platform/limits/ and
https://developers.cloudflare.com/r2/api/s3/api/): region ``auto``; no checksum headers of
newer SDKs; parts of one size but the last, 5 MiB to 5 GiB, at most 10 000; one write a
second to a key; conditional PutObject is there.
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

import anyio
from botocore.exceptions import ClientError

from supervisor.config.settings import SyncSection
from supervisor.sync.credentials import Credentials, Keys
from supervisor.sync.model import RemoteFile, Stored, Upload
from supervisor.sync.pacing import RateLimiter
from supervisor.sync.s3_bucket import MTIME, Bucket, Link
from supervisor.sync.s3_errors import (
    code_of,
    is_forbidden,
    is_malformed,
    is_unknown,
    key_refused,
    status_of,
    tells_nothing,
    translated,
)
from supervisor.sync.s3_link import open_link
from supervisor.sync.s3_multipart import Multipart
from supervisor.sync.s3_put import SinglePut
from supervisor.sync.s3_restore import download

SINGLE_PUT_BYTES = 8 * 1024 * 1024
_NS_DIGITS = 19  # of a time in nanoseconds; more do not fit into 63 bits


class S3Target:
    """Uploads to one bucket, bounded in memory and pace; retries are the caller's."""

    def __init__(
        self,
        settings: SyncSection,
        credentials: Credentials,
        *,
        limiter: RateLimiter,
    ) -> None:
        self._settings = settings
        self._credentials = credentials
        host = urlsplit(settings.endpoint or "https://amazonaws.com").hostname or ""
        known = host.endswith((".r2.cloudflarestorage.com", "amazonaws.com"))
        self._bucket = Bucket(settings.bucket, limiter, conditional=True if known else None)
        self._single = SinglePut(self._bucket)
        self._multipart = Multipart(self._bucket)
        self._stack = AsyncExitStack()
        self._opening = anyio.Lock()
        self._keys: Keys | None = None
        self._link: Link | None = None

    @property
    def description(self) -> str:
        """The bucket as a URL."""
        return f"s3://{self._bucket.name}"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._stack.aclose()

    async def _open(self) -> Link:
        """Return the way to the bucket, a new one when the keys have been exchanged."""
        async with self._opening:
            keys = await self._credentials.read()
            if self._link is None or keys != self._keys:
                # An older one may still be in use: it is closed with the target.
                self._link = await self._stack.enter_async_context(open_link(self._settings, keys))
                self._keys, self._bucket.may_head = keys, True
            return self._link

    async def prepare(self) -> None:
        """Open the client: a tenth of a second of the loop's time."""
        with translated(self._bucket.name, "open the bucket"):
            await self._open()

    async def store(self, upload: Upload) -> Stored:
        """Store one file; see ``Target.store``."""
        with translated(self._bucket.name, f"upload {upload.key}"):
            link = await self._open()
            single = upload.identity.size_bytes <= SINGLE_PUT_BYTES
            try:
                if single and upload.resume is None:
                    return await self._single.store(link, upload)
                return await self._multipart.store(link, upload)
            except ClientError as exc:
                if tells_nothing(exc):
                    # Everything is refused: that says nothing about HEAD.
                    self._bucket.may_head = True
                if is_malformed(exc) and await self._refuses_everything(link, upload.key):
                    raise key_refused(self._bucket.name, code_of(exc)) from exc
                raise

    async def _refuses_everything(self, link: Link, key: str) -> bool:
        """Whether a request with nothing in it but our key is found malformed, too.

        R2 calls an access key of the wrong length an InvalidArgument.
        """
        try:
            await link.wire.head(key)
        except ClientError as exc:
            return status_of(exc) == 400
        return False

    async def abandon(self, key: str, upload_id: str) -> None:
        """Abort an upload of a dead run; without an id, those that were begun for the key.

        A run that dies between the server's answer and its own note leaves an upload of
        which nobody has the id. Listing may be forbidden, or unknown to the server: R2 drops
        them after seven days.
        """
        with translated(self._bucket.name, f"abort the upload of {key}"):
            link = await self._open()
            if upload_id:
                await self._multipart.abort(link, key, upload_id)
                return
            try:
                answer = await link.api.list_multipart_uploads(Bucket=self._bucket.name, Prefix=key)
            except ClientError as exc:
                if is_forbidden(exc) or is_unknown(exc):
                    return
                raise
            for found in answer.get("Uploads", ()):
                if found["Key"] == key:
                    await self._multipart.abort(link, key, found["UploadId"])

    # The other way

    async def list(self, prefix: str) -> AsyncIterator[RemoteFile]:
        """Yield the objects below a prefix; mtime is when they were uploaded."""
        with translated(self._bucket.name, f"list {prefix}"):
            link = await self._open()
            pages = link.api.get_paginator("list_objects_v2").paginate(
                Bucket=self._bucket.name, Prefix=prefix
            )
            async for page in pages:
                for found in page.get("Contents", ()):
                    mtime_s = found["LastModified"].timestamp()
                    yield RemoteFile(found["Key"], found["Size"], mtime_s)

    async def fetch(self, key: str, destination: Path, *, newer_than_s: float | None) -> bool:
        """Write an object to a local file; see ``Target.fetch``."""
        with translated(self._bucket.name, f"restore {key}"):
            link = await self._open()
            temporary = destination.with_name(f".{secrets.token_hex(8)}.part")
            answer = await link.api.get_object(Bucket=self._bucket.name, Key=key)
            body = answer["Body"]
            async with body:
                noted = answer["Metadata"].get(MTIME, "")
                # Others may write what they like into the metadata.
                known = noted.isascii() and noted.isdigit() and len(noted) <= _NS_DIGITS
                mtime_ns = int(noted if known else answer["LastModified"].timestamp() * 1e9)
                if newer_than_s is not None and mtime_ns / 1e9 <= newer_than_s:
                    return False
                await download(body, temporary, destination, mtime_ns=mtime_ns)
        return True
