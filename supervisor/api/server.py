"""The two listeners: the owner's control socket and the health port."""

from __future__ import annotations

import logging
import os
import socket
from functools import partial
from itertools import count
from pathlib import Path

import anyio
import anyio.abc
from aiohttp import web

from supervisor.api.applications import health_application, owner_application
from supervisor.api.context import ApiContext
from supervisor.api.port import PublicPort
from supervisor.api.routes import Routes
from supervisor.api.sockets import file_identity, listen_unix, remove
from supervisor.api.streams import Streams
from supervisor.core.events import Severity
from supervisor.errors import ControlError, SupervisorError

log = logging.getLogger("supervisor.api")

# A handler that is at work when the server ends gets this long to answer, twice: aiohttp
# waits once for the handler and once for its cancellation.
_LAST_ANSWER_S = 0.1
_RETRY_S = (2.0, 5.0, 15.0, 30.0)


async def serve_api(
    context: ApiContext,
    *,
    socket_path: Path,
    host: str,
    port: int,
    task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED,
) -> None:
    """Serve until cancelled; open streams are ended and the socket's file is removed.

    A health port that is taken is said once and tried again; the socket serves meanwhile.
    Port 0 takes a free one. The port in use is in the status (``health``).

    Raises:
        ControlError: another daemon listens on the socket.
    """
    listener = _listen_owner(context, socket_path)
    identity = file_identity(socket_path) if listener is not None else None
    streams, door = Streams(), PublicPort()
    async with anyio.create_task_group() as tasks:
        owner = _runner(
            owner_application(context, Routes(context, streams=streams, tasks=tasks, owner=True))
        )
        public = _runner(
            health_application(
                context,
                Routes(context, streams=streams, tasks=tasks, owner=False),
                port=door,
            )
        )
        try:
            await owner.setup()
            await public.setup()
            if listener is not None:
                await web.SockSite(owner, listener).start()
            tasks.start_soon(context.recorder.follow, context.bus)
            await tasks.start(partial(_listen_public, context, door, public, host=host, port=port))
            task_status.started()
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                door.close()
                streams.close()
                async with anyio.create_task_group() as ending:
                    ending.start_soon(owner.cleanup)
                    ending.start_soon(public.cleanup)
                remove(socket_path, identity)
            tasks.cancel_scope.cancel()


def _runner(application: web.Application) -> web.AppRunner:
    """Wrap an application; a handler is cancelled when its client hangs up."""
    return web.AppRunner(
        application,
        handle_signals=False,
        handler_cancellation=True,
        access_log=None,
        shutdown_timeout=_LAST_ANSWER_S,
    )


def _listen_owner(context: ApiContext, path: Path) -> socket.socket | None:
    """Listen on the control socket.

    A place that cannot be used is said, and the health port serves all the same.
    """
    try:
        return listen_unix(path)
    except ControlError:
        raise
    except SupervisorError as exc:
        _complain(context, exc.message, exc.hint)
        return None


async def _listen_public(
    context: ApiContext,
    door: PublicPort,
    runner: web.AppRunner,
    *,
    host: str,
    port: int,
    task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED,
) -> None:
    """Listen on the health port, as soon as it is free."""
    note = ""
    for attempt in count():
        try:
            actual = await door.open(runner, host, port)
            break
        except OSError as exc:
            if not note:
                reason = os.strerror(exc.errno) if exc.errno and exc.errno > 0 else exc
                note = f"Cannot serve the health port {host}:{port}: {reason}"
                _complain(context, note, "set PORT_HEALTH or [health] port; it is tried again")
                task_status.started()
            await anyio.sleep(_RETRY_S[min(attempt, len(_RETRY_S) - 1)])
    state = context.state
    notes = tuple(n for n in state.snapshot.notes if n != note)
    state.update(health={**state.snapshot.health, "host": host, "port": actual}, notes=notes)
    log.info("health port: %s:%d", host, actual)
    context.bus.publish("api.listening", f"The health port is {host}:{actual}", port=actual)
    if not note:
        task_status.started()


def _complain(context: ApiContext, message: str, hint: str | None) -> None:
    """Say a fault once, everywhere, and keep it in the status."""
    log.error("%s%s", message, f" (hint: {hint})" if hint else "")
    context.bus.publish("api.fault", message, severity=Severity.ERROR, hint=hint)
    notes = context.state.snapshot.notes
    if message not in notes:
        context.state.update(notes=(*notes, message))
