"""Sorts files dropped into the downloads folder into ComfyUI's folders, by links.

A hard link where the file system allows one, else a symbolic link; a copy only when told
to. A different file that is already there is never replaced. Headers are read, nothing else.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import shutil
import stat
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import anyio.abc
import anyio.to_thread

from supervisor.core.events import EventBus, Severity
from supervisor.models.classify import classify
from supervisor.models.folders import MODEL_EXTENSIONS, PICKLE_EXTENSIONS
from supervisor.models.header import read_header
from supervisor.models.objects import has_writer, look_alike

log = logging.getLogger("supervisor.models")

# inotify does not see what other machines write to a network volume.
_RESCAN_INTERVAL_S = 30.0
# Between two looks at a file that is still being written.
_SETTLE_S = 2.0
_WRITTEN = "it is still being written"
# Control files and marks of aria2, lftp, axel, browsers and the hub's library.
_PARTIAL_COMPANIONS = (
    ".aria2", ".st", ".lftp-pget-status", ".part", ".crdownload", ".incomplete", ".download"
)  # fmt: skip
_NO_LINK = frozenset({errno.EXDEV, errno.EPERM, errno.ENOTSUP, errno.EMLINK, errno.EACCES})


class Action(StrEnum):
    """What was (or, in a dry run, would be) done with a file."""

    LINKED = "linked"
    SYMLINKED = "symlinked"
    COPIED = "copied"
    PRESENT = "present"
    CONFLICT = "conflict"  # another file has that name
    UNKNOWN = "unknown"
    INCOMPLETE = "incomplete"  # still being written
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Placed:
    """One file. ``pickle``: loading it may run code; it was not loaded."""

    source: Path
    action: Action
    target: Path | None = None
    folder: str | None = None
    reason: str = ""
    pickle: bool = False

    def to_json(self) -> dict[str, Any]:
        """Render for ``--json``."""
        return {
            "source": str(self.source),
            "action": str(self.action),
            "target": str(self.target) if self.target else None,
            "folder": self.folder,
            "reason": self.reason,
            "pickle": self.pickle,
        }


@dataclass(frozen=True, slots=True)
class Summary:
    """The outcome of one pass."""

    files: tuple[Placed, ...] = ()

    @property
    def counts(self) -> dict[str, int]:
        """Files by action."""
        return dict(Counter(str(f.action) for f in self.files))

    def line(self) -> str:
        """One line for people."""
        counts = ", ".join(f"{n} {action}" for action, n in sorted(self.counts.items()))
        pickles = sum(1 for f in self.files if f.pickle)
        warning = f"; {pickles} in pickle format, which may run code" if pickles else ""
        return f"{len(self.files)} files: {counts or 'nothing to do'}{warning}"


def organize(
    downloads: Path,
    models: Path,
    *,
    dry_run: bool = False,
    copy: bool = False,
    settled: Callable[[Path, os.stat_result], bool] | None = None,
) -> Summary:
    """Sort everything below ``downloads``. Blocking.

    ``settled`` says whether a file did not change for a while; without it, none does (nobody
    writes there any more).
    """
    made: set[Path] = set()
    there = _inodes(models)
    placed = [
        _known(path, there[(info.st_dev, info.st_ino)], models)
        if (info.st_dev, info.st_ino) in there
        else _place(
            path, info, downloads, models, dry_run=dry_run, copy=copy, settled=settled, made=made
        )
        for path, info in _model_files(downloads, models)
    ]
    return Summary(tuple(placed))


class Organizer:
    """Watches the downloads folder while the pod runs."""

    def __init__(self, downloads: Path, models: Path, *, bus: EventBus) -> None:
        self._downloads = downloads
        self._models = models
        self._bus = bus
        self._seen: dict[Path, tuple[int, int]] = {}
        self._since_s: dict[Path, float] = {}
        self._now_s = 0.0
        self._told: dict[Path, Action] = {}
        self._waiting: list[Placed] = []
        self._stuck: set[tuple[Path, tuple[int, int]]] = set()
        self._changed = anyio.Event()

    async def run(
        self, *, task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED
    ) -> None:
        """Sort at every change, and every half minute in case one was missed."""
        await anyio.to_thread.run_sync(partial(self._downloads.mkdir, parents=True, exist_ok=True))
        async with anyio.create_task_group() as group:
            group.start_soon(self._watch)
            await self.sort()
            task_status.started()
            delay_s = _SETTLE_S
            while True:
                before = dict(self._seen)
                self._changed = anyio.Event()
                unsettled = Action.INCOMPLETE in self._told.values()
                with anyio.move_on_after(delay_s if unsettled else _RESCAN_INTERVAL_S):
                    await self._changed.wait()
                await self.sort()
                # A file that never becomes complete is looked at ever more seldom, and told.
                grows = before != self._seen
                delay_s = _SETTLE_S if grows else min(delay_s * 2, _RESCAN_INTERVAL_S)
                if delay_s >= _RESCAN_INTERVAL_S:
                    self._tell_stuck()

    async def _watch(self) -> None:
        from watchfiles import awatch  # noqa: PLC0415 - loaded after ComfyUI's launch

        told = False
        while True:
            try:
                async for _ in awatch(self._downloads):
                    self._changed.set()
            # The watcher gives up on a name that is not UTF-8, at its limits, and when the
            # folder goes. It only brings hints: the rescan finds what it misses.
            except* (OSError, RuntimeError) as group:
                if not told:
                    log.info("The watch of %s broke off: %s", self._downloads, _first(group))
                told = True
            await anyio.sleep(_RESCAN_INTERVAL_S)

    async def sort(self) -> Summary:
        """Sort once and report what is new."""
        self._now_s = anyio.current_time()
        summary = await anyio.to_thread.run_sync(
            partial(organize, self._downloads, self._models, settled=self._settled)
        )
        for file in summary.files:
            if self._told.get(file.source) is not file.action:
                self._tell(file)
        self._told = {f.source: f.action for f in summary.files}
        self._waiting = [f for f in summary.files if f.action is Action.INCOMPLETE]
        return summary

    def _settled(self, path: Path, info: os.stat_result) -> bool:
        """Unchanged since a look that is a while ago."""
        now = (info.st_size, info.st_mtime_ns)
        if self._seen.get(path) != now:
            self._seen[path], self._since_s[path] = now, self._now_s
        return self._now_s - self._since_s[path] >= _SETTLE_S

    def _tell_stuck(self) -> None:
        """Say once of a file that it is not whole and nobody goes on writing it."""
        stuck = {(f.source, self._seen.get(f.source, (0, 0))): f for f in self._waiting}
        for key, file in stuck.items():
            if key not in self._stuck:
                name = file.source.name
                message = f"Cannot sort {name}: it is not whole and does not grow ({file.reason})"
                self._publish(file, message, Severity.WARNING)
        self._stuck = set(stuck)

    def _tell(self, file: Placed) -> None:
        name = file.source.name
        if file.action in (Action.LINKED, Action.SYMLINKED, Action.COPIED):
            note = "; pickle format, loading it may run code" if file.pickle else ""
            message = f"{name}: {file.action} into {file.folder} ({file.reason}){note}"
            severity = Severity.WARNING if file.pickle else Severity.INFO
        elif file.action in (Action.CONFLICT, Action.FAILED, Action.UNKNOWN):
            message = f"Cannot sort {name}: {file.reason}"
            severity = Severity.WARNING
        else:
            return
        self._publish(file, message, severity)

    def _publish(self, file: Placed, message: str, severity: Severity) -> None:
        log.log(logging.WARNING if severity is Severity.WARNING else logging.INFO, "%s", message)
        name, data = file.source.name, file.to_json()
        self._bus.publish("models.organized", message, severity=severity, subject=name, **data)


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    inner = group.exceptions[0]
    return _first(inner) if isinstance(inner, BaseExceptionGroup) else inner


def _inodes(models: Path) -> dict[tuple[int, int], Path]:
    """What ComfyUI's folders lead to already, so that a rescan reads no header twice."""
    found: dict[tuple[int, int], Path] = {}
    for folder, _, names in os.walk(models):
        for name in names:
            path = Path(folder, name)
            with contextlib.suppress(OSError):
                info = path.stat()
                found[(info.st_dev, info.st_ino)] = path
    return found


