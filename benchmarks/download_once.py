"""One run of the engine for ``benchmarks.downloads``: fetch the files of a spec.

Prints one line of JSON: seconds from the engine's start to its end within the running loop,
and how late the loop was for a task that wanted to run every 5 ms (p99 and worst).
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import sys
import time
from pathlib import Path

import anyio

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from supervisor.download.engine import SegmentedDownloader
from supervisor.download.lane import LANES
from supervisor.download.request import DownloadRequest, Resolved

FILES_AT_ONCE = 8  # [models] concurrent_files as it is shipped
BEAT_S = 0.005


class _Direct:
    async def resolve(self, request: DownloadRequest) -> Resolved:
        return Resolved(request.url)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("spec", type=Path)
    parser.add_argument("--verify", action="store_true")
    parser.add_argument("--uvloop", action="store_true")
    parser.add_argument("--no-fsync", action="store_true")
    parser.add_argument("--connections", type=int, default=16)
    parser.add_argument("--lanes", type=int, default=LANES, help="0: all on the event loop")
    parser.add_argument("--nice", type=int, default=0, help="of the engine's threads")
    parser.add_argument("--for-s", type=float, help="fetch again and again for so long")
    return parser.parse_args()


async def _fetch_all(engine: SegmentedDownloader, spec: dict[str, str], *, verify: bool) -> None:
    files, out = json.loads(spec["files"]), Path(spec["out"])
    queue = iter(files.items())

    async def worker() -> None:
        for name, sha256 in queue:
            request = DownloadRequest(
                name, f"{spec['url']}/{name}", out / name, sha256=sha256 if verify else None
            )
            await engine.fetch(request, _Direct(), lambda _: None)

    async with anyio.create_task_group() as group:
        for _ in range(min(FILES_AT_ONCE, len(files))):
            group.start_soon(worker)


def _empty(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()


async def _beat(late_ms: list[float]) -> None:
    while True:
        due_s = time.monotonic() + BEAT_S
        await asyncio.sleep(BEAT_S)
        late_ms.append((time.monotonic() - due_s) * 1000)


async def _main(options: argparse.Namespace) -> None:
    spec = json.loads(options.spec.read_text())
    late_ms: list[float] = []
    began_s = time.monotonic()
    async with (
        anyio.create_task_group() as group,
        SegmentedDownloader(
            ca_file=Path(spec["ca"]),
            fsync=not options.no_fsync,
            connections=options.connections,
            lanes=options.lanes,
            thread_nice=options.nice,
        ) as engine,
    ):
        group.start_soon(_beat, late_ms)
        await _fetch_all(engine, spec, verify=options.verify)
        while options.for_s is not None and time.monotonic() - began_s < options.for_s:
            _empty(Path(spec["out"]))
            await _fetch_all(engine, spec, verify=options.verify)
        group.cancel_scope.cancel()
    late_ms.sort()
    result = {
        "inside_s": time.monotonic() - began_s,
        "late_p99_ms": late_ms[int(len(late_ms) * 0.99)] if late_ms else 0.0,
        "late_worst_ms": late_ms[-1] if late_ms else 0.0,
    }
    print(json.dumps(result), flush=True)


if __name__ == "__main__":
    chosen = _options()
    factory = None
    if chosen.uvloop:
        import uvloop

        factory = uvloop.new_event_loop
    gc.freeze()  # as the daemon does once it is up
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(_main(chosen))
