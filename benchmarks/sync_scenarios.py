"""What the writers of ``benchmarks.sync`` do to the output folder."""

from __future__ import annotations

import hashlib
import os
import struct
import threading
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

MIB = 1024 * 1024


@dataclass
class Written:
    """What the writer did: the last content and close of every file."""

    sha256: dict[str, str] = field(default_factory=dict)
    closed_at: dict[str, float] = field(default_factory=dict)

    def note(self, name: str, digest: str) -> None:
        """Remember a file at the moment it was closed."""
        self.closed_at[name] = time.time()
        self.sha256[name] = digest


def png(size: int, seed: int) -> bytes:
    """Build a whole PNG of about so many bytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + checksum

    noise = os.urandom(min(size, 4096)) * max(1, size // 4096) + seed.to_bytes(4, "big")
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", noise) + chunk(b"IEND", b"")


def images(source: Path, done: Written, scale: float) -> None:
    """200 images of 1.5 MB over 20 s."""
    for number in range(int(200 * scale)):
        data = png(1_500_000, number)
        (source / f"image_{number:05}.png").write_bytes(data)
        done.note(f"image_{number:05}.png", hashlib.sha256(data).hexdigest())
        time.sleep(0.1)


def burst(source: Path, done: Written, scale: float) -> None:
    """2 000 small files at once."""
    for number in range(int(2000 * scale)):
        data = png(4096, number)
        (source / f"small_{number:05}.png").write_bytes(data)
        done.note(f"small_{number:05}.png", hashlib.sha256(data).hexdigest())


def video(source: Path, done: Written, scale: float) -> None:
    """A video of 2 GB that grows over 20 s, its moov box written last."""
    steps, piece = int(200 * scale), os.urandom(10 * MIB)
    digest = hashlib.sha256()
    with (source / "video.mp4").open("wb") as file:
        boxes = [struct.pack(">I4s", 16, b"ftyp") + b"isom\0\0\2\0"]
        boxes.append(struct.pack(">I4sQ", 1, b"mdat", steps * len(piece) + 16))
        for data in boxes:
            file.write(data)
            digest.update(data)
        for _ in range(steps):
            file.write(piece)
            digest.update(piece)
            time.sleep(0.07)
        tail = struct.pack(">I4s", 24, b"moov") + b"\0" * 16
        file.write(tail)
        digest.update(tail)
        result = digest.hexdigest()
    done.note("video.mp4", result)


def nested(source: Path, done: Written, scale: float) -> None:
    """200 files, each at once in a new folder of a new folder."""
    for number in range(int(200 * scale)):
        folder = source / f"run{number}" / "deep"
        folder.mkdir(parents=True)
        data = png(100_000, number)
        (folder / "x.png").write_bytes(data)
        done.note(f"run{number}/deep/x.png", hashlib.sha256(data).hexdigest())


def slow(source: Path, done: Written, scale: float) -> None:
    """20 files that are written in four pieces over 4 s, side by side."""

    def write(number: int) -> None:
        data = png(400_000, number)
        with (source / f"slow_{number}.png").open("wb") as file:
            for start in range(0, len(data), 110_000):
                file.write(data[start : start + 110_000])
                file.flush()
                time.sleep(1)
        done.note(f"slow_{number}.png", hashlib.sha256(data).hexdigest())

    threads = [threading.Thread(target=write, args=(n,)) for n in range(int(20 * scale))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def rewrites(source: Path, done: Written, scale: float) -> None:
    """50 files, each written five times, a second and a half apart."""
    for turn in range(5):
        for number in range(int(50 * scale)):
            data = png(100_000, turn * 1000 + number)
            (source / f"again_{number}.png").write_bytes(data)
            done.note(f"again_{number}.png", hashlib.sha256(data).hexdigest())
        time.sleep(1.5)


SCENARIOS: dict[str, Callable[[Path, Written, float], None]] = {
    "images": images, "burst": burst, "video": video, "nested": nested, "slow": slow,
    "rewrites": rewrites,
}  # fmt: skip
