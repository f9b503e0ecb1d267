"""Is this the file it claims to be? Checks that need only its first kilobytes, and marks.

Safetensors layout: https://github.com/huggingface/safetensors#format (eight bytes of
little-endian header length, JSON, then the tensors without holes).
"""

from __future__ import annotations

import hashlib
import json
import os
from contextlib import suppress
from pathlib import Path

from supervisor.errors import ChecksumMismatchError, PermanentTransferError

# The reference implementation refuses longer headers.
MAX_HEADER_BYTES = 100_000_000
_MARK = "user.supervisor.sha256"
_CHUNK_BYTES = 1024 * 1024
_TEXT_SUFFIXES = frozenset({".html", ".htm", ".xml", ".svg", ".md", ".txt"})


class MalformedFileError(PermanentTransferError):
    """The bytes cannot be the wanted file, whatever their hash."""


def check_not_html(first: bytes, name: str) -> None:
    """Refuse a web page that came instead of a model.

    Raises:
        MalformedFileError: the first bytes are those of an HTML document.
    """
    head = first[:512].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if Path(name).suffix.lower() in _TEXT_SUFFIXES:
        return
    if head.startswith((b"<!doctype html", b"<html", b"<head")):
        raise MalformedFileError(
            f"Cannot use {name}: the server sent a web page instead of the file",
            hint="the host wants a login: set its token, or accept the terms on the model's page",
        )


def header_length(first: bytes, size_bytes: int | None, name: str) -> int:
    """Bytes from the start to the first tensor, read from the first eight bytes.

    Raises:
        MalformedFileError: not a safetensors file, or cut within its header.
    """
    length = int.from_bytes(first[:8], "little") if len(first) >= 8 else -1
    if not 2 <= length <= MAX_HEADER_BYTES or (size_bytes is not None and 8 + length > size_bytes):
        raise MalformedFileError(f"Cannot use {name}: it does not start like a safetensors file")
    return 8 + length


def check_header(header: bytes, size_bytes: int | None, name: str) -> None:
    """Check the JSON of a safetensors file and its offsets against the file's size.

    ``header`` begins at byte 8.

    Raises:
        MalformedFileError: the file is not whole or not safetensors.
    """
    try:
        tensors = json.loads(header)
        spans = sorted(
            (int(value["data_offsets"][0]), int(value["data_offsets"][1]))
            for key, value in tensors.items()
            if key != "__metadata__"
        )
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError) as exc:
        raise MalformedFileError(f"Cannot use {name}: its safetensors header is broken") from exc
    position = 0
    for begin, end in spans:
        if begin != position or end < begin:
            raise MalformedFileError(f"Cannot use {name}: its safetensors offsets have holes")
        position = end
    expected = 8 + len(header) + position
    if size_bytes is not None and size_bytes != expected:
        raise MalformedFileError(
            f"Cannot use {name}: it has {size_bytes} bytes, its header describes {expected}",
            hint="the remote file is truncated or damaged",
        )


def check_start(fd: int, size_bytes: int | None, name: str, available_bytes: int) -> bool:
    """Run every check that the first ``available_bytes`` of an open file allow.

    Returns False while more bytes are needed. Blocking.

    Raises:
        MalformedFileError: the file is not what its name says.
    """
    first = os.pread(fd, min(512, available_bytes), 0)
    check_not_html(first, name)
    if not name.lower().endswith(".safetensors"):
        return True
    if len(first) < 8 and (size_bytes is None or len(first) < size_bytes):
        return False
    tensors_at = header_length(first, size_bytes, name)
    if available_bytes < tensors_at:
        return False
    check_header(os.pread(fd, tensors_at - 8, 8), size_bytes, name)
    return True


def check_file(path: Path) -> None:
    """Check a finished file by its name and its first bytes; reads no tensor. Blocking.

    Raises:
        MalformedFileError: truncated, damaged or a web page.
        OSError: it cannot be read.
    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        size = os.fstat(fd).st_size
        if not check_start(fd, size, path.name, size):
            raise MalformedFileError(f"Cannot use {path.name}: it is truncated")
    finally:
        os.close(fd)


def hash_range(
    fd: int, digest: hashlib._Hash, start: int, end: int, scratch: memoryview | None = None
) -> None:
    """Feed the bytes [start, end) of a file to ``digest``. Blocking, releases the GIL.

    They are read into ``scratch``, when that is there.

    Raises:
        OSError: the file is shorter, or cannot be read.
    """
    if scratch is None:
        scratch = memoryview(bytearray(min(_CHUNK_BYTES, end - start) or 1))
    while start < end:
        count = os.preadv(fd, [scratch[: end - start]], start)
        if count == 0:
            raise OSError(f"the file ends at byte {start}, not at {end}")
        digest.update(scratch[:count])
        start += count


def sha256_of(path: Path) -> str:
    """Hash a whole file. Blocking."""
    digest = hashlib.sha256()
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        hash_range(fd, digest, 0, os.fstat(fd).st_size)
    finally:
        os.close(fd)
    return digest.hexdigest()


def check_hash(name: str, *, expected: str, actual: str) -> None:
    """Compare two hex sha256 values.

    Raises:
        ChecksumMismatchError: with both.
    """
    if expected.lower() != actual.lower():
        raise ChecksumMismatchError(
            f"Cannot use {name}: its sha256 is {actual}, announced was {expected.lower()}",
            hint="the remote file was replaced or is damaged; check the hash on its page",
        )


def mark_verified(fd: int, sha256: str) -> None:
    """Note on the file itself that its hash was checked; silent where attributes are refused."""
    stat = os.fstat(fd)
    with suppress(OSError):
        os.setxattr(fd, _MARK, f"{sha256.lower()} {stat.st_size} {stat.st_mtime_ns}".encode())


def verified_sha256(path: Path) -> str | None:
    """The hash that was checked before, when the file has not been written since."""
    try:
        sha256, size, mtime_ns = os.getxattr(path, _MARK).decode().split()
        stat = path.stat()
    except (OSError, ValueError):
        return None
    return sha256 if (int(size), int(mtime_ns)) == (stat.st_size, stat.st_mtime_ns) else None
