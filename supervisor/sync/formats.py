"""Is a file whole? A writer that was killed leaves a closed but broken file.

Only the container is looked at, never the pixels or samples: structures are walked to
their end, because an end mark alone is soon found by chance (a GIF cut at a ``;``, a JPEG
cut behind its thumbnail). A format that is not known here counts as whole.

Sources: PNG https://www.w3.org/TR/png-3/#5DataRep, JPEG ITU-T T.81 annex B, GIF
https://www.w3.org/Graphics/GIF/spec-gif89a.txt, WebP
https://developers.google.com/speed/webp/docs/riff_container, glTF 2.0 §4.4, safetensors
https://github.com/huggingface/safetensors#format.
"""

from __future__ import annotations

import json
import os
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from supervisor.sync import formats_audio, formats_video

Check = Callable[[BinaryIO, int], str | None]

_CHUNK_BYTES = 256 * 1024
# Inside the picture data of a JPEG a marker is anything but a stuffed 0xFF, a restart or a fill.
_JPEG_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
_MAX_SAFETENSORS_HEADER_BYTES = 100 * 1024 * 1024


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
        try:
            return check(file, size)
        except (struct.error, IndexError):  # a field was asked for that is not there
            return "its header is cut off"


def _png(file: BinaryIO, size: int) -> str | None:
    if file.read(8) != b"\x89PNG\r\n\x1a\n":
        return "the PNG signature is missing"
    position = 8
    while position + 12 <= size:
        file.seek(position)
        length, kind = struct.unpack(">I4s", file.read(8))
        position += 12 + length
        if kind == b"IEND" and position <= size:
            return None
    return "the PNG has no IEND chunk"


def _jpeg(file: BinaryIO, size: int) -> str | None:
    if file.read(2) != b"\xff\xd8":
        return "the JPEG start marker is missing"
    position = 2
    while position + 2 <= size:
        file.seek(position)
        mark, kind = struct.unpack("BB", file.read(2))
        if mark != 0xFF:
            return "the JPEG is damaged"
        if kind == 0xD9:
            return None
        if kind == 0xFF:  # fill
            position += 1
            continue
        position += 2
        if kind != 0x01 and not 0xD0 <= kind <= 0xD8:  # those stand alone
            position += struct.unpack(">H", file.read(2))[0]
        if kind == 0xDA:
            position = _next_marker(file, position, size)
    return "the JPEG has no end marker"


def _next_marker(file: BinaryIO, position: int, size: int) -> int:
    """Return where the picture data that starts at ``position`` ends."""
    file.seek(position)
    while len(chunk := file.read(_CHUNK_BYTES)) > 1:
        if found := _JPEG_MARKER.search(chunk):
            return position + found.start()
        position += len(chunk) - 1  # a marker may straddle two chunks
        file.seek(position)
    return size


def _gif(file: BinaryIO, size: int) -> str | None:
    head = file.read(13)
    if head[:6] not in (b"GIF87a", b"GIF89a"):
        return "the GIF signature is missing"
    file.seek(_colours(head[10]), os.SEEK_CUR)
    while block := file.read(1):
        if block == b";":
            return None
        if block == b"!":
            file.read(1)
        elif block == b",":
            file.seek(_colours(file.read(9)[8]) + 1, os.SEEK_CUR)
        elif block == b"\0":  # some writers leave a terminator too many
            continue
        else:
            return "the GIF is damaged"
        while length := file.read(1)[0]:
            file.seek(length, os.SEEK_CUR)
        if file.tell() > size:
            break
    return "the GIF has no trailer"


def _colours(flags: int) -> int:
    """Return the size of the colour table that the flags announce."""
    return 3 << ((flags & 7) + 1) if flags & 0x80 else 0


def _webp(file: BinaryIO, size: int) -> str | None:
    head = file.read(12)
    if head[:4] != b"RIFF":
        return "the RIFF header is missing"
    missing = int.from_bytes(head[4:8], "little") + 8 - size
    if missing == 8 - size:
        return "the RIFF header holds no size yet"
    return f"{missing} bytes of the WebP are missing" if missing > 0 else None


def _glb(file: BinaryIO, size: int) -> str | None:
    magic, _version, length = struct.unpack("<4sII", file.read(12))
    if magic != b"glTF":
        return "the glTF header is missing"
    return f"{length - size} bytes of the GLB are missing" if length > size else None


def _safetensors(file: BinaryIO, size: int) -> str | None:
    length = struct.unpack("<Q", file.read(8))[0]
    if 8 + length > size or length > _MAX_SAFETENSORS_HEADER_BYTES:
        return "the safetensors header is cut off"
    try:
        tensors = json.loads(file.read(length))
        ends = [t["data_offsets"][1] for name, t in tensors.items() if name != "__metadata__"]
    except (ValueError, KeyError, TypeError, AttributeError, IndexError):
        return "the safetensors header is damaged"
    missing = 8 + length + max(ends, default=0) - size
    return f"{missing} bytes of the tensors are missing" if missing > 0 else None


_CHECKS: dict[str, Check] = {
    ".png": _png,
    ".apng": _png,
    ".jpg": _jpeg,
    ".jpeg": _jpeg,
    ".gif": _gif,
    ".webp": _webp,
    ".glb": _glb,
    ".latent": _safetensors,
    ".safetensors": _safetensors,
    ".wav": formats_audio.wav,
    ".flac": formats_audio.flac,
    ".ogg": formats_audio.ogg,
    ".opus": formats_audio.ogg,
    ".mp3": formats_audio.mp3,
    ".mp4": formats_video.iso_media,
    ".m4v": formats_video.iso_media,
    ".mov": formats_video.iso_media,
    ".m4a": formats_video.iso_media,
    ".avif": formats_video.iso_image,
    ".mkv": formats_video.ebml,
    ".webm": formats_video.ebml,
}
