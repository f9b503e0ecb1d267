"""One file's way to the target, and what becomes of it when it does not get there."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import cast

import anyio
import pytest

from supervisor.config.settings import SyncSection
from supervisor.core.events import EventBus
from supervisor.core.retry import Backoff
from supervisor.core.state import StateStore
from supervisor.errors import PermanentTransferError
from supervisor.sync.backlog import SMALL_BYTES, Backlog, Work
from supervisor.sync.ledger import Ledger
from supervisor.sync.model import FileState, Identity, NoMetrics, Row, Stored, Tree, Upload
from supervisor.sync.outcomes import Outcomes
from supervisor.sync.pacing import Gate
from supervisor.sync.target import Target
from supervisor.sync.transfer import Transfer
from supervisor.sync.trees import KeyScheme, output_tree

pytestmark = pytest.mark.anyio

LARGE = SMALL_BYTES + 1


class Bucket:
    """A target that takes everything and remembers what it was asked."""

    def __init__(self) -> None:
        self.uploads: list[Upload] = []
        self.abandoned: list[tuple[str, str]] = []

    async def store(self, upload: Upload) -> Stored:
        self.uploads.append(upload)
        return Stored("etag", verified=True)

    async def abandon(self, key: str, upload_id: str) -> None:
        self.abandoned.append((key, upload_id))


class Pod:
    """A folder with one large file, its journal and a bucket."""

    def __init__(self, folder: Path) -> None:
        settings = SyncSection()
        self.ledger = Ledger(folder / "sync.db")
        self.bucket = Bucket()
        self.path = folder / "x.mp4"
        self.tree: Tree = output_tree(settings, folder)
        self.transfer = Transfer(
            self.ledger,
            cast("Target", self.bucket),
            KeyScheme(settings, "pod"),
            cache_control=None,
        )

    def write(self, byte: bytes) -> Work:
        self.path.write_bytes(byte * LARGE)
        return Work(self.tree, "x.mp4", Identity.of(self.path.stat()))

    def begin(self, work: Work, *, incomplete: bool = False) -> None:
        """Let the journal say that an earlier run was sending this file in parts."""
        row = Row(
            tree=self.tree.name,
            path=work.path,
            identity=work.identity,
            state=FileState.PENDING,
            key="outputs/x.mp4",
            sha256=hashlib.sha256(self.path.read_bytes()).hexdigest(),
            incomplete=incomplete,
        )
        self.ledger.intend(row)
        self.ledger.uploading(row.tree, row.path, "parts-1", 8)
        self.ledger.part(row.tree, row.path, 1, "e1")


@pytest.fixture
def pod(tmp_path: Path) -> Iterator[Pod]:
    found = Pod(tmp_path)
    yield found
    found.ledger.close()


async def test_parts_of_the_same_bytes_are_gone_on_with(pod: Pod) -> None:
    work = pod.write(b"a")
    pod.begin(work)
    await pod.transfer.carry(work)
    (upload,) = pod.bucket.uploads
    assert upload.resume is not None
    assert (upload.resume.upload_id, dict(upload.resume.parts)) == ("parts-1", {1: "e1"})
    assert pod.bucket.abandoned == []


async def test_parts_of_other_bytes_are_abandoned(pod: Pod) -> None:
    pod.begin(pod.write(b"a"))
    work = pod.write(b"bc")
    await pod.transfer.carry(work)
    (upload,) = pod.bucket.uploads
    assert upload.resume is None
    assert upload.sha256 == hashlib.sha256(b"bc" * LARGE).hexdigest()
    assert pod.bucket.abandoned == [("outputs/x.mp4", "parts-1")]


async def test_parts_of_a_file_that_counted_as_broken_are_abandoned(pod: Pod) -> None:
    work = pod.write(b"a")
    pod.begin(work, incomplete=True)
    await pod.transfer.carry(work)
    assert pod.bucket.uploads[0].resume is None
    assert pod.bucket.abandoned == [("outputs/x.mp4", "parts-1")]


async def test_what_failed_for_good_is_set_apart_until_it_has_changed(pod: Pod) -> None:
    backlog = Backlog(1)
    backlog.add(pod.write(b"a"))
    gate = Gate(Backoff(1.0, 1.0))
    outcomes = Outcomes(backlog, gate, StateStore(), EventBus(), NoMetrics())
    work = await backlog.take()
    outcomes.give_up(work, PermanentTransferError("Cannot upload x.mp4: too large"))
    assert outcomes.set_apart(work.key, work.identity)
    assert not outcomes.set_apart(work.key, replace(work.identity, mtime_ns=1))
    outcomes.gone(work.key)
    assert not outcomes.set_apart(work.key, work.identity)


async def test_the_last_hurry_does_not_wait_a_minute_for_the_next_try(pod: Pod) -> None:
    backlog = Backlog(1)
    backlog.add(pod.write(b"a"))
    backlog.hurry(stay=True)
    backlog.defer(await backlog.take(), 60.0)
    with anyio.fail_after(30):
        await backlog.take()
