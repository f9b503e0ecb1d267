"""Looking at files: is this one new, finished and whole? Facts first, the verdict is pure."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path

from supervisor.sync.formats import fault_of
from supervisor.sync.ledger import Ledger
from supervisor.sync.model import Identity, Row, Tree
from supervisor.sync.scan import Found, Scanner
from supervisor.sync.stability import (
    Method,
    Stability,
    Writers,
    census,
    choose,
    open_regular,
    window_s,
)
from supervisor.sync.target import FileChangedError, sha256_of

# Between two open/append/close cycles of a writer a file looks broken for a moment.
BROKEN_GRACE_S = 10.0
_RECHECK_S = 1.0
_MAX_RECHECK_S = 15.0


@dataclass(frozen=True, slots=True)
class Facts:
    """What was seen of one path. ``identity`` None: it is gone."""

    path: str
    identity: Identity | None = None
    known: bool = False
    writers: bool = False
    quiet_s: float = 0.0  # it must have been unchanged for so long
    elsewhere: bool = False  # ... because only machines elsewhere could still write to it
    fault: str | None = None
    refused: str | None = None  # why it cannot be read
    file: os.stat_result | None = None  # of a file whose writers the kernel does not tell


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
    refused: str | None = None
    fault: str | None = None


class Examiner:
    """Looks at the files of one tree; every method blocks."""

    def __init__(
        self,
        tree: Tree,
        ledger: Ledger,
        *,
        exclude: Path | None = None,
        choose: Callable[[Path], Stability] = choose,
    ) -> None:
        """Look at ``tree``, leaving out the folder ``exclude`` (a target inside the source)."""
        self.tree = tree
        self.scanner = Scanner(tree, exclude=exclude)
        self._ledger = ledger
        self._choose = choose
        self._stability = Stability(Method.LEASE)
        self._probed: tuple[int, int] | None = None

    @property
    def network(self) -> bool:
        """Whether other machines may write here."""
        return self._stability.network

    def probe(self) -> None:
        """Find out how writers are found here, again when the root has become another."""
        try:
            root = self.tree.root.stat()
        except OSError:
            return
        if (root.st_dev, root.st_ino) != self._probed:
            self._probed = (root.st_dev, root.st_ino)
            self._stability = self._choose(self.tree.root)

    def news(self, found: list[Found]) -> list[str]:
        """Keep the paths that the journal does not know as settled."""
        pairs = [(f.path, f.identity) for f in found]
        return [path for path, _ in self._ledger.news(self.tree.name, pairs)]

    def look(self, paths: Iterable[str]) -> list[Facts]:
        """Collect the facts about some paths."""
        facts = [self._look(path) for path in paths]
        if doubtful := [fact.file for fact in facts if fact.file is not None]:
            # After all of them were looked at: whoever wrote before has changed its identity,
            # and one pass over the processes costs as much as one file did.
            found = census(doubtful)
            facts = [f if f.file is None else self._ask(f, found.writers(f.file)) for f in facts]
        return facts

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
        except OSError as exc:
            # Not readable now (permissions of a writer's temporary state): ask again.
            return Facts(path, identity, writers=True, refused=exc.strerror)
        try:
            answer = self._stability.writers(fd)
            if answer is Writers.UNKNOWN and self._stability.asks_processes:
                return Facts(path, identity, file=os.fstat(fd))
        finally:
            os.close(fd)
        return self._ask(Facts(path, identity), answer)

    def _ask(self, facts: Facts, answer: Writers) -> Facts:
        """Complete the facts by what is known of the writers."""
        if answer is Writers.SOME or facts.identity is None:
            return replace(facts, writers=True)
        location = self.tree.locate(facts.path)
        wait = self._stability.needs_window(answer)
        return replace(
            facts,
            quiet_s=window_s(location, facts.identity) if wait else 0.0,
            elsewhere=wait and answer is Writers.NONE,
            fault=self._fault(facts.path),
        )

    def _fault(self, path: str) -> str | None:
        if not self.tree.outputs:
            return None
        try:
            return fault_of(self.tree.locate(path))
        except OSError as exc:
            return f"it cannot be read: {exc.strerror}"

    def _moved(self, path: str, identity: Identity) -> bool:
        """Recognise a stored file under a new name; a further hard link is a new file.

        Its bytes are compared: an inode number is given to the next file at once, and
        archives set sizes and times that are all alike.
        """
        for row in self._ledger.namesakes(identity):
            if row.tree != self.tree.name or row.path == path or row.incomplete:
                continue
            if self.scanner.look(row.path) is None and self._holds(path, row):
                self._ledger.rename(row.tree, row.path, path)
                return True
        return False

    def _holds(self, path: str, row: Row) -> bool:
        try:
            return sha256_of(self.tree.locate(path), row.identity) == row.sha256
        except FileChangedError:
            return False


def judge(
    facts: Facts,
    watched: Watched | None,
    *,
    now: float,
    final: bool = False,
    closed: bool = False,
) -> tuple[Verdict, Watched | None]:
    """Decide about one path; with WAIT comes when to look again.

    ``final``: nobody writes on. ``closed``: its writer was seen closing it, here.
    """
    if facts.identity is None:
        return Verdict.GONE, None
    if facts.known:
        return Verdict.KNOWN, None
    same = watched is not None and watched.identity == facts.identity
    since = watched.since if watched is not None and same else now
    quiet_s = 0.0 if closed and facts.elsewhere else facts.quiet_s
    quiet_s = max(quiet_s, BROKEN_GRACE_S) if facts.fault else quiet_s
    if facts.writers or (now - since < quiet_s and not final):
        # What is not touched for long is asked about less often.
        pause_s = min(max(_RECHECK_S, (now - since) / 8), _MAX_RECHECK_S)
        if not facts.writers:
            pause_s = min(_RECHECK_S, quiet_s)
        return Verdict.WAIT, Watched(
            facts.identity, since, now + pause_s, facts.writers, facts.refused, facts.fault
        )
    return (Verdict.BROKEN if facts.fault else Verdict.READY), None
