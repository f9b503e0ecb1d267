"""Which file counts as whole, and which one has room."""

from __future__ import annotations

import hashlib
import os
from collections import namedtuple
from pathlib import Path

import pytest

from supervisor.download.files import journal_path
from supervisor.download.storage import RESERVE_BYTES, ROOM_POLL_S, check_room, existing_file
from supervisor.download.verify import mark_verified
from supervisor.errors import DiskFullError, TransientTransferError
from tests.support.downloads import safetensors

DATA = safetensors(b"x" * 1000)
SHA256 = hashlib.sha256(DATA).hexdigest()


@pytest.mark.parametrize(
    ("size_bytes", "sha256", "whole"),
    [
        (len(DATA), None, True),
        (None, SHA256.upper(), True),
        (len(DATA), SHA256, True),
        (len(DATA) + 1, None, False),
        (len(DATA), "0" * 64, False),
        (None, None, False),  # nobody says what it should be
    ],
)
def test_a_file_is_whole_when_all_that_is_known_of_it_agrees(
    tmp_path: Path, size_bytes: int | None, sha256: str | None, whole: bool
) -> None:
    path = tmp_path / "model.bin"
    path.write_bytes(DATA)
    assert existing_file(path, size_bytes, sha256) == (len(DATA) if whole else None)


def test_a_safetensors_file_of_the_right_size_may_still_be_broken(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(bytes(len(DATA)))
    assert existing_file(path, len(DATA), None) is None


def test_a_mark_spares_the_hash_until_the_file_is_written_to(tmp_path: Path) -> None:
    path = tmp_path / "model.bin"
    path.write_bytes(DATA)
    fd = os.open(path, os.O_RDONLY)
    mark_verified(fd, "0" * 64)
    os.close(fd)
    if existing_file(path, None, "0" * 64) is None:
        pytest.skip("no extended attributes here")
    path.write_bytes(DATA[:-1] + b"y")
    os.utime(path, ns=(1, 1))  # within one tick of the clock two writes look alike
    assert existing_file(path, None, "0" * 64) is None


def test_what_a_crash_left_beside_a_whole_file_goes(tmp_path: Path) -> None:
    path = tmp_path / "model.bin"
    path.write_bytes(DATA)
    journal_path(path).write_bytes(b"old")
    assert existing_file(path, len(DATA), None) == len(DATA)
    assert not journal_path(path).exists()


def test_room_is_asked_for_with_a_reserve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    large, small = 10 * RESERVE_BYTES, 1000

    def disk(free: int) -> None:
        monkeypatch.setattr("shutil.disk_usage", lambda _: usage(0, 0, free))

    disk(large + RESERVE_BYTES)
    check_room(tmp_path / "model.bin", large)
    disk(large + RESERVE_BYTES - 1)
    with pytest.raises(DiskFullError, match="bytes more"):
        check_room(tmp_path / "model.bin", large)
    with pytest.raises(TransientTransferError) as caught:  # somebody may give it back
        check_room(tmp_path / "model.bin", large, begun=True)
    assert caught.value.retry_after_s == ROOM_POLL_S
    disk(2 * small)
    check_room(tmp_path / "model.bin", small)
