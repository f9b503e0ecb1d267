"""What the download tests share: engines, a resolver, safetensors files, leak checks."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

import anyio

from supervisor.core.retry import Backoff
from supervisor.download.request import DownloadRequest, Progress, Resolved

QUICK = Backoff(initial_s=0.01, max_s=0.05)


class Direct:
    """A resolver that knows the address already, or takes the next of several."""

    def __init__(
        self, *urls: str, headers: Mapping[str, str] | None = None, sha256: str | None = None
    ) -> None:
        self.urls = urls
        self.headers = headers or {}
        self.sha256 = sha256
        self.calls = 0

    async def resolve(self, request: DownloadRequest) -> Resolved:
        urls = self.urls or (request.url,)
        url = urls[min(self.calls, len(urls) - 1)]
        self.calls += 1
        return Resolved(url, self.headers, sha256=self.sha256)


class Log:
    """Remembers every progress report; as the manager does, it asks for the time."""

    def __init__(self) -> None:
        self.steps: list[Progress] = []
        self.called = 0

    def __call__(self, step: Progress) -> None:
        self.called += 1
        anyio.current_time()  # raises where nobody can tell which loop runs
        self.steps.append(step)


def wanted(
    folder: Path,
    url: str,
    *,
    sha256: str | None = None,
    name: str = "model.bin",
    mirrors: tuple[str, ...] = (),
    size_bytes: int | None = None,
) -> DownloadRequest:
    """A request for ``url`` in ``folder``."""
    return DownloadRequest(
        name, url, folder / name, sha256=sha256, mirrors=mirrors, size_bytes=size_bytes
    )


@lru_cache(maxsize=4)
def random_bytes(size: int, seed: int = 1) -> bytes:
    """The same bytes each time, and once for all modules that keep them."""
    return random.Random(seed).randbytes(size)


def safetensors(payload: bytes) -> bytes:
    """A valid file with one tensor."""
    header = json.dumps(
        {"weight": {"dtype": "U8", "shape": [len(payload)], "data_offsets": [0, len(payload)]}}
    ).encode()
    return len(header).to_bytes(8, "little") + header + payload


def open_files(folder: Path) -> list[str]:
    """Paths below ``folder`` that this process has open."""
    found = []
    for entry in Path("/proc/self/fd").iterdir():
        try:
            target = str(entry.readlink())
        except OSError:
            continue
        if target.startswith(str(folder)):
            found.append(target)
    return found


def only(folder: Path, *names: str) -> None:
    """Assert that ``folder`` holds these names and nothing else, and nothing is open in it."""
    assert sorted(p.name for p in folder.iterdir()) == sorted(names)
    assert open_files(folder) == []
