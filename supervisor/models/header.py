"""Reads the headers of model files: names and shapes of tensors, never the tensors.

Formats: https://huggingface.co/docs/safetensors (8 bytes of length, JSON, data) and
https://github.com/ggml-org/ggml/blob/master/docs/gguf.md (version 2 and 3). Of a pickle only
the ends are looked at: PyTorch packs it into a zip file, whose directory is written last.
"""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, BinaryIO

from supervisor.models.folders import PICKLE_EXTENSIONS

# The reference reader refuses larger safetensors headers too.
_MAX_HEADER_BYTES = 100_000_000
_MAX_GGUF_STRING_BYTES = 16 * 1024 * 1024
_MAX_GGUF_ENTRIES = 1_000_000
_ZIP_END_BYTES = 22 + 65535  # its record, and the longest comment


class Format(StrEnum):
    """What a file is, by its content and, for pickles, by its name."""

    SAFETENSORS = "safetensors"
    GGUF = "gguf"
    PICKLE = "pickle"
    OTHER = "other"


@dataclass(frozen=True, slots=True)
class ModelHeader:
    """What the header says. ``shapes`` maps tensor names to dimensions.

    ``complete`` is False when the file is shorter than its header announces, None when the
    format does not tell. ``error`` is one sentence about a header that cannot be read.
    """

    format: Format
    size_bytes: int
    metadata: Mapping[str, str] = field(default_factory=dict)
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    complete: bool | None = None
    error: str | None = None


