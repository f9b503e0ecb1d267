"""What the settings models know about a key: which kind of value belongs there.

Environment variables and ``--set`` carry text only, so the kind decides how a text
becomes a value, and whether it may be shown.
"""

from __future__ import annotations

import types
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum, StrEnum, auto
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import SecretStr
from pydantic.fields import FieldInfo

from supervisor.config.settings import Section, Settings

KeyPath = tuple[str | int, ...]

# Lists that are a program with its arguments; as text they are split like a shell does.
_COMMANDS = frozenset({"command", "exec"})


class Kind(StrEnum):
    """Shape of a value."""

    TABLE = auto()  # a section
    MAP = auto()  # a table with free keys
    LIST = auto()
    COMMAND = auto()
    SECRET = auto()
    SCALAR = auto()


@dataclass(frozen=True, slots=True)
class Key:
    """One place in the configuration; ``field`` is None below a map or list."""

    kind: Kind
    annotation: Any
    field: FieldInfo | None

    def choices(self) -> tuple[str, ...]:
        """Return the only texts that are allowed, or nothing when it is free."""
        members = _members(self.annotation)
        found: list[str] = []
        for member in members:
            if isinstance(member, type) and issubclass(member, Enum):
                found.extend(str(item.value) for item in member)
            elif get_origin(member) is Literal:
                found.extend(str(value) for value in get_args(member))
        return tuple(found)

    def wants_number(self) -> bool:
        """Whether numbers are the only values (a port, a time)."""
        kinds = {get_args(m)[0] if get_origin(m) is Annotated else m
                 for m in _members(self.annotation)}  # fmt: skip
        return bool(kinds) and kinds <= {int, float}

    def names(self) -> tuple[str, ...]:
        """Return the keys of a table; a map knows none in advance."""
        section = _section(self.annotation)
        return tuple(section.model_fields) if section else ()


def resolve(path: Sequence[str | int]) -> Key | None:
    """Find the key at ``path``; None when the models have no such place."""
    annotation: Any = Settings
    field: FieldInfo | None = None
    name: str | int = ""
    for name in path:
        section = _section(annotation)
        plain = _plain(annotation)
        if section is not None:
            field = section.model_fields.get(str(name))
            if field is None:
                return None
            annotation = field.annotation
        elif get_origin(plain) is dict:
            field, annotation = None, get_args(plain)[1]
        elif get_origin(plain) is tuple and isinstance(name, int):
            field, annotation = None, get_args(plain)[0]
        else:
            return None
    return Key(_kind(annotation, str(name)), annotation, field)


def secret_paths() -> Iterator[KeyPath]:
    """Yield every fixed key that holds a secret."""
    for path, field in walk():
        if _plain(field.annotation) is SecretStr:
            yield path


def walk(section: type[Section] = Settings, prefix: KeyPath = ()) -> Iterator[tuple[KeyPath, Any]]:
    """Yield path and field of every leaf below ``section``, maps and lists being leaves."""
    for name, field in section.model_fields.items():
        inner = _section(field.annotation)
        if inner is not None and _plain(field.annotation) is field.annotation:
            yield from walk(inner, (*prefix, name))
        else:
            yield (*prefix, name), field


def dotted(path: Sequence[str | int]) -> str:
    """Render a path as people write it: ``models.files[0].url``."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def about(path: Sequence[str | int]) -> str | None:
    """Say what the key at ``path``, or the nearest one around it, is for."""
    for length in range(len(path), 0, -1):
        key = resolve(path[:length])
        if key is not None and length == len(path) and key.kind is Kind.TABLE and key.names():
            return f"its keys are {', '.join(key.names())}"
        if key is None or key.field is None or not key.field.description:
            continue
        default = key.field.default
        if key.kind is Kind.SCALAR and isinstance(default, str | int | float):
            text = str(default).lower() if isinstance(default, bool) else default
            return f"{key.field.description} Default: {text}"
        return str(key.field.description)
    return None


def undotted(text: str) -> KeyPath:
    """Read what ``dotted`` wrote (but for names that hold a dot themselves)."""
    parts = text.replace("[", ".[").split(".")
    return tuple(int(p[1:-1]) if p.startswith("[") and p.endswith("]") else p for p in parts)


def _kind(annotation: Any, name: str) -> Kind:
    plain = _plain(annotation)
    if _section(annotation) is not None:
        return Kind.TABLE
    if get_origin(plain) is dict:
        return Kind.MAP
    if get_origin(plain) is tuple:
        return Kind.COMMAND if name in _COMMANDS else Kind.LIST
    return Kind.SECRET if plain is SecretStr else Kind.SCALAR


def _section(annotation: Any) -> type[Section] | None:
    plain = _plain(annotation)
    return plain if isinstance(plain, type) and issubclass(plain, Section) else None


def _members(annotation: Any) -> tuple[Any, ...]:
    if get_origin(annotation) in (Union, types.UnionType):
        return tuple(m for m in get_args(annotation) if m is not type(None))
    return (annotation,)


def _plain(annotation: Any) -> Any:
    """Drop the ``| None`` of an optional value."""
    members = _members(annotation)
    return members[0] if len(members) == 1 else annotation
