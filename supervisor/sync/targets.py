"""Which target the settings ask for; botocore is imported when the first file needs it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

import anyio
from anyio import to_thread

from supervisor.config.settings import SyncSection
from supervisor.config.units import parse_rate_bytes_per_s
from supervisor.errors import ConfigError
from supervisor.sync.credentials import Credentials
from supervisor.sync.folder import FolderTarget
from supervisor.sync.model import RemoteFile, Stored, Upload
from supervisor.sync.pacing import RateLimiter
from supervisor.sync.target import Target


def describe_target(settings: SyncSection) -> str:
    """Say where files go, for people."""
    if settings.target == "s3":
        return f"s3://{settings.bucket}/{settings.prefix}"
    return str(settings.folder or "")


def make_target(settings: SyncSection, credential_files: Mapping[str, Path]) -> Target:
    """Build the configured target; nothing is opened yet.

    Raises:
        ConfigError: it is a folder, and no folder is set.
    """
    limiter = RateLimiter(
        parse_rate_bytes_per_s(settings.rate_limit) if settings.rate_limit else None
    )
    if settings.target == "s3":
        credentials = Credentials(settings, credential_files)
        return LateTarget(
            f"s3://{settings.bucket}",
            lambda: _load_s3(settings, credentials, limiter),
        )
    if settings.folder is None:
        raise ConfigError(
            "Cannot sync to a folder: none is set", hint="set [sync] folder, or target = s3"
        )
    return FolderTarget(settings.folder, limiter=limiter)


def _load_s3(settings: SyncSection, credentials: Credentials, limiter: RateLimiter) -> Target:
    from supervisor.sync.s3 import S3Target  # noqa: PLC0415 (half a second and 50 MiB)

    return S3Target(settings, credentials, limiter=limiter)


class LateTarget:
    """Stands for a target whose module is costly to import.

    ``load`` does that in a thread when the target is first used, so that nothing else waits.
    """

    def __init__(self, description: str, load: Callable[[], Target]) -> None:
        self._description = description
        self._load = load
        self._loading = anyio.Lock()
        self._target: Target | None = None
        self._stack = AsyncExitStack()

    @property
    def description(self) -> str:
        """Where it is, for people."""
        return self._description

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._stack.aclose()

    async def _loaded(self) -> Target:
        async with self._loading:
            if self._target is None:
                target = await to_thread.run_sync(self._load)
                self._target = await self._stack.enter_async_context(target)
            return self._target

    async def prepare(self) -> None:
        """Load it, and have it load the rest."""
        await (await self._loaded()).prepare()

    async def store(self, upload: Upload) -> Stored:
        """Store one file; see ``Target.store``."""
        return await (await self._loaded()).store(upload)

    async def abandon(self, key: str, upload_id: str) -> None:
        """Abort an upload of a dead run; see ``Target.abandon``."""
        await (await self._loaded()).abandon(key, upload_id)

    async def list(self, prefix: str) -> AsyncIterator[RemoteFile]:
        """Yield what is stored below a prefix."""
        async for found in (await self._loaded()).list(prefix):
            yield found

    async def fetch(self, key: str, destination: Path, *, newer_than_s: float | None) -> bool:
        """Write an object to a local file; see ``Target.fetch``."""
        return await (await self._loaded()).fetch(key, destination, newer_than_s=newer_than_s)
