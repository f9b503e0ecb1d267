"""Hints that a tree has changed. They may come twice, late or never: the rescan is the truth."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from contextlib import closing
from itertools import islice
from pathlib import Path

import anyio
from anyio import to_thread

from supervisor.sync.inotify import Change, Inotify
from supervisor.sync.scan import Scanner

_log = logging.getLogger("supervisor.sync")

# A network volume shows other machines' writes to nobody but those who look.
_POLL_MS = 3000
_BATCH = 2000

# Takes paths relative to the root, and whether their writer was seen closing them.
Hint = Callable[[Iterable[str], bool], None]


class Watcher:
    """Watches one tree with inotify, and by polling where inotify cannot see."""

    def __init__(
        self, scanner: Scanner, *, network: bool, hint: Hint, rescan: Callable[[], None]
    ) -> None:
        self._scanner = scanner
        self._root = scanner.tree.root
        self._network = network
        self._hint = hint
        self._rescan = rescan
        self._inotify: Inotify | None = None

    async def run(self) -> None:
        """Report until cancelled."""
        async with anyio.create_task_group() as tasks:
            if self._network or not await self._start_inotify():
                tasks.start_soon(self._poll)
            if self._inotify is not None:
                with closing(self._inotify):
                    await self._read(self._inotify)

    async def _start_inotify(self) -> bool:
        try:
            self._inotify = Inotify()
            await to_thread.run_sync(self.watch_folders, "")
        except OSError as exc:
            _log.warning("Cannot watch %s with inotify: %s; polling instead", self._root, exc)
            if self._inotify is not None:
                self._inotify.close()
                self._inotify = None
            return False
        return True

    def watch_folders(self, below: str) -> None:
        """Watch every folder from ``below`` on, again where it is watched already; blocking.

        Raises:
            OSError: the kernel gives no more watches.
        """
        if self._inotify is None:
            return
        for folder in self._scanner.folders(below):
            self._inotify.add(folder)

    async def _read(self, inotify: Inotify) -> None:
        while True:
            await anyio.wait_readable(inotify.fd)
            changes = inotify.read()
            for folder in {c.path for c in changes if c.folder}:
                await self._enter(folder)
            self._report(changes)
            if any(change.overflow for change in changes):
                self._rescan()

    def _report(self, changes: list[Change]) -> None:
        files = [c for c in changes if not c.folder and not c.overflow]
        for closed in (False, True):
            paths = {self._relative(c.path) for c in files if c.closed is closed}
            self._hint(filter(self._scanner.wants, paths), closed)

    async def _enter(self, folder: Path) -> None:
        """Watch a new folder first and then list it, so that no file falls in between."""
        path = self._relative(folder)
        if self._scanner.ignores(path):
            return
        try:
            await to_thread.run_sync(self.watch_folders, path)
        except OSError as exc:
            _log.warning("Cannot watch %s: %s; the rescan finds its files", folder, exc)
        found = self._scanner.walk(path)
        while batch := await to_thread.run_sync(lambda: [*islice(found, _BATCH)]):
            self._hint([f.path for f in batch], False)

    def _relative(self, path: Path) -> str:
        return str(path.relative_to(self._root))

    async def _poll(self) -> None:
        from watchfiles import awatch  # noqa: PLC0415 (only needed where inotify is not enough)

        while True:
            try:
                changes = awatch(
                    self._root,
                    force_polling=True,
                    poll_delay_ms=_POLL_MS,
                    step=_POLL_MS // 2,
                    watch_filter=None,
                )
                async for batch in changes:
                    paths = {self._relative(Path(path)) for _, path in batch}
                    self._hint(filter(self._scanner.wants, paths), False)
            except OSError as exc:  # the root is gone, or not there yet
                _log.debug("Cannot poll %s: %s", self._root, exc)
            await anyio.sleep(_POLL_MS / 1000)
