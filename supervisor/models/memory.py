"""What sources said when they were last asked, for boots at which nobody answers.

Which files a folder, or an id without a name, stood for is noted in the shared store, else
beside the files themselves: it must lie where they lie, or it is of no use to them.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from supervisor.download.request import DownloadRequest
from supervisor.models.folders import safe_relative
from supervisor.models.store import ModelStore

_FIELDS = ("url", "reference", "size_bytes", "sha256")
_SHA256 = re.compile(r"[0-9a-f]{64}")


def last_key(request: DownloadRequest) -> str:
    """Names what was fetched last for a file, whichever version of it that was."""
    return "last-" + _digest(request.source, request.reference or request.url)


class Memory:
    """Notes on the volume. Everything here blocks."""

    def __init__(self, store: ModelStore | None = None) -> None:
        self._store = store

    def remember(self, folder: DownloadRequest, files: Iterable[DownloadRequest]) -> None:
        """Note which files ``folder`` stands for, unless the volume takes no notes."""
        with suppress(OSError, ValueError):  # ValueError: a file that is not below the folder
            rows = [
                {"path": file.destination.relative_to(folder.destination).as_posix()}
                | {field: getattr(file, field) for field in _FIELDS}
                for file in files
            ]
            _write(self._path(folder), json.dumps({"files": rows}, indent=1).encode())

    def recall(self, folder: DownloadRequest) -> tuple[DownloadRequest, ...]:
        """The files that ``folder`` stood for, if all of them are on the volume, else none."""
        files = self.noted(folder)
        return files if all(map(self.holds, files)) else ()

    def noted(self, folder: DownloadRequest) -> tuple[DownloadRequest, ...]:
        """The files that ``folder`` stood for, wherever they are; none when nobody knows."""
        try:
            rows = json.loads(self._path(folder).read_bytes())["files"]
            return tuple(_file(folder, row) for row in rows)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return ()

    def holds(self, file: DownloadRequest) -> bool:
        """Whether the file is in place, or in the store, as far as its size tells."""
        with suppress(OSError):
            if file.size_bytes in (None, file.destination.stat().st_size):
                return True
        if self._store is None:
            return False
        known = file.sha256 or self._store.recall(last_key(file))
        return known is not None and self._store.has(known, file.size_bytes)

    def _path(self, folder: DownloadRequest) -> Path:
        key = _digest(folder.source, folder.reference, folder.name)
        if self._store is not None:
            return self._store.root / "folders" / f"{key}.json"
        return folder.destination / f".files-{key[:16]}.json"


def _file(folder: DownloadRequest, row: dict[str, Any]) -> DownloadRequest:
    """Raises: ValueError, KeyError, TypeError when somebody else wrote the note."""
    path = safe_relative(row["path"])
    size, sha256 = row["size_bytes"], row["sha256"]
    if not isinstance(size, int | None) or not (sha256 is None or _SHA256.fullmatch(sha256)):
        raise ValueError("not a note of ours")
    prefix = folder.name.rpartition("/")[0]
    return replace(
        folder,
        name=f"{prefix}/{path}".lstrip("/"),
        destination=folder.destination / path,
        directory=False,
        url=str(row["url"]),
        reference=str(row["reference"]),
        size_bytes=size,
        sha256=sha256,
    )


def _write(path: Path, data: bytes) -> None:
    with suppress(FileNotFoundError):
        if path.read_bytes() == data:
            return
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.new")
    # ComfyUI may own this folder: what lies there is removed and never written through.
    temporary.unlink(missing_ok=True)
    with temporary.open("xb") as file:
        file.write(data)
    temporary.replace(path)


def _digest(*parts: str) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()
