"""Everything about models that runs beside ComfyUI, put together.

Importing this loads aiohttp and the engine: do it after ComfyUI has been launched.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import anyio
import anyio.abc

from supervisor.config.settings import ModelsSection
from supervisor.config.units import parse_rate_bytes_per_s
from supervisor.core.events import EventBus
from supervisor.core.state import StateStore
from supervisor.download.engine import SegmentedDownloader
from supervisor.download.request import Downloader, DownloadRequest, Resolver
from supervisor.models.keeper import StoreKeeper
from supervisor.models.manager import ModelManager
from supervisor.models.organizer import Organizer
from supervisor.models.sources import open_sources
from supervisor.models.sources.base import SourceContext
from supervisor.models.transfers import open_downloader
from supervisor.models.verifier import Verifier

# Hashing and writing give way when ComfyUI needs the cores; an idle machine does not notice.
_BEHIND_COMFYUI = 10

log = logging.getLogger("supervisor.models")


@asynccontextmanager
async def opened_sources(
    section: ModelsSection, environ: Mapping[str, str]
) -> AsyncIterator[dict[str, Resolver]]:
    """Open the sources for the time of the context."""
    # What a host is asked counts among its connections, and so do those that are kept for more.
    connector = aiohttp.TCPConnector(limit_per_host=section.per_host, keepalive_timeout=2.0)
    async with aiohttp.ClientSession(connector=connector) as session:
        context = SourceContext.from_settings(section, session=session, environ=environ)
        yield open_sources(context)


@asynccontextmanager
async def opened_downloader(
    section: ModelsSection, environ: Mapping[str, str]
) -> AsyncIterator[Downloader]:
    """Open the engine as the settings want it, around it the shared store."""
    rate = section.rate_limit
    engine = SegmentedDownloader(
        connections=section.connections,
        per_host=section.per_host,
        stall_timeout_s=section.stall_timeout_s,
        fsync=section.fsync,
        drop_cache=section.drop_cache,
        thread_nice=_BEHIND_COMFYUI,
        rate_limit_bytes_per_s=parse_rate_bytes_per_s(rate) if rate else None,
    )
    async with engine:
        yield open_downloader(engine, section, pod=environ.get("RUNPOD_POD_ID", ""))


async def run_models(
    requests: Sequence[DownloadRequest],
    *,
    section: ModelsSection,
    environ: Mapping[str, str],
    state: StateStore,
    bus: EventBus,
    directory: Path | None = None,
    on_manager: Callable[[ModelManager], None] = lambda _: None,
    task_status: anyio.abc.TaskStatus[ModelManager] = anyio.TASK_STATUS_IGNORED,
) -> None:
    """Download, sort dropped files into ``directory``, look after the store; until cancelled.

    The manager is handed to ``on_manager`` and ``task_status`` as soon as it takes orders.
    """
    async with (
        opened_sources(section, environ) as resolvers,
        opened_downloader(section, environ) as downloader,
        anyio.create_task_group() as group,
    ):
        manager = ModelManager(
            settings=section, state=state, bus=bus, downloader=downloader, resolvers=resolvers
        )
        await group.start(manager.run, requests)
        on_manager(manager)
        task_status.started(manager)
        if section.store is not None:
            group.start_soon(StoreKeeper(settings=section, manager=manager, bus=bus).run)
        if section.verify_interval_h:
            verifier = Verifier(
                settings=section, manager=manager, resolvers=resolvers, state=state, bus=bus
            )
            group.start_soon(verifier.run)
        if section.organize and section.downloads_directory is not None and directory is not None:
            group.start_soon(_sort, Organizer(section.downloads_directory, directory, bus=bus))


async def _sort(organizer: Organizer) -> None:
    """Sorting is a convenience: an unusable folder must not end the downloads."""
    try:
        await organizer.run()
    except* OSError as group:
        log.error("Cannot watch the downloads folder: %s", group.exceptions[0])
