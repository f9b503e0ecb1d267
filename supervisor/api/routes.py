"""The routes of ``/v1``, the same on the control socket and behind the health port's token."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from contextlib import nullcontext
from typing import Any, TypeVar

import anyio
import anyio.abc
from aiohttp import web
from pydantic import BaseModel

from supervisor.api.context import ApiContext
from supervisor.api.schema import (
    AddModelBody,
    EmptyBody,
    FlushBody,
    KeepBody,
    NamesBody,
    ReloadBody,
    RestartBody,
    RestoreBody,
    SignalBody,
    access_document,
    log_document,
    parse_body,
    unknown,
)
from supervisor.api.streams import Streams, send_lines, send_server_events
from supervisor.core.events import Event
from supervisor.core.render_json import render_json
from supervisor.core.status import Phase, ServiceStatus, Snapshot, SyncStatus, to_jsonable
from supervisor.errors import ControlError

_LOG_LINES = 100
_MOST_RECORDS = 100_000
# Through RunPod's proxy a request may take 100 s.
_PATIENCE_S = 60.0

T = TypeVar("T")
B = TypeVar("B", bound=BaseModel)
Act = Callable[[], Awaitable[Any]]


class Routes:
    """Handlers of one listener. ``owner`` marks the control socket's.

    ``tasks`` carries on with what a browser cannot wait for; the owner's command line
    waits as long as it takes and gives up by hanging up.
    """

    def __init__(
        self,
        context: ApiContext,
        *,
        streams: Streams,
        tasks: anyio.abc.TaskGroup,
        owner: bool,
    ) -> None:
        self._context = context
        self._streams = streams
        self._tasks = tasks
        self._owner = owner
        self._rendered = (-1, "")

    def table(self) -> list[web.RouteDef]:
        """All routes."""
        get, post = web.get, web.post
        return [
            get("/v1/status", self.status),
            get("/v1/services", self.services),
            get("/v1/services/{name}", self.service),
            post("/v1/services/{name}/start", self.start),
            post("/v1/services/{name}/stop", self.stop),
            post("/v1/services/{name}/restart", self.restart),
            post("/v1/services/{name}/signal", self.signal),
            get("/v1/logs", self.logs),
            get("/v1/events", self.events),
            get("/v1/stream", self.stream),
            get("/v1/models", self.models),
            post("/v1/models", self.add_model),
            *(post(f"/v1/models/{act}", self.steer_models) for act in ("first", "retry", "cancel")),
            get("/v1/sync", self.sync),
            post("/v1/sync/flush", self.flush),
            post("/v1/sync/retry", self.retry),
            post("/v1/sync/restore", self.restore),
            post("/v1/ladder/reset", self.reset_ladder),
            post("/v1/reload", self.reload),
            post("/v1/shutdown", self.shutdown),
            post("/v1/idle/keep", self.keep),
        ]

    # -- reading --------------------------------------------------------------------------

    async def status(self, _: web.Request) -> web.Response:
        """The snapshot; for the owner with the addresses that hold secrets."""
        if not self._owner:
            return _json_text(self.render(self._context.state.snapshot))
        document = self._context.state.snapshot.to_json()
        return answer({**document, "access": access_document(self._context)})

    def render(self, snapshot: Snapshot) -> str:
        """Write the snapshot as JSON, once per change."""
        revision = self._context.state.revision
        if self._rendered[0] != revision:
            self._rendered = (revision, render_json(snapshot.to_json()))
        return self._rendered[1]

    async def services(self, _: web.Request) -> web.Response:
        """All services."""
        return answer(self._context.state.snapshot.to_json()["services"])

    async def service(self, request: web.Request) -> web.Response:
        """One service."""
        return self._service_answer(self._known(request).name)

    async def logs(self, request: web.Request) -> web.StreamResponse:
        """The last lines of a service or of all; with ``follow`` also those to come."""
        source = self._part(self._context.logs, "show logs")
        name = request.query.get("service") or None
        limit = _number(request, "limit", _LOG_LINES)
        names = {*self._context.state.snapshot.services, *source.names()}
        if name is not None and name not in names:
            raise unknown("a service named", name, names)
        following = _flag(request, "follow")
        with source.subscribe(name) if following else nullcontext() as follower:
            return await send_lines(
                request,
                self._streams,
                past=map(log_document, source.tail(name, limit)),
                follower=follower,
                render=log_document,
            )

    async def events(self, request: web.Request) -> web.StreamResponse:
        """What happened last; with ``follow`` also what happens."""
        bus = self._context.bus
        limit = _number(request, "limit", _MOST_RECORDS)
        following = _flag(request, "follow")
        with bus.subscribe() if following else nullcontext() as follower:
            return await send_lines(
                request,
                self._streams,
                past=[event.to_json() for event in bus.recent(limit)],
                follower=follower,
                render=Event.to_json,
            )

    async def stream(self, request: web.Request) -> web.StreamResponse:
        """Snapshots and events for the page."""
        return await send_server_events(
            request,
            self._streams,
            state=self._context.state,
            bus=self._context.bus,
            render=self.render,
        )

    async def models(self, _: web.Request) -> web.Response:
        """The downloads, and the last pass that verified them."""
        snapshot = self._context.state.snapshot
        verification = to_jsonable(snapshot.verification)
        return answer(snapshot.downloads.to_json() | {"verification": verification})

    async def sync(self, _: web.Request) -> web.Response:
        """The output sync, and why what is not stored waits."""
        return self._sync_answer(self._context.state.snapshot.sync)

    def _sync_answer(self, status: SyncStatus) -> web.Response:
        syncer = self._context.syncer
        waiting = [*syncer.waiting()] if syncer is not None else []
        return answer({**to_jsonable(status), "waiting": waiting})

    # -- services -------------------------------------------------------------------------

    async def start(self, request: web.Request) -> web.Response:
        """Start a service that rests."""
        control, name = self._part(self._context.services, "start"), self._known(request).name
        await self._body(request, EmptyBody)
        return await self._carry_out(name, lambda: control.start(name))

    async def stop(self, request: web.Request) -> web.Response:
        """Stop a service and answer when it is gone."""
        control, name = self._part(self._context.services, "stop"), self._known(request).name
        await self._body(request, EmptyBody)
        return await self._carry_out(name, lambda: control.stop(name))

    async def restart(self, request: web.Request) -> web.Response:
        """Restart a service; ComfyUI when its queue is empty, unless ``now``."""
        control, name = self._part(self._context.services, "restart"), self._known(request).name
        body = await self._body(request, RestartBody)
        return await self._carry_out(name, lambda: control.restart(name, now=body.now))

    async def signal(self, request: web.Request) -> web.Response:
        """Send a signal to a service's processes."""
        control, name = self._part(self._context.services, "signal"), self._known(request).name
        body = await self._body(request, SignalBody)
        return await self._carry_out(name, lambda: control.signal(name, body.name))

    async def _carry_out(self, name: str, act: Act) -> web.Response:
        """Act and answer with the service; 202 when a browser would wait too long."""
        if not await self._act(act):
            return answer({"pending": True, "service": name}, status=202)
        return self._service_answer(name)

    async def _act(self, act: Act) -> bool:
        """Act; return whether it is done. What a browser cannot wait for goes on."""
        if self._owner:
            await act()
            return True
        done, failure = anyio.Event(), list[Exception]()

        async def run() -> None:
            try:
                await act()
            except Exception as exc:  # noqa: BLE001 - told to whoever asked
                failure.append(exc)
            done.set()

        self._tasks.start_soon(run)
        with anyio.move_on_after(_PATIENCE_S):
            await done.wait()
        if failure:
            raise failure[0]
        return done.is_set()

    def _known(self, request: web.Request) -> ServiceStatus:
        name, services = request.match_info["name"], self._context.state.snapshot.services
        if name not in services:
            raise unknown("a service named", name, services)
        return services[name]

    def _service_answer(self, name: str) -> web.Response:
        services: Mapping[str, Any] = self._context.state.snapshot.to_json()["services"]
        return answer(services.get(name, {"name": name}))

    # -- models, sync ---------------------------------------------------------------------

    async def add_model(self, request: web.Request) -> web.Response:
        """Fetch one more file."""
        models = self._part(self._context.models, "fetch models")
        make = self._part(self._context.request_for, "fetch models")
        body = await self._body(request, AddModelBody)
        if not self._owner and any(_is_local(url) for url in (body.url, *body.mirrors)):
            raise ControlError(
                "Cannot fetch a file of this machine for the web page",
                hint="`supervisor models add` in a shell on the pod does",
                status=403,
                code="forbidden",
            )
        try:
            wanted = make(body.file())
        except ValueError as exc:
            # An address may hold a secret: it is not repeated.
            what = body.huggingface or body.civitai or body.to or "the file"
            message = f"Cannot fetch {what}: {exc}"
            hint = "say where it goes: to, for example loras/" if "folder" in str(exc) else None
            raise ControlError(message, hint=hint, status=422, code="invalid-body") from exc
        models.add(wanted, now=body.now)
        return answer({"name": wanted.name, "destination": str(wanted.destination)}, status=202)

    async def steer_models(self, request: web.Request) -> web.Response:
        """Move files to the front of the queue, try them again, or leave them out."""
        models = self._part(self._context.models, "fetch models")
        body = await self._body(request, NamesBody)
        actions = {"first": models.prioritise, "retry": models.retry, "cancel": models.cancel}
        for name in body.names:
            actions[request.path.rpartition("/")[2]](name)
        return answer({"names": list(body.names)})

    async def flush(self, request: web.Request) -> web.Response:
        """Upload all that is finished."""
        syncer = self._part(self._context.syncer, "flush")
        body = await self._body(request, FlushBody)
        timeout_s = body.timeout_s if self._owner else min(body.timeout_s, _PATIENCE_S)
        return self._sync_answer(await syncer.flush(timeout_s))

    async def retry(self, request: web.Request) -> web.Response:
        """Try failed uploads again."""
        syncer = self._part(self._context.syncer, "retry uploads")
        await self._body(request, EmptyBody)
        return answer({"trying": to_jsonable(await syncer.retry())})

    async def restore(self, request: web.Request) -> web.Response:
        """Bring files back from the bucket."""
        syncer = self._part(self._context.syncer, "restore")
        body = await self._body(request, RestoreBody)
        return answer(to_jsonable(await syncer.restore(body.wanted)))

    # -- the pod --------------------------------------------------------------------------

    async def reload(self, request: web.Request) -> web.Response:
        """Apply a changed configuration, or only tell what would change."""
        reload = self._part(self._context.reload, "reload")
        body = await self._body(request, ReloadBody)
        return answer(to_jsonable(await reload(body.dry_run)))

    async def shutdown(self, request: web.Request) -> web.Response:
        """Stop the pod; the answer comes before the stop."""
        await self._body(request, EmptyBody)
        who = "over the control socket" if self._owner else "on the web page"
        self._context.shutdown(f"asked to {who}")
        return answer({"stopping": True}, status=202)

    async def reset_ladder(self, request: web.Request) -> web.Response:
        """Take ComfyUI back up the VRAM ladder, when its queue is empty, unless ``now``."""
        ladder = self._part(self._context.ladder, "reset the ladder")
        body = await self._body(request, RestartBody)
        before = self._context.state.snapshot.gpu.ladder_step
        done = await self._act(lambda: ladder.reset(now=body.now))
        return answer({"pending": not done, "steps": before}, status=200 if done else 202)

    async def keep(self, request: web.Request) -> web.Response:
        """Do not count as idle for a while."""
        idle = self._part(self._context.idle, "keep the pod")
        body = await self._body(request, KeepBody)
        idle.keep(body.seconds)
        return answer(to_jsonable(self._context.state.snapshot.idle))

    def _part(self, part: T | None, action: str) -> T:
        """Return a part of the daemon, or say why it is not there."""
        if part is not None:
            return part
        if self._context.state.snapshot.phase is Phase.RESCUE:
            cause, hint = "the supervisor is in rescue mode", "mend the configuration and reload"
        else:
            cause, hint = _ABSENT.get(action, ("this is not running", "try again in a moment"))
        raise ControlError(f"Cannot {action}: {cause}", hint=hint, status=409, code="unavailable")

    async def _body(self, request: web.Request, model: type[B]) -> B:
        return parse_body(model, await request.read())


