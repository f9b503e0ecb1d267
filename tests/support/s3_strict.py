"""An S3 server that enforces R2's rules and misbehaves on request. Runs in a thread.

Refused, as R2 does: checksum headers of newer SDKs, parts that are not of one size, parts
under 5 MiB, more than one write a second to a key, HEAD and listing where the token may not.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import re
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Self
from urllib.parse import unquote
from xml.sax.saxutils import escape

from aiohttp import web

MIB = 1024 * 1024


@dataclass
class Stored:
    """An object. The bytes of large ones are not kept."""

    sha256: str
    size: int
    etag: str
    headers: dict[str, str]
    data: bytes | None
    at: float = field(default_factory=time.time)


@dataclass
class Multi:
    """A multipart upload under way."""

    key: str
    headers: dict[str, str]
    parts: dict[int, tuple[int, str, bytes]] = field(default_factory=dict)


# Decides per request: None, an HTTP status (and a code: "403 AccessDenied"), "reset", "hang",
# "lost" (done, then reset), or "torn" (half of the body becomes the object, then reset: no S3
# does that, s3rver does).
Fault = Callable[[web.Request, int], int | str | None]


class StrictS3:
    """The server; a context manager. ``writes`` counts accepted writes by key."""

    def __init__(
        self,
        *,
        may_read: bool = True,
        conditional: bool = True,
        pace_s: float = 1.0,
        fault: Fault | None = None,
        latency_s: float = 0.0,
        rate_bytes_per_s: float = float("inf"),
    ) -> None:
        self.may_read = may_read
        self.conditional = conditional
        self.pace_s = pace_s
        self.fault = fault
        self.latency_s = latency_s
        self.rate_bytes_per_s = rate_bytes_per_s  # of all connections together
        self._line_free_at = 0.0
        self.keys = {"key": "secret"}
        self.bucket = "bucket"
        self.page_keys = 1000
        self.objects: dict[str, Stored] = {}
        self.uploads: dict[str, Multi] = {}
        self.writes: Counter[str] = Counter()
        self.requests: Counter[str] = Counter()
        self.refused: list[str] = []
        self._written_at: dict[str, float] = {}
        self._count = 0
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self.endpoint = ""

    def __enter__(self) -> Self:
        self._thread.start()
        self._ready.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        app = web.Application(client_max_size=1 << 34)
        app.router.add_route("*", "/{bucket}", self._handle)
        app.router.add_route("*", "/{bucket}/{key:.*}", self._handle)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        self._loop.run_until_complete(runner.setup())
        site = web.TCPSite(runner, "127.0.0.1", 0)
        self._loop.run_until_complete(site.start())
        port = runner.addresses[0][1]
        self.endpoint = f"http://127.0.0.1:{port}"
        self._ready.set()
        self._loop.run_forever()
        self._loop.run_until_complete(runner.cleanup())
        self._loop.close()

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        self._count += 1
        self.requests[request.method] += 1
        action = self.fault(request, self._count) if self.fault else None
        if isinstance(action, int):
            return error(action, {429: "SlowDown", 503: "SlowDown"}.get(action, "InternalError"))
        if action and action[0].isdigit():
            return error(int(action[:3]), action[4:])
        if action == "hang":
            await asyncio.sleep(3600)
        if action == "reset":
            return self._reset(request)
        if action == "torn":
            return await self._tear(request)
        if self.latency_s:
            await asyncio.sleep(self.latency_s)
        response = await self._answer(request)
        return self._reset(request) if action == "lost" else response

    def _reset(self, request: web.Request) -> web.StreamResponse:
        if request.transport is not None:
            request.transport.abort()
        return web.Response()

    async def _tear(self, request: web.Request) -> web.StreamResponse:
        data = await request.read()
        half = data[: len(data) // 2]
        etag = hashlib.md5(half).hexdigest()  # noqa: S324
        self._keep(unquote(request.rel_url.raw_path.split("/", 2)[2]), [half], etag, {})
        return self._reset(request)

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        used = re.search(r"Credential=([^/]*)/", request.headers.get("Authorization", ""))
        if used is None or used[1] not in self.keys:
            return error(403, "InvalidAccessKeyId")
        if request.match_info["bucket"] != self.bucket:
            return error(404, "NoSuchBucket")
        if bad := [
            h for h in request.headers if re.match(r"(?i)x-amz-(sdk-)?checksum|x-amz-trailer", h)
        ]:
            self.refused.append(f"checksum header {bad[0]}")
            return error(501, "NotImplemented")
        key = (
            unquote(request.rel_url.raw_path.split("/", 2)[2])
            if request.match_info.get("key")
            else ""
        )
        if not key:
            return self._list(request)
        if request.method in ("HEAD", "GET"):
            return self._read(request, key)
        if request.method == "PUT" and "uploadId" in request.query:
            return await self._part(request)
        if request.method == "PUT":
            return await self._put(request, key)
        if request.method == "POST":
            return await self._post(request, key)
        self.uploads.pop(request.query.get("uploadId", ""), None)
        return web.Response(status=204)

    def _list(self, request: web.Request) -> web.Response:
        if not self.may_read:
            return error(403, "AccessDenied")
        prefix = request.query.get("prefix", "")
        if "uploads" in request.query:
            rows = "".join(
                f"<Upload><Key>{escape(m.key)}</Key><UploadId>{i}</UploadId></Upload>"
                for i, m in self.uploads.items() if m.key.startswith(prefix)
            )  # fmt: skip
            return xml(f"<ListMultipartUploadsResult>{rows}</ListMultipartUploadsResult>")
        after = request.query.get("continuation-token", "")
        keys = sorted(k for k in self.objects if k.startswith(prefix) and k > after)
        page = keys[: self.page_keys]
        more = f"<NextContinuationToken>{escape(page[-1])}</NextContinuationToken>" if page else ""
        cut = str(len(keys) > len(page)).lower()
        rows = "".join(
            f"<Contents><Key>{escape(k)}</Key><Size>{o.size}</Size><ETag>\"{o.etag}\"</ETag>"
            f"<LastModified>{datetime.fromtimestamp(o.at, tz=UTC):%Y-%m-%dT%H:%M:%S.000Z}"
            "</LastModified></Contents>"
            for k, o in ((k, self.objects[k]) for k in page)
        )  # fmt: skip
        return xml(
            f"<ListBucketResult><IsTruncated>{cut}</IsTruncated>{more}{rows}</ListBucketResult>"
        )

    def _read(self, request: web.Request, key: str) -> web.Response:
        if not self.may_read:
            return error(403, "AccessDenied")
        found = self.objects.get(key)
        if found is None:
            return error(404, "NoSuchKey")
        at = datetime.fromtimestamp(found.at, tz=UTC).strftime("%a, %d %b %Y %H:%M:%S GMT")
        headers = {**found.headers, "ETag": f'"{found.etag}"', "Last-Modified": at}
        if request.method == "HEAD":
            return web.Response(headers={**headers, "Content-Length": str(found.size)})
        return web.Response(body=found.data or b"", headers=headers)

    def _may_write(self, request: web.Request, key: str) -> web.Response | None:
        found = self.objects.get(key)
        if self.conditional:
            if request.headers.get("If-None-Match") == "*" and found:
                return error(412, "PreconditionFailed")
            wanted = request.headers.get("If-Match")
            if wanted and (found is None or wanted.strip('"') != found.etag):
                return error(412, "PreconditionFailed")
        now = time.monotonic()
        if now - self._written_at.get(key, -9e9) < self.pace_s:
            self.refused.append(f"pace {key}")
            return error(429, "SlowDown")
        self._written_at[key] = now
        return None

    async def _put(self, request: web.Request, key: str) -> web.Response:
        data, md5 = await self._receive(request)
        if md5 is None:
            return error(400, "BadDigest")
        if refusal := self._may_write(request, key):
            return refusal
        return self._keep(key, [data], md5, _kept(request))

    async def _receive(self, request: web.Request) -> tuple[bytes, str | None]:
        """Read a body at the line's rate; the md5 is None when it is not the announced one."""
        digest, pieces = hashlib.md5(), []  # noqa: S324
        while piece := await request.content.readany():
            start = max(time.monotonic(), self._line_free_at)
            self._line_free_at = start + len(piece) / self.rate_bytes_per_s
            # Many small sleeps are as long as a few, and cost more.
            if (ahead_s := start - time.monotonic()) > 0.01:
                await asyncio.sleep(ahead_s)
            digest.update(piece)
            pieces.append(piece)
        wanted = request.headers.get("Content-MD5")
        whole = wanted is None or base64.b64decode(wanted) == digest.digest()
        data, signed = b"".join(pieces), request.headers.get("x-amz-content-sha256", "")
        if re.fullmatch("[0-9a-f]{64}", signed):
            whole = whole and hashlib.sha256(data).hexdigest() == signed
        return data, digest.hexdigest() if whole else None

    def _keep(
        self, key: str, parts: list[bytes], etag: str, headers: dict[str, str]
    ) -> web.Response:
        digest = hashlib.sha256()
        for part in parts:
            digest.update(part)
        size = sum(map(len, parts))
        data = b"".join(parts) if size <= MIB else None
        self.objects[key] = Stored(digest.hexdigest(), size, etag, headers, data)
        self.writes[key] += 1
        return web.Response(headers={"ETag": f'"{etag}"'})

    async def _part(self, request: web.Request) -> web.Response:
        data, etag = await self._receive(request)
        upload = self.uploads.get(request.query["uploadId"])
        if upload is None:
            return error(404, "NoSuchUpload")
        if etag is None:
            return error(400, "BadDigest")
        upload.parts[int(request.query["partNumber"])] = (len(data), etag, data)
        return web.Response(headers={"ETag": f'"{etag}"'})

    async def _post(self, request: web.Request, key: str) -> web.Response:
        if "uploads" in request.query:
            upload_id = f"upload-{self._count}"
            self.uploads[upload_id] = Multi(key, _kept(request))
            return xml(
                f"<InitiateMultipartUploadResult><UploadId>{upload_id}</UploadId>"
                "</InitiateMultipartUploadResult>"
            )
        upload_id = request.query["uploadId"]
        upload = self.uploads.get(upload_id)
        if upload is None:
            return error(404, "NoSuchUpload")
        listed = re.findall(r"<PartNumber>(\d+)</PartNumber>", await request.text())
        if any(int(n) not in upload.parts for n in listed):
            return error(400, "InvalidPart")
        parts = [upload.parts[int(n)] for n in listed]
        sizes = [size for size, _, _ in parts]
        if len(set(sizes[:-1])) > 1 or (sizes[1:] and sizes[-1] > sizes[0]):
            self.refused.append(f"unequal parts {sizes}")
            return error(400, "InvalidPart")
        if any(size < 5 * MIB for size in sizes[:-1]):
            self.refused.append("small parts")
            return error(400, "EntityTooSmall")
        if refusal := self._may_write(request, key):
            return refusal
        del self.uploads[upload_id]
        joined = hashlib.md5(b"".join(bytes.fromhex(e) for _, e, _ in parts)).hexdigest()  # noqa: S324
        etag = f"{joined}-{len(parts)}"
        self._keep(key, [data for _, _, data in parts], etag, upload.headers)
        return xml(
            f'<CompleteMultipartUploadResult><ETag>"{etag}"</ETag></CompleteMultipartUploadResult>'
        )


def _kept(request: web.Request) -> dict[str, str]:
    return {
        name: value
        for name, value in request.headers.items()
        if name.lower().startswith("x-amz-meta-")
        or name.lower() in ("content-type", "cache-control")
    }


def xml(body: str) -> web.Response:
    """Answer with XML."""
    return web.Response(
        body=f'<?xml version="1.0"?>{body}'.encode(), content_type="application/xml"
    )


def error(status: int, code: str) -> web.Response:
    """Answer with an S3 error."""
    body = f"<Error><Code>{code}</Code><Message>{code}</Message></Error>"
    response = xml(body)
    response.set_status(status)
    return response
