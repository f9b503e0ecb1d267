"""The configuration file: where it is looked for, and on which line each key stands."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from supervisor.config.keys import KeyPath
from supervisor.errors import ConfigError, ConfigProblem

SEARCH_PATHS = (Path("/etc/supervisor/supervisor.toml"), Path("supervisor.toml"))
_READABLE = "let the user of the supervisor read it: chmod +r"
_EXAMPLE = "`supervisor config docs` and the commented supervisor.toml show how it is written"
_POSITION = r"(.*) \(at (?:line (\d+), column (\d+)|end of document)\)"


def find_file(config: Path | None, environ: Mapping[str, str]) -> Path | None:
    """Find the file: ``--config``, ``SUPERVISOR_CONFIG``, /etc, the current folder.

    Raises:
        ConfigError: a file was asked for and is not there.
    """
    asked, source = config, "--config"
    if asked is None and environ.get("SUPERVISOR_CONFIG"):
        asked, source = Path(environ["SUPERVISOR_CONFIG"]), "SUPERVISOR_CONFIG"
    if asked is None:
        return next((path for path in SEARCH_PATHS if path.is_file()), None)
    if asked.is_file():
        return asked
    reason = "is not a file" if asked.exists() else "does not exist"
    problem = ConfigProblem(
        key=source,
        value=str(asked),
        source=source,
        reason=reason,
        hint="give the path of a supervisor.toml, or leave it out to use the defaults",
    )
    raise ConfigError(f"Cannot read {asked}: it {reason}", problems=(problem,))


def parse_file(path: Path) -> tuple[dict[str, Any], str]:
    """Return the tables of the file and its text.

    Raises:
        ConfigError: unreadable, not UTF-8, or not TOML (with line and column).
    """
    try:
        text = path.read_bytes().decode("utf-8-sig").replace("\r\n", "\n")
    except OSError as error:
        raise _unusable(path, str(path), f"cannot be read: {error.strerror}", _READABLE) from error
    except UnicodeDecodeError as error:
        raise _unusable(
            path, str(path), f"is not UTF-8: {error.reason}", "save it as UTF-8"
        ) from error
    try:
        return tomllib.loads(text), text
    except tomllib.TOMLDecodeError as error:
        match = re.fullmatch(_POSITION, str(error))
        where, reason = str(path), str(error)
        if match and match[2]:
            where, reason = f"{path}:{match[2]}:{match[3]}", match[1]
        elif match:
            where, reason = f"{path}:{text.count(chr(10)) + 1}", f"{match[1]} at the end"
        hint = 'text values need quotes: key = "value"' if "Invalid value" in reason else _EXAMPLE
        raise _unusable(path, where, f"is not valid TOML: {reason}", hint) from error
    except RecursionError as error:
        raise _unusable(path, str(path), "is nested too deeply", _EXAMPLE) from error


def _unusable(path: Path, where: str, reason: str, hint: str) -> ConfigError:
    problem = ConfigProblem(key=path.name, source=where, reason=reason, hint=hint)
    return ConfigError(f"Cannot use {where}: it {reason}", hint=hint, problems=(problem,))


def key_lines(text: str) -> dict[KeyPath, int]:
    """Map each key of a valid TOML text to its line, counted from 1.

    ``tomllib`` gives no positions, but a statement of TOML is the shortest run of lines
    that parses alone, and alone it has one key.
    """
    lines: dict[KeyPath, int] = {}
    table: KeyPath = ()
    counts: dict[KeyPath, int] = {}
    for number, parsed, header in _statements(text):
        if header is None:
            for path in _paths(parsed):
                lines.setdefault((*table, *path), number)
            continue
        named = _last_table(parsed, counts)
        if header == "[[":
            counts[named] = counts.get(named, -1) + 1
            table = (*named, counts[named])
        else:
            table = named
        for length in range(1, len(table) + 1):
            lines.setdefault(table[:length], number)
    return lines


def _statements(text: str) -> Iterator[tuple[int, dict[str, Any], str | None]]:
    start, held = 1, ""
    for number, line in enumerate(text.split("\n"), start=1):
        if not held:
            start = number
            if not line.strip() or line.lstrip().startswith("#"):
                continue
        held += line + "\n"
        try:
            parsed = tomllib.loads(held)
        except tomllib.TOMLDecodeError:
            continue  # a list or text that goes on
        stripped = held.lstrip()
        header = "[[" if stripped.startswith("[[") else "[" if stripped.startswith("[") else None
        yield start, parsed, header
        held = ""


def _last_table(parsed: dict[str, Any], counts: Mapping[KeyPath, int]) -> KeyPath:
    """Return the path a header names; steps through lists take their latest item."""
    path: KeyPath = ()
    node: Any = parsed
    while node:
        if isinstance(node, list):
            node = node[0]
            continue
        name, node = next(iter(node.items()))
        if path in counts:
            path = (*path, counts[path])
        path = (*path, name)
    return path


def _paths(value: Any) -> Iterator[KeyPath]:
    items: list[tuple[str | int, Any]] = []
    if isinstance(value, dict):
        items = list(value.items())
    elif isinstance(value, list):
        items = list(enumerate(value))
    for name, inner in items:
        yield (name,)
        for path in _paths(inner):
            yield (name, *path)