def _known(source: Path, target: Path, models: Path) -> Placed:
    folder = target.relative_to(models).parts[0]
    pickle = source.suffix.lower() in PICKLE_EXTENSIONS
    return Placed(source, Action.PRESENT, target, folder, "linked already", pickle)


# -- one file -----------------------------------------------------------------------------


def _model_files(downloads: Path, models: Path) -> Iterator[tuple[Path, os.stat_result]]:
    """Regular files with a model's extension; not below ``models``, not hidden."""
    pending = [downloads]
    while pending:
        folder = pending.pop()
        try:
            with os.scandir(folder) as entries:
                listing = sorted(entries, key=lambda e: e.name)
        except OSError:
            continue
        names = {e.name for e in listing}
        # A diffusers folder is one model of many files; taking it apart would break it.
        if "model_index.json" in names:
            continue
        for entry in listing:
            if entry.name.startswith("."):
                continue
            path = Path(entry.path)
            if entry.is_dir(follow_symlinks=False):
                if path != models:
                    pending.append(path)
            elif path.suffix.lower() in MODEL_EXTENSIONS and not any(
                entry.name + companion in names for companion in _PARTIAL_COMPANIONS
            ):
                try:
                    info = entry.stat()
                except OSError:  # a dangling link, or gone again
                    continue
                if stat.S_ISREG(info.st_mode):
                    yield path, info


