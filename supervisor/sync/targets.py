"""Which target the settings ask for; botocore is imported when the first file needs it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
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
        return LazyS3Target(settings, Credentials(settings, credential_files), limiter=limiter)
    if settings.folder is None:
        raise ConfigError(
            "Cannot sync to a folder: none is set", hint="set [sync] folder, or target = s3"
        )
    return FolderTarget(settings.folder, limiter=limiter)


def _import() -> type[Target]:
    from supervisor.sync.s3 import S3Target  # noqa: PLC0415 (half a second and 40 MiB)

    return S3Target


class LazyS3Target:
    """Stands for the S3 target; the import runs in a thread, so that nothing else waits."""

    def __init__(
        self, settings: SyncSection, credentials: Credentials, *, limiter: RateLimiter
    ) -> None:
        self._settings = settings
        self._credentials = credentials
        self._limiter = limiter
        self._opening = anyio.Lock()
        self._target: Target | None = None
        self._stack = AsyncExitStack()

    @property
    def description(self) -> str:
        """The bucket as a URL."""
        return f"s3://{self._settings.bucket}"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._stack.aclose()

    async def _open(self) -> Target:
        async with self._opening:
            if self._target is None:
                await to_thread.run_sync(_import)
                from supervisor.sync.s3 import S3Target  # noqa: PLC0415 (loaded by now)

                target = S3Target(self._settings, self._credentials, limiter=self._limiter)
                self._target = await self._stack.enter_async_context(target)
            return self._target

    async def store(self, upload: Upload) -> Stored:
        """Store one file; see ``Target.store``."""
        return await (await self._open()).store(upload)

    async def abandon(self, key: str, upload_id: str) -> None:
        """Abort an upload of a dead run; see ``Target.abandon``."""
        await (await self._open()).abandon(key, upload_id)

    async def list(self, prefix: str) -> AsyncIterator[RemoteFile]:
        """Yield what is stored below a prefix."""
        async for found in (await self._open()).list(prefix):
            yield found

    async def fetch(self, key: str, destination: Path, *, newer_than_s: float | None) -> bool:
        """Write an object to a local file; see ``Target.fetch``."""
        return await (await self._open()).fetch(key, destination, newer_than_s=newer_than_s)
