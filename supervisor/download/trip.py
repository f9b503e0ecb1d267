"""The first question about a file, asked by a thread. A small file comes whole in that trip.

For files of a megabyte the work around them counts, not their bytes: here one thread opens,
asks, receives, hashes while the bytes are still in the processor's cache, writes, publishes.
Only hosts that aiohttp has shown to be plain are asked this way; all but the one answer that
is hoped for is declined before a byte is kept, and aiohttp asks again.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from supervisor.download.attempts import check_size
from supervisor.download.lane import Errand, Opened
from supervisor.download.limits import RateLimiter
from supervisor.download.partial import Identity, PartFile
from supervisor.download.request import Resolved
from supervisor.download.segments import SMALLEST_PIECE_BYTES
from supervisor.download.storage import check_room, existing_file
from supervisor.download.transport import Link, NoRangeError, content_range, literal_url, show_url
from supervisor.download.verify import MalformedFileError, check_hash, check_start
from supervisor.download.wire import DeclinedError, Head, UnluckyError, Wire
from supervisor.errors import TransientTransferError

TELL_S = 0.25
_OF_THIS_FILE = frozenset({401, 403, 404, 410, 416})  # refusals that say nothing of the host


@dataclass(frozen=True, slots=True)
class Larger:
    """A file that does not fit: its part file, and the answer with its first piece."""

    part: PartFile
    opened: Opened
    errand: Errand
    identity: Identity


class Trip:
    """One file on its way through one thread."""

    def __init__(
        self,
        destination: Path,
        resolved: Resolved,
        *,
        fsync: bool,
        limiter: RateLimiter,
        tell: Callable[[], None],
    ) -> None:
        """``tell`` is called by the thread now and then while a slow file comes."""
        self.kept = False  # the wire may serve another request
        self.fetched = 0
        self.total: int | None = None
        self.larger: Larger | None = None
        self._destination = destination
        self._resolved = resolved
        self._link = Link.of(resolved)
        self._fsync = fsync
        self._limiter = limiter
        self._tell = tell
        self._told_s = time.monotonic()
        self._stop = threading.Event()
        self._wire: Wire | None = None

    def abort(self) -> None:
        """Break the connection from another thread; nothing stays of this file."""
        self._stop.set()
        if self._wire is not None:
            self._wire.shut()

    def run(self, wire: Wire, block: bytearray, timeout_s: float) -> int | Larger | None:
        """Size of the file that is in place now; None: it was begun before, go on with it.

        Blocking.

        Raises:
            BusyError: another process downloads it.
            DeclinedError: nothing was received; ask in the other way.
            TransferError: by class; nothing stays.
            OSError: the disk.
        """
        self._wire = wire
        resolved, destination = self._resolved, self._destination
        size = existing_file(destination, resolved.size_bytes, resolved.sha256)
        if size is not None:
            self.kept = True
            return size
        part = PartFile.open(destination, fsync=self._fsync)
        if part.identity is not None:
            part.close()
            self.kept = True
            return None
        done = False
        try:
            head, errand = self._ask(wire, timeout_s)
            identity = identity_of(errand, head, resolved)
            if errand.total > errand.end:
                done = True
                self.larger = Larger(part, Opened(wire, head), errand, identity)
                return self.larger
            part.restart(identity, journal=False)
            self._bring(part, wire, block, size=errand.total, timeout_s=timeout_s)
            self.kept = head.headers.get("connection", "").lower() != "close"
            done = True
            part.close()
            return errand.total
        finally:
            if not done:
                part.discard()

    def _ask(self, wire: Wire, timeout_s: float) -> tuple[Head, Errand]:
        link, where = self._link, show_url(self._link.url)
        ask = Errand(link, where, 0, SMALLEST_PIECE_BYTES, total=0, etag=None, if_range=None)
        url = literal_url(link.url)
        try:
            head = wire.ask(url.raw_path_qs, ask.headers(url), timeout_s=timeout_s)
        except OSError as exc:
            if wire.answers and not self._stop.is_set():
                raise UnluckyError("a kept connection had ended") from exc
            raise self._failure(exc) from exc
        size = _whole_size(head, link)
        wire.answers += 1
        check_size(size, self._resolved, link.url)
        self.total = size
        end = min(size, SMALLEST_PIECE_BYTES)
        return head, Errand(link, where, 0, end, size, etag=head.headers.get("etag"), if_range=None)

    def _bring(
        self, part: PartFile, wire: Wire, block: bytearray, *, size: int, timeout_s: float
    ) -> None:
        name, sha256 = self._destination.name, self._resolved.sha256
        check_room(self._destination, size)
        digest, view = hashlib.sha256(), memoryview(block)
        while self.fetched < size:
            start, filled = self.fetched, view[: min(len(block), size - self.fetched)]
            self._fill(wire, filled, size, timeout_s)
            if sha256:
                digest.update(filled)
            part.write(start, filled)
        if sha256:
            check_hash(name, expected=sha256, actual=digest.hexdigest())
        if not check_start(part.fd, size, name, size):
            raise MalformedFileError(f"Cannot use {name}: it is truncated")
        part.publish(size, sha256)

    def _fill(self, wire: Wire, view: memoryview, size: int, timeout_s: float) -> None:
        got, last_byte_s = 0, time.monotonic()
        while got < len(view):
            step = view[got : got + self._limiter.step(len(view) - got)]
            try:
                count = wire.receive(step, expected=size - self.fetched)
            except OSError as exc:
                raise self._failure(exc) from exc
            now_s = time.monotonic()
            if count:
                got, last_byte_s = got + count, now_s
                self.fetched += count
                if (delay_s := self._limiter.charge(count)) > 0:
                    self._stop.wait(delay_s)
                    last_byte_s = time.monotonic()
            elif now_s - last_byte_s > timeout_s:
                raise self._failure("it stalled")
            if now_s - self._told_s > TELL_S:
                self._told_s = now_s
                self._tell()

    def _failure(self, cause: object) -> TransientTransferError:
        reason = "cancelled" if self._stop.is_set() else str(cause) or type(cause).__name__
        return TransientTransferError(f"Cannot download {show_url(self._link.url)}: {reason}")


def identity_of(errand: Errand, head: Head, resolved: Resolved) -> Identity:
    """Describe the remote file that answered."""
    modified = head.headers.get("last-modified")
    return Identity(show_url(resolved.url), errand.total, errand.etag, modified, resolved.sha256)


def _whole_size(head: Head, link: Link) -> int:
    """Size of the whole file, from an answer that brings its first piece.

    Raises:
        DeclinedError: it does not; ``UnluckyError`` when that says nothing about the host.
    """
    headers = head.headers
    if head.status in _OF_THIS_FILE:
        raise UnluckyError(f"refused with {head.status}")
    try:
        first, last, total = content_range(headers.get("content-range", ""), link)
    except NoRangeError:
        raise DeclinedError("no range") from None
    if (
        head.status != 206
        or total is None
        or (first, last) != (0, min(total, SMALLEST_PIECE_BYTES) - 1)
        or headers.get("content-length") != str(last + 1)
        or "transfer-encoding" in headers
        or headers.get("content-encoding", "identity").lower() not in ("", "identity")
    ):
        raise DeclinedError("another answer than hoped for")
    return total
