"""Reads workflow files, and the workflows that ComfyUI hides in its outputs.

Chunks are parsed by hand: no image library in the supervisor, and pixels are never decoded.
Formats: PNG 1.2 §4.2.3, RIFF/WEBP container, TIFF 6.0 §2, ISO/IEC 14496-12 and QuickTime's
metadata atoms. Where each saver puts it: ComfyUI nodes.py (PNG text), comfy_extras
nodes_images.py (WEBP, Exif Make/Model), nodes_video.py (MP4 tags), VideoHelperSuite (comment).
WEBM, MKV, FLAC and JPEG: see ``embedded_media``.
"""

from __future__ import annotations

import json
import re
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from supervisor.errors import SupervisorError
from supervisor.models.embedded_media import flac_texts, jpeg_exif, matroska_texts
from supervisor.models.workflow import Reference, references

# The largest workflow seen in the wild is a few MB; anything else is not metadata.
_MAX_METADATA_BYTES = 64 * 1024 * 1024
_KEYS = ("workflow", "prompt")
_A1111 = "parameters"
_KINDS = "a PNG, JPEG, WEBP, MP4, MOV, WEBM, MKV or FLAC file"
_PNG = b"\x89PNG\r\n\x1a\n"


class WorkflowError(SupervisorError):
    """A file holds no readable workflow."""


def read_workflow(path: Path) -> list[Reference]:
    """List the model files that ``path`` mentions. Blocking; reads metadata only.

    Raises:
        WorkflowError: the file cannot be read or holds no workflow.
    """
    try:
        with path.open("rb") as file:
            documents, parameters = _documents(file)
    except OSError as exc:
        raise WorkflowError(f"Cannot read the workflow {path}: {exc.strerror}") from exc
    except (ValueError, struct.error, zlib.error, RecursionError) as exc:
        raise WorkflowError(f"Cannot read the workflow {path}: {exc}") from exc
    found: list[Reference] = []
    problems = []
    for document in documents:
        try:
            found += references(document)
        except (ValueError, RecursionError) as exc:
            problems.append(str(exc))
    if problems and len(problems) == len(documents):
        raise WorkflowError(f"Cannot read the workflow {path}: {problems[0]}")
    if not documents:
        raise _nothing(path, parameters)
    return found


def _nothing(path: Path, parameters: str | None) -> WorkflowError:
    if parameters is None:
        return WorkflowError(
            f"Cannot read the workflow {path}: nothing is embedded in it",
            hint="it was saved without metadata; export the workflow as JSON",
        )
    models = re.findall(r"(?:^|, )Model: ([^,\n]+)", parameters, re.MULTILINE)
    names = [*models, *re.findall(r"<lora:([^:>]+)", parameters)]
    used = f": {', '.join(dict.fromkeys(names))}" if names else ""
    return WorkflowError(
        f"Cannot read the workflow {path}: it holds A1111 parameters and no workflow",
        hint=f"fetch by `supervisor models add` what they name{used}",
    )


def _documents(file: BinaryIO) -> tuple[list[Any], str | None]:
    """Workflows and prompts, and what A1111 wrote instead of them."""
    texts = _texts(file)
    if texts is None:
        file.seek(0)
        try:
            text = _bounded(file, _MAX_METADATA_BYTES).decode("utf-8-sig")
        except UnicodeDecodeError:
            raise ValueError(f"it is neither JSON nor {_KINDS}") from None
        if not text.strip():
            raise ValueError("it is empty")
        try:
            return [json.loads(text)], None
        except json.JSONDecodeError as exc:
            raise ValueError(f"it is not JSON: {exc}") from exc
    documents: list[Any] = []
    parameters = None
    for key, text in texts:
        if key == _A1111:
            parameters = text
        documents += _embedded(key, text)
    return documents, parameters


def _texts(file: BinaryIO) -> Iterator[tuple[str, str]] | None:
    """The tags of a media file; None when it is none."""
    head = file.read(12)
    file.seek(0)
    if head.startswith(_PNG):
        return _png_texts(file)
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return _webp_texts(file)
    if head[4:8] in (b"ftyp", b"moov", b"wide", b"free", b"mdat"):
        return _mp4_texts(file)
    if head[:4] == b"\x1aE\xdf\xa3":
        return matroska_texts(file, _MAX_METADATA_BYTES)
    if head[:4] == b"fLaC":
        return flac_texts(file)
    if head[:3] == b"\xff\xd8\xff":
        return (text for exif in jpeg_exif(file) for text in _exif_texts(exif))
    return None


def _embedded(key: str, text: str) -> Iterator[Any]:
    """The documents under one key; VideoHelperSuite nests both in one comment."""
    try:
        value = json.loads(text)
    except ValueError:
        return
    if key in _KEYS:
        if isinstance(value, dict):
            yield value
    elif key == "comment" and isinstance(value, dict):
        for inner in _KEYS:
            nested = value.get(inner)
            if isinstance(nested, str):
                yield from _embedded(inner, nested)
            elif isinstance(nested, dict):
                yield nested


def _bounded(file: BinaryIO, size: int) -> bytes:
    data = file.read(size + 1)
    if len(data) > size:
        raise ValueError("the metadata is larger than any workflow")
    return data


# -- PNG ----------------------------------------------------------------------------------


