"""Uploads in parts: bounded in memory, resumable by the next run."""

from __future__ import annotations

import base64
import math
from collections.abc import Iterator

import anyio
from anyio import to_thread
from botocore.exceptions import ClientError

from supervisor.errors import TransferError, TransientTransferError
from supervisor.sync.model import Resume, Stored, Upload
from supervisor.sync.s3_body import STREAM_BYTES, Span, md5_of, send
from supervisor.sync.s3_bucket import Bucket, Link, etag_of, metadata_of, same
from supervisor.sync.s3_errors import code_of, is_forbidden, is_missing
from supervisor.sync.target import FileChangedError, KeyTakenError, expect_unchanged

MAX_PARTS = 10_000
PART_BYTES = 8 * 1024 * 1024
PARTS_AT_ONCE = 8


def part_size_bytes(size_bytes: int) -> int:
    """Choose the one size of all parts: whole MiB, so that 10 000 suffice."""
    mib = 1024 * 1024
    return max(PART_BYTES, math.ceil(size_bytes / MAX_PARTS / mib) * mib)


class Multipart:
    """Stores files of any size."""

    def __init__(self, bucket: Bucket) -> None:
        self._bucket = bucket

    async def store(self, link: Link, upload: Upload) -> Stored:
        """Store the file; see ``Target.store``. Raises what botocore raises, too."""
        resume = upload.resume
        if resume is None:
            if await self._bucket.holds(link, upload, None):
                return Stored("", verified=True, sent=False)
            if not upload.replace and not self._bucket.may_head:
                raise KeyTakenError(f"Cannot tell whether {upload.key} is free")
            resume = await self._begin(link, upload)
        try:
            # All parts are there: it may be complete, and the answer was lost. Not every
            # server says NoSuchUpload then (s3rver: 500).
            sent = len(resume.parts) == _count(upload, resume)
            if sent and await self._bucket.holds(link, upload, None):
                return Stored("", verified=True, sent=False)
            parts = await self._send_parts(link, upload, resume)
            await to_thread.run_sync(expect_unchanged, upload.source, upload.identity)
            return await self._complete(link, upload, resume, parts)
        except (FileChangedError, KeyTakenError):
            await self.abort(link, upload.key, resume.upload_id)
            await to_thread.run_sync(upload.record.abandoned)
            raise
        except ClientError as exc:
            if code_of(exc) not in ("NoSuchUpload", "InvalidPart", "InvalidPartOrder"):
                raise
            # It expired, or it was completed and the answer got lost.
            if await self._bucket.holds(link, upload, None):
                return Stored("", verified=True, sent=False)
            await self.abort(link, upload.key, resume.upload_id)
            await to_thread.run_sync(upload.record.abandoned)
            raise TransientTransferError(
                f"Cannot resume the upload of {upload.key}: {code_of(exc)}; it starts again"
            ) from exc

    async def _begin(self, link: Link, upload: Upload) -> Resume:
        part_size = part_size_bytes(upload.identity.size_bytes)
        await to_thread.run_sync(upload.record.creating)
        answer = await link.api.create_multipart_upload(
            Bucket=self._bucket.name,
            Key=upload.key,
            ContentType=upload.content_type,
            Metadata=metadata_of(upload),
            **({"CacheControl": upload.cache_control} if upload.cache_control else {}),
        )
        upload_id = str(answer["UploadId"])
        await to_thread.run_sync(upload.record.started, upload_id, part_size)
        return Resume(upload_id, part_size)

    async def _send_parts(self, link: Link, upload: Upload, resume: Resume) -> dict[int, str]:
        count = _count(upload, resume)
        done = dict(resume.parts)
        missing = iter([n for n in range(1, count + 1) if n not in done])
        try:
            async with anyio.create_task_group() as tasks:
                for _ in range(min(PARTS_AT_ONCE, count)):
                    tasks.start_soon(self._send_some, link, upload, resume, missing, done)
        except ExceptionGroup as group:
            raise _first_of(group) from group
        return done

    async def _send_some(
        self,
        link: Link,
        upload: Upload,
        resume: Resume,
        missing: Iterator[int],
        done: dict[int, str],
    ) -> None:
        for number in missing:
            offset = (number - 1) * resume.part_size_bytes
            size = min(resume.part_size_bytes, upload.identity.size_bytes - offset)
            span = Span(upload.source, upload.identity, offset, size)
            async with self._bucket.memory.hold(STREAM_BYTES):
                md5 = await md5_of(upload, span)
                etag = await send(
                    self._bucket,
                    link.wire,
                    upload,
                    span,
                    headers={"Content-MD5": base64.b64encode(md5).decode()},
                    query={"partNumber": str(number), "uploadId": resume.upload_id},
                )
            await to_thread.run_sync(upload.record.part, number, etag)
            done[number] = etag

    async def _complete(
        self, link: Link, upload: Upload, resume: Resume, parts: dict[int, str]
    ) -> Stored:
        await self._bucket.pace.wait(upload.key)
        listed = [{"PartNumber": n, "ETag": f'"{etag}"'} for n, etag in sorted(parts.items())]
        answer = await link.api.complete_multipart_upload(
            Bucket=self._bucket.name,
            Key=upload.key,
            UploadId=resume.upload_id,
            MultipartUpload={"Parts": listed},
        )
        # Every part was checked by the server through Content-MD5; HEAD also tells the size.
        found = await self._bucket.head(link, upload.key)
        verified = same(found, upload, None) if found is not None else not self._bucket.may_head
        if found is not None and not verified:
            raise TransientTransferError(f"Cannot confirm {upload.key}: the server has other bytes")
        return Stored(etag_of(answer), verified=verified)

    async def abort(self, link: Link, key: str, upload_id: str) -> None:
        """Give an upload up; one that is gone already is fine."""
        try:
            await link.api.abort_multipart_upload(
                Bucket=self._bucket.name, Key=key, UploadId=upload_id
            )
        except ClientError as exc:
            if not (is_missing(exc) or is_forbidden(exc)):
                raise


def _count(upload: Upload, resume: Resume) -> int:
    return max(1, math.ceil(upload.identity.size_bytes / resume.part_size_bytes))


def _first_of(group: BaseExceptionGroup[Exception]) -> Exception:
    """Pick the failure that says most out of those of several parts."""
    flat = list(_flatten(group))
    for kind in (FileChangedError, TransferError, ClientError):
        found = next((e for e in flat if isinstance(e, kind)), None)
        if found is not None:
            return found
    return flat[0]


def _flatten(group: BaseExceptionGroup[Exception]) -> Iterator[Exception]:
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from _flatten(error)
        else:
            yield error
