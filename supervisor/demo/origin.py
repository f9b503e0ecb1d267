"""A local origin of model files: a hub, CivitAI's API and plain files, over real HTTP.

Two addresses: the front answers like the hub's and CivitAI's own hosts and redirects to the
storage, another host and port as far as a client can tell, with signed URLs that expire.
Ranges, ``If-Range`` and ``ETag`` as those services have them. ``Fault`` makes a file
misbehave. Facts: huggingface.co and civitai.com as of autumn 2026.
"""

from __future__ import annotations

import asyncio
import re
import secrets
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from hashlib import sha256
from urllib.parse import quote

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

COMMIT = "0123456789abcdef0123456789abcdef01234567"
TREE_PAGE = 2  # entries a page: small, so that every client has to follow the Link
CHUNK_BYTES = 64 * 1024
LOGIN_PAGE = b"<!doctype html><html><head><title>Sign in</title></head></html>"


@dataclass(slots=True)
class Fault:
    """How the storage misbehaves for one file, for the next ``times`` requests."""

    times: int = 1
    cut_after: int | None = None  # bytes of the body, then the connection ends
    stall_after: int | None = None  # bytes of the body, then nothing more comes
    status: int | None = None  # instead of the file, with ``retry_after_s``
    retry_after_s: int | None = None
    flip_byte: int | None = None  # offset in the file of a byte that is delivered wrong
    no_ranges: bool = False  # 200 with everything, whatever was asked for
    html: bool = False  # a login page with 200
    bytes_per_s: float | None = None


@dataclass(slots=True)
class OriginFile:
    """One file. ``version`` goes into its ETag: a new one is a changed remote file."""

    content: bytes
    lfs: bool = True
    gated: bool = False
    version: int = 0
    faults: list[Fault] = field(default_factory=list)

    @property
    def sha256(self) -> str:
        """Hash of the content."""
        return sha256(self.content).hexdigest()

    @property
    def etag(self) -> str:
        """Strong validator of the storage."""
        return f'"{self.sha256[:24]}-{self.version}"'

    def next_fault(self) -> Fault | None:
        """The fault of this request, used up by one."""
        while self.faults and self.faults[0].times <= 0:
            self.faults.pop(0)
        if not self.faults:
            return None
        self.faults[0].times -= 1
        return self.faults[0]


@dataclass(frozen=True, slots=True)
class Seen:
    """A request, for tests: ``host`` is "front" or "storage"."""

    host: str
    method: str
    path: str
    range: str | None
    authorization: str | None


@dataclass(frozen=True, slots=True)
class CivitaiFile:
    """A version of CivitAI."""

    name: str
    type: str = "LORA"
    early_access: bool = False


