"""Local files are deleted when the target has confirmed these very bytes, and else never."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import anyio
import pytest

from supervisor.config.settings import SyncSection
from supervisor.errors import SupervisorError
from supervisor.sync.cleanup import Cleanup
from supervisor.sync.examine import Examiner
from supervisor.sync.ledger import Ledger
from supervisor.sync.model import FileState, Identity, Row, Tree


class Outputs:
    """A folder, and a journal that says its files are stored."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.ledger = Ledger(root.parent / "sync.db")
        tree = Tree("outputs", root, "outputs", outputs=True)
        self.examiner = Examiner(tree, self.ledger)
        self.told: list[SupervisorError] = []

    def store(self, name: str, *, verified: bool = True, incomplete: bool = False) -> Path:
        path = self.root / name
        path.write_bytes(name.encode())
        self.ledger.intend(
            Row(
                tree="outputs",
                path=name,
                identity=Identity.of(path.stat()),
                state=FileState.PENDING,
                key=f"outputs/{name}",
                sha256="aa",
                incomplete=incomplete,
            )
        )
        self.ledger.stored("outputs", name, etag="e", verified=verified)
        return path

    def clean(self, age_s: float = 0.0) -> int:
        """Clean once; returns how many files are settled by it."""
        settings = SyncSection(delete_after_s=age_s)
        before = self.stored()
        anyio.run(Cleanup(self.ledger, self.examiner, settings, self.told.append).clean)
        return before - self.stored()

    def stored(self) -> int:
        row = self.ledger.get("outputs", "x.png")
        return int(row is not None and row.state is FileState.STORED)


@pytest.fixture
def outputs(tmp_path: Path) -> Iterator[Outputs]:
    (tmp_path / "output").mkdir()
    found = Outputs(tmp_path / "output")
    yield found
    found.ledger.close()


def test_what_is_confirmed_goes_and_is_not_taken_for_new(outputs: Outputs) -> None:
    path = outputs.store("x.png")
    seen = [("x.png", Identity.of(path.stat()))]
    assert outputs.clean() == 1
    assert not path.exists()
    assert outputs.ledger.news("outputs", seen) == []
    assert outputs.clean() == 0


def test_what_the_target_has_not_confirmed_stays(outputs: Outputs) -> None:
    path = outputs.store("x.png", verified=False)
    assert outputs.clean() == 0
    assert path.exists()


def test_what_is_broken_stays(outputs: Outputs) -> None:
    path = outputs.store("x.png", incomplete=True)
    assert outputs.clean() == 0
    assert path.exists()


def test_what_somebody_writes_to_stays_until_he_has_closed_it(outputs: Outputs) -> None:
    path = outputs.store("x.png")
    with path.open("ab"):
        assert outputs.clean() == 0
    assert path.exists()
    assert outputs.clean() == 1


def test_what_has_changed_since_stays(outputs: Outputs) -> None:
    path = outputs.store("x.png")
    path.write_bytes(b"other bytes, not stored yet")
    assert outputs.clean() == 0
    assert path.exists()


def test_what_is_not_old_enough_stays(outputs: Outputs) -> None:
    path = outputs.store("x.png")
    assert outputs.clean(age_s=3600.0) == 0
    assert path.exists()


def test_what_a_person_has_deleted_is_settled(outputs: Outputs) -> None:
    outputs.store("x.png").unlink()
    assert outputs.clean() == 1
    assert outputs.clean() == 0
