"""Files of real encoders: a whole one is never taken for cut, a cut one never for whole."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import struct
import subprocess
import time
from pathlib import Path

import pytest

from supervisor.sync.formats import fault_of
from tests.conftest import require

_VIDEO = ("-f", "lavfi", "-i", "testsrc2=s=160x120:r=12:d=1")
_SOUND = ("-f", "lavfi", "-i", "sine=d=1")
_ENCODED: dict[str, tuple[str, ...]] = {
    "a.png": (*_VIDEO, "-frames:v", "1"),
    "a.apng": (*_VIDEO, "-plays", "0"),
    "a.jpg": (*_VIDEO, "-frames:v", "1"),
    "a.gif": _VIDEO,
    "a.webp": (*_VIDEO, "-frames:v", "1"),
    "loop.webp": _VIDEO,
    "a.mp4": (*_VIDEO, *_SOUND, "-preset", "ultrafast"),
    "fast.mp4": (*_VIDEO, "-preset", "ultrafast", "-movflags", "+faststart"),
    "a.mov": (*_VIDEO, "-preset", "ultrafast"),
    "a.m4a": _SOUND,
    "a.webm": (*_VIDEO, "-c:v", "libvpx", "-deadline", "realtime"),
    "live.webm": (*_VIDEO, "-c:v", "libvpx", "-deadline", "realtime", "-live", "1"),
    "a.mkv": (*_VIDEO, "-preset", "ultrafast"),
    "a.wav": _SOUND,
    "rf64.wav": (*_SOUND, "-rf64", "always"),
    "a.flac": _SOUND,
    "low.flac": (*_SOUND, "-ar", "8000"),
    "a.mp3": _SOUND,
    "low.mp3": (*_SOUND, "-ar", "22050"),
    "a.ogg": (*_SOUND, "-c:a", "libvorbis"),
    "a.opus": _SOUND,
}  # fmt: skip


def _ffmpeg(*arguments: str) -> list[str]:
    require(available=shutil.which("ffmpeg") is not None, what="ffmpeg")
    return ["ffmpeg", "-v", "error", "-y", "-threads", "1", *arguments]


def _missed(path: Path, whole: bytes, sizes: set[int]) -> list[int]:
    """Return the sizes to which the file can be cut without anybody seeing it."""
    missed = []
    for size in sorted(sizes):
        path.write_bytes(whole[:size])
        if fault_of(path) is None:
            missed.append(size)
    return missed


@pytest.mark.parametrize("name", _ENCODED)
def test_a_cut_is_seen_wherever_it_is(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    subprocess.run(_ffmpeg(*_ENCODED[name], str(path)), check=True, timeout=60)
    assert fault_of(path) is None
    whole = path.read_bytes()
    rng = random.Random(name)
    sizes = {rng.randrange(len(whole)) for _ in range(25)}
    assert _missed(path, whole, sizes | {0, 1, 4, 48, len(whole) - 1}) == []


@pytest.mark.parametrize("name", ["a.wav", "a.flac", "a.mp3", "a.mkv"])
def test_what_came_through_a_pipe_is_whole_though_its_sizes_are_unknown(
    tmp_path: Path, name: str
) -> None:
    kind = {"mkv": "matroska"}.get(name[2:], name[2:])
    source = _VIDEO if name == "a.mkv" else _SOUND
    command = _ffmpeg(*source, "-f", kind, "-")
    data = subprocess.run(command, check=True, timeout=60, stdout=subprocess.PIPE).stdout
    path = tmp_path / name
    path.write_bytes(data)
    assert fault_of(path) is None


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.gif", "a.mp3", "a.opus"])
def test_what_a_killed_encoder_leaves_is_broken(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    source = _SOUND if name in ("a.mp3", "a.opus") else _VIDEO
    endless = [part.removesuffix(":d=1").replace("sine=d=1", "sine") for part in source]
    with subprocess.Popen(
        _ffmpeg(*endless, "-flush_packets", "1", str(path)), stdin=subprocess.DEVNULL
    ) as encoder:
        while not (path.exists() and path.stat().st_size):
            assert encoder.poll() is None
            time.sleep(0.01)
        encoder.send_signal(signal.SIGKILL)
    assert fault_of(path)


_THUMBNAIL = b"Exif\0\0II*\0\x08\0\0\0" + b"\xff\xd8 a small one \xff\xd9"
_JPEG = b"".join([
    b"\xff\xd8", b"\xff\xe1", struct.pack(">H", 2 + len(_THUMBNAIL)), _THUMBNAIL,
    b"\xff\xda\0\x08\1\1\0\0\x3f\0", b"picture \xff\0 \xff\xd0 more" * 20,
    b"\xff\xd9",
])  # fmt: skip
_GIF = b"GIF89a\1\0\1\0\0\0\0,\0\0\0\0\1\0\1\0\0\2\x20;;;;;;;;;;;;;;;;;;;;;;;;;;;;;;;;\0;"
_HEADER = json.dumps({"latent": {"dtype": "F32", "shape": [8], "data_offsets": [0, 32]}}).encode()
_MADE = {
    "thumbnail.jpg": _JPEG,
    "semicolons.gif": _GIF,
    "a.glb": struct.pack("<4sII", b"glTF", 2, 112) + b"x" * 100,
    "a.latent": struct.pack("<Q", len(_HEADER)) + _HEADER + b"x" * 32,
}


@pytest.mark.parametrize("name", _MADE)
def test_an_end_mark_in_the_middle_is_not_the_end(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(_MADE[name])
    assert fault_of(path) is None
    assert _missed(path, _MADE[name], set(range(len(_MADE[name])))) == []


def test_data_behind_the_end_does_no_harm(tmp_path: Path) -> None:
    for name in ("thumbnail.jpg", "semicolons.gif"):
        path = tmp_path / name
        path.write_bytes(_MADE[name] + os.urandom(100_000))
        assert fault_of(path) is None


def test_a_wav_whose_header_was_never_corrected_is_broken(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    head = b"RIFF" + struct.pack("<I", 36) + b"WAVEfmt " + struct.pack("<IHHIIHH", 16, 1, 1, 8000,
                                                                       16000, 2, 16)  # fmt: skip
    path.write_bytes(head + b"data\0\0\0\0" + b"x" * 100_000)
    assert fault_of(path)


@pytest.mark.parametrize("name", [*_ENCODED, *_MADE])
def test_noise_is_refused_and_never_raises(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    rng = random.Random(name)
    for size in (1, 7, 30, 3000):
        path.write_bytes(rng.randbytes(size))
        assert fault_of(path) or name.endswith(".mp3")  # tags may stand before its frames
        path.write_bytes(_MADE.get(name, b"")[:12] + rng.randbytes(size))
        fault_of(path)
