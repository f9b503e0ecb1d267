"""One run of the engine for ``benchmarks.downloads``: fetch the files of a spec."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from pathlib import Path

import anyio

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from supervisor.download.engine import SegmentedDownloader
from supervisor.download.request import DownloadRequest, Resolved

FILES_AT_ONCE = 16


class _Direct:
    async def resolve(self, request: DownloadRequest) -> Resolved:
        return Resolved(request.url)


async def _main(spec: dict[str, object], *, verify: bool, fsync: bool, connections: int) -> None:
    files, out = spec["files"], Path(str(spec["out"]))
    assert isinstance(files, dict)
    queue = iter(files.items())
    async with SegmentedDownloader(
        ca_file=Path(str(spec["ca"])), fsync=fsync, connections=connections
    ) as engine:

        async def worker() -> None:
            for name, sha256 in queue:
                request = DownloadRequest(
                    name, f"{spec['url']}/{name}", out / name, sha256=sha256 if verify else None
                )
                await engine.fetch(request, _Direct(), lambda _: None)

        async with anyio.create_task_group() as group:
            for _ in range(min(FILES_AT_ONCE, len(files))):
                group.start_soon(worker)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("spec", type=Path)
    parser.add_argument("--verify", action="store_true")
    parser.add_argument("--uvloop", action="store_true")
    parser.add_argument("--no-fsync", action="store_true")
    parser.add_argument("--connections", type=int, default=16)
    options = parser.parse_args()
    factory = None
    if options.uvloop:
        import uvloop

        factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(
            _main(
                json.loads(options.spec.read_text()),
                verify=options.verify,
                fsync=not options.no_fsync,
                connections=options.connections,
            )
        )
