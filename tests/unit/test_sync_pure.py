"""Names, formats and verdicts: no loop, no target."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from supervisor.config.settings import SyncSection
from supervisor.sync.examine import Facts, Verdict, Watched, judge
from supervisor.sync.formats import fault_of
from supervisor.sync.keys import (
    MAX_KEY_BYTES,
    NameFilter,
    alternative_key,
    build_key,
    clean_path,
    content_type,
    day_of,
    metadata_value,
    restored_path,
)
from supervisor.sync.metadata import png_metadata
from supervisor.sync.model import Identity
from tests.support.sync import mp4, png

_TEMPLATE = "{prefix}/{date}/{path}"


def _key(path: str, template: str = _TEMPLATE) -> str:
    return build_key(template, prefix="outputs", day="2026-01-02", path=path)


def test_a_key_keeps_sub_folders_and_the_day() -> None:
    assert _key("video/a b.mp4") == "outputs/2026-01-02/video/a b.mp4"


def test_the_template_is_free() -> None:
    key = _key("video/a.mp4", "{prefix}/{year}/{month}/{folder}/{stem}.x{suffix}")
    assert key == "outputs/2026/01/video/a.x.mp4"


@pytest.mark.parametrize("template", ["{prefix}/{date}", "{path}/{nope}"])
def test_a_template_that_cannot_work_is_refused(template: str) -> None:
    with pytest.raises(ValidationError):
        SyncSection(key_template=template)


def test_the_day_is_the_one_of_the_zone() -> None:
    late = int(datetime(2026, 1, 2, 23, 30, tzinfo=UTC).timestamp() * 1e9)
    assert day_of(late) == "2026-01-02"
    assert day_of(late, ZoneInfo("Europe/Paris")) == "2026-01-03"


@given(st.binary(min_size=1, max_size=255).filter(lambda b: b"/" not in b and b"\0" not in b))
def test_every_name_a_file_system_allows_becomes_a_usable_key(raw: bytes) -> None:
    key = _key("folder/" + os.fsdecode(raw))
    encoded = key.encode()  # strict: raises for what is not UTF-8
    assert len(encoded) <= MAX_KEY_BYTES
    assert all(len(part.encode()) <= 255 for part in key.split("/"))
    assert all(ord(c) >= 0x20 for c in key)
    assert len(alternative_key(key, "ab" * 32).rsplit("/", 1)[-1].encode()) <= 255


_NAMES = st.binary(max_size=60) | st.text("%25AFf0é\n", max_size=20).map(os.fsencode)


@given(_NAMES.map(os.fsdecode), _NAMES.map(os.fsdecode))
def test_names_in_keys_stay_apart_and_come_back(one: str, other: str) -> None:
    assert restored_path(clean_path(one)) == one
    assert (clean_path(one) == clean_path(other)) is (one == other)


@given(st.lists(st.text("aé", min_size=100, max_size=120), min_size=8, max_size=12))
def test_a_path_that_is_too_long_is_cut_and_keeps_its_name(parts: list[str]) -> None:
    key = _key("/".join(parts) + "/name.png")
    assert len(key.encode()) <= MAX_KEY_BYTES
    assert key.endswith("/name.png")


def test_alternative_keys_differ_by_content_and_are_stable() -> None:
    one, two = alternative_key("a/x.png", "1" * 64), alternative_key("a/x.png", "2" * 64)
    assert one == alternative_key("a/x.png", "1" * 64) == "a/x-111111111111.png"
    assert one != two


def test_names_are_matched_without_case_and_temporary_ones_are_left_out() -> None:
    names = NameFilter(("*.png",), ("*.tmp", ".*"))
    assert names.wants("A.PNG")
    assert not names.wants(".hidden.png")
    assert not names.wants("a.png.tmp")
    assert not NameFilter((), ()).wants("a.png")


def test_content_types_and_metadata_are_what_headers_allow() -> None:
    assert content_type("a.WEBP") == "image/webp"
    assert content_type("a.unknown") == "application/octet-stream"
    assert metadata_value("ü\n").isascii()
    assert "\n" not in metadata_value("ü\n")


def test_an_mp4_of_48_bytes_is_not_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    path.write_bytes(mp4(b"x" * 20, moov=False)[:48])
    assert fault_of(path)


def test_unknown_formats_count_as_whole(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"")
    assert fault_of(tmp_path / "a.txt") is None


def test_a_png_tells_its_prompt() -> None:
    whole = png(prompt='{"1": {}}', workflow='{"extra": {"prompt_id": "abc"}}')
    found = png_metadata(BytesIO(whole))
    assert found["prompt-id"] == "abc"
    assert len(found["prompt-hash"]) == len(found["workflow-hash"]) == 32
    assert png_metadata(BytesIO(whole[:20])) == {}


_ID = Identity(1, 10, 100)
_NEWER = Identity(1, 11, 101)


def test_verdicts() -> None:
    ready = Facts("x", _ID)
    assert judge(Facts("x"), None, now=0)[0] is Verdict.GONE
    assert judge(Facts("x", _ID, known=True), None, now=0)[0] is Verdict.KNOWN
    assert judge(ready, None, now=0)[0] is Verdict.READY
    assert judge(Facts("x", _ID, writers=True), None, now=0, final=True)[0] is Verdict.WAIT


def test_a_quiet_period_starts_again_when_the_file_changes() -> None:
    facts = Facts("x", _ID, quiet_s=5.0)
    verdict, watched = judge(facts, None, now=0)
    assert verdict is Verdict.WAIT
    assert watched is not None
    assert judge(facts, watched, now=4.9)[0] is Verdict.WAIT
    assert judge(facts, watched, now=5.0)[0] is Verdict.READY
    assert judge(Facts("x", _NEWER, quiet_s=5.0), watched, now=5.0)[0] is Verdict.WAIT


def test_a_broken_file_gets_its_grace() -> None:
    facts = Facts("x", _ID, fault="cut")
    watched = Watched(_ID, 0.0, 0.0, writers=False)
    assert judge(facts, watched, now=9.0)[0] is Verdict.WAIT
    assert judge(facts, watched, now=10.0)[0] is Verdict.BROKEN
    assert judge(facts, None, now=0.0, final=True)[0] is Verdict.BROKEN
