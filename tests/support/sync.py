"""Helpers of the sync tests: whole files of every format, and a syncer on a folder."""

from __future__ import annotations

import hashlib
import struct
import zlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio

from supervisor.config.settings import SyncSection
from supervisor.core.events import EventBus
from supervisor.core.state import StateStore
from supervisor.core.status import SyncStatus
from supervisor.sync.syncer import Syncer

DEADLINE_S = 30.0


def png(text: str = "", **texts: str) -> bytes:
    """Build a PNG of one pixel that carries text chunks."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 8, 0, 0, 0, 0))
    notes = [chunk(b"tEXt", f"{k}\0{v}".encode()) for k, v in {"note": text, **texts}.items()]
    pixels = chunk(b"IDAT", zlib.compress(b"\0\0"))
    return b"".join([b"\x89PNG\r\n\x1a\n", head, *notes, pixels, chunk(b"IEND", b"")])


def mp4(payload: bytes = b"x" * 64, *, moov: bool = True) -> bytes:
    """Build an mp4's boxes."""
    boxes = [(b"ftyp", b"isom\0\0\2\0"), (b"mdat", payload)]
    boxes += [(b"moov", b"\0" * 16)] if moov else []
    return b"".join(struct.pack(">I4s", len(data) + 8, kind) + data for kind, data in boxes)


def contents(folder: Path) -> dict[str, bytes]:
    """Read every file of a folder target; keys without the date."""
    found = {}
    for path in folder.rglob("*"):
        key = path.relative_to(folder).parts
        if path.is_file() and not key[0].startswith("."):
            found["/".join(key[:1] + key[2:])] = path.read_bytes()
    return found


def sha256(data: bytes) -> str:
    """Hash some bytes."""
    return hashlib.sha256(data).hexdigest()


class Pod:
    """A syncer, its folders, and ways to wait for it."""

    def __init__(self, root: Path, **settings: Any) -> None:
        self.source = root / "comfyui" / "output"
        self.bucket = root / "bucket"
        self.source.mkdir(parents=True, exist_ok=True)
        self.state = StateStore()
        self.bus = EventBus()
        names = ("metrics", "credential_files", "logs_directory")
        extra = {name: settings.pop(name) for name in names if name in settings}
        self.settings = SyncSection(**{"target": "folder", "folder": self.bucket, **settings})
        self.syncer = Syncer(
            settings=self.settings,
            source=self.source,
            state_directory=root / "state",
            state=self.state,
            bus=self.bus,
            host="pod",
            **extra,
        )

    @property
    def status(self) -> SyncStatus:
        """The sync part of the snapshot."""
        return self.state.snapshot.sync

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Pod]:
        """Run the syncer while the context is open."""
        async with anyio.create_task_group() as tasks:
            await tasks.start(self.syncer.run)
            yield self
            tasks.cancel_scope.cancel()

    async def uploaded(self, count: int) -> None:
        """Wait until so many files were stored and none waits."""
        with anyio.fail_after(DEADLINE_S):
            await self.state.wait(lambda s: s.sync.uploaded >= count and s.sync.pending == 0)

    async def event(self, kind: str, count: int = 1) -> None:
        """Wait until an event of that kind was published so often."""
        with anyio.fail_after(DEADLINE_S):
            while self.kinds().count(kind) < count:
                await anyio.sleep(0.02)

    def kinds(self) -> list[str]:
        """The kinds of all events so far."""
        return [event.kind for event in self.bus.recent()]
