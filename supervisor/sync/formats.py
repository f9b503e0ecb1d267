"""Is a file whole? A writer that was killed leaves a closed but broken file.

Only the container is looked at (a few reads), never the pixels. A format that is not
known here counts as whole.

Sources: PNG https://www.w3.org/TR/png-3/#5DataRep, RIFF and WebP
https://developers.google.com/speed/webp/docs/riff_container, ISO base media
ISO/IEC 14496-12 §4.2, FLAC RFC 9639 §8, EBML RFC 8794 §11.2.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

_PNG_END = b"\x00\x00\x00\x00IEND\xaeB`\x82"
# Editors append data behind the end marks; nobody appends more than this.
_TAIL_BYTES = 64 * 1024


def fault_of(path: Path) -> str | None:
    """Say what is missing from the file, or None when it is whole or of unknown kind.

    Raises:
        OSError: the file cannot be read.
    """
    check = _CHECKS.get(path.suffix.lower())
    if check is None:
        return None
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size == 0:
            return "it is empty"
        return check(file, size)


def _png(file: BinaryIO, size: int) -> str | None:
    if file.read(8) != b"\x89PNG\r\n\x1a\n":
        return "the PNG signature is missing"
    return None if _PNG_END in _tail(file, size) else "the PNG has no IEND chunk"


def _jpeg(file: BinaryIO, size: int) -> str | None:
    if file.read(2) != b"\xff\xd8":
        return "the JPEG start marker is missing"
    return None if b"\xff\xd9" in _tail(file, size) else "the JPEG has no end marker"


def _gif(file: BinaryIO, size: int) -> str | None:
    if file.read(6) not in (b"GIF87a", b"GIF89a"):
        return "the GIF signature is missing"
    file.seek(size - 1)
    return None if file.read(1) == b";" else "the GIF has no trailer"


def _riff(file: BinaryIO, size: int) -> str | None:
    head = file.read(12)
    if head[:4] not in (b"RIFF", b"RF64"):
        return "the RIFF header is missing"
    declared = int.from_bytes(head[4:8], "little")
    if head[:4] == b"RF64" or declared in (0xFFFFFFFF, 0xFFFFFFFF - 8):
        return None  # written to a stream: the size is unknown on purpose
    if declared < 4:
        return "the RIFF header holds no size yet"
    return None if declared + 8 <= size else f"{declared + 8 - size} bytes of the RIFF are missing"


def _flac(file: BinaryIO, size: int) -> str | None:
    head = file.read(42)  # marker, block header, STREAMINFO
    if head[:4] != b"fLaC":
        return "the FLAC marker is missing"
    if len(head) < 42 or head[4] & 0x7F != 0:
        return "the FLAC stream information is missing"
    return "the FLAC has no audio" if size <= 42 else None


def _iso_media(file: BinaryIO, size: int) -> str | None:
    found = set()
    for kind, end in _boxes(file, size):
        if end > size:
            return f"the {kind} box is cut off"
        found.add(kind)
    if "moov" in found:
        return None
    return "there is no moov box"


def _boxes(file: BinaryIO, size: int) -> Iterator[tuple[str, int]]:
    """Yield (kind, end) of the top-level boxes."""
    position = 0
    while position + 8 <= size:
        file.seek(position)
        head = file.read(16)
        length = int.from_bytes(head[:4], "big")
        if length == 1:
            length = int.from_bytes(head[8:16], "big")
        elif length == 0:
            length = size - position
        if length < 8:
            return
        yield head[4:8].decode("latin-1"), position + length
        position += length


def _ebml(file: BinaryIO, _size: int) -> str | None:
    return None if file.read(4) == b"\x1aE\xdf\xa3" else "the EBML header is missing"


def _tail(file: BinaryIO, size: int) -> bytes:
    file.seek(max(0, size - _TAIL_BYTES))
    return file.read()


_CHECKS: dict[str, Callable[[BinaryIO, int], str | None]] = {
    ".png": _png,
    ".jpg": _jpeg,
    ".jpeg": _jpeg,
    ".gif": _gif,
    ".webp": _riff,
    ".wav": _riff,
    ".flac": _flac,
    ".mp4": _iso_media,
    ".m4v": _iso_media,
    ".mov": _iso_media,
    ".m4a": _iso_media,
    ".mkv": _ebml,
    ".webm": _ebml,
}
