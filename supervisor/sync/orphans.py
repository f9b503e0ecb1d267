"""Uploads of dead runs whose files are gone: nobody else would ever end them."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from anyio import to_thread

from supervisor.errors import SupervisorError
from supervisor.sync.ledger import Ledger
from supervisor.sync.model import FileState, Tree
from supervisor.sync.target import Target

_log = logging.getLogger("supervisor.sync")


async def abandon_orphans(ledger: Ledger, target: Target, trees: Sequence[Tree]) -> None:
    """Abort what is under way for files that are not there any more, and forget them.

    What cannot be aborted now is left to the next run.
    """
    for row in await to_thread.run_sync(ledger.unfinished):
        tree = next((t for t in trees if t.name == row.tree), None)
        if tree is not None and await to_thread.run_sync(tree.locate(row.path).exists):
            continue
        try:
            if row.state is FileState.UPLOADING:
                await target.abandon(row.key, row.upload_id or "")
            await to_thread.run_sync(ledger.forget, row.tree, row.path)
        except SupervisorError as exc:
            _log.info("%s", exc)
