"""One store for many pods: objects named by their sha256, and links to them.

    objects/ab/abcdef…      the bytes, read-only
    uses/abcdef….json       size and the places that link to it; its mtime is the last use
    incoming/<key>/<n>/…    being fetched, by the holder of generation n of that key's lock
    locks/<key>/…           see ``leases``
    aliases/<key>.json      which object a remote version without a known hash turned out to be
    pins/<pod>.json         what a running pod wants; its mtime is a heartbeat

A file is hashed before it becomes an object and never changed afterwards, so that the same
file under two names, in two bundles or fetched by two pods is stored once. Everything here
blocks: call it from a worker thread.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from supervisor.core.journal import sync_directory

_CHUNK_BYTES = 8 * 1024 * 1024
# A pod that did not renew its pins for so long is gone.
PIN_LIFETIME_S = 900.0
_NO_LINK = frozenset({errno.EXDEV, errno.EPERM, errno.ENOTSUP, errno.EMLINK, errno.EACCES})


@dataclass(frozen=True, slots=True)
class StoredObject:
    """One object. ``used_s`` is the mtime of its record, on the volume's clock."""

    sha256: str
    size_bytes: int
    used_s: float
    places: tuple[str, ...]


class ModelStore:
    """The store at ``root``."""

    def __init__(self, root: Path, *, staging: Path | None = None) -> None:
        """``staging`` is a faster disk for files on their way; they are copied over at the end."""
        self.root = root
        self.locks = root / "locks"
        self._incoming = staging / "incoming" if staging else root / "incoming"

    def path(self, sha256: str) -> Path:
        """Where an object is, or would be."""
        return self.root / "objects" / sha256[:2] / sha256

    def incoming(self, key: str, generation: int, *, writer_gone: bool) -> Path:
        """Make the folder for a fetch under ``generation`` of the lock ``key``.

        What earlier generations left is taken along so that the fetch resumes: moved when
        their writer is known to be gone, else copied, since a machine that was merely frozen
        still has the old files open and would write into a published object.

        Raises:
            OSError: the volume does not take it.
        """
        folder = self._incoming / key / str(generation)
        folder.parent.mkdir(parents=True, exist_ok=True)
        older = sorted(
            (p for p in folder.parent.iterdir() if p.name.isdigit() and p != folder),
            key=lambda p: int(p.name),
        )
        if older and not folder.exists():
            if writer_gone:
                older[-1].rename(folder)
            else:
                shutil.copytree(older[-1], folder)
        folder.mkdir(exist_ok=True)
        for stale in older:
            shutil.rmtree(stale, ignore_errors=True)
        return folder

    def clear_incoming(self, key: str) -> None:
        """Forget a fetch that has ended."""
        shutil.rmtree(self._incoming / key, ignore_errors=True)

    def has(self, sha256: str, size_bytes: int | None = None) -> bool:
        """Whether the object is there, in the right length."""
        try:
            size = self.path(sha256).stat().st_size
        except OSError:
            return False
        return size_bytes in (None, size)

    def put(self, file: Path, sha256: str) -> Path:
        """Make a verified file an object, by rename or, across disks, by a checked copy.

        Raises:
            OSError: the volume does not take it.
        """
        target = self.path(sha256)
        target.parent.mkdir(parents=True, exist_ok=True)
        if self.has(sha256, file.stat().st_size):
            file.unlink()
            return target
        try:
            file.replace(target)
        except OSError as exc:
            if exc.errno != errno.EXDEV:
                raise
            temporary = target.with_name(f".{sha256}.{os.getpid()}")
            try:
                _copy(file, temporary, sha256)
                temporary.replace(target)
            finally:
                temporary.unlink(missing_ok=True)
            file.unlink()
        target.chmod(0o444)
        sync_directory(target.parent)
        return target

    def remember(self, key: str, sha256: str) -> None:
        """Record which object came of a fetch whose hash was not known before."""
        self._write(self.root / "aliases" / f"{key}.json", {"sha256": sha256})

    def recall(self, key: str) -> str | None:
        """The object that an earlier fetch of the same remote version led to."""
        try:
            return str(json.loads((self.root / "aliases" / f"{key}.json").read_bytes())["sha256"])
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def link(self, sha256: str, destination: Path) -> None:
        """Let ``destination`` be the object: a hard link, else a symbolic one. Atomic.

        Whatever stood there (a truncated or older file) is replaced.

        Raises:
            OSError: the folder cannot be written.
        """
        target = self.path(sha256)
        if not is_object(destination, target):
            destination.parent.mkdir(parents=True, exist_ok=True)
            temporary = destination.with_name(f".{destination.name}.{os.getpid()}.link")
            temporary.unlink(missing_ok=True)
            try:
                os.link(target, temporary)
            except OSError as exc:
                if exc.errno not in _NO_LINK:
                    raise
                temporary.symlink_to(target)
            temporary.replace(destination)
        self.use(sha256, destination)

    def use(self, sha256: str, place: Path | None = None) -> None:
        """Record that the object is wanted now, and where it is linked."""
        record = self._record(sha256)
        places = set(record.get("places", ()))
        if place is not None:
            places.add(str(place))
        size = self.path(sha256).stat().st_size
        self._write(self.root / "uses" / f"{sha256}.json", {"size": size, "places": sorted(places)})

    def objects(self) -> list[StoredObject]:
        """List all objects, least recently used first."""
        found = []
        for path in self._object_paths():
            try:
                info = path.stat()
                used_s = (self.root / "uses" / f"{path.name}.json").stat().st_mtime
            except FileNotFoundError:
                used_s = info.st_mtime if path.exists() else 0.0
            record = self._record(path.name)
            places = tuple(record.get("places", ()))
            found.append(StoredObject(path.name, info.st_size, used_s, places))
        return sorted(found, key=lambda o: o.used_s)

    def pin(self, pod: str, hashes: Collection[str]) -> None:
        """Say that a running pod wants these objects; renew well within ``PIN_LIFETIME_S``."""
        name = hashlib.sha256(pod.encode()).hexdigest()[:16]
        self._write(self.root / "pins" / f"{name}.json", {"pod": pod, "objects": sorted(hashes)})

    def pinned(self) -> frozenset[str]:
        """What running pods want. Their heartbeats are compared on the volume's own clock."""
        probe = self.root / "pins" / f".now.{os.getpid()}"
        probe.parent.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"")
        now_s = probe.stat().st_mtime
        probe.unlink()
        wanted: set[str] = set()
        for path in probe.parent.glob("*.json"):
            with contextlib.suppress(OSError, ValueError):
                if now_s - path.stat().st_mtime < PIN_LIFETIME_S:
                    wanted |= set(json.loads(path.read_bytes())["objects"])
        return frozenset(wanted)

    def evict(
        self,
        budget_bytes: int,
        *,
        keep: Collection[str] = (),
        opened: Callable[[], frozenset[tuple[int, int]]] | None = None,
        dry_run: bool = False,
    ) -> list[StoredObject]:
        """Remove the least recently used objects, with their links, until the rest fits.

        Never one in ``keep``, one that a running pod pins, or one that is open here.
        Returns what was removed.
        """
        objects = self.objects()
        total = sum(o.size_bytes for o in objects)
        protected = set(keep) | self.pinned()
        busy = (opened or open_files)()
        removed = []
        for stored in objects:
            if total <= budget_bytes:
                break
            info = self.path(stored.sha256).stat()
            if stored.sha256 in protected or (info.st_dev, info.st_ino) in busy:
                continue
            if not dry_run:
                self.remove(stored)
            total -= stored.size_bytes
            removed.append(stored)
        return removed

    def remove(self, stored: StoredObject) -> None:
        """Delete an object and the links that lead to it."""
        target = self.path(stored.sha256)
        for place in map(Path, stored.places):
            if is_object(place, target):
                place.unlink(missing_ok=True)
        target.unlink(missing_ok=True)
        (self.root / "uses" / f"{stored.sha256}.json").unlink(missing_ok=True)

    def damaged(self, *, pause: Callable[[], None] = lambda: None) -> Iterator[StoredObject]:
        """Re-hash every object and yield those whose bytes have changed."""
        for stored in self.objects():
            try:
                if hash_file(self.path(stored.sha256), pause=pause) != stored.sha256:
                    yield stored
            except FileNotFoundError:  # evicted meanwhile
                continue

    def _object_paths(self) -> Iterator[Path]:
        for path in sorted((self.root / "objects").glob("??/*")):
            if len(path.name) == 64:
                yield path

    def _record(self, sha256: str) -> Mapping[str, Any]:
        try:
            record = json.loads((self.root / "uses" / f"{sha256}.json").read_bytes())
        except (OSError, ValueError):
            return {}
        return record if isinstance(record, dict) else {}

    def _write(self, path: Path, record: Mapping[str, Any]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        temporary.write_text(json.dumps(record), encoding="utf-8")
        temporary.replace(path)


def is_object(place: Path, target: Path) -> bool:
    """Whether ``place`` leads to the object at ``target``."""
    try:
        return place.samefile(target)
    except OSError:
        return False


def hash_file(path: Path, *, pause: Callable[[], None] = lambda: None) -> str:
    """sha256 of a file; ``pause`` is called before every few MiB (to check cancellation).

    The page cache is not filled with it: other programs need that more.
    """
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        offset = 0
        while chunk := file.read(_CHUNK_BYTES):
            pause()
            digest.update(chunk)
            with contextlib.suppress(OSError):
                os.posix_fadvise(file.fileno(), offset, len(chunk), os.POSIX_FADV_DONTNEED)
            offset += len(chunk)
    return digest.hexdigest()


def open_files(proc: Path = Path("/proc")) -> frozenset[tuple[int, int]]:
    """(device, inode) of every file that a visible process has open or mapped."""
    found: set[tuple[int, int]] = set()
    for process in proc.iterdir():
        if not process.name.isdigit():
            continue
        for kind in ("fd", "map_files"):
            try:
                entries = list((process / kind).iterdir())
            except OSError:
                continue
            for entry in entries:
                with contextlib.suppress(OSError):
                    info = entry.stat()
                    found.add((info.st_dev, info.st_ino))
    return frozenset(found)


def _copy(source: Path, target: Path, sha256: str) -> None:
    shutil.copyfile(source, target)
    descriptor = os.open(target, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    if hash_file(target) != sha256:
        raise OSError(errno.EIO, "the copy differs from its source")
