"""One commit for all who wait: what is shared, and what is not."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import anyio
import pytest

from supervisor.errors import JournalError
from supervisor.sync.ledger import Ledger
from supervisor.sync.model import FileState, Identity, Row
from supervisor.sync.scribe import Scribe

pytestmark = pytest.mark.anyio


def _row(name: str) -> Row:
    return Row("outputs", name, Identity(1, 2, 3), FileState.PENDING, f"outputs/{name}", "00")


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    opened = Ledger(tmp_path / "sync.db")
    yield opened
    opened.close()


async def test_all_who_wait_share_a_commit(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    scribe, commits = Scribe(ledger), 0
    together = Ledger.together

    def counted(self: Ledger) -> AbstractContextManager[None]:
        nonlocal commits
        commits += 1
        return together(self)

    monkeypatch.setattr(Ledger, "together", counted)
    with anyio.fail_after(30):
        async with anyio.create_task_group() as tasks:
            for number in range(50):
                tasks.start_soon(scribe.do, lambda n=number: _row(str(n)), ledger.intend)
    assert len(ledger.unfinished()) == 50
    assert commits <= 2  # those who came while one is written share the next


async def test_a_failure_is_its_own_and_a_full_disk_is_everybodys(ledger: Ledger) -> None:
    scribe = Scribe(ledger)
    failed: list[str] = []

    def gone() -> Row:
        raise FileNotFoundError

    def full(_row: Row) -> None:
        raise JournalError("Cannot write: full")

    async def one(name: str, *, lost: bool = False, last: bool = False) -> None:
        try:
            await scribe.do(gone if lost else lambda: _row(name), full if last else ledger.intend)
        except (FileNotFoundError, JournalError) as exc:
            failed.append(f"{name} {type(exc).__name__}")

    with anyio.fail_after(30):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(one, "first")
            tasks.start_soon(lambda: one("lost", lost=True))
            tasks.start_soon(one, "second")
        assert failed == ["lost FileNotFoundError"]
        assert {row.path for row in ledger.unfinished()} == {"first", "second"}
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(one, "third")
            tasks.start_soon(lambda: one("fourth", last=True))
    # Whatever was written together with it is gone, and whoever wrote it knows.
    assert sorted(failed[1:]) == ["fourth JournalError", "third JournalError"]
    assert {row.path for row in ledger.unfinished()} == {"first", "second"}


async def test_who_is_cancelled_holds_nobody_back(ledger: Ledger) -> None:
    scribe = Scribe(ledger)
    with anyio.fail_after(30):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(scribe.do, lambda: _row("a"), ledger.intend)
            with anyio.CancelScope() as scope:
                scope.cancel()
                await scribe.do(lambda: _row("b"), ledger.intend)
            tasks.start_soon(scribe.do, lambda: _row("c"), ledger.intend)
    assert {"a", "c"} <= {row.path for row in ledger.unfinished()}
