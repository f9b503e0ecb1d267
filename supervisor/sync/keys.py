"""Pure naming: keys, content types, and which names count as outputs."""

from __future__ import annotations

import fnmatch
import hashlib
import mimetypes
import re
from datetime import UTC, datetime, tzinfo
from pathlib import PurePosixPath
from urllib.parse import quote

MAX_KEY_BYTES = 1024  # S3 and R2: https://developers.cloudflare.com/r2/platform/limits/
MAX_NAME_BYTES = 255  # NAME_MAX of Linux, so that a folder target can hold every key
MAX_METADATA_BYTES = 1024  # of one value; all of them together may have 2 KiB on S3

# What the standard library does not know, or knows differently from one machine to the next.
_CONTENT_TYPES = {
    ".avif": "image/avif",
    ".exr": "image/x-exr",
    ".flac": "audio/flac",
    ".glb": "model/gltf-binary",
    ".latent": "application/octet-stream",
    ".m4a": "audio/mp4",
    ".mkv": "video/x-matroska",
    ".mov": "video/quicktime",
    ".ogg": "audio/ogg",
    ".opus": "audio/ogg",
    ".safetensors": "application/octet-stream",
    ".wav": "audio/wav",
    ".webm": "video/webm",
    ".webp": "image/webp",
}
_ENCODED = re.compile(r"%([01][0-9A-F]|7F|25|[89A-F][0-9A-F])")
_LOOKS_ENCODED = re.compile(f"%(?={_ENCODED.pattern[1:]})")


class NameFilter:
    """Tells outputs from everything else by file name; case does not matter."""

    def __init__(self, patterns: tuple[str, ...], ignore: tuple[str, ...]) -> None:
        self._wanted = _compile(patterns)
        self._ignored = _compile(ignore)

    def wants(self, name: str) -> bool:
        """Whether a file of that name is an output."""
        name = name.lower()
        return self._wanted.match(name) is not None and self._ignored.match(name) is None

    def ignores_folder(self, name: str) -> bool:
        """Whether a folder of that name is left out with all it holds."""
        return self._ignored.match(name.lower()) is not None


def _compile(patterns: tuple[str, ...]) -> re.Pattern[str]:
    # An empty alternative would match everything; this one matches nothing.
    joined = "|".join(fnmatch.translate(p.lower()) for p in patterns) or r"(?!)"
    return re.compile(joined, re.DOTALL)


def day_of(mtime_ns: int, zone: tzinfo = UTC) -> str:
    """Render the day of a modification time as YYYY-MM-DD."""
    return datetime.fromtimestamp(mtime_ns / 1e9, tz=zone).strftime("%Y-%m-%d")


def build_key(template: str, *, prefix: str, day: str, path: str, host: str = "") -> str:
    """Fill the template and make the result a key that every target can hold.

    Fields: prefix, date, year, month, day, path, folder, name, stem, suffix, host.
    """
    path = clean_path(path)
    pure = PurePosixPath(path)
    year, month, day_of_month = day.split("-")
    key = template.format(
        prefix=prefix.strip("/"),
        date=day,
        year=year,
        month=month,
        day=day_of_month,
        path=path,
        folder=str(pure.parent) if pure.parent.name else "",
        name=pure.name,
        stem=pure.stem,
        suffix=pure.suffix,
        host=host,
    )
    parts = [_shorten(part, MAX_NAME_BYTES) for part in key.split("/") if part not in ("", ".")]
    return _fit("/".join(parts))


def clean_path(path: str) -> str:
    """Percent-encode control characters and bytes that are not UTF-8; the rest stays.

    So does a percent sign that would look like one of those: no two names become one.
    """
    path = _LOOKS_ENCODED.sub("%25", path)
    return "".join(_clean_character(c) for c in path)


def restored_path(path: str) -> str:
    """Undo ``clean_path``."""
    return _ENCODED.sub(_restored_character, path)


def _clean_character(character: str) -> str:
    code = ord(character)
    if code < 0x20 or code == 0x7F:
        return f"%{code:02X}"
    if 0xDC80 <= code <= 0xDCFF:  # a byte that os.fsdecode could not decode
        return f"%{code - 0xDC00:02X}"
    return character


def _restored_character(found: re.Match[str]) -> str:
    code = int(found[1], 16)
    return chr(code + 0xDC00) if code >= 0x80 else chr(code)


def alternative_key(key: str, sha256: str) -> str:
    """Name the same file differently, by its content: stable when asked again."""
    pure = PurePosixPath(key)
    name = _shorten(f"{pure.stem}-{sha256[:12]}{pure.suffix}", MAX_NAME_BYTES)
    return _fit(str(pure.with_name(name)))


def _shorten(name: str, limit: int) -> str:
    encoded = name.encode()
    if len(encoded) <= limit:
        return name
    suffix = PurePosixPath(name).suffix
    suffix = suffix if len(suffix.encode()) <= 16 else ""
    mark = "~" + hashlib.sha256(encoded).hexdigest()[:12]
    room = limit - len((mark + suffix).encode())
    return encoded[:room].decode(errors="ignore") + mark + suffix


def _fit(key: str) -> str:
    """Cut a key that is too long in the middle; the name at the end stays."""
    encoded = key.encode()
    if len(encoded) <= MAX_KEY_BYTES:
        return key
    folder, _, name = key.rpartition("/")
    mark = "~" + hashlib.sha256(encoded).hexdigest()[:12] + "/"
    room = MAX_KEY_BYTES - len(name.encode()) - len(mark)
    return folder.encode()[:room].decode(errors="ignore") + mark + name


def content_type(name: str) -> str:
    """Guess the media type from a name."""
    suffix = PurePosixPath(name).suffix.lower()
    known = _CONTENT_TYPES.get(suffix) or mimetypes.types_map.get(suffix)
    return known or "application/octet-stream"


def metadata_value(text: str) -> str:
    """Make a value that may travel in a header: ASCII, bounded."""
    value = quote(text, safe="/ ()[]{}=,:;@!$&'*+.-_~", errors="surrogateescape")
    return value[:MAX_METADATA_BYTES]
