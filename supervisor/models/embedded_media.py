"""Text tags of WEBM, MKV and FLAC files, and of JPEG pictures, without decoding anything.

Formats: RFC 8794 (EBML) and RFC 9559 (Matroska), RFC 9639 (FLAC), ITU T.81 §B.1 (JPEG).
Who writes them: ComfyUI's SaveWEBM and SaveAudio nodes, VideoHelperSuite, savers of JPEG.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import BinaryIO

_SEGMENT, _TAGS, _TAG, _SIMPLE_TAG = 0x18538067, 0x1254C367, 0x7373, 0x67C8
_TAG_NAME, _TAG_STRING = 0x45A3, 0x4487
_VORBIS_COMMENT = 4
_APP1, _START_OF_SCAN = 0xE1, 0xDA


def matroska_texts(file: BinaryIO, limit_bytes: int) -> Iterator[tuple[str, str]]:
    """Tags of a WEBM or MKV file, names in lower case.

    Raises:
        ValueError: its tags are larger than ``limit_bytes``.
    """
    file.seek(0)
    while (element := _element(file)) is not None:
        number, size = element
        if number == _SEGMENT:
            continue  # what follows lies in it
        if size is None:  # a live recording: nothing behind it can be found
            return
        if number != _TAGS:
            file.seek(size, 1)
            continue
        if size > limit_bytes:
            raise ValueError("the metadata is larger than any workflow")
        yield from _tags(file.read(size))


def _element(file: BinaryIO) -> tuple[int, int | None] | None:
    """Number and size of the next element; the size is None when it is unknown."""
    number = _vint(file, keep_marker=True)
    size = _vint(file, keep_marker=False)
    if number is None or size is None:
        return None
    value, length = size
    return number[0], None if value == (1 << 7 * length) - 1 else value


def _vint(file: BinaryIO, *, keep_marker: bool) -> tuple[int, int] | None:
    first = file.read(1)
    if not first or first[0] == 0:
        return None
    length = 9 - first[0].bit_length()
    rest = file.read(length - 1)
    if len(rest) != length - 1:
        return None
    value = int.from_bytes(first + rest)
    return (value if keep_marker else value & ~(1 << 7 * length)), length


def _tags(data: bytes) -> Iterator[tuple[str, str]]:
    for kind, tag in _children(data):
        for inner, simple in _children(tag) if kind == _TAG else ():
            if inner == _SIMPLE_TAG:
                parts = dict(_children(simple))
                name, text = parts.get(_TAG_NAME, b""), parts.get(_TAG_STRING, b"")
                yield name.decode("utf-8", "replace").lower(), text.decode("utf-8", "replace")


def _children(data: bytes) -> Iterator[tuple[int, bytes]]:
    position = 0
    while position < len(data):
        first = data[position]
        if first == 0:
            return
        length = 9 - first.bit_length()
        number = int.from_bytes(data[position : position + length])
        position += length
        if position >= len(data) or data[position] == 0:
            return
        width = 9 - data[position].bit_length()
        size = int.from_bytes(data[position : position + width]) & ~(1 << 7 * width)
        position += width
        yield number, data[position : position + size]
        position += size


def flac_texts(file: BinaryIO) -> Iterator[tuple[str, str]]:
    """Vorbis comments of a FLAC file, names in lower case."""
    file.seek(4)
    while len(header := file.read(4)) == 4:
        size = int.from_bytes(header[1:])
        if header[0] & 0x7F == _VORBIS_COMMENT:
            yield from _comments(file.read(size))
        else:
            file.seek(size, 1)
        if header[0] & 0x80:  # the last one
            return


def _comments(data: bytes) -> Iterator[tuple[str, str]]:
    position = 4 + struct.unpack_from("<I", data)[0]  # the vendor's name
    (count,) = struct.unpack_from("<I", data, position)
    position += 4
    for _ in range(count):
        (size,) = struct.unpack_from("<I", data, position)
        position += 4
        name, _, text = data[position : position + size].partition(b"=")
        yield name.decode("latin-1").lower(), text.decode("utf-8", "replace")
        position += size


def jpeg_exif(file: BinaryIO) -> Iterator[bytes]:
    """The Exif blocks of a JPEG picture."""
    file.seek(2)
    while len(header := file.read(4)) == 4:
        mark, kind, size = struct.unpack(">BBH", header)
        if mark != 0xFF or kind == _START_OF_SCAN or size < 2:
            return
        if kind == _APP1:
            body = file.read(size - 2)
            if body.startswith(b"Exif\0\0"):
                yield body
        else:
            file.seek(size - 2, 1)
