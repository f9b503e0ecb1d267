"""Deleting local files, only after the target has confirmed what it keeps."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

import anyio
from anyio import to_thread

from supervisor.config.settings import SyncSection
from supervisor.core.clock import wall_time_s
from supervisor.errors import JournalError, SupervisorError
from supervisor.sync.examine import Examiner
from supervisor.sync.ledger import Ledger
from supervisor.sync.model import Identity, Row
from supervisor.sync.stability import Writers, lease_test, open_regular
from supervisor.sync.trees import OUTPUTS

_log = logging.getLogger("supervisor.sync")
_PAUSE_S = 2.0
_MAX_PAUSE_S = 60.0
_BATCH = 500


class Undeleted(NamedTuple):
    """Files that are stored and could not be deleted for the same reason, and one of them."""

    cause: str
    files: int
    example: str

    def named(self, what: str) -> str:
        """Say which, by name when it is one file, else as so many of ``what``."""
        return self.example if self.files == 1 else f"{self.files} {what} ({self.example}, …)"


class Cleanup:
    """Deletes stored outputs that are old enough; ``undeleted`` is what it could not."""

    def __init__(
        self,
        ledger: Ledger,
        examiner: Examiner,
        settings: SyncSection,
        tell: Callable[[SupervisorError], None],
    ) -> None:
        """``tell`` hears once of every reason, and again when it has been gone."""
        self._ledger = ledger
        self._examiner = examiner
        self._age_s = settings.delete_after_s
        self._tell = tell
        self.undeleted: tuple[Undeleted, ...] = ()

    async def run(self) -> None:
        """Delete until cancelled."""
        # Who keeps files for a day need not be looked after every two seconds.
        least_s = min(max(_PAUSE_S, self._age_s / 100), _MAX_PAUSE_S)
        pause_s = least_s
        while True:
            try:
                await self.clean()
            except JournalError as exc:
                _log.warning("%s", exc)
            pause_s = min(pause_s * 2, _MAX_PAUSE_S) if self.undeleted else least_s
            await anyio.sleep(pause_s)

    async def clean(self) -> None:
        """Go once through all that may be deleted.

        A file that has changed since, or that somebody writes to, stays and is synced anew.
        What cannot be deleted does not stand in the way of the rest.
        """
        before_s, after = wall_time_s() - self._age_s, ""
        counts: Counter[str] = Counter()
        examples: dict[str, str] = {}
        while rows := await to_thread.run_sync(self._batch, before_s, after):
            after = rows[-1].path
            for path, cause in await to_thread.run_sync(self._delete_all, rows):
                counts[cause] += 1
                examples.setdefault(cause, path)
        self._report(tuple(Undeleted(c, n, examples[c]) for c, n in counts.most_common()))

    def _batch(self, before_s: float, after: str) -> list[Row]:
        return self._ledger.deletable(OUTPUTS, before_s=before_s, after=after, limit=_BATCH)

    def _delete_all(self, rows: Sequence[Row]) -> list[tuple[str, str]]:
        """Return those that cannot be deleted, and why; blocking."""
        found = ((row.path, _delete(self._ledger, self._examiner, row)) for row in rows)
        return [(path, cause) for path, cause in found if cause is not None]

    def _report(self, undeleted: tuple[Undeleted, ...]) -> None:
        known = {reason.cause for reason in self.undeleted}
        self.undeleted = undeleted
        for reason in undeleted:
            if reason.cause not in known:
                self._tell(
                    SupervisorError(
                        f"Cannot delete {reason.named('files')} after the upload: {reason.cause}",
                        hint="they are stored, and deleted as soon as that is allowed",
                    )
                )


def _delete(ledger: Ledger, examiner: Examiner, row: Row) -> str | None:
    """Delete one file; returns why that is impossible. Blocking."""
    path = examiner.tree.locate(row.path)
    try:
        fd = open_regular(path)
    except FileNotFoundError:
        ledger.done(row.tree, row.path)
        return None
    except OSError as exc:
        return exc.strerror or type(exc).__name__
    try:
        if lease_test(fd) is Writers.SOME or Identity.of(path.lstat()) != row.identity:
            return None
        path.unlink()
    except OSError as exc:
        return exc.strerror or type(exc).__name__
    finally:
        os.close(fd)
    ledger.done(row.tree, row.path)
    return None
