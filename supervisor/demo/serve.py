"""The model origin of ``supervisor demo``: ``python -m supervisor.demo.serve FRONT STORAGE``.

Serves on two inherited listening sockets (descriptor numbers) until standard input ends.
"""

from __future__ import annotations

import socket
import sys

import anyio

from supervisor.demo.media import safetensors
from supervisor.demo.origin import CivitaiFile, Fault, Origin, serve_origin
from supervisor.demo.world import MODELS, REPO

BYTES_PER_S = 6_000_000.0
"""Pace of one connection: slow enough to see the progress."""

ALWAYS = sys.maxsize


def demo_origin() -> Origin:
    """The origin with all models of the demo."""
    origin = Origin()
    for model in MODELS:
        content = safetensors(model.to, model.size_bytes)
        if model.civitai is not None:
            name = model.to.rpartition("/")[2]
            file = origin.add_civitai_version(model.civitai, CivitaiFile(name), content)
        else:
            file = origin.add_hub_file(REPO, model.to, content)
        if model.cut_after_bytes is not None:
            file.faults.append(Fault(cut_after=model.cut_after_bytes, bytes_per_s=BYTES_PER_S))
        file.faults.append(Fault(times=ALWAYS, bytes_per_s=BYTES_PER_S))
    return origin


async def serve(front: int, storage: int) -> None:
    """Serve until whoever started this is gone."""
    async with serve_origin(
        demo_origin(), front=socket.socket(fileno=front), storage=socket.socket(fileno=storage)
    ):
        await anyio.to_thread.run_sync(sys.stdin.buffer.read, abandon_on_cancel=True)


if __name__ == "__main__":
    anyio.run(serve, int(sys.argv[1]), int(sys.argv[2]))
