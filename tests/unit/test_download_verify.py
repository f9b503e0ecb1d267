"""Headers, web pages and marks."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from supervisor.download.transport import Link, NoRangeError, content_range, retry_after_s, show_url
from supervisor.download.verify import (
    MalformedFileError,
    check_file,
    check_not_html,
    mark_verified,
    sha256_of,
    verified_sha256,
)
from tests.support.downloads import safetensors


def _file(path: Path, header: object, payload: int) -> Path:
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(payload))
    return path


def test_a_whole_file_passes(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(safetensors(b"x" * 1000))
    check_file(path)
    check_file(_file(path, {"__metadata__": {"format": "pt"}}, 0))


@pytest.mark.parametrize(
    ("header", "payload"),
    [
        ({"a": {"data_offsets": [0, 10]}}, 9),
        ({"a": {"data_offsets": [0, 10]}}, 11),
        ({"a": {"data_offsets": [0, 4]}, "b": {"data_offsets": [5, 10]}}, 10),
        ({"a": {"data_offsets": [0, 6]}, "b": {"data_offsets": [5, 10]}}, 10),
        ({"a": {"data_offsets": [4, 0]}}, 0),
        ({"a": {}}, 0),
        ([1], 0),
        ("x", 0),
    ],
)
def test_a_damaged_file_is_told(tmp_path: Path, header: object, payload: int) -> None:
    with pytest.raises(MalformedFileError):
        check_file(_file(tmp_path / "a.safetensors", header, payload))


@pytest.mark.parametrize("data", [b"", b"1234567", b"\xff" * 8, (50).to_bytes(8, "little") + b"{}"])
def test_a_stub_is_told(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(data)
    with pytest.raises(MalformedFileError):
        check_file(path)


def test_web_pages_are_told_from_models() -> None:
    check_not_html(b"\x08\x00<html>", "a.bin")
    check_not_html(b"<html>", "page.html")
    with pytest.raises(MalformedFileError):
        check_not_html(b"\xef\xbb\xbf\r\n<!DocType HTML>", "a.bin")


def test_a_mark_holds_until_the_file_is_written_again(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"abc")
    assert verified_sha256(path) is None
    fd = os.open(path, os.O_RDWR)
    try:
        try:
            os.setxattr(fd, "user.probe", b"1")
        except OSError:
            pytest.skip("this file system keeps no attributes")
        mark_verified(fd, sha256_of(path))
    finally:
        os.close(fd)
    assert verified_sha256(path) == sha256_of(path)
    path.write_bytes(b"abd")
    os.utime(path, ns=(1, 1))
    assert verified_sha256(path) is None


def test_addresses_are_shown_without_secrets() -> None:
    shown = show_url("https://user:pw@host:8443/a/b.bin?X-Amz-Signature=s3cret#f")
    assert shown == "https://host:8443/a/b.bin"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, None),
        ("5", 5.0),
        ("-3", 0.0),
        ("nonsense", None),
        ("999999", 3600.0),
        ("inf", 3600.0),
        ("nan", None),
        ("Wed, 21 Oct 9999999999 07:28:00 GMT", None),
    ],
)
def test_retry_after(value: str | None, expected: float | None) -> None:
    assert retry_after_s(value) == expected
    assert retry_after_s("Wed, 21 Oct 2015 07:28:00 GMT") == 0.0


@pytest.mark.parametrize(
    "value",
    ["", "bytes", "bytes 5-4/9", "bytes -1-4/9", "items 0-4/9", "bytes 0-4/x", "bytes 0-9/5"],
)
def test_a_range_that_cannot_be_is_refused(value: str) -> None:
    link = Link("https://host/a", {})
    assert content_range("bytes 0-4/5", link) == (0, 4, 5)
    assert content_range("bytes 5-9/*", link) == (5, 9, None)
    with pytest.raises(NoRangeError):
        content_range(value, link)
