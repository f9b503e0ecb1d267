"""Bringing user files back from the target: newest wins, newer local ones stay."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from anyio import to_thread

from supervisor.sync.model import RemoteFile, Tree
from supervisor.sync.target import Target


@dataclass(frozen=True, slots=True)
class Restored:
    """Counts of one restore: written, and left because the local file is as new."""

    files: int = 0
    kept: int = 0


async def restore(target: Target, trees: Sequence[Tree]) -> Restored:
    """Fetch every file of the trees that is newer at the target.

    Raises:
        TransferError: the target cannot be listed or read.
    """
    files = kept = 0
    for tree in trees:
        async for remote in target.list(tree.prefix + "/"):
            destination = _destination(tree, remote.key)
            if destination is None:
                continue
            local_s = await to_thread.run_sync(_mtime_s, destination)
            if local_s is not None and not await _fetch_newer(target, remote, destination, local_s):
                kept += 1
            elif local_s is not None or await target.fetch(
                remote.key, destination, newer_than_s=None
            ):
                files += 1
    return Restored(files, kept)


async def _fetch_newer(
    target: Target, remote: RemoteFile, destination: Path, local_s: float
) -> bool:
    # It was uploaded after it was written: one uploaded before our mtime cannot be newer.
    if remote.mtime_s <= local_s:
        return False
    return await target.fetch(remote.key, destination, newer_than_s=local_s)


def _destination(tree: Tree, key: str) -> Path | None:
    """Return where a key belongs; None when it would leave the tree."""
    path = PurePosixPath(key.removeprefix(tree.prefix + "/"))
    if path.is_absolute() or ".." in path.parts or not path.name:
        return None
    if tree.root.suffix:  # a single file: only its own name
        return tree.root if str(path) == tree.root.name else None
    return tree.root / path


def _mtime_s(path: Path) -> float | None:
    try:
        return path.stat().st_mtime
    except OSError:
        return None
