"""Bytes of a pipe to lines that a person can read. Pure apart from the time passed in."""

from __future__ import annotations

import re

# CSI (colours, cursor moves), OSC (titles, links) and two-byte escapes of ECMA-48.
_ESCAPES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[@-Z\\-_])")
_CONTROL = dict.fromkeys((*range(9), *range(11, 32), 127), "\N{REPLACEMENT CHARACTER}")
_HAS_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")


class LineSplitter:
    """Splits one stream into lines.

    A carriage return overwrites its line on a terminal: of the versions of a progress bar
    at most one a second is kept, and always the last one. A line that does not end is cut
    at ``max_line_bytes``, at a space where there is one near.
    """

    def __init__(self, *, max_line_bytes: int = 32768, progress_interval_s: float = 1.0) -> None:
        self._partial = b""
        self._max_line_bytes = max_line_bytes
        self._progress_interval_s = progress_interval_s
        self._last_progress_s = float("-inf")
        self._shown = False  # the partial line was shown by idle() already

    @property
    def pending(self) -> bool:
        """Whether an unfinished line is held back."""
        return bool(self._partial)

    def feed(self, data: bytes, now_s: float) -> list[bytes]:
        """Return the lines that ``data`` completes."""
        text = self._partial + data
        lines = text.split(b"\n")
        self._partial = lines.pop()
        shown, self._shown = self._shown, self._shown and not lines and not self._partial
        if shown and lines and not lines[0].rstrip(b"\r"):
            del lines[0]  # only the end of a line that idle() has shown
        if b"\r" in text:
            lines = [_final(line) for line in lines]
            lines += self._progress(now_s)
        while len(self._partial) > self._max_line_bytes:
            cut = self._partial.rfind(b" ", self._max_line_bytes // 2, self._max_line_bytes)
            cut = cut + 1 if cut >= 0 else self._max_line_bytes
            lines.append(self._partial[:cut])
            self._partial = self._partial[cut:]
        return lines

    def idle(self, now_s: float) -> list[bytes]:
        """Return the unfinished line, because nothing more came for a while."""
        if not (line := _final(self._partial)):
            return []
        self._partial = b""
        self._shown = True
        self._last_progress_s = now_s
        return [line]

    def skip(self, data: bytes) -> int:
        """Throw ``data`` away, keep its last unfinished line; return the bytes lost."""
        before = len(self._partial) + len(data)
        tail = data[data.rfind(b"\n") + 1 :]
        self._partial = tail if len(tail) <= self._max_line_bytes else b""
        return before - len(self._partial)

    def end(self) -> list[bytes]:
        """Return what is left when the stream has ended."""
        line = _final(self._partial)
        self._partial = b""
        return [line] if line else []

    def _progress(self, now_s: float) -> list[bytes]:
        """Drop the overwritten versions of the unfinished line; return one if it is due."""
        head, separator, tail = self._partial.rpartition(b"\r")
        if not separator:
            return []
        if not tail:  # may be the first half of \r\n: hold the version back
            tail = _final(head) + b"\r"
            head = head.rpartition(b"\r")[0]
        self._partial = tail
        line = _final(head)
        if not line or now_s - self._last_progress_s < self._progress_interval_s:
            return []
        self._last_progress_s = now_s
        return [line]


def _final(line: bytes) -> bytes:
    """What a terminal shows of a line with carriage returns: its last version."""
    return line.rstrip(b"\r").rpartition(b"\r")[2]


def to_text(lines: list[bytes]) -> str:
    """Decode lines into one printable text, joined by newlines.

    Invalid UTF-8 becomes ``\\xNN``, escape sequences vanish and other control characters
    are replaced, so that a log can neither break a terminal nor a parser.
    """
    text = b"\n".join(lines).decode("utf-8", "backslashreplace")
    if _HAS_CONTROL.search(text):
        text = _ESCAPES.sub("", text).translate(_CONTROL)
    return text
