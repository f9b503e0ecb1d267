"""One file's way through the journal: intent → effect → commit."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

from anyio import to_thread

from supervisor.sync.backlog import Work
from supervisor.sync.keys import alternative_key, content_type, metadata_value
from supervisor.sync.ledger import Ledger
from supervisor.sync.metadata import png_metadata
from supervisor.sync.model import FileState, Row, Stored, Upload
from supervisor.sync.target import FileChangedError, KeyTakenError, Target, sha256_of
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


class Transfer:
    """Takes finished files to the target, so that dying at any instant does no harm."""

    def __init__(
        self, ledger: Ledger, target: Target, scheme: KeyScheme, *, cache_control: str | None
    ) -> None:
        self._ledger = ledger
        self._target = target
        self._scheme = scheme
        self._cache_control = cache_control

    async def carry(self, work: Work) -> Result:
        """Store one file and record it.

        Raises:
            TransferError: see ``Target.store``.
            JournalError: the journal cannot be written; nothing counts.
        """
        before = await to_thread.run_sync(self._ledger.get, work.tree.name, work.path)
        digest = await to_thread.run_sync(self._digest, work, before)
        if before is not None and self._is_same(before, work, digest):
            row = replace(before, identity=work.identity)
            await to_thread.run_sync(self._ledger.intend, row)
            return Result(row.key, sent=False, verified=row.verified)
        resumable = await self._settle_earlier(work, before)
        row, known = await to_thread.run_sync(self._intend, work, before, digest, resumable)
        if known:
            return await self._commit(row, Stored(row.etag or "", verified=False, sent=False))
        look_first = work.old or before is not None or work.attempts > 0
        upload = await to_thread.run_sync(self._upload, work, row, look_first)
        try:
            stored = await self._target.store(upload)
        except KeyTakenError:
            row, upload = await to_thread.run_sync(self._rename, work, row)
            stored = await self._target.store(upload)
        return await self._commit(row, stored)

    def _digest(self, work: Work, before: Row | None) -> str:
        if before is not None and before.identity == work.identity:
            return before.sha256
        return sha256_of(work.tree.locate(work.path), work.identity)

    @staticmethod
    def _is_same(before: Row, work: Work, digest: str) -> bool:
        """Whether the target has this content of this path already: only its mtime is new."""
        settled = before.state in (FileState.STORED, FileState.DONE)
        return settled and before.sha256 == digest and before.incomplete == bool(work.fault)

    async def _settle_earlier(self, work: Work, before: Row | None) -> bool:
        """Abort what an earlier try began with other bytes; True when it can go on."""
        if before is None or before.state is not FileState.UPLOADING:
            return False
        same = before.identity == work.identity and before.incomplete == bool(work.fault)
        if same and before.upload_id:
            return True
        await self._target.abandon(before.key, before.upload_id or "")
        return False

    def _intend(
        self, work: Work, before: Row | None, digest: str, resumable: bool
    ) -> tuple[Row, bool]:
        """Write the intent; the second value: the key is known to hold these bytes."""
        if before is not None and resumable:
            return before, False
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

    def _rename(self, work: Work, row: Row) -> tuple[Row, Upload]:
        """Give a file whose key is taken one made of its checksum; only it can have that."""
        row = replace(
            row,
            key=alternative_key(row.key, row.sha256),
            state=FileState.PENDING,
            upload_id=None,
            part_size_bytes=None,
        )
        self._ledger.intend(row)
        return row, self._upload(work, row, look_first=True)

    def _upload(self, work: Work, row: Row, look_first: bool) -> Upload:
        source = work.tree.locate(work.path)
        try:
            metadata = png_metadata(source) if work.tree.outputs else {}
        except OSError as exc:
            raise FileChangedError(f"Cannot read {source.name}: {exc.strerror}") from exc
        metadata["source"] = metadata_value(work.path)
        if work.fault:
            metadata["note"] = metadata_value(work.fault)
        first_choice = self._scheme.key(
            work.tree, work.path, work.identity, incomplete=row.incomplete
        )
        return Upload(
            source=source,
            identity=work.identity,
            key=row.key,
            sha256=row.sha256,
            content_type=content_type(source.name),
            metadata=metadata,
            record=_Record(self._ledger, row.tree, row.path),
            # A key made of the checksum belongs to these bytes alone.
            replace=row.key != first_choice or not (work.tree.keep_both or row.incomplete),
            look_first=look_first or row.key != first_choice,
            cache_control=self._cache_control,
            resume=self._ledger.resume(row),
        )

    async def _commit(self, row: Row, stored: Stored) -> Result:
        record = partial(
            self._ledger.stored, row.tree, row.path, etag=stored.etag, verified=stored.verified
        )
        await to_thread.run_sync(record)
        return Result(row.key, sent=stored.sent, verified=stored.verified)
