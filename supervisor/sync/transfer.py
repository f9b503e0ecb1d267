"""One file's way through the journal: intent → effect → commit."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

from anyio import to_thread

from supervisor.sync.backlog import Work
from supervisor.sync.keys import alternative_key, content_type, metadata_value
from supervisor.sync.ledger import Ledger
from supervisor.sync.metadata import png_metadata
from supervisor.sync.model import FileState, Row, Stored, Upload
from supervisor.sync.scribe import Scribe
from supervisor.sync.target import FileChangedError, KeyTakenError, Target, read_all, sha256_of
from supervisor.sync.trees import KeyScheme


@dataclass(frozen=True, slots=True)
class Result:
    """What became of a file. ``sent`` False: the target had the bytes before."""

    key: str
    sent: bool
    verified: bool


@dataclass(frozen=True, slots=True)
class _Record:
    """Writes the steps of one multipart upload to the journal."""

    ledger: Ledger
    tree: str
    path: str

    def creating(self) -> None:
        self.ledger.uploading(self.tree, self.path, "", None)

    def started(self, upload_id: str, part_size_bytes: int) -> None:
        self.ledger.uploading(self.tree, self.path, upload_id, part_size_bytes)

    def part(self, number: int, etag: str) -> None:
        self.ledger.part(self.tree, self.path, number, etag)

    def abandoned(self) -> None:
        self.ledger.uploading(self.tree, self.path, None, None)


class _Contents(NamedTuple):
    """What a file holds; all its bytes when they are few: it is read once only."""

    sha256: str
    metadata: dict[str, str]
    body: bytes | None = None


class _Begun(NamedTuple):
    """A file whose intent is written."""

    row: Row
    upload: Upload


class Transfer:
    """Takes finished files to the target, so that dying at any instant does no harm."""

    def __init__(
        self, ledger: Ledger, target: Target, scheme: KeyScheme, *, cache_control: str | None
    ) -> None:
        self._ledger = ledger
        # Reading files may be slow; what is stored is noted without waiting for that.
        self._begins, self._commits = Scribe(ledger), Scribe(ledger)
        self._target = target
        self._scheme = scheme
        self._cache_control = cache_control

    async def carry(self, work: Work) -> Result:
        """Store one file and record it.

        Raises:
            TransferError: see ``Target.store``.
            JournalError: the journal cannot be written; nothing counts.
        """
        read = partial(self._contents, work)
        if not work.small:  # it takes its time, and nobody should share that
            contents = await to_thread.run_sync(read)
            read = partial(_Contents, *contents)
        begun, contents = await self._begins.do(read, lambda c: (self._begin(work, c), c))
        while isinstance(begun, Row):
            await self._target.abandon(begun.key, begun.upload_id or "")
            begun = await to_thread.run_sync(partial(self._begin, work, contents, abandoned=True))
        if isinstance(begun, Result):
            return begun
        row, upload = begun
        try:
            stored = await self._target.store(upload)
        except KeyTakenError:
            row, upload = await to_thread.run_sync(self._rename, work, row, contents)
            stored = await self._target.store(upload)
        return await self._commits.do(lambda: stored, partial(self._commit, row))

    def _contents(self, work: Work) -> _Contents:
        """Read a small file, or hash a large one unless the journal knows its checksum."""
        source, identity = work.tree.locate(work.path), work.identity
        if work.small:
            body = read_all(source, identity)
            digest = hashlib.sha256(body).hexdigest()
            return _Contents(digest, _metadata(work, source, body), body)
        before = self._ledger.get(work.tree.name, work.path)
        known = before is not None and before.identity == identity
        digest = before.sha256 if before is not None and known else sha256_of(source, identity)
        return _Contents(digest, _metadata(work, source, None))

    def _begin(
        self, work: Work, contents: _Contents, *, abandoned: bool = False
    ) -> Result | Row | _Begun:
        """Do all that comes before the network.

        Returns what to upload, the result when the target has the bytes, or the row whose
        multipart upload (begun with other bytes) must be abandoned first.
        """
        before = self._ledger.get(work.tree.name, work.path)
        uploading = before is not None and before.state is FileState.UPLOADING
        resumable = before is not None and uploading and _goes_on(before, work)
        if before is not None and uploading and not resumable and not abandoned:
            return before
        if before is not None and self._is_same(before, work, contents.sha256):
            row = replace(before, identity=work.identity)
            self._ledger.intend(row)
            return Result(row.key, sent=False, verified=row.verified)
        if before is not None and resumable:
            row, known = before, False
        else:
            row, known = self._intend(work, contents.sha256)
        if known:
            return self._commit(row, Stored(row.etag or "", verified=False, sent=False))
        upload = self._upload(work, row, contents)
        upload = replace(
            upload,
            look_first=upload.look_first or work.old or before is not None or work.attempts > 0,
            retried=work.attempts > 0 or (before is not None and _was_sent(before, row)),
        )
        return _Begun(row, upload)

    @staticmethod
    def _is_same(before: Row, work: Work, digest: str) -> bool:
        """Whether the target has this content of this path already: only its mtime is new."""
        settled = before.state in (FileState.STORED, FileState.DONE)
        return settled and before.sha256 == digest and before.incomplete == bool(work.fault)

    def _intend(self, work: Work, digest: str) -> tuple[Row, bool]:
        """Write the intent; the second value: the key is known to hold these bytes."""
        incomplete = bool(work.fault)
        key = self._scheme.key(work.tree, work.path, work.identity, incomplete=incomplete)
        at_key = self._ledger.object_sha256(key)
        if at_key not in (None, digest) and (work.tree.keep_both or incomplete):
            key = alternative_key(key, digest)
            at_key = self._ledger.object_sha256(key)
        row = Row(
            tree=work.tree.name,
            path=work.path,
            identity=work.identity,
            state=FileState.PENDING,
            key=key,
            sha256=digest,
            incomplete=incomplete,
        )
        self._ledger.intend(row)
        return row, at_key == digest

    def _rename(self, work: Work, row: Row, contents: _Contents) -> _Begun:
        """Give a file whose key is taken one made of its checksum; only it can have that."""
        row = replace(
            row,
            key=alternative_key(row.key, row.sha256),
            state=FileState.PENDING,
            upload_id=None,
            part_size_bytes=None,
        )
        self._ledger.intend(row)
        return _Begun(row, self._upload(work, row, contents))

    def _upload(self, work: Work, row: Row, contents: _Contents) -> Upload:
        source = work.tree.locate(work.path)
        first_choice = self._scheme.key(
            work.tree, work.path, work.identity, incomplete=row.incomplete
        )
        return Upload(
            source=source,
            identity=work.identity,
            key=row.key,
            sha256=row.sha256,
            content_type=content_type(source.name),
            metadata=contents.metadata,
            record=_Record(self._ledger, row.tree, row.path),
            # A key made of the checksum belongs to these bytes alone.
            replace=row.key != first_choice or not (work.tree.keep_both or row.incomplete),
            look_first=row.key != first_choice,
            cache_control=self._cache_control,
            resume=self._ledger.resume(row),
            body=contents.body,
        )

    def _commit(self, row: Row, stored: Stored) -> Result:
        self._ledger.stored(row.tree, row.path, etag=stored.etag, verified=stored.verified)
        return Result(row.key, sent=stored.sent, verified=stored.verified)


def _metadata(work: Work, source: Path, body: bytes | None) -> dict[str, str]:
    metadata: dict[str, str] = {}
    if work.tree.outputs and source.suffix.lower() == ".png":
        try:
            with source.open("rb") if body is None else BytesIO(body) as file:
                metadata = png_metadata(file)
        except OSError as exc:
            raise FileChangedError(f"Cannot read {source.name}: {exc.strerror}") from exc
    metadata["source"] = metadata_value(work.path)
    if work.fault:
        metadata["note"] = metadata_value(work.fault)
    return metadata


def _goes_on(before: Row, work: Work) -> bool:
    """Whether the multipart upload of an earlier try has these very bytes."""
    same = before.identity == work.identity and before.incomplete == bool(work.fault)
    return same and bool(before.upload_id)


def _was_sent(before: Row, row: Row) -> bool:
    """Whether an earlier try meant to send these bytes to this key."""
    settled = before.state in (FileState.STORED, FileState.DONE)
    return not settled and (before.key, before.sha256) == (row.key, row.sha256)
