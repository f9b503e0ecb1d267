"""Is a video whole? See ``formats``.

Sources: ISO base media ISO/IEC 14496-12 §4.2, EBML RFC 8794 §4 and §11.2, Matroska RFC 9559
§5.1 (identifiers) and §23.2 (unknown sizes of live streams).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import BinaryIO

_EBML, _SEGMENT = 0x1A45DFA3, 0x18538067
_CLUSTER, _VOID, _CUES = 0x1F43B675, 0xEC, 0x1C53BB6B


def iso_media(file: BinaryIO, size: int) -> str | None:
    """Check an MP4 or one of its kin: every box ends, and both index and media are there."""
    found, cut = _boxes(file, size)
    if cut:
        return cut
    if "moov" not in found:
        return "there is no moov box"
    return None if found & {"mdat", "moof"} else "there is no media behind the moov box"


def iso_image(file: BinaryIO, size: int) -> str | None:
    """Check an AVIF."""
    found, cut = _boxes(file, size)
    if not found & {"meta", "moov"}:
        return cut or "there is no meta box"
    return cut or (None if "mdat" in found else "there is no picture behind the meta box")


def _boxes(file: BinaryIO, size: int) -> tuple[set[str], str | None]:
    """Return the kinds of the top-level boxes, and what is wrong with them."""
    found: set[str] = set()
    position = 0
    while position < size:
        file.seek(position)
        head = file.read(16)
        kind = head[4:8].decode("latin-1")
        length = int.from_bytes(head[:4], "big")
        if length == 1:
            length = int.from_bytes(head[8:16], "big")
        elif length == 0:
            length = size - position
        if len(head) < 8 or length < 8:
            return found, "a box is damaged or cut off"
        position += length
        if position > size:
            return found, f"the {kind} box is cut off"
        found.add(kind)
    return found, None


def ebml(file: BinaryIO, size: int) -> str | None:
    """Check a WebM or MKV."""
    head = _element(file)
    if head is None or head[0] != _EBML or head[1] is None:
        return "the EBML header is missing"
    file.seek(head[1], 1)
    segment = _element(file)
    if segment is None or segment[0] != _SEGMENT:
        return "there is no segment"
    if segment[1] is not None:
        missing = file.tell() + segment[1] - size
        return f"{missing} bytes of the segment are missing" if missing > 0 else None
    return _open_segment(file, size)


def _open_segment(file: BinaryIO, size: int) -> str | None:
    """Check a segment of unknown size: a live stream, or a writer that never came to its end."""
    seen: list[int] = []
    for kind, end in _children(file, size):
        if end > size:
            return "the last element is cut off"
        seen.append(kind)
    if _CLUSTER not in seen:
        return "there is no cluster"
    # A writer that means to come back leaves room for its index before anything else.
    if seen[0] == _VOID and _CUES not in seen:
        return "it was never brought to its end"
    return None


def _children(file: BinaryIO, size: int) -> Iterator[tuple[int, int]]:
    """Yield (identifier, end) of the elements that follow, those of open clusters too."""
    while file.tell() < size:
        element = _element(file)
        if element is None:
            yield 0, size + 1
            return
        kind, length = element
        end = file.tell() + (length or 0)
        yield kind, end
        file.seek(end)


def _element(file: BinaryIO) -> tuple[int, int | None] | None:
    """Read an element's identifier and size (None: unknown); None when it is not all there."""
    first = file.read(1)
    if not first or first[0] < 0x10:  # identifiers have at most four bytes
        return None
    rest = 8 - first[0].bit_length()
    kind = first + file.read(rest)
    first = file.read(1)
    if len(kind) <= rest or not first or not first[0]:
        return None
    width = 9 - first[0].bit_length()
    data = first + file.read(width - 1)
    if len(data) < width:
        return None
    value = int.from_bytes(data, "big") & ((1 << 7 * width) - 1)
    return int.from_bytes(kind, "big"), None if value == (1 << 7 * width) - 1 else value
