"""Layers of configuration laid over each other, remembering where each value came from."""

from __future__ import annotations

import json
import shlex
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from supervisor.config.keys import Key, KeyPath, Kind

Origin = str | Callable[[KeyPath], str]  # a TOML file finds its lines only when asked

TRUE_WORDS = frozenset({"true", "1", "yes", "on", "y", "t"})
FALSE_WORDS = frozenset({"false", "0", "no", "off", "n", "f"})


@dataclass(slots=True)
class Layers:
    """The merged tables, and the layer that each value is from."""

    tree: dict[str, Any] = field(default_factory=dict)
    origins: dict[KeyPath, Origin] = field(default_factory=dict)

    def put(self, path: KeyPath, value: Any, origin: Origin) -> None:
        """Lay ``value`` over what is at ``path``: tables merge, everything else replaces."""
        if isinstance(value, Mapping):
            if not path or self._table(path) is not None:
                for name, inner in value.items():
                    self.put((*path, name), inner, origin)
            return
        table = self._table(path[:-1])
        if table is None:
            return  # a lower layer has no table here: the models will say so
        table[str(path[-1])] = value
        for known in [known for known in self.origins if known[: len(path)] == path]:
            del self.origins[known]
        self.origins[path] = origin

    def get(self, path: KeyPath) -> Any:
        """Return the value at ``path`` or None."""
        found: Any = self.tree
        for name in path:
            found = found.get(name) if isinstance(found, dict) else None
        return found

    def origin(self, path: KeyPath) -> str | None:
        """Say where the value at ``path``, or the nearest thing around it, was set."""
        exact = self.set_at(path)
        if exact is not None:
            return exact
        for length in range(len(path), 0, -1):
            for known, origin in self.origins.items():
                if known[:length] == path[:length]:
                    return origin if isinstance(origin, str) else origin(path)
        return None

    def set_at(self, path: KeyPath) -> str | None:
        """Say where the value at ``path`` was set; None for a default."""
        for length in range(len(path), 0, -1):
            origin = self.origins.get(path[:length])
            if origin is not None:
                return origin if isinstance(origin, str) else origin(path)
        return None

    def _table(self, path: KeyPath) -> dict[str, Any] | None:
        table = self.tree
        for name in path:
            inner = table.setdefault(str(name), {})
            if not isinstance(inner, dict):
                return None
            table = inner
        return table


def value_from_text(text: str, key: Key) -> Any:
    """Turn the text of a variable or of ``--set`` into what the key's kind wants.

    Lists: JSON, or separated by commas; commands: JSON, or split like a shell does;
    tables: JSON or an inline TOML table. Texts with fixed choices ignore case.

    Raises:
        ValueError: a table or list that cannot be read.
    """
    text = text.strip()
    match key.kind:
        case Kind.TABLE | Kind.MAP:
            value = _structured(text)
            if not isinstance(value, dict):
                raise ValueError('must be a table, like {"key": "value"}')  # noqa: TRY004 - of text
            return value
        case Kind.LIST | Kind.COMMAND if text.startswith("["):
            return _structured(text)
        case Kind.COMMAND:
            return shlex.split(text)
        case Kind.LIST:
            return [part.strip() for part in text.split(",") if part.strip()]
        case _:
            lowered = text.lower()
            return lowered if lowered in key.choices() else text


def bool_from_text(text: str) -> bool:
    """Read a switch.

    Raises:
        ValueError: neither on nor off.
    """
    word = text.strip().lower()
    if word in TRUE_WORDS:
        return True
    if word in FALSE_WORDS:
        return False
    raise ValueError("must be true or false (also 1/0, yes/no, on/off)")


def _structured(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as json_error:
        try:
            return tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            raise ValueError(f"is not valid JSON: {json_error}") from None
