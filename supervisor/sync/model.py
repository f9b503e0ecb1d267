"""The types that the parts of output sync hand to each other."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Protocol

# SQLite integers are signed; some file systems hand out inode numbers above 2**63, and most
# take times beyond the year 2262, which are 2**63 nanoseconds.
_MOST = (1 << 63) - 1


@dataclass(frozen=True, slots=True)
class Identity:
    """What tells one content of a path from the next."""

    inode: int
    size_bytes: int
    mtime_ns: int

    @classmethod
    def of(cls, stat: os.stat_result) -> Identity:
        """Take it from a stat result."""
        mtime_ns = max(-_MOST, min(stat.st_mtime_ns, _MOST))
        return cls(stat.st_ino & _MOST, stat.st_size, mtime_ns)


class FileState(StrEnum):
    """How far a file has come, as the journal knows it.

    ``stored``: the target has it. ``done``: the local file was deleted afterwards.
    """

    PENDING = "pending"
    UPLOADING = "uploading"
    STORED = "stored"
    DONE = "done"


@dataclass(frozen=True, slots=True)
class Tree:
    """One folder that is watched, and where its files go.

    ``keep_both`` never replaces other bytes at a key; ``dated`` puts the day of a file's
    mtime into the key; ``outputs`` marks the folder whose broken files are set apart and
    whose files may be deleted once they are stored. ``file``: the root is a single file.
    """

    name: str
    root: Path
    prefix: str
    patterns: tuple[str, ...] = ("*",)
    ignore: tuple[str, ...] = ()
    keep_both: bool = False
    dated: bool = False
    outputs: bool = False
    file: bool = False

    def locate(self, path: str) -> Path:
        """Return the absolute path of a path relative to the root."""
        if path:
            return self.root / path
        return self.root.resolve() if self.file else self.root  # it may be a link elsewhere


@dataclass(frozen=True, slots=True)
class Row:
    """A file in the journal. ``path`` is relative to its tree's root."""

    tree: str
    path: str
    identity: Identity
    state: FileState
    key: str
    sha256: str
    etag: str | None = None
    upload_id: str | None = None  # "" = about to be created when the record was written
    part_size_bytes: int | None = None
    incomplete: bool = False
    verified: bool = False
    stored_at_s: float | None = None


class UploadRecord(Protocol):
    """Where a multipart upload writes down how far it is, each step before the next.

    The methods block on the disk: call them from a worker thread.
    """

    def creating(self) -> None:
        """An upload is about to be created; its id may get lost."""

    def started(self, upload_id: str, part_size_bytes: int) -> None:
        """The target has opened a multipart upload."""

    def part(self, number: int, etag: str) -> None:
        """A part was accepted."""

    def abandoned(self) -> None:
        """The multipart upload is gone; the next try starts a new one."""


@dataclass(frozen=True, slots=True)
class Resume:
    """A multipart upload of a dead run. Part numbers count from 1."""

    upload_id: str
    part_size_bytes: int
    parts: Mapping[int, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Upload:
    """One finished file on its way to ``key``.

    ``body``: all its bytes, when they are few. ``replace`` allows other bytes at the key to
    be overwritten. ``look_first``: the target may well have the bytes already (an earlier
    run, a key made of the checksum). ``retried``: an earlier try may have sent some of them.
    """

    source: Path
    identity: Identity
    key: str
    sha256: str
    content_type: str
    metadata: Mapping[str, str]
    record: UploadRecord
    replace: bool = False
    look_first: bool = False
    retried: bool = False
    cache_control: str | None = None
    resume: Resume | None = None
    body: bytes | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class Stored:
    """The target has the bytes. ``sent`` is False when it had them before.

    ``verified``: the target itself confirmed checksum or size of what it keeps.
    """

    etag: str
    verified: bool
    sent: bool = True


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """An object of the target, for restoring."""

    key: str
    size_bytes: int
    mtime_s: float


class MetricsSink(Protocol):
    """Receives observations; the metrics endpoint implements it."""

    def stored(self, *, size_bytes: int, latency_s: float | None) -> None:
        """A file was stored; seconds since it was closed, None when that is not known."""

    def failed(self, reason: str) -> None:
        """A try failed; ``reason`` is one of a few fixed words."""


class NoMetrics:
    """Drops every observation."""

    def stored(self, *, size_bytes: int, latency_s: float | None) -> None:
        """Do nothing."""

    def failed(self, reason: str) -> None:
        """Do nothing."""