def _png_texts(file: BinaryIO) -> Iterator[tuple[str, str]]:
    file.seek(len(_PNG))
    while len(header := file.read(8)) == 8:
        size, kind = struct.unpack(">I4s", header)
        if kind in (b"tEXt", b"zTXt", b"iTXt") and size <= _MAX_METADATA_BYTES:
            text = _png_text(kind, file.read(size))
            if text is not None:
                yield text
            file.seek(4, 1)
        elif kind == b"IEND":
            return
        else:
            file.seek(size + 4, 1)


def _png_text(kind: bytes, data: bytes) -> tuple[str, str] | None:
    keyword, _, rest = data.partition(b"\0")
    key = keyword.decode("latin-1").lower()
    if key not in (*_KEYS, _A1111, "comment"):
        return None
    if kind == b"tEXt":
        # Some writers put UTF-8 here although the standard says Latin-1.
        return key, _text(rest)
    if kind == b"zTXt":
        return key, _text(_inflate(rest[1:]))
    compressed = rest[:1] == b"\1"
    _, _, rest = rest[2:].partition(b"\0")  # language
    _, _, body = rest.partition(b"\0")  # translated keyword
    return key, _text(_inflate(body) if compressed else body)


def _inflate(data: bytes) -> bytes:
    engine = zlib.decompressobj()
    text = engine.decompress(data, _MAX_METADATA_BYTES)
    if engine.unconsumed_tail:
        raise ValueError("the metadata is larger than any workflow")
    return text


def _text(data: bytes) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return data.decode("latin-1")


# -- WEBP ---------------------------------------------------------------------------------


def _webp_texts(file: BinaryIO) -> Iterator[tuple[str, str]]:
    file.seek(12)
    while len(header := file.read(8)) == 8:
        kind, size = struct.unpack("<4sI", header)
        if kind == b"EXIF" and size <= _MAX_METADATA_BYTES:
            yield from _exif_texts(file.read(size))
        else:
            file.seek(size, 1)
        file.seek(size & 1, 1)


def _exif_texts(data: bytes) -> Iterator[tuple[str, str]]:
    """ASCII tags of the first directory that read "workflow:{…}" or "prompt:{…}"."""
    data = data.removeprefix(b"Exif\0\0")
    order = {b"II": "<", b"MM": ">"}.get(data[:2])
    if order is None:
        raise ValueError("the Exif data has no byte order")
    (offset,) = struct.unpack_from(order + "I", data, 4)
    (entries,) = struct.unpack_from(order + "H", data, offset)
    for index in range(entries):
        start = offset + 2 + 12 * index
        _, kind, count, place = struct.unpack_from(order + "HHII", data, start)
        if kind != 2:  # ASCII
            continue
        begin = place if count > 4 else start + 8
        text = _text(data[begin : begin + count].split(b"\0", 1)[0])
        key, colon, rest = text.partition(":")
        if colon and key.lower() in _KEYS:
            yield key.lower(), rest


# -- MP4 ----------------------------------------------------------------------------------

_CONTAINERS = frozenset({b"moov", b"udta"})


def _mp4_texts(file: BinaryIO) -> Iterator[tuple[str, str]]:
    """Find ``moov`` without reading the samples, then the tags in it."""
    file.seek(0, 2)
    end = file.tell()
    position = 0
    while position + 8 <= end:
        file.seek(position)
        size, kind = struct.unpack(">I4s", file.read(8))
        header = 8
        if size == 1:
            (size,) = struct.unpack(">Q", file.read(8))
            header = 16
        size = size or end - position
        if size < header:
            raise ValueError("the file is damaged: a box is shorter than its header")
        if kind == b"moov":
            if size > _MAX_METADATA_BYTES:
                raise ValueError("the index of the video is too large")
            yield from _boxes(file.read(size - header))
            return
        position += size


def _boxes(data: bytes) -> Iterator[tuple[str, str]]:
    for kind, body in _children(data):
        if kind in _CONTAINERS:
            yield from _boxes(body)
        elif kind == b"meta":
            yield from _meta(body)
        elif kind == b"\xa9cmt":  # QuickTime: length and language of the text, then it
            yield "comment", _text(body[4 : 4 + int.from_bytes(body[:2])])


def _children(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    position = 0
    while position + 8 <= len(data):
        size, kind = struct.unpack_from(">I4s", data, position)
        size = size or len(data) - position
        if size < 8:
            return
        yield kind, data[position + 8 : position + size]
        position += size


def _meta(body: bytes) -> Iterator[tuple[str, str]]:
    """Tags by name (``keys``, as FFmpeg's use_metadata_tags writes) or by iTunes code."""
    # A full box in MP4, a plain one in QuickTime: tell by where the first child starts.
    body = body if body[4:8] == b"hdlr" else body[4:]
    children = dict(_children(body))
    names = _key_names(children.get(b"keys", b""))
    for kind, entry in _children(children.get(b"ilst", b"")):
        index = int.from_bytes(kind)
        name = names.get(index) or {b"\xa9cmt": "comment"}.get(kind)
        if name is None:
            continue
        for inner, value in _children(entry):
            if inner == b"data":
                yield name.lower(), _text(value[8:])


def _key_names(data: bytes) -> dict[int, str]:
    names: dict[int, str] = {}
    for index, (_, name) in enumerate(_children(data[8:]), start=1):
        names[index] = _text(name)
    return names
