"""Bringing user files back from the target: newest wins, newer local ones stay."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import anyio
from anyio import to_thread

from supervisor.errors import TransferError
from supervisor.sync.keys import restored_path
from supervisor.sync.model import RemoteFile, Tree
from supervisor.sync.target import Target, TargetRefusedError

_log = logging.getLogger("supervisor.sync")

_AT_ONCE = 8  # workflows are small: what they cost is the server's answer


@dataclass(frozen=True, slots=True)
class Restored:
    """Counts of one restore: written, left because the local file is as new, left out."""

    files: int = 0
    kept: int = 0
    skipped: int = 0


async def restore(target: Target, trees: Sequence[Tree]) -> Restored:
    """Fetch every file of the trees that is newer at the target.

    A file that cannot be restored is told and left out; the others come all the same.

    Raises:
        TransferError: the target cannot be listed, or refuses everything.
    """
    counts = _Counts()
    for tree in trees:
        await _restore_tree(target, tree, counts)
    return Restored(counts.files, counts.kept, counts.skipped)


@dataclass(slots=True)
class _Counts:
    files: int = 0
    kept: int = 0
    skipped: int = 0
    refusal: TransferError | None = None
    lanes: anyio.Semaphore = field(default_factory=lambda: anyio.Semaphore(_AT_ONCE))


async def _restore_tree(target: Target, tree: Tree, counts: _Counts) -> None:
    async with anyio.create_task_group() as tasks:

        async def carry(remote: RemoteFile, destination: Path) -> None:
            try:
                await _restore_file(target, tree, remote, destination, counts)
            except TargetRefusedError as exc:
                counts.refusal = exc
                tasks.cancel_scope.cancel()
            finally:
                counts.lanes.release()

        try:
            async for remote, destination in _wanted(target, tree):
                await counts.lanes.acquire()
                tasks.start_soon(carry, remote, destination)
        except TransferError as exc:
            counts.refusal = exc
            tasks.cancel_scope.cancel()
    if counts.refusal is not None:
        raise counts.refusal


async def _wanted(target: Target, tree: Tree) -> AsyncIterator[tuple[RemoteFile, Path]]:
    async for remote in target.list(tree.prefix + "/"):
        destination = _destination(tree, remote.key)
        if destination is not None:
            yield remote, destination


async def _restore_file(
    target: Target, tree: Tree, remote: RemoteFile, destination: Path, counts: _Counts
) -> None:
    try:
        local_s = await to_thread.run_sync(_look, tree, destination)
        # It was uploaded after it was written: one uploaded before our mtime cannot be newer.
        if local_s is not None and remote.mtime_s <= local_s:
            counts.kept += 1
        elif await target.fetch(remote.key, destination, newer_than_s=local_s):
            counts.files += 1
        else:
            counts.kept += 1
    except TargetRefusedError:
        raise
    except (OSError, TransferError) as exc:
        counts.skipped += 1
        cause = exc.strerror if isinstance(exc, OSError) else exc
        _log.warning("Cannot restore %s: %s", destination, cause)


def _destination(tree: Tree, key: str) -> Path | None:
    """Return where a key belongs; None when it would leave the tree, or names a folder."""
    name = restored_path(key.removeprefix(tree.prefix + "/"))
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or not path.name or name.endswith("/"):
        return None
    if "\0" in name:
        return None
    if tree.file:
        return tree.locate("") if name == tree.root.name else None
    return tree.root / path


def _look(tree: Tree, destination: Path) -> float | None:
    """Return the local file's mtime, None when there is none.

    Raises:
        OSError: something is in the way, or a link leads out of the tree.
    """
    if not tree.file and not destination.parent.resolve().is_relative_to(tree.root.resolve()):
        raise OSError(0, "a link leads out of its folder")
    if destination.is_dir():
        raise IsADirectoryError(0, "a folder has that name")
    try:
        return destination.stat().st_mtime
    except FileNotFoundError:
        return None
