"""Walking a tree: what is there, without following links."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
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
        self._exclude = _relative(exclude, tree.root)
        self._names = NameFilter(tree.patterns, tree.ignore)

    def wants(self, path: str) -> bool:
        """Whether the path (relative to the root) is one of ours, by its names alone."""
        *folders, name = path.split("/") if path else (self.tree.root.name,)
        return self._names.wants(name) and not self.ignores("/".join(folders))

    def ignores(self, folder: str) -> bool:
        """Whether a folder (relative to the root) is left out with all it holds."""
        if self._exclude is not None and f"{folder}/".startswith(f"{self._exclude}/"):
            return True
        return any(map(self._names.ignores_folder, filter(None, folder.split("/"))))

    def walk(self, below: str = "") -> Iterator[Found]:
        """Yield every wanted file below a folder; blocking.

        Links are neither followed nor reported, so nothing outside the tree is ever read.
        What vanishes meanwhile or may not be read is left out.
        """
        root = self.tree.locate(below)
        if not below and root.is_file():
            yield from self._single(root)
            return
        for folder, entry in self._entries(below):
            if entry is not None and self._names.wants(entry.name):
                path = f"{folder}/{entry.name}" if folder else entry.name
                if found := _found(entry, path):
                    yield found

    def folders(self, below: str = "") -> Iterator[Path]:
        """Yield a folder and every one below it that is not ignored; blocking.

        Each is yielded before it is listed: watch it then and nothing falls in between.
        """
        for folder, entry in self._entries(below):
            if entry is None:
                yield self.tree.locate(folder)

    def _entries(self, below: str) -> Iterator[tuple[str, os.DirEntry[str] | None]]:
        """Yield (folder, None) before a folder is listed and (folder, entry) for the rest."""
        pending = [below]
        while pending:
            folder = pending.pop()
            location = self.tree.locate(folder)
            if location.is_symlink():
                continue
            yield folder, None
            try:
                entries = os.scandir(location)
            except OSError:
                continue
            with entries:
                for entry in entries:
                    if not entry.is_dir(follow_symlinks=False):
                        yield folder, entry
                        continue
                    path = f"{folder}/{entry.name}" if folder else entry.name
                    if path != self._exclude and not self._names.ignores_folder(entry.name):
                        pending.append(path)

    def look(self, path: str) -> Found | None:
        """Look at one path again; None when it is gone or no regular file; blocking."""
        try:
            found = self.tree.locate(path).lstat()
        except OSError:
            return None
        return Found(path, Identity.of(found)) if stat.S_ISREG(found.st_mode) else None

    def _single(self, file: Path) -> Iterator[Found]:
        if self._names.wants(file.name) and (found := self.look("")):
            yield found


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