@dataclass(slots=True)
class Origin:
    """All files, by key: "repo:path", "civitai:ID" or "/plain/path"."""

    token: str = "demo-token"  # noqa: S105 - a stand-in's
    signature_lifetime_s: float = 600.0
    files: dict[str, OriginFile] = field(default_factory=dict)
    versions: dict[int, CivitaiFile] = field(default_factory=dict)
    seen: list[Seen] = field(default_factory=list)
    front_url: str = ""
    storage_url: str = ""
    _signatures: dict[str, tuple[str, float]] = field(default_factory=dict)

    def add_hub_file(
        self, repo: str, path: str, content: bytes, *, lfs: bool = True, gated: bool = False
    ) -> OriginFile:
        """A file of a hub repository."""
        return self._add(f"{repo}:{path}", OriginFile(content, lfs=lfs, gated=gated))

    def add_plain_file(self, path: str, content: bytes) -> OriginFile:
        """A file at ``front_url + path``, without redirects."""
        return self._add(path, OriginFile(content, lfs=False))

    def add_civitai_version(self, number: int, version: CivitaiFile, content: bytes) -> OriginFile:
        """A model version of CivitAI."""
        self.versions[number] = version
        return self._add(f"civitai:{number}", OriginFile(content, gated=version.early_access))

    def _add(self, key: str, file: OriginFile) -> OriginFile:
        self.files[key] = file
        return file

    def front(self) -> web.Application:
        """The hub, CivitAI and plain files."""
        app = web.Application(middlewares=[self._recorder("front")])
        add = app.router.add_get
        add("/{owner}/{name}/resolve/{revision}/{path:.+}", self.resolve)
        add("/api/models/{owner}/{name}/tree/{revision}", self.tree)
        add("/api/models/{owner}/{name}/tree/{revision}/{folder:.+}", self.tree)
        add("/api/v1/model-versions/{version}", self.civitai_version)
        add("/api/download/models/{version}", self.civitai_download)
        add("/{path:.+}", self.plain)
        return app

    def storage(self) -> web.Application:
        """Where the redirects lead."""
        app = web.Application(middlewares=[self._recorder("storage")])
        app.router.add_get("/blobs/{signature}", self.blob)
        return app

    def _recorder(self, host: str) -> Middleware:
        @web.middleware
        async def record(request: web.Request, handler: Handler) -> web.StreamResponse:
            self.seen.append(
                Seen(
                    host,
                    request.method,
                    request.path,
                    request.headers.get("Range"),
                    request.headers.get("Authorization"),
                )
            )
            return await handler(request)

        return record

    def _allowed(self, request: web.Request) -> bool:
        return request.headers.get("Authorization") == f"Bearer {self.token}"

    async def resolve(self, request: web.Request) -> web.StreamResponse:
        """``/{repo}/resolve/{revision}/{path}``."""
        repo = f"{request.match_info['owner']}/{request.match_info['name']}"
        if not any(key.startswith(f"{repo}:") for key in self.files):
            return _hub_error(401, "RepoNotFound", "Repository not found")
        if request.match_info["revision"] not in ("main", COMMIT):
            return _hub_error(404, "RevisionNotFound", "Invalid rev id")
        file = self.files.get(f"{repo}:{request.match_info['path']}")
        if file is None:
            return _hub_error(404, "EntryNotFound", "Entry not found")
        if file.gated and not self._allowed(request):
            status = 403 if "Authorization" in request.headers else 401
            return _hub_error(status, "GatedRepo", f"Access to model {repo} is restricted")
        headers = {"X-Repo-Commit": COMMIT}
        if not file.lfs:
            return await self._send(request, file, headers)
        headers["X-Linked-ETag"] = f'"{file.sha256}"'
        headers["X-Linked-Size"] = str(len(file.content))
        headers["Location"] = self._sign(f"{repo}:{request.match_info['path']}")
        return web.Response(status=302, headers=headers)

    async def tree(self, request: web.Request) -> web.Response:
        """The files of a repository, ``TREE_PAGE`` a page."""
        info = request.match_info
        repo, folder = f"{info['owner']}/{info['name']}", info.get("folder", "")
        entries = [
            _tree_entry(key.partition(":")[2], file)
            for key, file in sorted(self.files.items())
            if key.startswith(f"{repo}:{folder}")
        ]
        if not entries:
            return _hub_error(404, "RepoNotFound", "Repository not found")
        start = int(request.query.get("cursor", "0"))
        headers = {}
        if start + TREE_PAGE < len(entries):
            query = f"recursive=1&cursor={start + TREE_PAGE}"
            headers["Link"] = f'<{self.front_url}{request.path}?{query}>; rel="next"'
        return web.json_response(entries[start : start + TREE_PAGE], headers=headers)

    async def civitai_version(self, request: web.Request) -> web.Response:
        """What CivitAI knows of one version."""
        number = int(request.match_info["version"])
        version, file = self.versions.get(number), self.files.get(f"civitai:{number}")
        if version is None or file is None:
            return web.json_response({"error": f"No model with id {number}"}, status=404)
        answer = {
            "name": version.name,
            "id": number,
            "sizeKB": len(file.content) / 1024,
            "type": "Model",
            "primary": True,
            "metadata": {"format": "SafeTensor", "fp": "fp16", "size": "full"},
            "hashes": {"SHA256": file.sha256.upper()},
            "downloadUrl": f"{self.front_url}/api/download/models/{number}",
        }
        model = {"name": version.name, "type": version.type, "nsfw": False}
        return web.json_response(
            {"id": number, "modelId": number // 10, "model": model, "files": [answer]}
        )

    async def civitai_download(self, request: web.Request) -> web.StreamResponse:
        """To signed storage; early access without a token is 401."""
        number = int(request.match_info["version"])
        file = self.files.get(f"civitai:{number}")
        if file is None:
            return web.json_response({"error": "Not Found"}, status=404)
        if file.gated and not self._allowed(request):
            return web.json_response({"error": "Unauthorized"}, status=401)
        location = self._sign(f"civitai:{number}")
        return web.Response(status=307, headers={"Location": location})

    async def plain(self, request: web.Request) -> web.StreamResponse:
        """A file that is where it says."""
        file = self.files.get(request.path)
        return await self._send(request, file, {}) if file else web.Response(status=404)

    def _sign(self, key: str) -> str:
        signature = secrets.token_hex(16)
        expires = time.monotonic() + self.signature_lifetime_s
        self._signatures[signature] = (key, expires)
        name = quote(key.rpartition("/")[2].rpartition(":")[2])
        return f"{self.storage_url}/blobs/{signature}?X-Amz-Signature={signature}&name={name}"

    def expire_signatures(self) -> None:
        """All signed URLs handed out so far answer 403 from now on."""
        self._signatures.clear()

    async def blob(self, request: web.Request) -> web.StreamResponse:
        """The bytes behind a signed URL."""
        signature = request.match_info["signature"]
        key, expires = self._signatures.get(signature, ("", 0.0))
        if time.monotonic() >= expires or request.query.get("X-Amz-Signature") != signature:
            return web.Response(status=403, text="<Error><Code>AccessDenied</Code></Error>")
        name = request.query.get("name", "model")
        headers = {"Content-Disposition": f'attachment; filename="{name}"'}
        return await self._send(request, self.files[key], headers)

    async def _send(
        self, request: web.Request, file: OriginFile, headers: dict[str, str]
    ) -> web.StreamResponse:
        fault = file.next_fault() or Fault()
        if fault.status is not None:
            if fault.retry_after_s is not None:
                headers["Retry-After"] = str(fault.retry_after_s)
            return web.Response(status=fault.status, headers=headers)
        if fault.html:
            return web.Response(body=LOGIN_PAGE, content_type="text/html")
        span = None if fault.no_ranges else _range(request, file)
        if span == (0, 0):
            unsatisfied = {"Content-Range": f"bytes */{len(file.content)}"}
            return web.Response(status=416, headers=unsatisfied)
        start, end = span or (0, len(file.content))
        response = web.StreamResponse(status=206 if span else 200, headers=headers)
        response.content_type = "application/octet-stream"
        response.content_length = end - start
        response.headers["ETag"] = file.etag
        if not fault.no_ranges:
            response.headers["Accept-Ranges"] = "bytes"
        if span:
            response.headers["Content-Range"] = f"bytes {start}-{end - 1}/{len(file.content)}"
        await response.prepare(request)
        if request.method != "HEAD":
            body = _with_fault(file.content, fault)[start:end]
            with suppress(ConnectionResetError):  # the client has heard enough
                await self._body(request, response, body, fault)
        return response

    async def _body(
        self, request: web.Request, response: web.StreamResponse, body: bytes, fault: Fault
    ) -> None:
        stop = min(
            limit for limit in (fault.cut_after, fault.stall_after, len(body)) if limit is not None
        )
        for at in range(0, stop, CHUNK_BYTES):
            chunk = body[at : min(at + CHUNK_BYTES, stop)]
            await response.write(chunk)
            if fault.bytes_per_s:
                await asyncio.sleep(len(chunk) / fault.bytes_per_s)
        if fault.stall_after is not None:
            await asyncio.sleep(3600)
        if fault.cut_after is not None and request.transport is not None:
            request.transport.close()  # sends what was written, then ends the connection


def _with_fault(content: bytes, fault: Fault) -> bytes:
    if fault.flip_byte is None:
        return content
    at = fault.flip_byte
    return content[:at] + bytes((content[at] ^ 0xFF,)) + content[at + 1 :]


def _range(request: web.Request, file: OriginFile) -> tuple[int, int] | None:
    """The half-open span asked for; None = everything; (0, 0) = outside of the file."""
    match = re.fullmatch(r"bytes=(\d*)-(\d*)", request.headers.get("Range", ""))
    if match is None or request.headers.get("If-Range", file.etag) != file.etag:
        return None
    size = len(file.content)
    first, last = match.groups()
    if not first:
        return (max(0, size - int(last)), size) if last else None
    start = int(first)
    end = min(size, int(last) + 1) if last else size
    return (start, end) if start < end else (0, 0)


def _hub_error(status: int, code: str, message: str) -> web.Response:
    headers = {"X-Error-Code": code, "X-Error-Message": message}
    return web.json_response({"error": message}, status=status, headers=headers)


def _tree_entry(path: str, file: OriginFile) -> dict[str, object]:
    size = len(file.content)
    entry: dict[str, object] = {"type": "file", "oid": file.sha256[:40], "size": size, "path": path}
    if file.lfs:
        entry["lfs"] = {"oid": file.sha256, "size": size, "pointerSize": 135}
    return entry


def listen() -> socket.socket:
    """A listening socket on a free loopback port."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen(128)
    return listener


def address(listener: socket.socket) -> str:
    """The URL of a listening socket."""
    host, port = listener.getsockname()
    return f"http://{host}:{port}"


@asynccontextmanager
async def serve_origin(
    origin: Origin, *, front: socket.socket | None = None, storage: socket.socket | None = None
) -> AsyncIterator[Origin]:
    """Serve until the block ends; closes the sockets."""
    front, storage = front or listen(), storage or listen()
    origin.front_url, origin.storage_url = address(front), address(storage)
    runners = []
    try:
        for app, listener in ((origin.front(), front), (origin.storage(), storage)):
            runner = web.AppRunner(app, handle_signals=False, access_log=None, shutdown_timeout=0.1)
            runners.append(runner)
            await runner.setup()
            await web.SockSite(runner, listener).start()
        yield origin
    finally:
        for runner in runners:
            await runner.cleanup()
        front.close()
        storage.close()
