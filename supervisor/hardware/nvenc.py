"""Which NVENC codecs really encode: a few frames through ffmpeg, one process per codec."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import anyio

from supervisor.hardware.facts import GpuFacts, NvencFacts

CODECS = ("h264_nvenc", "hevc_nvenc", "av1_nvenc")
FRAMES = 3
CACHE_FILE = "nvenc.json"

# The hardware refuses very small pictures (145 x 49 for H.264 on Turing and later).
SOURCE = "color=c=gray:s=256x256:r=25:d=1"


async def probe_nvenc(
    *, ffmpeg: str | None, environ: Mapping[str, str], timeout_s: float
) -> NvencFacts:
    """Try all codecs side by side; what has not ended after ``timeout_s`` counts as failed.

    Cancelling kills the encoders.
    """
    if ffmpeg is None:
        return NvencFacts(error="ffmpeg is not installed")
    results = dict.fromkeys(CODECS, f"no answer within {timeout_s:g} s")

    async def attempt(codec: str) -> None:
        results[codec] = await _encode(ffmpeg, codec, environ)

    with anyio.move_on_after(timeout_s if timeout_s > 0 else math.inf):
        async with anyio.create_task_group() as group:
            for codec in CODECS:
                group.start_soon(attempt, codec)
    reasons = {codec: reason for codec, reason in results.items() if reason}
    return NvencFacts(
        ffmpeg=ffmpeg,
        codecs={codec.removesuffix("_nvenc"): codec not in reasons for codec in CODECS},
        error=_summary(reasons),
    )


async def _encode(ffmpeg: str, codec: str, environ: Mapping[str, str]) -> str:
    """Why encoding failed; empty when it worked."""
    command = [
        ffmpeg, "-hide_banner", "-nostdin", "-loglevel", "error", "-f", "lavfi", "-i", SOURCE,
        "-frames:v", str(FRAMES), "-pix_fmt", "yuv420p", "-c:v", codec, "-f", "null", "-",
    ]  # fmt: skip
    try:
        done = await anyio.run_process(command, check=False, env=environ)
    except OSError as exc:
        return f"cannot run ffmpeg: {exc.strerror or exc}"
    if done.returncode == 0:
        return ""
    lines = [line.strip() for line in done.stderr.decode(errors="replace").splitlines()]
    telling = [line for line in lines if line]
    # The first line names the cause, those after it only say that the stream failed too.
    return telling[0] if telling else f"ffmpeg ended with {done.returncode}"


def _summary(reasons: Mapping[str, str]) -> str | None:
    """One sentence; a cause that all codecs share is named once."""
    if not reasons:
        return None
    causes = {_without_address(reason) for reason in reasons.values()}
    if len(causes) == 1 and len(reasons) == len(CODECS):
        return causes.pop()
    return "; ".join(f"{codec}: {_without_address(why)}" for codec, why in reasons.items())


def _without_address(line: str) -> str:
    """Drop ffmpeg's ``[h264_nvenc @ 0x55…]``, which differs from run to run."""
    head, bracket, tail = line.partition("] ")
    return tail if bracket and head.startswith("[") and "@ 0x" in head else line


def nvenc_identity(ffmpeg: str, gpu: GpuFacts) -> str:
    """Changes with ffmpeg, the driver or the GPUs: a kept result holds only for the same."""
    try:
        stat = Path(ffmpeg).stat()
        file = [ffmpeg, stat.st_size, stat.st_mtime_ns]
    except OSError:
        file = [ffmpeg]
    devices = [[device.name, device.uuid] for device in gpu.devices]
    text = json.dumps([file, gpu.driver, devices])
    return hashlib.sha256(text.encode()).hexdigest()


def load_nvenc(directory: Path, identity: str) -> NvencFacts | None:
    """A result of an earlier boot on the same hardware, so that services know it at once."""
    try:
        data = json.loads((directory / CACHE_FILE).read_text(encoding="utf-8"))
        if data["identity"] != identity:
            return None
        return NvencFacts(ffmpeg=str(data["ffmpeg"]), codecs=dict(data["codecs"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def store_nvenc(directory: Path, identity: str, facts: NvencFacts) -> None:
    """Keep a success; a failure may be passing (all encoder sessions taken) and is not kept."""
    if not facts.available:
        return
    data = {"identity": identity, "ffmpeg": facts.ffmpeg, "codecs": dict(facts.codecs)}
    path = directory / CACHE_FILE
    temporary = path.with_name(f"{path.name}.{os.getpid()}.new")
    try:
        directory.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps(data), encoding="utf-8")
        temporary.replace(path)
    except OSError:
        with suppress(OSError):  # a read-only file system refuses this too
            temporary.unlink(missing_ok=True)
