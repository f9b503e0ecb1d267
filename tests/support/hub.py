"""A local stand-in for the hub, CivitAI and a plain web server, with the real answers.

The hub answers a HEAD or GET of ``/{repo}/resolve/…`` with a redirect to a second server
(the "CDN") whose addresses are signed and expire; CivitAI likewise. Every request is kept
in ``seen`` so that tests can tell where a token went.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from aiohttp import web

HF_TOKEN = "hf_test_token"
CIVITAI_TOKEN = "civitai_test_token"


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@dataclass(frozen=True)
class Seen:
    server: str
    method: str
    path: str
    query: str
    authorization: str | None
    range: str | None = None


@dataclass
class Hub:
    """What the stand-ins offer. ``repos`` maps "owner/name" to path → bytes."""

    repos: dict[str, dict[str, bytes]] = field(default_factory=dict)
    small: set[str] = field(default_factory=set)  # "repo:path" answered without a redirect
    gated: set[str] = field(default_factory=set)
    private: set[str] = field(default_factory=set)
    renamed: dict[str, str] = field(default_factory=dict)
    refusals: dict[str, tuple[int, str]] = field(default_factory=dict)  # status, message
    bare: bool = False  # a mirror that leaves the X-Linked headers out
    links_to: str = ""  # host in the addresses of further pages
    versions: dict[int, dict[str, Any]] = field(default_factory=dict)
    models: dict[int, dict[str, Any]] = field(default_factory=dict)
    locked: set[int] = field(default_factory=set)  # CivitAI versions that need a login
    html: set[int] = field(default_factory=set)  # … that answer a login page with 200
    files: dict[str, tuple[bytes, dict[str, str]]] = field(default_factory=dict)
    users: dict[str, tuple[str, str]] = field(default_factory=dict)
    no_head: int = 0  # the status that answers HEAD instead
    page_size: int = 2
    outages: list[tuple[int, dict[str, str]]] = field(default_factory=list)
    silent: bool = False  # hangs up on everybody
    # path → status, headers and body of an answer that no hub gives
    odd: dict[str, tuple[int, dict[str, str], bytes]] = field(default_factory=dict)
    corrupt: set[str] = field(default_factory=set)  # hashes whose bytes arrive damaged
    expired: set[str] = field(default_factory=set)  # signatures that are no longer valid
    # hash → bytes after which the storage hangs up and its address is no longer valid
    ends_at: dict[str, int] = field(default_factory=dict)
    seen: list[Seen] = field(default_factory=list)
    issued: int = 0
    hub_url: str = ""
    cdn_url: str = ""
    blobs: dict[str, bytes] = field(default_factory=dict)

    def add(self, repo: str, path: str, data: bytes) -> str:
        self.repos.setdefault(repo, {})[path] = data
        self.blobs[sha256(data)] = data
        return sha256(data)

    def add_version(self, number: int, name: str, data: bytes, **extra: Any) -> str:
        digest = sha256(data)
        self.blobs[digest] = data
        file = {
            "name": name,
            "sizeKB": len(data) / 1024,
            "type": "Model",
            "primary": True,
            "metadata": {"format": "SafeTensor", "fp": "fp16", "size": "pruned"},
            "hashes": {"SHA256": digest.upper(), "AutoV2": digest[:10]},
            "downloadUrl": f"{self.hub_url}/api/download/models/{number}",
        }
        version = {
            "id": number,
            "modelId": number + 1000,
            "model": {"name": name, "type": extra.pop("kind", "LORA")},
            "files": [file | extra.pop("file", {})],
        }
        self.versions[number] = version | extra
        return digest

    def payload_requests(self) -> list[Seen]:
        return [s for s in self.seen if s.server == "cdn" or s.path.startswith("/files/")]

    def sign(self, digest: str) -> str:
        self.issued += 1
        return f"{self.cdn_url}/blob/{digest}?signature=s{self.issued}"

    # -- handlers -----------------------------------------------------------------------

    @web.middleware
    async def record(self, request: web.Request, handler: Any) -> web.StreamResponse:
        server = "cdn" if request.path.startswith("/blob/") else "hub"
        self.seen.append(
            Seen(
                server,
                request.method,
                request.path,
                request.query_string,
                request.headers.get("Authorization"),
                request.headers.get("Range"),
            )
        )
        if self.silent and request.transport is not None:
            request.transport.close()
        if request.path in self.odd:
            status, headers, body = self.odd[request.path]
            return web.Response(status=status, headers=headers, body=body)
        if self.outages:
            status, headers = self.outages.pop(0)
            return web.Response(status=status, headers=headers)
        response: web.StreamResponse = await handler(request)
        return response

    def _error(self, status: int, code: str = "") -> web.Response:
        headers = {"X-Error-Code": code, "X-Error-Message": code} if code else {}
        return web.Response(status=status, headers=headers)

    def _refusal(self, request: web.Request, repo: str) -> web.Response | None:
        if repo in self.refusals:
            status, message = self.refusals[repo]
            return web.Response(status=status, headers={"X-Error-Message": message})
        authorised = request.headers.get("Authorization") == f"Bearer {HF_TOKEN}"
        if repo in self.gated and not authorised:
            return self._error(401, "GatedRepo")
        if repo not in self.repos or (repo in self.private and not authorised):
            return self._error(404 if authorised else 401, "RepoNotFound")
        return None

    async def resolve(self, request: web.Request) -> web.StreamResponse:
        repo = f"{request.match_info['owner']}/{request.match_info['name']}"
        if repo in self.renamed:
            new = request.path.replace(repo, self.renamed[repo], 1)
            return web.Response(status=307, headers={"Location": new})
        if refusal := self._refusal(request, repo):
            return refusal
        if request.match_info["revision"] not in ("main", "v1"):
            return self._error(404, "RevisionNotFound")
        path = request.match_info["path"]
        data = self.repos[repo].get(path)
        if data is None:
            return self._error(404, "EntryNotFound")
        if f"{repo}:{path}" in self.small:
            return ranged(request, data, {"ETag": '"0123456789abcdef"', "X-Repo-Commit": "c0ffee"})
        headers = {
            "Location": self.sign(sha256(data)),
            "X-Linked-ETag": f'"{sha256(data)}"',
            "X-Linked-Size": str(len(data)),
            "X-Repo-Commit": "c0ffee",
        }
        if self.bare:
            headers = {"Location": headers["Location"]}
        text = f"Found. Redirecting to {headers['Location']}"
        return web.Response(status=302, headers=headers, text=text)

    async def tree(self, request: web.Request) -> web.Response:
        repo = f"{request.match_info['owner']}/{request.match_info['name']}"
        if refusal := self._refusal(request, repo):
            return refusal
        folder = request.match_info.get("path", "").strip("/")
        paths = sorted(p for p in self.repos[repo] if not folder or p.startswith(folder + "/"))
        if not paths:
            return self._error(404, "EntryNotFound")
        entries = [self._entry(repo, p) for p in paths]
        entries.insert(0, {"type": "directory", "path": "x", "size": 0})
        start = int(request.query.get("cursor", "0"))
        page = entries[start : start + self.page_size]
        headers = {}
        if start + self.page_size < len(entries):
            host = self.links_to or self.hub_url
            following = f"{host}{request.path}?recursive=1&cursor={start + self.page_size}"
            headers["Link"] = f'<{following}>; rel="next"'
        return web.json_response(page, headers=headers)

    def _entry(self, repo: str, path: str) -> dict[str, Any]:
        data = self.repos[repo][path]
        entry: dict[str, Any] = {"type": "file", "path": path, "size": len(data), "oid": "0" * 40}
        if f"{repo}:{path}" not in self.small:
            entry["lfs"] = {"oid": sha256(data), "size": len(data), "pointerSize": 134}
        return entry

    async def version(self, request: web.Request) -> web.Response:
        number = int(request.match_info["id"])
        if number not in self.versions:
            return web.json_response({"error": "Model not found"}, status=404)
        return web.json_response(self.versions[number])

    async def model(self, request: web.Request) -> web.Response:
        number = int(request.match_info["id"])
        if number not in self.models:
            return web.json_response({"error": "Model not found"}, status=404)
        return web.json_response(self.models[number])

    async def civitai_download(self, request: web.Request) -> web.StreamResponse:
        number = int(request.match_info["id"])
        authorised = request.headers.get("Authorization") == f"Bearer {CIVITAI_TOKEN}"
        if number in self.html and not authorised:
            return web.Response(text="<html>Sign in</html>", content_type="text/html")
        if number in self.locked and not authorised:
            return web.json_response({"error": "Unauthorized"}, status=401)
        files = self.versions[number]["files"]
        digest = files[int(request.query.get("file", "0"))]["hashes"]["SHA256"].lower()
        return web.Response(status=307, headers={"Location": self.sign(digest)})

    async def blob(self, request: web.Request) -> web.StreamResponse:
        signature = request.query.get("signature", "")
        if not signature or signature in self.expired or request.method == "HEAD":
            return web.Response(status=403, text="Request has expired")
        digest = request.match_info["digest"]
        data = self.blobs[digest]
        if digest in self.corrupt:
            data = data[:-1] + bytes([data[-1] ^ 1])
        answer = ranged(request, data, {"ETag": f'"{digest}"'})
        if digest not in self.ends_at:
            return answer
        self.expired.add(signature)
        return await _hang_up(request, answer, self.ends_at.pop(digest))

    async def plain(self, request: web.Request) -> web.StreamResponse:
        if self.no_head and request.method == "HEAD":
            return web.Response(status=self.no_head)
        wanted = self.users.get(request.path)
        given = request.headers.get("Authorization")
        if wanted is not None and given != basic(*wanted):
            return web.Response(status=401, headers={"WWW-Authenticate": "Basic"})
        if request.path not in self.files:
            return web.Response(status=404)
        data, headers = self.files[request.path]
        if "Location" in headers:
            return web.Response(status=302, headers=headers)
        return ranged(request, data, {"ETag": f'"{sha256(data)[:16]}"', **headers})


def ranged(request: web.Request, data: bytes, headers: dict[str, str]) -> web.Response:
    """Serve ``data``, honouring Range and If-Range as real servers do."""
    merged = {"Accept-Ranges": "bytes", "Content-Type": "application/octet-stream", **headers}
    condition = request.headers.get("If-Range")
    if request.headers.get("Range") and condition in (None, merged.get("ETag")):
        window = request.http_range
        start = window.start or 0
        stop = min(window.stop or len(data), len(data))
        if start >= len(data):
            return web.Response(status=416, headers={"Content-Range": f"bytes */{len(data)}"})
        merged["Content-Range"] = f"bytes {start}-{stop - 1}/{len(data)}"
        return web.Response(status=206, body=data[start:stop], headers=merged)
    return web.Response(body=data, headers=merged)


async def _hang_up(request: web.Request, whole: web.Response, after: int) -> web.StreamResponse:
    """Send the first bytes of an answer and end the connection."""
    assert isinstance(whole.body, bytes)
    cut = web.StreamResponse(status=whole.status, headers=whole.headers)
    cut.content_length = len(whole.body)
    await cut.prepare(request)
    await cut.write(whole.body[:after])
    assert request.transport is not None
    request.transport.close()
    return cut


@asynccontextmanager
async def serve(hub: Hub) -> AsyncIterator[Hub]:
    """Run hub and CDN on two loopback ports."""
    site = web.Application(middlewares=[hub.record])
    repo = "/{owner}/{name}"
    site.router.add_route("*", repo + "/resolve/{revision}/{path:.+}", hub.resolve)
    site.router.add_get("/api/models" + repo + "/tree/{revision}", hub.tree)
    site.router.add_get("/api/models" + repo + "/tree/{revision}/{path:.*}", hub.tree)
    site.router.add_get("/api/v1/model-versions/{id}", hub.version)
    site.router.add_get("/api/v1/models/{id}", hub.model)
    site.router.add_get("/api/download/models/{id}", hub.civitai_download)
    site.router.add_route("*", "/files/{tail:.*}", hub.plain)
    cdn = web.Application(middlewares=[hub.record])
    cdn.router.add_route("*", "/blob/{digest}", hub.blob)
    async with _listening(site) as hub.hub_url, _listening(cdn) as hub.cdn_url:
        yield hub


@asynccontextmanager
async def _listening(app: web.Application) -> AsyncIterator[str]:
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        port = runner.addresses[0][1]
        yield f"http://127.0.0.1:{port}"
    finally:
        await runner.cleanup()


def basic(user: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


def host_of(url: str) -> str:
    return urlsplit(url).netloc
