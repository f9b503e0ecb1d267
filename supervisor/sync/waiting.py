"""Why files wait, in sentences. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

from supervisor.sync.backlog import PathKey, Work
from supervisor.sync.examine import Watched

_NAMED = 3  # so many files are named, the others counted


def why(
    watched: Mapping[PathKey, Watched],
    queued: Collection[Work],
    failed: Collection[PathKey],
    *,
    refused: bool,
) -> Iterator[str]:
    """Yield a sentence for every reason; ``refused``: the target takes nothing at all now."""
    writers = [k for k, w in watched.items() if w.writers and not w.refused]
    unreadable = [(k, w.refused) for k, w in watched.items() if w.refused]
    broken = [(k, w.fault) for k, w in watched.items() if w.fault and not w.writers]
    quiet = [k for k, w in watched.items() if not (w.writers or w.fault)]
    if writers:
        yield f"{_files(writers)} still being written"
    for key, reason in unreadable[:_NAMED]:
        yield f"{_name(key)} cannot be read: {reason}"
    if len(unreadable) > _NAMED:
        yield f"{len(unreadable) - _NAMED} more cannot be read either"
    for key, fault in broken[:_NAMED]:
        yield f"{_name(key)} is not whole ({fault}); it gets a moment before it counts as broken"
    if len(broken) > _NAMED:
        yield f"{len(broken) - _NAMED} more are not whole either"
    if quiet:
        yield f"{_files(quiet)} to stay unchanged for a while, as nobody can tell who writes"
    yield from _queue(queued, refused=refused)
    if failed:
        yield f"{_files(failed)} refused for good; `supervisor sync retry` asks again"


def _queue(queued: Collection[Work], *, refused: bool) -> Iterator[str]:
    if refused and queued:
        yield f"{_files([work.key for work in queued])} held back until the target accepts files"
        return
    going = [work.key for work in queued if work.taken]
    again = [work.key for work in queued if work.attempts and not work.taken]
    turn = [work.key for work in queued if not (work.taken or work.attempts)]
    if going:
        yield f"{_files(going)} being stored now"
    if turn:
        yield f"{_files(turn)} next"
    if again:
        yield f"{_files(again)} to be tried again after a failure"


def _files(keys: Collection[PathKey]) -> str:
    """Say how many, which, and the verb: "2 files (a.png, b.png) are"."""
    named = [_name(key) for key in keys][:_NAMED]
    more = ", …" if len(keys) > _NAMED else ""
    if len(keys) == 1:
        return f"{named[0]} is"
    return f"{len(keys)} files ({', '.join(named)}{more}) are"


def _name(key: PathKey) -> str:
    name = key.path.rsplit("/", 1)[-1] or key.tree
    return name if len(name) <= 40 else f"{name[:24]}…{name[-15:]}"