def read_header(path: Path) -> ModelHeader:
    """Read the header of one file. Blocking; a broken one is reported in ``error``.

    Raises:
        OSError: the file cannot be read.
    """
    with path.open("rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        suffix = path.suffix.lower()
        if suffix in PICKLE_EXTENSIONS:
            return ModelHeader(Format.PICKLE, size, complete=_zip_complete(file, size))
        try:
            if suffix == ".gguf":
                return _gguf(file, size)
            if suffix in (".safetensors", ".sft"):
                return _safetensors(file, size)
        except (ValueError, TypeError, KeyError, IndexError, struct.error, RecursionError) as exc:
            kind = Format.GGUF if suffix == ".gguf" else Format.SAFETENSORS
            # A header that ends early is the usual sign of a download under way.
            return ModelHeader(kind, size, complete=False, error=f"unreadable header: {exc}")
    return ModelHeader(Format.OTHER, size)


def _zip_complete(file: BinaryIO, size: int) -> bool | None:
    """Whether a zip file has its end; None for what is no zip file (PyTorch before 1.6)."""
    if file.read(4) != b"PK\x03\x04":
        return None
    file.seek(max(size - _ZIP_END_BYTES, 0))
    return b"PK\x05\x06" in file.read(_ZIP_END_BYTES)


def _safetensors(file: BinaryIO, size: int) -> ModelHeader:
    (length,) = struct.unpack("<Q", _exactly(file, 8))
    if length > _MAX_HEADER_BYTES:
        raise ValueError("it is no safetensors file")
    data = json.loads(_exactly(file, length))
    if not isinstance(data, dict):
        raise TypeError("it is no safetensors file")
    metadata = data.pop("__metadata__", None)
    shapes = {name: tuple(map(_whole, tensor["shape"])) for name, tensor in data.items()}
    end = max((_whole(tensor["data_offsets"][1]) for tensor in data.values()), default=0)
    return ModelHeader(
        Format.SAFETENSORS,
        size,
        {str(k): str(v) for k, v in metadata.items()} if isinstance(metadata, dict) else {},
        shapes,
        complete=size >= 8 + length + end,
    )


def _whole(number: object) -> int:
    if not isinstance(number, int) or number < 0:
        raise ValueError("a tensor has no such shape or place")
    return number


_GGUF_NUMBERS = {0: "b", 1: "b", 2: "h", 3: "h", 4: "i", 5: "i", 6: "f", 7: "b", 10: "q", 11: "q",
                 12: "d"}  # fmt: skip
_GGUF_STRING, _GGUF_ARRAY = 8, 9
# Elements and bytes of a block, by type: GGML_QUANT_SIZES of ggml-org/llama.cpp's gguf-py.
_GGML = {
    0: (1, 4), 1: (1, 2), 2: (32, 18), 3: (32, 20), 6: (32, 22), 7: (32, 24), 8: (32, 34),
    9: (32, 40), 10: (256, 84), 11: (256, 110), 12: (256, 144), 13: (256, 176), 14: (256, 210),
    15: (256, 292), 16: (256, 66), 17: (256, 74), 18: (256, 98), 19: (256, 50), 20: (32, 18),
    21: (256, 110), 22: (256, 82), 23: (256, 136), 24: (1, 1), 25: (1, 2), 26: (1, 4), 27: (1, 8),
    28: (1, 8), 29: (256, 56), 30: (1, 2), 34: (256, 54), 35: (256, 66), 39: (32, 17),
}  # fmt: skip


def _gguf(file: BinaryIO, size: int) -> ModelHeader:
    reader = _GgufReader(file)
    if reader.take(4) != b"GGUF":
        raise ValueError("it is no GGUF file")
    version, tensors, entries = reader.unpack("<IQQ")
    if version not in (2, 3) or max(tensors, entries) > _MAX_GGUF_ENTRIES:
        raise ValueError(f"GGUF version {version} is not known")
    metadata: dict[str, str] = {}
    for _ in range(entries):
        key = reader.string()
        value = reader.value(reader.unpack("<I")[0])
        if value is not None:
            metadata[key] = value
    shapes: dict[str, tuple[int, ...]] = {}
    end, known = 0, True
    for _ in range(tensors):
        name = reader.string()
        (dimensions,) = reader.unpack("<I")
        if dimensions > 8:
            raise ValueError("a tensor has too many dimensions")
        shapes[name] = tuple(reader.unpack(f"<{dimensions}Q"))
        kind, offset = reader.unpack("<IQ")
        # Of a quantisation that is not known here, the start is a sure lower bound.
        elements, length = _GGML.get(kind, (1, 0))
        known &= length > 0
        end = max(end, offset + math.prod(shapes[name]) // elements * length)
    alignment = int(metadata.get("general.alignment", "32")) or 1
    whole = size >= -(-reader.position // alignment) * alignment + end
    return ModelHeader(
        Format.GGUF, size, metadata, shapes, complete=(True if known else None) if whole else False
    )


class _GgufReader:
    """Reads little-endian values in sequence, a block at a time."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._block, self._at = b"", 0

    @property
    def position(self) -> int:
        """Bytes taken so far."""
        return self._file.tell() - len(self._block) + self._at

    def take(self, count: int) -> bytes:
        while len(self._block) - self._at < count:
            more = self._file.read(max(1 << 16, count))
            if not more:
                raise ValueError("it ends early")
            self._block = self._block[self._at :] + more
            self._at = 0
        self._at += count
        return self._block[self._at - count : self._at]

    def unpack(self, layout: str) -> tuple[Any, ...]:
        return struct.unpack(layout, self.take(struct.calcsize(layout)))

    def string(self) -> str:
        (length,) = self.unpack("<Q")
        if length > _MAX_GGUF_STRING_BYTES:
            raise ValueError("a string is too long")
        return self.take(length).decode("utf-8", errors="replace")

    def value(self, kind: int) -> str | None:
        """Read one value; only text and numbers are kept."""
        if kind == _GGUF_STRING:
            return self.string()
        if kind == _GGUF_ARRAY:
            inner, count = self.unpack("<IQ")
            if inner == _GGUF_STRING:
                for _ in range(count):
                    self.string()
            else:
                self.take(struct.calcsize("<" + _GGUF_NUMBERS[inner]) * count)
            return None
        (number,) = self.unpack("<" + _GGUF_NUMBERS[kind])
        return str(number)


def _exactly(file: BinaryIO, count: int) -> bytes:
    data = bytearray()
    while len(data) < count:
        more = file.read(count - len(data))
        if not more:
            raise ValueError("it ends early")
        data += more
    return bytes(data)
