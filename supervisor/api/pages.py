"""The web page: static files of this package and the form that asks for the token."""

from __future__ import annotations

import mimetypes
from importlib.resources import files
from typing import NoReturn

import anyio
import anyio.to_thread
from aiohttp import web

from supervisor.api import help_page
from supervisor.api.guard import Guard

_ASSETS = ("app.js", "dom.js", "format.js", "logs.js", "panels.js", "style.css", "transfers.js")
_FORM_PATIENCE_S = 15.0
_MESSAGE = "<!--MESSAGE-->"
_WRONG = '<p class="fault" role="alert">That is not the token of this pod.</p>'
# What the form needs before anybody is known; nothing of it says anything about the pod.
PUBLIC = frozenset({"/", "/login", *(f"/assets/{name}" for name in _ASSETS)})


class Pages:
    """Serves the page to those whom the guard lets in, the form to everybody else."""

    def __init__(self, guard: Guard) -> None:
        self._guard = guard
        directory = files("supervisor.api") / "dashboard"
        self._page = (directory / "index.html").read_text("utf-8")
        self._form = (directory / "login.html").read_text("utf-8")
        self._assets = {name: (directory / name).read_bytes() for name in _ASSETS}

    def table(self) -> list[web.RouteDef]:
        """All routes."""
        return [
            web.get("/", self.page),
            web.post("/login", self.login),
            web.get("/login", self.back),
            web.get("/assets/{name}", self.asset),
            web.get("/help", self.help),
        ]

    async def page(self, request: web.Request) -> web.Response:
        """The page, or the form."""
        given = request.query.get("token")
        if given is not None:
            if not await self._guard.accepts(given):
                return self._ask(_WRONG)
            return self._enter(request)
        if not await self._guard.admits(request):
            return self._ask()
        return web.Response(text=self._page, content_type="text/html")

    async def login(self, request: web.Request) -> web.Response:
        """Take the token from the form.

        No check of the origin: whoever can post the token already has it.
        """
        try:
            with anyio.fail_after(_FORM_PATIENCE_S):
                form = await request.post()
        except TimeoutError:
            raise web.HTTPRequestTimeout from None
        given = form.get("token")
        if isinstance(given, str) and await self._guard.accepts(given.strip()):
            return self._enter(request)
        return self._ask(_WRONG)

    async def back(self, _: web.Request) -> NoReturn:
        """A reload after a wrong token."""
        raise web.HTTPSeeOther("/")

    async def asset(self, request: web.Request) -> web.Response:
        """A script or the style sheet."""
        name = request.match_info["name"]
        if name not in self._assets:
            raise web.HTTPNotFound
        kind = mimetypes.guess_type(name)[0] or "application/octet-stream"
        return web.Response(body=self._assets[name], content_type=kind, charset="utf-8")

    async def help(self, _: web.Request) -> web.Response:
        """The known troubles; written when somebody looks, which is seldom."""
        text = await anyio.to_thread.run_sync(help_page.render)
        return web.Response(text=text, content_type="text/html")

    def _ask(self, message: str = "") -> web.Response:
        text = self._form.replace(_MESSAGE, message)
        return web.Response(text=text, status=401, content_type="text/html")

    def _enter(self, request: web.Request) -> web.Response:
        response = web.Response(status=303, headers={"Location": "/"})
        self._guard.open_session(request, response)
        return response
