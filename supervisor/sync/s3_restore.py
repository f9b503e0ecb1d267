"""Writing a stream from the bucket to a file, a bounded piece at a time."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from anyio import to_thread

_PIECE_BYTES = 1024 * 1024


async def download(body: Any, temporary: Path, destination: Path, *, mtime_ns: int) -> None:
    """Write ``body`` beside the destination and rename; the partial file never stays."""
    await to_thread.run_sync(lambda: destination.parent.mkdir(parents=True, exist_ok=True))
    try:
        with await to_thread.run_sync(lambda: temporary.open("xb")) as file:
            while piece := await body.read(_PIECE_BYTES):
                await to_thread.run_sync(file.write, piece)
            await to_thread.run_sync(file.flush)
            os.utime(file.fileno(), ns=(mtime_ns, mtime_ns))
        await to_thread.run_sync(temporary.replace, destination)
    finally:
        temporary.unlink(missing_ok=True)  # noqa: ASYNC240 (must also happen when cancelled)
