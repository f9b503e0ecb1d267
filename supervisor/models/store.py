"""One store for many pods: objects named by their sha256, and links to them.

    objects/ab/abcdef…      the bytes, read-only
    uses/abcdef…/           "last", whose mtime is the last use, and a file for each place that
                            links to the object
    incoming/<key>/<n>/…    being fetched, by the holder of generation n of that key's lock
    locks/<key>/…           see ``leases``
    aliases/<key>.json      which object a remote version without a known hash turned out to be
    pins/<pod>.json         what a running pod wants; its mtime is a heartbeat
    rotten/abcdef…          a damaged object until a whole one takes its place
    temporary/…             half-made files of running, or killed, pods

A file is hashed before it becomes an object and never changed afterwards, so that the same
file under two names, in two bundles or fetched by two pods is stored once. Pods share
nothing but this folder: names are unique by chance, since process numbers are not.
Everything here blocks: call it from a worker thread.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from supervisor.core.journal import sync_directory
from supervisor.models.objects import (
    changed_s,
    checked_copy,
    copy_if_possible,
    delete,
    is_object,
    listed,
    open_files,
)

# A pod that did not renew its pins for so long is gone.
PIN_LIFETIME_S = 900.0
# Half-made files take moments, fetches that nobody went on with are given up after a week.
_TEMPORARY_LIFETIME_S = 6 * 3600.0
_ABANDONED_AFTER_S = 7 * 86400.0
_LAST_TEXT = "\n"  # no path
_NO_LINK = frozenset(
    {errno.EXDEV, errno.EPERM, errno.ENOTSUP, errno.EMLINK, errno.EACCES, errno.EROFS}
)


@dataclass(frozen=True, slots=True)
class StoredObject:
    """One object. ``used_s`` is the time of its last use, on the volume's clock."""

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

    # -- on the way in ------------------------------------------------------------------

    def incoming(
        self,
        key: str,
        generation: int,
        *,
        writer_gone: bool,
        pause: Callable[[], None] = lambda: None,
    ) -> Path:
        """Make the folder for a fetch under ``generation`` of the lock ``key``.

        What earlier generations left is taken along so that the fetch resumes: moved when
        their writer is known to be gone, else copied, since a machine that was merely frozen
        still has the old files open and would write into a published object. ``pause`` is
        called again and again while copying (to check cancellation).

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
                copy_if_possible(older[-1], folder, pause=pause)
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

    def put(self, file: Path, sha256: str, *, pause: Callable[[], None] = lambda: None) -> Path:
        """Make a verified file an object, by rename or, across disks, by a checked copy.

        ``pause`` is called again and again while copying (to check cancellation).

        Raises:
            OSError: the volume does not take it.
        """
        target = self.path(sha256)
        target.parent.mkdir(parents=True, exist_ok=True)
        if self.has(sha256, file.stat().st_size):
            file.unlink()
            return target
        # What a symbolic link leads to belongs to somebody else, who may change it.
        if file.is_symlink() or not _moved(file, target):
            with self._temporary() as temporary:
                checked_copy(file, temporary, sha256, pause=pause)
                temporary.replace(target)
            file.unlink()
        with contextlib.suppress(OSError):  # not every file system has modes
            target.chmod(0o444)
        sync_directory(target.parent)
        self._mend(sha256)
        return target

    def remember(self, key: str, sha256: str) -> None:
        """Record which object came of a fetch whose hash was not known before."""
        self._write(self.root / "aliases" / f"{key}.json", json.dumps({"sha256": sha256}))

    def recall(self, key: str) -> str | None:
        """The object that an earlier fetch of the same remote version led to."""
        try:
            return str(json.loads((self.root / "aliases" / f"{key}.json").read_bytes())["sha256"])
        except (OSError, ValueError, KeyError, TypeError):
            return None

    # -- links --------------------------------------------------------------------------

    def link(self, sha256: str, destination: Path) -> None:
        """Let ``destination`` be the object: a hard link, else a symbolic one. Atomic.

        Whatever stood there (a truncated or older file) is replaced.

        Raises:
            FileNotFoundError: the object is not there (any more).
            OSError: the folder cannot be written.
        """
        target = self.path(sha256)
        target.stat()
        # The use comes first: an eviction that begins now sees it and leaves the object.
        self.use(sha256, destination)
        if not is_object(destination, target):
            self._place(target, destination)
            destination.stat()

    def use(self, sha256: str, place: Path | None = None) -> None:
        """Record that the object is wanted now, and where it is linked.

        A store that is read-only or full serves its objects nevertheless.
        """
        folder = self._uses(sha256)
        with contextlib.suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "last").write_text(_LAST_TEXT)
            if place is not None:
                name = hashlib.sha256(os.fsencode(place)).hexdigest()[:16]
                if not (folder / name).exists():
                    self._write(folder / name, str(place))

    def places(self, sha256: str) -> tuple[str, ...]:
        """Where the object was linked."""
        found = set()
        for entry in listed(self._uses(sha256)):
            with contextlib.suppress(OSError):
                found.add(entry.read_text(encoding="utf-8", errors="surrogateescape"))
        return tuple(sorted(found - {_LAST_TEXT}))

    def _place(self, target: Path, destination: Path) -> None:
        destination.parent.mkdir(parents=True, exist_ok=True)
        try:
            with self._temporary() as temporary:
                os.link(target, temporary)
                temporary.replace(destination)
        except OSError as exc:
            if exc.errno not in _NO_LINK:
                raise
            name = f".{destination.name[:200]}.{secrets.token_hex(4)}.link"
            temporary = destination.with_name(name)
            temporary.symlink_to(target.absolute())
            temporary.replace(destination)

    # -- damage -------------------------------------------------------------------------

    def set_aside(self, sha256: str) -> None:
        """Take a damaged object out of the store. Who has it open can go on reading.

        Its links are mended when a whole one arrives.

        Raises:
            OSError: the volume does not take it.
        """
        rotten = self.root / "rotten" / sha256
        rotten.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):  # another pod was faster
            self.path(sha256).replace(rotten)

    def _mend(self, sha256: str) -> None:
        """Let the places that still hold the damaged bytes hold the new ones."""
        rotten = self.root / "rotten" / sha256
        if not rotten.exists():
            return
        for place in map(Path, self.places(sha256)):
            if is_object(place, rotten):
                with contextlib.suppress(OSError):  # its pod finds out by itself
                    self._place(self.path(sha256), place)
        rotten.unlink(missing_ok=True)

    # -- upkeep -------------------------------------------------------------------------

    def objects(self) -> list[StoredObject]:
        """List all objects, least recently used first."""
        found = []
        for path in self._object_paths():
            try:
                info = path.stat()
            except FileNotFoundError:  # evicted meanwhile
                continue
            used_s = self._used_s(path.name, default=info.st_mtime)
            found.append(StoredObject(path.name, info.st_size, used_s, self.places(path.name)))
        return sorted(found, key=lambda o: o.used_s)

    def pin(self, pod: str, hashes: Collection[str]) -> None:
        """Say that a running pod wants these objects; renew well within ``PIN_LIFETIME_S``."""
        name = hashlib.sha256(pod.encode()).hexdigest()[:16]
        record = json.dumps({"pod": pod, "objects": sorted(hashes)})
        self._write(self.root / "pins" / f"{name}.json", record)

    def pinned(self) -> frozenset[str]:
        """What running pods want. Their heartbeats are compared on the volume's own clock."""
        now_s = self._now_s()
        wanted: set[str] = set()
        for path in (self.root / "pins").glob("*.json"):
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
        spare_s: float = PIN_LIFETIME_S,
        dry_run: bool = False,
    ) -> list[StoredObject]:
        """Remove the least recently used objects, with their links, until the rest fits.

        Never removes what is in ``keep``, pinned by a running pod, linked within ``spare_s``
        (its pod may not have pinned it yet) or open in a visible process.
        """
        objects = self.objects()
        total = sum(o.size_bytes for o in objects)
        protected = set(keep) | self.pinned()
        lately_s = self._now_s() - spare_s
        busy = (opened or open_files)()
        removed = []
        for stored in objects:
            if total <= budget_bytes:
                break
            if stored.sha256 in protected or stored.used_s > lately_s:
                continue
            try:
                info = self.path(stored.sha256).stat()
            except FileNotFoundError:  # another pod evicts too
                total -= stored.size_bytes
                continue
            if (info.st_dev, info.st_ino) in busy or not (dry_run or self._remove(stored)):
                continue
            total -= stored.size_bytes
            removed.append(stored)
        return removed

    def _remove(self, stored: StoredObject) -> bool:
        """Delete an object and the links that lead to it, unless it is used again by now."""
        target = self.path(stored.sha256)
        with self._temporary() as taken:
            try:
                target.rename(taken)
            except FileNotFoundError:
                return True
            if self._used_s(stored.sha256, default=0.0) > stored.used_s:
                taken.rename(target)
                return False
            for place in map(Path, self.places(stored.sha256)):
                with contextlib.suppress(OSError):  # a folder of another pod
                    if _leads_to(place, target) or is_object(place, taken):
                        place.unlink()
        shutil.rmtree(self._uses(stored.sha256), ignore_errors=True)
        return True

    def sweep(self) -> None:
        """Remove what killed pods left half-made, and fetches that nobody goes on with.

        Raises:
            OSError: the volume does not take it.
        """
        now_s = self._now_s()
        for folder, lifetime_s in (
            (self.root / "temporary", _TEMPORARY_LIFETIME_S),
            (self.root / "rotten", _ABANDONED_AFTER_S),
            (self._incoming, _ABANDONED_AFTER_S),
        ):
            for entry in listed(folder):
                if now_s - changed_s(entry) > lifetime_s:
                    delete(entry)

    # -- inside -------------------------------------------------------------------------

    def _uses(self, sha256: str) -> Path:
        return self.root / "uses" / sha256

    def _used_s(self, sha256: str, *, default: float) -> float:
        try:
            return (self._uses(sha256) / "last").stat().st_mtime
        except OSError:
            return default

    def _object_paths(self) -> Iterator[Path]:
        for path in sorted((self.root / "objects").glob("??/*")):
            if len(path.name) == 64:
                yield path

    def _now_s(self) -> float:
        """The time by the clock that stamps the volume's files."""
        with self._temporary() as probe:
            probe.write_bytes(b"\n")
            return probe.stat().st_mtime

    @contextlib.contextmanager
    def _temporary(self) -> Iterator[Path]:
        """A name in the store for a file that is half-made; gone afterwards."""
        path = self.root / "temporary" / secrets.token_hex(8)
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield path
        finally:
            path.unlink(missing_ok=True)

    def _write(self, path: Path, text: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with self._temporary() as temporary:
            temporary.write_text(text, encoding="utf-8", errors="surrogateescape")
            temporary.replace(path)


def _moved(file: Path, target: Path) -> bool:
    try:
        file.replace(target)
    except OSError as exc:
        if exc.errno != errno.EXDEV:
            raise
        return False
    return True


def _leads_to(place: Path, target: Path) -> bool:
    return place.is_symlink() and place.readlink() == target.absolute()
