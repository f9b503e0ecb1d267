"""The HTTP and websocket interface of the stand-in ComfyUI, each route also under /api."""

from __future__ import annotations

import json
import os
import struct
import sys
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from aiohttp import WSMsgType, web

from supervisor.demo.jobs import Folders, InvalidPromptError, JobQueue
from supervisor.demo.media import png

VERSION = "0.33.0"
PREVIEW_IMAGE, PREVIEW_PNG = 1, 2  # ComfyUI's binary event and format numbers
PAGE = "<!doctype html><title>ComfyUI stand-in</title><h1>ComfyUI stand-in</h1><p>queue: {}</p>"

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass(slots=True)
class ComfyUIServer:
    """State of the server: the queue and who listens."""

    folders: Folders
    step_s: float
    video_s: float
    cors: str | None
    max_upload_bytes: int
    sockets: dict[str, web.WebSocketResponse] = field(default_factory=dict)
    queue: JobQueue = field(init=False)
    outbox: list[tuple[str | None, dict[str, Any]]] = field(default_factory=list)
    reboot: Callable[[], None] = field(default=lambda: None)
    notify: Callable[[], None] = field(default=lambda: None)
    log: Callable[[str], None] = field(default=lambda _text: None)

    def __post_init__(self) -> None:
        self.queue = JobQueue(self.folders, self.push, self.step_s, self.video_s)

    def push(self, kind: str, data: dict[str, Any], client: str | None) -> None:
        """Queue a message for one listener, or for all."""
        self.outbox.append((client, {"type": kind, "data": data}))
        self.notify()

    async def flush(self) -> None:
        """Send what is queued; listeners that are gone are dropped."""
        while self.outbox:
            client, message = self.outbox.pop(0)
            for name, socket in list(self.sockets.items()):
                if client in (None, name):
                    await self._send(name, socket, message)

    async def _send(
        self, name: str, socket: web.WebSocketResponse, message: dict[str, Any]
    ) -> None:
        try:
            await socket.send_str(json.dumps(message))
            if message["type"] == "progress":
                picture = png(width=16, height=16, seed=message["data"]["value"], text={})
                await socket.send_bytes(struct.pack(">II", PREVIEW_IMAGE, PREVIEW_PNG) + picture)
        except ConnectionError:
            self.sockets.pop(name, None)

    def application(self) -> web.Application:
        """The routes."""
        app = web.Application(
            middlewares=[self.refuse_foreign_origins], client_max_size=self.max_upload_bytes
        )
        routes: list[tuple[str, str, Handler]] = [
            ("GET", "/ws", self.websocket),
            ("GET", "/system_stats", self.system_stats),
            ("GET", "/prompt", self.get_prompt),
            ("POST", "/prompt", self.post_prompt),
            ("GET", "/queue", self.get_queue),
            ("POST", "/queue", self.post_queue),
            ("GET", "/history", self.get_history),
            ("POST", "/history", self.post_history),
            ("GET", "/history/{prompt_id}", self.get_history),
            ("POST", "/interrupt", self.interrupt),
            ("POST", "/free", self.free),
            ("GET", "/view", self.view),
            ("POST", "/upload/image", self.upload),
            ("POST", "/v2/manager/reboot", self.manager_reboot),
            ("POST", "/manager/reboot", self.manager_reboot),
            ("GET", "/manager/reboot", self.manager_reboot),
        ]
        for method, path, handler in routes:
            app.router.add_route(method, path, handler)
            app.router.add_route(method, f"/api{path}", handler)
        app.router.add_get("/", self.page)
        return app

    @web.middleware
    async def refuse_foreign_origins(
        self, request: web.Request, handler: Handler
    ) -> web.StreamResponse:
        """403 for pages of other sites, unless --enable-cors-header."""
        if self.cors is None:
            origin = urlsplit(request.headers.get("Origin", "")).netloc
            if request.headers.get("Sec-Fetch-Site") == "cross-site" or (
                origin and origin.lower() != request.host.lower()
            ):
                return web.Response(status=403)
            return await handler(request)
        response = await handler(request)
        response.headers["Access-Control-Allow-Origin"] = self.cors
        return response

    async def page(self, _request: web.Request) -> web.Response:
        """Something to look at."""
        return web.Response(text=PAGE.format(self.queue.remaining), content_type="text/html")

    async def websocket(self, request: web.Request) -> web.WebSocketResponse:
        """Messages to one client; its id used again drops the older socket."""
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        client = request.query.get("clientId") or uuid.uuid4().hex
        older = self.sockets.pop(client, None)
        if older is not None:
            await older.close()
        self.sockets[client] = socket
        status = {**self.queue.status(), "sid": client}
        await socket.send_str(json.dumps({"type": "status", "data": status}))
        async for message in socket:
            if message.type == WSMsgType.ERROR:
                break
        if self.sockets.get(client) is socket:
            del self.sockets[client]
        return socket

    async def system_stats(self, _request: web.Request) -> web.Response:
        """What the machine is."""
        page = os.sysconf("SC_PAGE_SIZE")
        total = os.sysconf("SC_PHYS_PAGES") * page
        free = os.sysconf("SC_AVPHYS_PAGES") * page
        device = {"name": "cpu", "type": "cpu", "index": None}
        memory = {"vram_total": total, "vram_free": free}
        torch = {"torch_vram_total": total, "torch_vram_free": free}
        system = {
            "os": sys.platform,
            "ram_total": total,
            "ram_free": free,
            "comfyui_version": VERSION,
            "required_frontend_version": "1.0.0",
            "python_version": sys.version,
            "pytorch_version": "2.8.0+demo",
            "embedded_python": False,
            "argv": sys.argv,
        }
        return web.json_response({"system": system, "devices": [{**device, **memory, **torch}]})

    async def get_prompt(self, _request: web.Request) -> web.Response:
        """How much is to do."""
        return web.json_response(self.queue.status()["status"])

    async def post_prompt(self, request: web.Request) -> web.Response:
        """Accept a graph, or say what is wrong with it."""
        try:
            job = self.queue.submit(await _body(request))
        except InvalidPromptError as error:
            self.log("\n".join(error.log_lines()))
            return web.json_response(error.body, status=400)
        answer = {"prompt_id": job.prompt_id, "number": job.number, "node_errors": {}}
        return web.json_response(answer)

    async def get_queue(self, _request: web.Request) -> web.Response:
        """What runs and what waits."""
        running = [self.queue.running.to_json()] if self.queue.running else []
        pending = [job.to_json() for job in self.queue.pending]
        return web.json_response({"queue_running": running, "queue_pending": pending})

    async def post_queue(self, request: web.Request) -> web.Response:
        """Clear or delete waiting jobs."""
        body = await _body(request)
        if body.get("clear"):
            self.queue.delete(None)
        if "delete" in body:
            self.queue.delete([str(each) for each in body["delete"]])
        return web.Response()

    async def get_history(self, request: web.Request) -> web.Response:
        """What became of finished jobs."""
        history = self.queue.history
        prompt_id = request.match_info.get("prompt_id")
        if prompt_id is not None:
            history = {key: value for key, value in history.items() if key == prompt_id}
        elif "max_items" in request.query:
            history = dict(list(history.items())[-int(request.query["max_items"]) :])
        return web.json_response(history)

    async def post_history(self, request: web.Request) -> web.Response:
        """Forget finished jobs."""
        body = await _body(request)
        if body.get("clear"):
            self.queue.history.clear()
        for prompt_id in body.get("delete", ()):
            self.queue.history.pop(str(prompt_id), None)
        return web.Response()

    async def interrupt(self, request: web.Request) -> web.Response:
        """Stop the running job, or only the one named."""
        wanted = (await _body(request)).get("prompt_id")
        running = self.queue.running
        if running is not None and wanted in (None, running.prompt_id):
            self.queue.interrupted = True
        return web.Response()

    async def free(self, _request: web.Request) -> web.Response:
        """Accepted; there is no memory to give back."""
        return web.Response()

    async def view(self, request: web.Request) -> web.StreamResponse:
        """A file of the output, temp or input folder."""
        path = self._file(
            request.query.get("type", "output"),
            request.query.get("subfolder", ""),
            request.query.get("filename", ""),
        )
        if path is None:
            return web.Response(status=400)
        return web.FileResponse(path) if path.is_file() else web.Response(status=404)

    async def upload(self, request: web.Request) -> web.Response:
        """Store an input picture; a taken name gets a number unless ``overwrite``."""
        form = await request.post()
        image = form.get("image")
        kind, subfolder = str(form.get("type", "input")), str(form.get("subfolder", ""))
        if not isinstance(image, web.FileField):
            return web.Response(status=400)
        path = self._file(kind, subfolder, image.filename)
        if path is None:
            return web.Response(status=400)
        number = 1
        while path.exists() and form.get("overwrite") not in ("true", "1"):
            path = path.with_name(f"{Path(image.filename).stem} ({number}){path.suffix}")
            number += 1
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(image.file.read())
        return web.json_response({"name": path.name, "subfolder": subfolder, "type": kind})

    async def manager_reboot(self, _request: web.Request) -> web.Response:
        """ComfyUI-Manager's restart: there is never an answer, the connection just ends."""
        self.reboot()
        raise web.HTTPInternalServerError

    def _file(self, kind: str, subfolder: str, name: str) -> Path | None:
        root = self.folders.of(kind)
        if root is None or not name or Path(name).name != name:
            return None
        path = (root / subfolder / name).resolve()
        return path if path.is_relative_to(root.resolve()) else None


async def _body(request: web.Request) -> dict[str, Any]:
    try:
        body = await request.json()
    except ValueError:
        return {}
    return body if isinstance(body, dict) else {}
