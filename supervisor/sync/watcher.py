"""Hints that a tree has changed. They may come twice, late or never: the sweep is the truth."""

from __future__ import annotations

import errno
import logging
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import closing
from functools import partial
from itertools import islice

import anyio
from anyio import to_thread
from anyio.abc import TaskStatus

from supervisor.sync.inotify import Change, Inotify
from supervisor.sync.scan import Found, Scanner

_log = logging.getLogger("supervisor.sync")

_BATCH = 2000
# The root may not be there yet (ComfyUI makes it), or go away and come back.
_ROOT_PAUSE_S = 1.0
_INSTANCE_PAUSE_S = 60.0
_LIMITS = {
    errno.EMFILE: "raise fs.inotify.max_user_instances on the host",
    errno.ENOSPC: "raise fs.inotify.max_user_watches on the host",
}

# Takes paths relative to the root, and whether their writer was seen closing them.
Hint = Callable[[Iterable[str], bool], Awaitable[None]]
# Takes what is wrong and what to do about it.
Tell = Callable[[str, str | None], None]


class Watcher:
    """Watches one tree with inotify, as far as the kernel lets it."""

    def __init__(
        self, scanner: Scanner, *, hint: Hint, rescan: Callable[[], None], tell: Tell
    ) -> None:
        self._scanner = scanner
        self._hint = hint
        self._rescan = rescan
        self._tell = tell
        self._inotify: Inotify | None = None
        self._root_lost = anyio.Event()
        self._there = False
        self._blind: dict[str, OSError] = {}
        self._told = False

    @property
    def blind(self) -> bool:
        """Whether there are folders whose changes nobody will hint at."""
        return self._inotify is None or bool(self._blind)

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Report until cancelled; started when the next walk can watch what it finds."""
        while True:
            try:
                inotify = Inotify()
            except OSError as exc:
                self._refused(exc)
                task_status.started()
                await anyio.sleep(_INSTANCE_PAUSE_S)
                self._rescan()
                task_status = anyio.TASK_STATUS_IGNORED
                continue
            with closing(inotify):
                self._inotify = inotify
                try:
                    async with anyio.create_task_group() as tasks:
                        tasks.start_soon(self._keep_root)
                        task_status.started()
                        await self._read(inotify)
                finally:
                    self._inotify = None

    def cover(self, folder: str) -> None:
        """Watch a folder, again if it is watched already; blocking, from any thread."""
        inotify = self._inotify
        if not folder:
            self._blind.clear()
        if inotify is None:
            return
        try:
            there = inotify.add(self._scanner.folder(folder), folder, follow=not folder)
        except OSError as exc:
            self._blind[folder] = exc
        else:
            if not folder:
                self._there = there

    def covered(self) -> None:
        """Say what could not be covered; to be called after a walk."""
        for exc in self._blind.values():
            self._refused(exc)
        if not self._there:
            self._root_lost.set()

    def _refused(self, exc: OSError) -> None:
        if self._told:
            return
        self._told = True
        why = {errno.EMFILE: "no inotify instance", errno.ENOSPC: "no inotify watch"}
        cause = f"{why[exc.errno]} is left" if exc.errno in why else exc.strerror
        self._tell(
            f"Cannot see every change in {self._scanner.tree.root}: {cause}; it is looked"
            " through every few seconds instead",
            _LIMITS.get(exc.errno or 0),
        )

    async def _keep_root(self) -> None:
        """Watch the root when it appears, as often as it does."""
        while True:
            await self._root_lost.wait()
            self._there = False
            await to_thread.run_sync(self.cover, "")
            if self._there:
                self._root_lost = anyio.Event()
                self._rescan()
            else:
                await anyio.sleep(_ROOT_PAUSE_S)

    async def _read(self, inotify: Inotify) -> None:
        while True:
            await anyio.wait_readable(inotify.fd)
            changes = inotify.read()
            for folder in {c.path for c in changes if c.folder and c.path}:
                await self._enter(folder)
            await self._report(changes)
            if any(change.overflow for change in changes):
                _log.info("Too much happened at once in %s", self._scanner.tree.root)
                self._rescan()
            if any(change.lost and not change.path for change in changes):
                self._root_lost.set()

    async def _report(self, changes: list[Change]) -> None:
        files = [c for c in changes if not (c.folder or c.overflow or c.lost)]
        for closed in (False, True):
            paths = {c.path for c in files if c.closed is closed}
            await self._hint(self._scanner.files(paths), closed)

    async def _enter(self, folder: str) -> None:
        """Watch a new folder first and then list it, so that no file falls in between."""
        if not self._scanner.enters(folder):
            return
        found = self._scanner.walk(folder, self.cover)
        while batch := await to_thread.run_sync(partial(_take, found)):
            await self._hint(batch, False)
        self.covered()


def _take(found: Iterator[Found]) -> list[str]:
    return [f.path for f in islice(found, _BATCH)]
