"""The journal: nothing intact is lost, nothing torn is believed."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from supervisor.core.journal import Journal, decode, encode
from supervisor.errors import JournalError

if TYPE_CHECKING:
    from pathlib import Path

records = st.lists(
    st.dictionaries(st.text(max_size=8), st.one_of(st.integers(), st.text(max_size=20))),
    max_size=6,
)


@given(records, st.data())
def test_every_prefix_replays_to_a_prefix_of_the_records(
    written: list[dict[str, int | str]], data: st.DataObject
) -> None:
    whole = b"".join(encode(record) for record in written)
    cut = data.draw(st.integers(0, len(whole)))
    replayed, intact = decode(whole[:cut])
    assert replayed == written[: len(replayed)]
    assert intact <= cut
    assert whole[:intact] == b"".join(encode(record) for record in replayed)


@given(records.filter(bool), st.data())
def test_a_flipped_bit_never_yields_a_wrong_record(
    written: list[dict[str, int | str]], data: st.DataObject
) -> None:
    whole = bytearray(b"".join(encode(record) for record in written))
    position = data.draw(st.integers(0, len(whole) - 1))
    whole[position] ^= 1 << data.draw(st.integers(0, 7))
    replayed, _ = decode(bytes(whole))
    assert replayed == written[: len(replayed)]
    assert len(replayed) < len(written)


def test_reopening_drops_the_torn_tail_and_appends_after_it(tmp_path: Path) -> None:
    path = tmp_path / "j"
    with Journal(path) as journal:
        journal.append({"n": 1})
        journal.append({"n": 2})
    path.write_bytes(path.read_bytes()[:-3])
    with Journal(path) as journal:
        assert journal.records == [{"n": 1}]
        journal.append({"n": 3})
    with Journal(path) as journal:
        assert journal.records == [{"n": 1}, {"n": 3}]


def test_compaction_replaces_the_content_and_appending_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "j"
    with Journal(path) as journal:
        for n in range(5):
            journal.append({"n": n})
        journal.compact([{"n": 4}])
        journal.append({"n": 5})
    with Journal(path) as journal:
        assert journal.records == [{"n": 4}, {"n": 5}]
    assert [p.name for p in tmp_path.iterdir()] == ["j"]


def test_a_failed_write_leaves_the_journal_usable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "j"
    real_write = os.pwrite
    with Journal(path) as journal:
        journal.append({"n": 1})
        with monkeypatch.context() as patch:
            patch.setattr(os, "pwrite", lambda fd, data, at: real_write(fd, data[:5], at))
            with pytest.raises(JournalError, match="short write"):
                journal.append({"n": 2})
        journal.append({"n": 3})
    with Journal(path) as journal:
        assert journal.records == [{"n": 1}, {"n": 3}]


def test_an_unwritable_place_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(JournalError, match="Cannot open the journal") as caught:
        Journal(tmp_path / "file" / "j")
    assert caught.value.hint
