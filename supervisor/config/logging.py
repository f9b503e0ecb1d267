"""How the supervisor's own log lines look: for people on a console, or as JSON."""

from __future__ import annotations

import json
import logging
import os
import select
import sys
import traceback
from typing import Any, TextIO

from supervisor.config.redaction import Redactor
from supervisor.core.clock import iso_utc

__all__ = ["Redactor", "setup_logging"]

ROOT = "supervisor"
_COLORS = {logging.DEBUG: "2", logging.WARNING: "33", logging.ERROR: "31", logging.CRITICAL: "31"}
_AT_ONCE_BYTES = select.PIPE_BUF  # a pipe that polls as writable takes so many without waiting
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


def setup_logging(
    *,
    level: str = "info",
    log_format: str = "console",
    redactor: Redactor | None = None,
    stream: TextIO | None = None,
    color: bool | None = None,
) -> None:
    """Send everything below the logger ``supervisor`` to ``stream`` (standard error).

    Libraries are heard from ``warning`` on. ``color`` None = when the stream is a
    terminal; the caller passes False when NO_COLOR is set (https://no-color.org). May be
    called again, for instance once the configuration has been read.
    """
    target = stream if stream is not None else sys.stderr
    if color is None:
        color = target.isatty()
    redact = redactor if redactor is not None else Redactor()
    handler = _Handler(target)
    shape = _JsonFormatter(redact) if log_format == "json" else _ConsoleFormatter(redact, color)
    handler.setFormatter(shape)
    root = logging.getLogger()
    for old in [h for h in root.handlers if getattr(h, "from_supervisor", False)]:
        root.removeHandler(old)
    handler.from_supervisor = True  # type: ignore[attr-defined]
    root.addHandler(handler)
    root.setLevel(logging.WARNING)
    logging.getLogger(ROOT).setLevel(level.upper())
    logging.captureWarnings(capture=True)


class _Handler(logging.StreamHandler[TextIO]):
    """Never waits for a reader: the event loop logs, and a container's log may stand still.

    What the reader does not take is dropped, counted, and said when it reads again.
    """

    def __init__(self, stream: TextIO) -> None:
        super().__init__(stream)
        self._lost = 0
        self._torn = False
        try:
            self._descriptor = stream.fileno()
        except (OSError, ValueError, AttributeError):
            self._descriptor = -1  # in memory
        else:
            self._ready = select.poll()
            self._ready.register(self._descriptor, select.POLLOUT)

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record, or count it as lost."""
        if self._descriptor < 0:
            super().emit(record)
            return
        try:
            text = self.format(record) + self.terminator
            if self._lost:
                line = f"{self._lost} lines of this log are lost: nobody was reading"
                text = ("\n" if self._torn else "") + line + self.terminator + text
            self.flush()
            if self._write(text.encode("utf-8", "backslashreplace")):
                self._lost, self._torn = 0, False
            else:
                self._lost += 1
        except OSError:
            self._lost += 1  # the reader has gone
        except Exception:  # noqa: BLE001 - what logging does with a record that cannot be shown
            self.handleError(record)

    def _write(self, data: bytes) -> bool:
        """Return whether all of it was taken."""
        view = memoryview(data)
        while view:
            if not self._ready.poll(0):
                self._torn = self._torn or len(view) < len(data)
                return False
            view = view[os.write(self._descriptor, view[:_AT_ONCE_BYTES]) :]
        return True


class _ConsoleFormatter(logging.Formatter):
    """``12:34:56 warning sync: message``."""

    def __init__(self, redactor: Redactor, color: bool) -> None:
        super().__init__()
        self._redactor = redactor
        self._color = color

    def format(self, record: logging.LogRecord) -> str:
        clock = iso_utc(record.created)[11:19]
        word = record.levelname.lower()
        text = self._redactor.redact(f"{_area(record)}: {record.getMessage()}{_trace(record)}")
        # A message may come from outside (a server's answer): one line stays one line, and
        # no escape sequence reaches the terminal. Tracebacks are our own lines.
        text = "\n".join(_printable(line) for line in text.split("\n"))
        line = f"{clock} {word:<7} {text}"
        code = _COLORS.get(record.levelno)
        return f"\x1b[{code}m{line}\x1b[0m" if self._color and code else line


class _JsonFormatter(logging.Formatter):
    """One object per line: at, level, area, message, and the record's extra fields."""

    def __init__(self, redactor: Redactor) -> None:
        super().__init__()
        self._redactor = redactor

    def format(self, record: logging.LogRecord) -> str:
        shown: dict[str, Any] = {
            "at": iso_utc(record.created),
            "level": record.levelname.lower(),
            "area": _area(record),
            "message": record.getMessage(),
        }
        for name, value in vars(record).items():
            if name not in _STANDARD and name not in shown:
                shown[name] = value
        trace = _trace(record)
        if trace:
            shown["traceback"] = trace.lstrip("\n")
        redacted = {name: self._redact(value) for name, value in shown.items()}
        return json.dumps(redacted, default=str, ensure_ascii=False)

    def _redact(self, value: Any) -> Any:
        """Redact before encoding, so that a mask can never break the JSON."""
        if isinstance(value, dict):
            return {str(k): self._redact(v) for k, v in value.items()}
        if isinstance(value, list | tuple | set | frozenset):
            return [self._redact(v) for v in value]
        if value is None or isinstance(value, bool | int | float):
            return value
        return self._redactor.redact(str(value))


def _area(record: logging.LogRecord) -> str:
    return record.name.removeprefix(f"{ROOT}.")


def _trace(record: logging.LogRecord) -> str:
    if not record.exc_info or record.exc_info[0] is None:
        return ""
    return "\n" + "".join(traceback.format_exception(*record.exc_info)).rstrip()


def _printable(line: str) -> str:
    if line.isprintable():
        return line
    return "".join(c if c.isprintable() or c == "\t" else repr(c)[1:-1] for c in line)
