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
from typing import Any, Self
from urllib.parse import urlsplit

import aioboto3
import anyio
from aiobotocore.config import AioConfig
from anyio import to_thread
from botocore.exceptions import ClientError

from supervisor import __version__
from supervisor.config.settings import SyncSection
from supervisor.sync.backlog import SMALL_LANES
from supervisor.sync.credentials import Credentials, Keys
from supervisor.sync.model import RemoteFile, Stored, Upload
from supervisor.sync.pacing import RateLimiter
from supervisor.sync.s3_bucket import MTIME, Bucket
from supervisor.sync.s3_errors import is_forbidden, is_unknown, translated
from supervisor.sync.s3_multipart import PARTS_AT_ONCE, Multipart
from supervisor.sync.s3_put import SinglePut
from supervisor.sync.s3_restore import download

SINGLE_PUT_BYTES = 8 * 1024 * 1024


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
        self._s3: Any = None

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

    async def _client(self) -> Any:
        """Return the client, a new one when the keys have been exchanged."""
        async with self._opening:
            keys = await self._credentials.read()
            if self._s3 is None or keys != self._keys:
                session = await to_thread.run_sync(_prepare_session, keys)
                config = _client_config(self._settings)
                context = session.client(
                    "s3",
                    region_name=self._settings.region,
                    endpoint_url=self._settings.endpoint,
                    config=config,
                )
                # An older client may still be in use: it is closed with the target.
                self._s3 = await self._stack.enter_async_context(context)
                self._s3.meta.events.register_last("before-call.s3", self._bucket.drop_expect)
                self._keys, self._bucket.may_head = keys, True
            return self._s3

    async def store(self, upload: Upload) -> Stored:
        """Store one file; see ``Target.store``."""
        with translated(self._bucket.name, f"upload {upload.key}"):
            s3 = await self._client()
            single = upload.identity.size_bytes <= SINGLE_PUT_BYTES
            try:
                if single and upload.resume is None:
                    return await self._single.store(s3, upload)
                return await self._multipart.store(s3, upload)
            except ClientError as exc:
                if is_forbidden(exc):
                    # The key is refused for everything: that says nothing about HEAD.
                    self._bucket.may_head = True
                raise

    async def abandon(self, key: str, upload_id: str) -> None:
        """Abort an upload of a dead run; without an id, those that were begun for the key.

        A run that dies between the server's answer and its own note leaves an upload of
        which nobody has the id. Listing may be forbidden, or unknown to the server: R2 drops
        them after seven days.
        """
        with translated(self._bucket.name, f"abort the upload of {key}"):
            s3 = await self._client()
            if upload_id:
                await self._multipart.abort(s3, key, upload_id)
                return
            try:
                answer = await s3.list_multipart_uploads(Bucket=self._bucket.name, Prefix=key)
            except ClientError as exc:
                if is_forbidden(exc) or is_unknown(exc):
                    return
                raise
            for found in answer.get("Uploads", ()):
                if found["Key"] == key:
                    await self._multipart.abort(s3, key, found["UploadId"])

    # The other way

    async def list(self, prefix: str) -> AsyncIterator[RemoteFile]:
        """Yield the objects below a prefix; mtime is when they were uploaded."""
        with translated(self._bucket.name, f"list {prefix}"):
            s3 = await self._client()
            pages = s3.get_paginator("list_objects_v2").paginate(
                Bucket=self._bucket.name, Prefix=prefix
            )
            async for page in pages:
                for found in page.get("Contents", ()):
                    mtime_s = found["LastModified"].timestamp()
                    yield RemoteFile(found["Key"], found["Size"], mtime_s)

    async def fetch(self, key: str, destination: Path, *, newer_than_s: float | None) -> bool:
        """Write an object to a local file; see ``Target.fetch``."""
        with translated(self._bucket.name, f"restore {key}"):
            s3 = await self._client()
            temporary = destination.with_name(f".{secrets.token_hex(8)}.part")
            answer = await s3.get_object(Bucket=self._bucket.name, Key=key)
            body = answer["Body"]
            async with body:
                mtime_ns = int(
                    answer["Metadata"].get(MTIME) or answer["LastModified"].timestamp() * 1e9
                )
                if newer_than_s is not None and mtime_ns / 1e9 <= newer_than_s:
                    return False
                await download(body, temporary, destination, mtime_ns=mtime_ns)
        return True


def _prepare_session(keys: Keys) -> Any:
    """Build a session and read botocore's large tables here, in a thread."""
    session: Any = aioboto3.Session(  # type: ignore[attr-defined,no-untyped-call]
        aws_access_key_id=keys.access_key_id or "none",
        aws_secret_access_key=keys.secret_access_key or "none",
    )
    loader = session._session.get_component("data_loader")
    for table in ("service-2", "endpoint-rule-set-1"):
        loader.load_service_model("s3", table)
    loader.load_data("partitions")
    return session


def _client_config(settings: SyncSection) -> AioConfig:
    return AioConfig(
        signature_version="s3v4",
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        retries={"total_max_attempts": 1},  # the caller knows when to try again
        connect_timeout=10,
        read_timeout=60,
        max_pool_connections=settings.concurrency * SMALL_LANES + PARTS_AT_ONCE * 2,
        user_agent=f"comfypod-supervisor/{__version__}",
        s3={
            "addressing_style": "path" if settings.endpoint else "auto",
            # The signed Content-MD5 binds the body: no second hash of everything, also
            # where there is no TLS.
            "payload_signing_enabled": False,
        },
    )
