"""Answers that go on: JSON lines of logs and events, server-sent events of the page.

A reader that is too slow loses records and is told how many; it never holds up anybody.
``Streams.close`` ends them all, so that none outlives the server.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any, Protocol, TypeVar

import anyio
from aiohttp import web
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream

from supervisor.core.events import Event, EventBus
from supervisor.core.render_json import render_json
from supervisor.core.state import StateStore
from supervisor.core.status import Snapshot
from supervisor.errors import ControlError

# Proxies give up on a silent connection (RunPod's after 100 s).
HEARTBEAT_S = 15.0
SNAPSHOT_INTERVAL_S = 0.5
_MOST_STREAMS = 64
_BATCH = 500
_EVENTS_AHEAD = 200
_HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


class Follower(Protocol[T_co]):
    """A subscription to something; ``lagged`` counts what a slow reader lost."""

    @property
    def lagged(self) -> int: ...

    def __aiter__(self) -> AsyncIterator[T_co]: ...


class Streams:
    """The open streams of one server."""

    def __init__(self) -> None:
        self._scopes: set[anyio.CancelScope] = set()
        self._closed = False

    def close(self) -> None:
        """End all, and every later one at once."""
        self._closed = True
        for scope in self._scopes:
            scope.cancel()

    @contextmanager
    def open(self) -> Iterator[None]:
        """Run the body until it ends, the client leaves, or ``close``.

        Raises:
            ControlError: too many are open.
        """
        if len(self._scopes) >= _MOST_STREAMS:
            raise ControlError(
                "Cannot open another stream: too many are open", status=503, code="busy"
            )
        with anyio.CancelScope() as scope:
            if self._closed:
                scope.cancel()
            self._scopes.add(scope)
            try:
                yield
            except* ConnectionError:
                pass  # the client left
            finally:
                self._scopes.discard(scope)


async def send_lines(
    request: web.Request,
    streams: Streams,
    *,
    past: Iterable[dict[str, Any]],
    follower: Follower[T] | None,
    render: Callable[[T], dict[str, Any]],
) -> web.StreamResponse:
    """Send records as JSON lines: those of the past, then what ``follower`` brings.

    Records that are in both (by ``seq``) are sent once. An empty line is a heartbeat.
    """
    response = web.StreamResponse(headers=_HEADERS)
    response.content_type = "application/x-ndjson"
    response.charset = "utf-8"
    with streams.open():
        await response.prepare(request)
        last = 0
        records = list(past)
        for start in range(0, len(records), _BATCH):
            batch = records[start : start + _BATCH]
            await response.write(_lines(batch))
            last = batch[-1]["seq"]
        if follower is not None:
            await _follow(response, follower, render, after=last)
        await response.write_eof()
    return response


async def _follow(
    response: web.StreamResponse,
    follower: Follower[T],
    render: Callable[[T], dict[str, Any]],
    *,
    after: int,
) -> None:
    """Move records from the follower to the client, as many at a time as there are."""
    send, receive = anyio.create_memory_object_stream[dict[str, Any]](_BATCH)
    async with anyio.create_task_group() as tasks, send, receive:
        tasks.start_soon(_read, follower, render, after, send)
        while True:
            batch = await _next_batch(receive)
            await response.write(_lines(batch) if batch else b"\n")


async def _read(
    follower: Follower[T],
    render: Callable[[T], dict[str, Any]],
    after: int,
    send: MemoryObjectSendStream[dict[str, Any]],
) -> None:
    told = 0
    async for item in follower:
        record = render(item)
        if record["seq"] <= after:
            continue
        if follower.lagged > told:
            await send.send({"lagged": follower.lagged - told})
            told = follower.lagged
        await send.send(record)


async def _next_batch(receive: MemoryObjectReceiveStream[dict[str, Any]]) -> list[dict[str, Any]]:
    batch: list[dict[str, Any]] = []
    with anyio.move_on_after(HEARTBEAT_S):
        batch.append(await receive.receive())
    with suppress(anyio.WouldBlock):
        while batch and len(batch) < _BATCH:
            batch.append(receive.receive_nowait())
    return batch


def _lines(records: list[dict[str, Any]]) -> bytes:
    return "".join(f"{render_json(record)}\n" for record in records).encode()


async def send_server_events(
    request: web.Request,
    streams: Streams,
    *,
    state: StateStore,
    bus: EventBus,
    render: Callable[[Snapshot], str],
) -> web.StreamResponse:
    """Send snapshots (conflated) and events as server-sent events until the client leaves.

    A browser that reconnects names the last event it saw and gets those since.
    """
    response = web.StreamResponse(headers=_HEADERS)
    response.content_type = "text/event-stream"
    response.charset = "utf-8"
    with streams.open(), bus.subscribe() as subscription:
        await response.prepare(request)
        seen = _last_event_id(request)
        missed = [e for e in bus.recent(_EVENTS_AHEAD) if e.seq > seen]
        await response.write(b"".join([b"retry: 1000\n\n", *(_event(e.to_json()) for e in missed)]))
        after = missed[-1].seq if missed else 0
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_send_events, response, subscription, after)
            await _send_snapshots(response, state, render)
    return response


async def _send_snapshots(
    response: web.StreamResponse, state: StateStore, render: Callable[[Snapshot], str]
) -> None:
    sent = -1
    while True:
        text = ""
        with anyio.move_on_after(HEARTBEAT_S):
            await state.wait(partial(_differs, state, sent))
            sent = state.revision
            text = render(state.snapshot)
        # A beat is an event of its own: comments would not reach the page's script.
        message = f"event: snapshot\ndata: {text}\n\n" if text else "event: beat\ndata:\n\n"
        await response.write(message.encode())
        await anyio.sleep(SNAPSHOT_INTERVAL_S)


def _differs(state: StateStore, revision: int, _: Snapshot) -> bool:
    return state.revision != revision


async def _send_events(response: web.StreamResponse, follower: Follower[Event], after: int) -> None:
    told = 0
    async for event in follower:
        if follower.lagged > told:
            count, told = follower.lagged - told, follower.lagged
            await response.write(f"event: lagged\ndata: {count}\n\n".encode())
        if event.seq > after:
            await response.write(_event(event.to_json()))


def _event(document: dict[str, Any]) -> bytes:
    return f"id: {document['seq']}\nevent: event\ndata: {render_json(document)}\n\n".encode()


def _last_event_id(request: web.Request) -> int:
    text = request.headers.get("Last-Event-ID", "")
    return int(text) if text.isdecimal() and len(text) < 19 else 0
