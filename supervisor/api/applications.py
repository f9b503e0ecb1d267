"""The web applications of the two listeners: who is let in, and how errors look."""

from __future__ import annotations

import logging
import os
from importlib import import_module

import anyio.to_thread
from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from supervisor.api import metrics
from supervisor.api.context import ApiContext
from supervisor.api.guard import SECURITY_HEADERS, Guard, check_same_origin
from supervisor.api.health import Health
from supervisor.api.pages import PUBLIC, Pages
from supervisor.api.port import PublicPort
from supervisor.api.routes import Routes, answer
from supervisor.api.schema import error_document, error_status
from supervisor.api.sockets import peer_uid
from supervisor.errors import ControlError, SupervisorError

log = logging.getLogger("supervisor.api")

_LARGEST_BODY_BYTES = 256 * 1024
_PUBLIC = frozenset({"/ping", "/healthz", "/readyz", "/metrics"})
_SAFE = frozenset({"GET", "HEAD"})


def owner_application(context: ApiContext, routes: Routes) -> web.Application:
    """Make the application of the control socket."""
    owners = frozenset({0, os.geteuid()})

    @web.middleware
    async def only_owner(request: web.Request, handler: Handler) -> web.StreamResponse:
        transport = request.transport
        connection = transport.get_extra_info("socket") if transport is not None else None
        if connection is None or peer_uid(connection) not in owners:
            raise ControlError(
                "Cannot serve you: only root and the supervisor's own user may use this socket",
                status=403,
                code="forbidden",
            )
        return await handler(request)

    application = _application([_errors(context), only_owner])
    application.add_routes(routes.table())
    application.add_routes(_health_routes(context))
    return application


def health_application(context: ApiContext, routes: Routes, *, port: PublicPort) -> web.Application:
    """Make the application of the health port."""
    guard = Guard(context.token, context.session_key)
    pages = Pages(guard) if context.dashboard else None
    public = _PUBLIC | PUBLIC if pages else _PUBLIC

    @web.middleware
    async def guarded(request: web.Request, handler: Handler) -> web.StreamResponse:
        if request.path in public:
            return await handler(request)
        given = request.query.get("token")
        if given is not None and request.method in _SAFE and await guard.accepts(given):
            return _without_token(request, guard)
        if not await guard.admits(request):
            raise ControlError(
                "Cannot let you in without the token",
                hint="`supervisor status` shows it; send it as `Authorization: Bearer TOKEN`",
                status=401,
                code="unauthorized",
            )
        if request.method not in _SAFE:
            check_same_origin(request)
        with port.serving(request):
            return await handler(request)

    application = _application([_errors(context), guarded])
    application.on_response_prepare.append(_harden)
    if pages:
        application.add_routes(pages.table())
    application.add_routes(routes.table())
    application.add_routes(_health_routes(context))
    return application


def _application(middlewares: list[Middleware]) -> web.Application:
    return web.Application(middlewares=middlewares, client_max_size=_LARGEST_BODY_BYTES)


def _without_token(request: web.Request, guard: Guard) -> web.Response:
    """Put the session into a cookie and the token out of the address."""
    clean = str(request.rel_url.without_query_params("token")).lstrip("/")
    # One slash only: what begins with two names another host.
    response = web.Response(status=303, headers={"Location": f"/{clean}"})
    guard.open_session(request, response)
    return response


async def _harden(_: web.Request, response: web.StreamResponse) -> None:
    response.headers.update(SECURITY_HEADERS)
    response.headers.setdefault("Cache-Control", "no-store")
    response.headers["Server"] = "supervisor"


def _health_routes(context: ApiContext) -> list[web.RouteDef]:
    health = Health(context.state)

    async def ping(_: web.Request) -> web.Response:
        return web.Response(status=health.ping)

    async def healthz(_: web.Request) -> web.Response:
        return answer({"alive": True})

    async def readyz(_: web.Request) -> web.Response:
        status, document = health.ready
        return answer(document, status=status)

    async def exposition(request: web.Request) -> web.Response:
        await anyio.to_thread.run_sync(import_module, "prometheus_client.exposition")
        body, content_type = metrics.render(
            lambda: context.state.snapshot, context.recorder, request.headers.get("Accept", "")
        )
        return web.Response(body=body, headers={"Content-Type": content_type})

    return [
        web.get("/ping", ping),
        web.get("/healthz", healthz),
        web.get("/readyz", readyz),
        web.get("/metrics", exposition),
    ]


def _errors(context: ApiContext) -> Middleware:
    """Turn every failure into the error document, without secrets and without traces."""

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            return await handler(request)
        except SupervisorError as exc:
            status, code = error_status(exc)
            message, hint = exc.message, exc.hint
        except web.HTTPException as exc:
            if exc.status < 400:
                raise
            status, code, hint = exc.status, "http", None
            message = f"Cannot {request.method} {request.path}: {exc.reason}"
        except Exception:
            log.exception("%s %s failed", request.method, request.path)
            status, code, message = 500, "bug", "Cannot answer: this is a bug of the supervisor"
            hint = "its log has the details"
        redact = context.redact
        document = error_document(code, redact(message), redact(hint) if hint else None)
        response = answer(document, status=status)
        if status == 401:
            response.headers["WWW-Authenticate"] = "Bearer"
        return response

    return middleware
