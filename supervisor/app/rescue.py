"""Rescue mode: a configuration that cannot be used is shown, not turned into a crash loop.

A container that exits is started again, and paid for again, without anybody seeing why.
So the supervisor stays up, answers 503 on the health port and the errors on the socket,
and waits for a reload that finds the configuration mended.
"""

from __future__ import annotations

import logging
import signal
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread

from supervisor import __version__
from supervisor.app.boot import Source, generated_secrets
from supervisor.config.load import LoadedSettings, load_settings
from supervisor.config.logging import setup_logging
from supervisor.config.settings import Settings
from supervisor.config.toml_file import find_file, parse_file
from supervisor.core.events import EventBus
from supervisor.core.state import StateStore
from supervisor.core.status import Phase, Snapshot
from supervisor.errors import ConfigError, ControlError, SupervisorError

log = logging.getLogger("supervisor.rescue")

# All that rescue mode needs to know; a fault elsewhere must not hide the page.
_SECTIONS = ("health", "supervisor")
_PREFIXES = ("SUPERVISOR_HEALTH__", "SUPERVISOR_SUPERVISOR__")
_NAMES = ("PORT", "PORT_HEALTH", "SUPERVISOR_SOCKET")


class Rescue:
    """Serves one configuration error until it is mended or the container is stopped."""

    def __init__(self, source: Source, error: ConfigError) -> None:
        self._source = source
        self._error = error
        self._settings = salvage(source)
        self._bus = EventBus()
        self._state = StateStore(_snapshot(error, self._settings, source.config))
        self._done = anyio.Event()
        self._mended = False

    async def run(self) -> bool:
        """Return True when the configuration can be used now, False when asked to stop."""
        setup_logging(level="info")
        for problem in self._error.problems:
            log.error("%s", problem)
        log.error("%s; rescue mode: mend it, then `supervisor reload`", self._error.message)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._watch_signals)
            tasks.start_soon(self._serve)
            await self._done.wait()
            tasks.cancel_scope.cancel()
        return self._mended

    async def _serve(self) -> None:
        from supervisor.api.context import ApiContext  # noqa: PLC0415 - slow to import
        from supervisor.api.server import serve_api  # noqa: PLC0415

        section = self._settings.health
        given = section.token
        generated = generated_secrets(self._settings.supervisor.state_dir)
        context = ApiContext(
            state=self._state,
            bus=self._bus,
            token=given.get_secret_value() if given else generated.health_token,
            session_key=generated.session_key,
            shutdown=self._shutdown,
            reload=self._reload,
        )
        try:
            await serve_api(
                context,
                socket_path=self._settings.supervisor.socket,
                host=section.host,
                port=section.port,
            )
        except SupervisorError as error:
            log.error("%s", error.message)

    def _shutdown(self, reason: str) -> None:
        log.info("stopping: %s", reason)
        self._state.update(phase=Phase.STOPPING)
        self._done.set()

    async def _reload(self, dry_run: bool) -> Mapping[str, Any]:
        try:
            await anyio.to_thread.run_sync(self._source.load)
        except ConfigError as error:
            self._state.update(rescue=tuple(str(problem) for problem in error.problems))
            problems = "; ".join(str(problem) for problem in error.problems)
            raise ControlError(
                f"Cannot reload: {problems or error.message}",
                hint="mend it and reload again",
                status=422,
                code="configuration",
            ) from error
        if not dry_run:
            self._mended = True
            self._bus.publish("pod.mended", "The configuration is mended: booting")
            self._done.set()
        return {"dry_run": dry_run, "mended": True}

    async def _watch_signals(self) -> None:
        with anyio.open_signal_receiver(
            signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGHUP
        ) as received:
            async for number in received:
                if number != signal.SIGHUP:
                    self._shutdown(f"received {number.name}")
                    continue
                try:
                    await self._reload(False)
                except ControlError as error:
                    log.error("%s", error.message)


def salvage(source: Source) -> Settings:
    """What is valid of the sections that rescue mode needs; defaults where nothing is."""
    environ = {
        name: value
        for name, value in source.environ.items()
        if name.startswith(_PREFIXES) or name.removesuffix("_FILE") in _NAMES
    }
    given = [o for o in source.overrides if o.startswith(tuple(f"{s}." for s in _SECTIONS))]
    loaded = _try_load(environ, given) or _try_load(environ, []) or _try_load({}, [])
    if loaded is None:
        return Settings()
    for section, key, value in _file_values(source):
        if loaded.layers.get((section, key)) is None:
            more = {**environ, f"SUPERVISOR_{section}__{key}".upper(): value}
            better = _try_load(more, given)
            if better is not None:
                loaded, environ = better, more
    return loaded.settings


def _file_values(source: Source) -> Iterator[tuple[str, str, str]]:
    """Plain values of the needed sections, as far as the file can be parsed."""
    try:
        path = find_file(source.config, source.environ)
        tables = parse_file(path)[0] if path is not None else {}
    except ConfigError:
        return
    for section in _SECTIONS:
        table = tables.get(section)
        for key, value in table.items() if isinstance(table, dict) else ():
            if isinstance(value, bool):
                yield section, key, str(value).lower()
            elif isinstance(value, str | int | float):
                yield section, key, str(value)


def _try_load(environ: Mapping[str, str], overrides: list[str]) -> LoadedSettings | None:
    try:
        return load_settings(config=None, environ=environ, overrides=overrides, read_file=False)
    except ConfigError:
        return None


def _snapshot(error: ConfigError, settings: Settings, config: Path | None) -> Snapshot:
    problems = tuple(str(problem) for problem in error.problems) or (error.message,)
    return Snapshot(
        phase=Phase.RESCUE,
        config_file=str(config) if config else None,
        version=__version__,
        health={"host": settings.health.host, "port": settings.health.port},
        rescue=problems,
    )