_SYNC_OFF = ("sync does not run", "turn it on with ENABLE_R2_SYNC=true or [sync] enabled = true")
_ABSENT = {
    "flush": _SYNC_OFF,
    "retry uploads": _SYNC_OFF,
    "restore": _SYNC_OFF,
    "keep the pod": ("idle shutdown is off", "ENABLE_IDLE_SHUTDOWN=true turns it on"),
    "fetch models": ("downloads do not run yet", "try again in a moment"),
}


def _number(request: web.Request, name: str, default: int) -> int:
    text = request.query.get(name)
    if text is None:
        return default
    if not text.isdecimal() or len(text) > 9:
        raise ControlError(f"Cannot read {name}={text}: not a number", code="invalid-query")
    return min(int(text), _MOST_RECORDS)


def _is_local(url: str | None) -> bool:
    return url is not None and not url.lower().lstrip().startswith(("http://", "https://"))


def _flag(request: web.Request, name: str) -> bool:
    return request.query.get(name, "").lower() in ("1", "true", "yes", "on")


def _json_text(text: str, status: int = 200) -> web.Response:
    return web.Response(
        text=text,
        status=status,
        content_type="application/json",
        headers={"Cache-Control": "no-store"},
    )


def answer(document: Any, *, status: int = 200) -> web.Response:
    """Answer with a JSON document."""
    return _json_text(render_json(document), status)
