"""The history of boots: medians, its bound, and files that were damaged."""

from __future__ import annotations

from pathlib import Path

import pytest

from supervisor.monitor.history import KEPT_BOOTS, BootHistory


def test_median_of_each_span_over_the_boots_that_had_it(tmp_path: Path) -> None:
    history = BootHistory(tmp_path / "state" / "boots.json")
    assert history.median() == {}
    for spans in ({"plan": 1.0, "ready": 9.0}, {"plan": 2.0}, {"plan": 6.0, "ready": 10.0}):
        history.record(spans)
    assert BootHistory(tmp_path / "state" / "boots.json").median() == {"plan": 2.0, "ready": 9.5}


def test_old_boots_are_forgotten(tmp_path: Path) -> None:
    history = BootHistory(tmp_path / "boots.json")
    history.record({"ready": 1000.0, "gone": 1.0})
    for _ in range(KEPT_BOOTS):
        history.record({"ready": 2.0})
    assert history.median() == {"ready": 2.0}
    assert [path.name for path in tmp_path.iterdir()] == ["boots.json"]


@pytest.mark.parametrize(
    "content",
    [b"", b'{"boots": [{"rea', b"[]", b'{"boots": 3}', b"\xff\xfe", b'{"boots": [1, {"a": "x"}]}'],
)
def test_a_damaged_file_is_an_empty_one(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "boots.json"
    path.write_bytes(content)
    history = BootHistory(path)
    assert history.median() == {}
    history.record({"ready": 3.0})
    assert history.median() == {"ready": 3.0}
