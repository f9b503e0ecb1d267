"""Uploads of dead runs whose files are gone: nobody else would ever end them."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import partial

from anyio import to_thread

from supervisor.errors import SupervisorError
from supervisor.sync.ledger import Ledger
from supervisor.sync.model import FileState, Row, Tree
from supervisor.sync.target import Target

_log = logging.getLogger("supervisor.sync")


async def abandon_orphans(ledger: Ledger, target: Target, trees: Sequence[Tree]) -> None:
    """Abort what is under way for files that are not there any more, and forget them.

    What cannot be aborted now is left to the next run.
    """
    after = ("", "")
    while rows := await to_thread.run_sync(partial(ledger.unfinished, after=after)):
        after = rows[-1].tree, rows[-1].path
        for row in await to_thread.run_sync(_gone, rows, trees):
            try:
                if row.state is FileState.UPLOADING:
                    await target.abandon(row.key, row.upload_id or "")
                await to_thread.run_sync(ledger.forget, row.tree, row.path)
            except SupervisorError as exc:
                _log.info("%s", exc)


def _gone(rows: Sequence[Row], trees: Sequence[Tree]) -> list[Row]:
    """Keep the rows whose files are not there, or no longer looked at; blocking."""
    by_name = {tree.name: tree for tree in trees}
    return [row for row in rows if row.tree not in by_name or _missing(by_name[row.tree], row)]


def _missing(tree: Tree, row: Row) -> bool:
    try:
        tree.locate(row.path).stat()
    except (FileNotFoundError, NotADirectoryError):
        return True
    except (OSError, RuntimeError):  # it cannot be asked now: nothing says that it is gone
        return False
    return False
