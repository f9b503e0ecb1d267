"""Deleting local files, only after the target has confirmed what it keeps."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping

import anyio
from anyio import to_thread

from supervisor.config.settings import SyncSection
from supervisor.core.clock import wall_time_s
from supervisor.errors import JournalError
from supervisor.sync.examine import Examiner
from supervisor.sync.ledger import Ledger
from supervisor.sync.model import Identity, Row
from supervisor.sync.stability import Writers, lease_test, open_regular
from supervisor.sync.trees import OUTPUTS

_log = logging.getLogger("supervisor.sync")
_PAUSE_S = 2.0
_MAX_PAUSE_S = 60.0
_BATCH = 500


async def run(ledger: Ledger, examiners: Mapping[str, Examiner], settings: SyncSection) -> None:
    """Delete stored outputs that are old enough, until cancelled."""
    examiner = examiners[OUTPUTS]
    # Who keeps files for a day need not be looked after every two seconds.
    pause_s = min(max(_PAUSE_S, settings.delete_after_s / 100), _MAX_PAUSE_S)
    while True:
        try:
            await to_thread.run_sync(delete_stored, ledger, examiner, settings.delete_after_s)
        except JournalError as exc:
            _log.warning("%s", exc)
        await anyio.sleep(pause_s)


def delete_stored(ledger: Ledger, examiner: Examiner, age_s: float) -> int:
    """Delete what is old enough; returns how many rows were settled. Blocking.

    A file that has changed since, or that somebody writes to, stays and is synced anew. What
    cannot be deleted does not stand in the way of the rest.
    """
    before_s, settled, after = wall_time_s() - age_s, 0, ""
    while rows := ledger.deletable(OUTPUTS, before_s=before_s, after=after, limit=_BATCH):
        settled += sum(_delete(ledger, examiner, row) for row in rows)
        after = rows[-1].path
    return settled


def _delete(ledger: Ledger, examiner: Examiner, row: Row) -> bool:
    path = examiner.tree.locate(row.path)
    try:
        fd = open_regular(path)
    except FileNotFoundError:
        ledger.done(row.tree, row.path)
        return True
    except OSError:
        return False
    try:
        if lease_test(fd) is Writers.SOME or Identity.of(path.lstat()) != row.identity:
            return False
        path.unlink()
    except OSError as exc:
        _log.warning("Cannot delete %s after its upload: %s", path, exc.strerror)
        return False
    finally:
        os.close(fd)
    ledger.done(row.tree, row.path)
    return True
