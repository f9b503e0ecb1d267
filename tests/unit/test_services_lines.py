"""Bytes to lines: half lines, progress bars, rubbish, floods."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from supervisor.services.lines import LineSplitter, to_text


def test_half_lines_are_joined_and_the_rest_comes_at_the_end() -> None:
    splitter = LineSplitter()
    assert splitter.feed(b"a", 0) == []
    assert splitter.feed(b"b\ncd\r", 0) == [b"ab"]
    assert splitter.feed(b"\nlast", 0) == [b"cd"]
    assert splitter.pending
    assert splitter.end() == [b"last"]
    assert not splitter.pending


def test_a_pause_shows_a_prompt_once_and_its_newline_adds_no_blank_line() -> None:
    splitter = LineSplitter()
    assert splitter.feed(b"Password: ", 0) == []
    assert splitter.idle(1) == [b"Password: "]
    assert splitter.idle(2) == []
    assert splitter.feed(b"\n\nnext\n", 3) == [b"", b"next"]


def test_a_progress_bar_is_thinned_and_keeps_its_last_version() -> None:
    splitter = LineSplitter()
    shown: list[bytes] = []
    for step in range(101):
        shown += splitter.feed(b"\r%3d%%|bar" % step, step / 20)
    shown += splitter.feed(b"\nDone\n", 5.1)
    assert shown[-2:] == [b"100%|bar", b"Done"]
    assert 5 <= len(shown) <= 8
    assert shown == [*sorted(shown[:-1]), b"Done"]


def test_a_slow_bar_is_shown_by_its_pauses() -> None:
    splitter = LineSplitter()
    assert splitter.feed(b"\r 10%", 0) == []
    assert splitter.idle(1) == [b" 10%"]
    assert splitter.feed(b"\r 20%", 5) == []
    assert splitter.idle(6) == [b" 20%"]
    assert splitter.feed(b"\r\n", 7) == []


def test_an_endless_line_is_cut_at_a_space() -> None:
    splitter = LineSplitter(max_line_bytes=10)
    assert splitter.feed(b"aaaa bbb cccc dddd", 0) == [b"aaaa bbb "]
    assert splitter.feed(b"x" * 25, 0) == [b"cccc ddddx", b"x" * 10, b"x" * 10]
    assert splitter.end() == [b"xxxx"]


def test_skipping_counts_what_is_lost_and_keeps_the_beginning_of_a_line() -> None:
    splitter = LineSplitter()
    splitter.feed(b"half", 0)
    assert splitter.skip(b" gone\nalso gone\nkept") == len(b"half gone\nalso gone\n")
    assert splitter.feed(b" whole\n", 0) == [b"kept whole"]


def test_text_is_printable_whatever_came() -> None:
    assert to_text([b"ok \xff\xfe", "grün".encode()]) == "ok \\xff\\xfe\ngrün"
    assert to_text([b"\x1b[31mred\x1b[0m \x1b]0;title\x07x\x1b[2K"]) == "red x"
    assert to_text([b"a\x00b\x08\x7fc\td"]) == "a\ufffdb\ufffd\ufffdc\td"


@given(st.lists(st.binary(max_size=30)), st.binary(max_size=10))
def test_nothing_but_overwritten_text_is_lost(chunks: list[bytes], last: bytes) -> None:
    splitter = LineSplitter()
    chunks = [chunk.replace(b"\r", b"") for chunk in (*chunks, last)]
    lines = [line for chunk in chunks for line in splitter.feed(chunk, 0)]
    assert b"\n".join([*lines, *(splitter.end() or [b""])]) == b"".join(chunks)


@given(st.lists(st.binary(max_size=40)))
def test_any_bytes_become_clean_lines(chunks: list[bytes]) -> None:
    splitter = LineSplitter()
    for now_s, chunk in enumerate(chunks):
        for line in splitter.feed(chunk, now_s):
            assert b"\n" not in line
            assert not set(to_text([line])) & {"\r", "\x1b", "\x00"}
