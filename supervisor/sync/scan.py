"""Walking a tree: what is there, without following links."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

from supervisor.sync.keys import NameFilter
from supervisor.sync.model import Identity, Tree


@dataclass(frozen=True, slots=True)
class Found:
    """A regular file below a tree's root."""

    path: str
    identity: Identity


class Scanner:
    """Finds the files of one tree that count as outputs."""

    def __init__(self, tree: Tree, *, exclude: Path | None = None) -> None:
        """Find files of ``tree`` outside of ``exclude``."""
        self.tree = tree
        self._target = exclude
        self._exclude = _relative(exclude, tree.root)
        self._names = NameFilter(tree.patterns, tree.ignore)

    def files(self, paths: Iterable[str]) -> Iterator[str]:
        """Keep those of the paths that a watch has reported which are ours, by their names."""
        if not self.tree.file:
            return filter(self.wants, paths)
        return ("" for path in paths if path == self.tree.root.name)

    def wants(self, path: str) -> bool:
        """Whether the path (relative to the root) is one of ours, by its names alone."""
        *folders, name = path.split("/") if path else (self.tree.root.name,)
        return self._names.wants(name) and not self.ignores("/".join(folders))

    def enters(self, folder: str) -> bool:
        """Whether a folder (relative to the root) may hold files of ours."""
        return not self.tree.file and not self.ignores(folder)

    def ignores(self, folder: str) -> bool:
        """Whether a folder (relative to the root) is left out with all it holds."""
        if self._exclude is not None and f"{folder}/".startswith(f"{self._exclude}/"):
            return True
        return any(map(self._names.ignores_folder, filter(None, folder.split("/"))))

    def walk(
        self, below: str = "", enter: Callable[[str], None] = lambda _: None
    ) -> Iterator[Found]:
        """Yield every wanted file below a folder; blocking.

        ``enter`` is called with every folder before it is listed: what is watched by then
        cannot fall in between.

        The root may be a link (an output folder on the volume); links below it are neither
        followed nor reported, so nothing outside the tree is ever read. What vanishes
        meanwhile or may not be read is left out.
        """
        self._exclude = _relative(self._target, self.tree.root)  # the root may be another now
        if self.tree.file:
            enter("")
            found = self.look("")
            yield from [found] if found is not None and self.wants("") else ()
            return
        pending = [below]
        while pending:
            folder = pending.pop()
            if not (folder and _is_link(self.tree.locate(folder))):
                enter(folder)
                yield from self._list(folder, pending)

    def folder(self, name: str) -> Path:
        """Return what has to be watched to see changes in a folder of the tree."""
        return self.tree.root.parent if self.tree.file else self.tree.locate(name)

    def _list(self, folder: str, pending: list[str]) -> Iterator[Found]:
        """Yield the wanted files of one folder and add its sub-folders to ``pending``."""
        with suppress(OSError), os.scandir(self.tree.locate(folder)) as entries:
            for entry in entries:
                path = f"{folder}/{entry.name}" if folder else entry.name
                if entry.is_dir(follow_symlinks=False):
                    if path != self._exclude and not self._names.ignores_folder(entry.name):
                        pending.append(path)
                elif self._names.wants(entry.name) and (found := _found(entry, path)):
                    yield found

    def look(self, path: str) -> Found | None:
        """Look at one path again; None when it is gone or no regular file; blocking.

        A folder on the way that has become a link since leads out of the tree.
        """
        folders = accumulate(path.split("/")[:-1], "{}/{}".format)
        if any(_is_link(self.tree.root / folder) for folder in folders):
            return None
        try:
            found = self.tree.locate(path).lstat()
        except (OSError, RuntimeError):  # RuntimeError: a loop of links
            return None
        return Found(path, Identity.of(found)) if stat.S_ISREG(found.st_mode) else None


def _is_link(path: Path) -> bool:
    return os.path.islink(path)  # noqa: PTH114 (Path.is_symlink raises EACCES, EIO and ESTALE)


def _relative(path: Path | None, root: Path) -> str | None:
    """Return the path below the root, None when it is not there."""
    if path is None or not path.resolve().is_relative_to(root.resolve()):
        return None
    return str(path.resolve().relative_to(root.resolve()))


def _found(entry: os.DirEntry[str], path: str) -> Found | None:
    try:
        result = entry.stat(follow_symlinks=False)
    except OSError:
        return None
    return Found(path, Identity.of(result)) if stat.S_ISREG(result.st_mode) else None
