"""Small real files made from nothing: PNG, an mp4 that grows as ffmpeg's do, safetensors."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import BinaryIO

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def png(*, width: int, height: int, seed: int, text: Mapping[str, str]) -> bytes:
    """A valid RGB picture; ``text`` becomes tEXt chunks, as ComfyUI embeds its prompt."""
    red, green, blue = sha256(str(seed).encode()).digest()[:3]
    rows = bytearray()
    for y in range(height):
        rows.append(0)  # no filter
        for x in range(width):
            rows += bytes(((red + x) & 0xFF, (green + y) & 0xFF, (blue + x * y // 64) & 0xFF))
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = [_chunk(b"IHDR", header)]
    # tEXt is Latin-1; json.dumps escapes the rest.
    chunks += [_chunk(b"tEXt", f"{k}\0{v}".encode("latin-1")) for k, v in text.items()]
    chunks += [_chunk(b"IDAT", zlib.compress(bytes(rows), 6)), _chunk(b"IEND", b"")]
    return PNG_SIGNATURE + b"".join(chunks)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


class GrowingVideo:
    """An mp4-like file written in the steps of ComfyUI's encoder.

    Seen on ComfyUI 0.33 with inotify: CREATE, the first 48 bytes, nothing for seconds, the
    data, then the file is opened again for reading and closed (CLOSE_NOWRITE) while the
    index is moved to the front (faststart), and only then CLOSE_WRITE.
    """

    HEAD = struct.pack(
        ">I4s4sI4s4s4s4s", 32, b"ftyp", b"isom", 512, b"isom", b"iso2", b"avc1", b"mp41"
    )

    def __init__(self, path: Path, frames: int) -> None:
        self._path = path
        self._frames = frames
        self._file: BinaryIO = path.open("wb")

    def begin(self) -> None:
        """Write the 48 bytes that stay alone while the encoder fills its look-ahead."""
        self._file.write(
            self.HEAD + struct.pack(">I4s", 8, b"free") + struct.pack(">I4s", 8, b"mdat")
        )
        self._file.flush()

    def add(self, frame: int) -> None:
        """Write the data of one frame."""
        self._file.write(sha256(str(frame).encode()).digest() * 64)
        self._file.flush()

    def finish(self) -> None:
        """Add the index, then rewrite the file with the index in front, and close it."""
        index = struct.pack(">I4sI", 12, b"moov", self._frames)
        self._file.write(index)
        self._file.flush()
        with self._path.open("rb") as reader:
            written = reader.read()
        data = written[len(self.HEAD) + 16 : -len(index)]
        self._file.seek(len(self.HEAD))
        self._file.write(index + struct.pack(">I4s", 8, b"free"))
        self._file.write(struct.pack(">I4s", len(data) + 8, b"mdat") + data)
        self._file.close()

    def close(self) -> None:
        """Give up; what was written stays, as when the program is killed."""
        self._file.close()


def safetensors(name: str, size_bytes: int) -> bytes:
    """A valid file of about ``size_bytes`` with one tensor; the same bytes for the same name."""
    length = max(16, size_bytes - 160) // 16 * 16
    header = json.dumps(
        {
            "__metadata__": {"format": "pt", "title": name},
            "weight": {"dtype": "F16", "shape": [length // 16, 8], "data_offsets": [0, length]},
        }
    ).encode()
    header += b" " * (-len(header) % 8)
    return struct.pack("<Q", len(header)) + header + _noise(name, length)


def _noise(name: str, length: int) -> bytes:
    block = b"".join(sha256(f"{name}/{i}".encode()).digest() for i in range(512))
    whole, rest = divmod(length, len(block))
    # Each block starts with its number: swapped or repeated blocks change the hash.
    parts = [struct.pack("<I", i) + block[4:] for i in range(whole)]
    return b"".join(parts) + block[:rest]