def _place(
    path: Path,
    info: os.stat_result,
    downloads: Path,
    models: Path,
    *,
    dry_run: bool,
    copy: bool,
    settled: Callable[[Path, os.stat_result], bool] | None,
    made: set[Path],
) -> Placed:
    pickle = path.suffix.lower() in PICKLE_EXTENSIONS
    # Another machine's writer shows in nothing but the change that it makes.
    if settled is not None and not settled(path, info):
        return Placed(path, Action.INCOMPLETE, reason=_WRITTEN, pickle=pickle)
    try:
        header = read_header(path)
    except OSError as exc:
        return Placed(path, Action.FAILED, reason=exc.strerror or str(exc))
    # A program may reserve the whole length first: then the size says nothing.
    if header.complete is False or has_writer(path):
        return Placed(path, Action.INCOMPLETE, reason=header.error or _WRITTEN, pickle=pickle)
    found = classify(header, path.relative_to(downloads).as_posix())
    if found.folder is None:
        return Placed(path, Action.UNKNOWN, reason=found.reason, pickle=pickle)
    target = models / found.folder / path.name
    try:
        if target in made:
            # In a dry run the first of two files with one name is not there to be seen.
            action = Action.CONFLICT
        else:
            action = _link(path, info, target, dry_run=dry_run, copy=copy)
    except OSError as exc:
        reason = exc.strerror or str(exc)
        return Placed(path, Action.FAILED, target, found.folder, reason, pickle)
    if dry_run and action is not Action.CONFLICT:
        made.add(target)
    reason = f"another file is at {target}" if action is Action.CONFLICT else found.reason
    return Placed(path, action, target, found.folder, reason, pickle)


def _link(
    source: Path,
    info: os.stat_result,
    target: Path,
    *,
    dry_run: bool,
    copy: bool,
) -> Action:
    """Put ``source`` at ``target`` unless something is there.

    Raises:
        OSError: no kind of link is possible, and copying was not allowed.
    """
    there = _look(target, source, info)
    if there is not None:
        return there
    if dry_run:
        return Action.LINKED
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target, follow_symlinks=True)
    except FileExistsError:
        return _look(target, source, info) or Action.CONFLICT
    except OSError as exc:
        if exc.errno not in _NO_LINK:
            raise
        if copy:
            return _copy(source, target)
        try:
            target.symlink_to(source.resolve())
        except FileExistsError:
            return _look(target, source, info) or Action.CONFLICT
        return Action.SYMLINKED
    return Action.LINKED


def _look(target: Path, source: Path, info: os.stat_result) -> Action | None:
    """What is at ``target`` already: this file, an equal one, another one, or nothing."""
    try:
        there = target.stat()
    except FileNotFoundError:
        # A link whose file is gone is in the way, and somebody else's to clean up.
        return Action.CONFLICT if target.is_symlink() else None
    if os.path.samestat(info, there):
        return Action.PRESENT
    # Two trainings of one kind have the same header: only the bytes tell them apart.
    if there.st_size == info.st_size and look_alike(source, target, info.st_size):
        return Action.PRESENT
    return Action.CONFLICT


def _copy(source: Path, target: Path) -> Action:
    temporary = target.with_name(f".{target.name}.copy")
    try:
        shutil.copyfile(source, temporary)
        os.link(temporary, target)  # unlike a rename, this never replaces
    except FileExistsError:
        return Action.CONFLICT
    except OSError as exc:
        if exc.errno not in _NO_LINK or target.exists():
            raise
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
    return Action.COPIED
