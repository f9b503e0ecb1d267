"""Looking at files: is this one new, finished and whole? Facts first, the verdict is pure."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from supervisor.sync.formats import fault_of
from supervisor.sync.ledger import Ledger
from supervisor.sync.model import Identity, Tree
from supervisor.sync.scan import Found, Scanner
from supervisor.sync.stability import Stability, Writers, open_regular, window_s

# Between two open/append/close cycles of a writer a file looks broken for a moment.
BROKEN_GRACE_S = 10.0
_RECHECK_S = 1.0


@dataclass(frozen=True, slots=True)
class Facts:
    """What was seen of one path. ``identity`` None: it is gone."""

    path: str
    identity: Identity | None = None
    known: bool = False
    writers: bool = False
    quiet_s: float = 0.0  # it must have been unchanged for so long
    fault: str | None = None


class Verdict(StrEnum):
    """What follows for a path."""

    GONE = "gone"
    KNOWN = "known"
    WAIT = "wait"
    READY = "ready"
    BROKEN = "broken"


@dataclass(frozen=True, slots=True)
class Watched:
    """A path that is not finished yet: since when it has had this identity, when to look."""

    identity: Identity
    since: float
    look_at: float
    writers: bool


class Examiner:
    """Looks at the files of one tree; every method blocks."""

    def __init__(
        self, tree: Tree, ledger: Ledger, stability: Stability, *, exclude: Path | None = None
    ) -> None:
        """Look at ``tree``, leaving out the folder ``exclude`` (a target inside the source)."""
        self.tree = tree
        self.scanner = Scanner(tree, exclude=exclude)
        self._ledger = ledger
        self._stability = stability

    @property
    def network(self) -> bool:
        """Whether other machines may write here."""
        return self._stability.network

    def news(self, found: list[Found]) -> list[str]:
        """Keep the paths that the journal does not know as settled."""
        pairs = [(f.path, f.identity) for f in found]
        return [path for path, _ in self._ledger.news(self.tree.name, pairs)]

    def look(self, paths: Iterable[str]) -> list[Facts]:
        """Collect the facts about some paths."""
        return [self._look(path) for path in paths]

    def _look(self, path: str) -> Facts:
        found = self.scanner.look(path)
        if found is None:
            return Facts(path)
        identity = found.identity
        if not self._ledger.news(self.tree.name, [(path, identity)]) or self._moved(path, identity):
            return Facts(path, identity, known=True)
        try:
            fd = open_regular(self.tree.locate(path))
        except FileNotFoundError:
            return Facts(path)
        except OSError:
            # Not readable now (permissions of a writer's temporary state): ask again.
            return Facts(path, identity, writers=True)
        try:
            answer = self._stability.writers(fd, self.tree.locate(path))
        finally:
            os.close(fd)
        if answer is Writers.SOME:
            return Facts(path, identity, writers=True)
        wait = self._stability.needs_window(answer)
        quiet_s = window_s(self.tree.locate(path), identity) if wait else 0.0
        return Facts(path, identity, quiet_s=quiet_s, fault=self._fault(path))

    def _fault(self, path: str) -> str | None:
        if not self.tree.outputs:
            return None
        try:
            return fault_of(self.tree.locate(path))
        except OSError as exc:
            return f"it cannot be read: {exc.strerror}"

    def _moved(self, path: str, identity: Identity) -> bool:
        """Recognise a stored file under a new name; a further hard link is a new file."""
        for row in self._ledger.namesakes(identity):
            if row.tree != self.tree.name or row.path == path or row.incomplete:
                continue
            if self.scanner.look(row.path) is None:
                self._ledger.rename(row.tree, row.path, path)
                return True
        return False


def judge(
    facts: Facts, watched: Watched | None, *, now: float, final: bool = False
) -> tuple[Verdict, Watched | None]:
    """Decide about one path; with WAIT comes when to look again. ``final``: nobody writes on."""
    if facts.identity is None:
        return Verdict.GONE, None
    if facts.known:
        return Verdict.KNOWN, None
    same = watched is not None and watched.identity == facts.identity
    since = watched.since if watched is not None and same else now
    quiet_s = BROKEN_GRACE_S if facts.fault else facts.quiet_s
    if facts.writers or (now - since < quiet_s and not final):
        pause_s = _RECHECK_S if facts.writers else min(_RECHECK_S, quiet_s)
        return Verdict.WAIT, Watched(facts.identity, since, now + pause_s, facts.writers)
    return (Verdict.BROKEN if facts.fault else Verdict.READY), None
