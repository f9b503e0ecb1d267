"""From what the models refuse to what a person can act on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from supervisor.config.keys import KeyPath, Kind, dotted, resolve
from supervisor.config.layers import Layers
from supervisor.config.secrets import is_secret_name
from supervisor.errors import ConfigProblem

_REASONS = {
    "bool": "must be true or false",
    "int": "must be a whole number",
    "float": "must be a number",
    "finite_number": "must be a finite number",
    "string_type": "must be text, in quotes",
    "path_type": "must be a path, in quotes",
    "tuple_type": 'must be a list, like ["a", "b"]',
    "list_type": 'must be a list, like ["a", "b"]',
    "dict_type": "must be a table",
    "model_type": "must be a table",
    "missing": "is required",
    "extra_forbidden": "is not known here",
}
_LONGEST_VALUE = 80


def problems_of(error: ValidationError, layers: Layers) -> list[ConfigProblem]:
    """Turn every fault that the models found into a problem, one per key."""
    found: dict[KeyPath, ConfigProblem] = {}
    for details in error.errors(include_url=False):
        path = _known_part(details)
        found.setdefault(path, _problem(path, details, layers))
    return list(found.values())


def nearest(name: str, names: Iterable[str], *, cutoff: float = 0.6) -> str | None:
    """Suggest the known name that looks most like ``name``, as a hint."""
    match = nearest_name(name, names, cutoff=cutoff)
    return f"did you mean {match}?" if match else None


def nearest_name(name: str, names: Iterable[str], *, cutoff: float = 0.6) -> str | None:
    """Return the known name that looks most like ``name``."""
    import difflib  # noqa: PLC0415 - only a configuration with errors pays for it

    known = list(names)
    # Letters that have changed places are the likeliest typo, and difflib rates them low.
    swapped = [each for each in known if sorted(each) == sorted(name)]
    matches = swapped or difflib.get_close_matches(name, known, n=1, cutoff=cutoff)
    return matches[0] if matches else None


def shown(path: Sequence[str | int], value: Any) -> str | None:
    """Render a value for people; ``***`` where a secret belongs."""
    if value is None:
        return None
    key = resolve(path)
    free = key is None or key.field is None  # the models' own keys tell it by their type
    if (key is not None and key.kind is Kind.SECRET) or (free and is_secret_name(str(path[-1]))):
        return "***"
    if isinstance(value, Mapping):
        inner = ", ".join(f"{k} = {shown((*path, k), v)}" for k, v in value.items())
        text = f"{{ {inner} }}"
    elif isinstance(value, list | tuple):
        text = "[" + ", ".join(str(shown((*path, i), v)) for i, v in enumerate(value)) + "]"
    elif isinstance(value, bool):
        text = str(value).lower()
    else:
        from supervisor.config.redaction import Redactor  # noqa: PLC0415 - see nearest_name

        text = f'"{Redactor().redact(value)}"' if isinstance(value, str) else str(value)
    text = text.encode("utf-8", "backslashreplace").decode()  # a variable may hold any bytes
    return text if len(text) <= _LONGEST_VALUE else f"{text[: _LONGEST_VALUE - 1]}…"


def _known_part(details: ErrorDetails) -> KeyPath:
    """Cut off what pydantic appends for the members of a union or the key of a map."""
    location = details["loc"]
    if details["type"] in ("extra_forbidden", "missing"):
        return location
    for length in range(len(location), 0, -1):
        if resolve(location[:length]) is not None:
            return location[:length]
    return location


def _problem(path: KeyPath, details: ErrorDetails, layers: Layers) -> ConfigProblem:
    kind = details["type"]
    if kind == "extra_forbidden":
        return _unknown_key(path, details["input"], layers)
    key = resolve(path)
    choices = key.choices() if key else ()
    hint = None
    given = details["input"]
    if kind in ("literal_error", "enum") and choices:
        reason = f"must be one of {', '.join(choices)}"
        hint = nearest(str(given).lower(), choices)
    else:
        reason = reason_of(details)
    value = None if kind in ("missing", "value_error") else shown(path, given)
    if kind == "string_type" and isinstance(given, int | float):
        hint = f'write it in quotes: "{value}"'
    if kind == "value_error" and not isinstance(given, Mapping):
        value = shown(path, given)
    return ConfigProblem(
        key=dotted(path), value=value, source=layers.origin(path), reason=reason, hint=hint
    )


def _unknown_key(path: KeyPath, value: Any, layers: Layers) -> ConfigProblem:
    above = resolve(path[:-1])
    names = above.names() if above else ()
    is_table = isinstance(value, Mapping) and len(path) == 1
    match = nearest_name(str(path[-1]), names)
    hint = f"did you mean {match}?" if match else None
    meant = (*path[:-1], match) if match else path  # a misspelled hf_token holds a token
    if hint is None and names:
        hint = f"known here: {', '.join(names)}"
    return ConfigProblem(
        key=dotted(path),
        value=None if isinstance(value, Mapping) else shown(meant, value),
        source=layers.origin(path),
        reason="is not a known section" if is_table else "is not a known key",
        hint=hint,
    )


def reason_of(details: ErrorDetails) -> str:
    """Say what a value must be, in words of our own."""
    kind, context = details["type"], details.get("ctx", {})
    match kind:
        case "greater_than_equal" | "less_than_equal" | "greater_than" | "less_than":
            word = {"greater_than_equal": "at least", "less_than_equal": "at most",
                    "greater_than": "above", "less_than": "below"}[kind]  # fmt: skip
            return f"must be {word} {next(iter(context.values())):g}"
        case "string_pattern_mismatch":
            return f"must match {context['pattern']}"
        case "too_short":
            return "must not be empty"
        case "value_error":
            return str(context["error"])
        case "literal_error":
            return f"must be {context['expected']}"
    family = kind.split("_")[0]
    return _REASONS.get(kind) or _REASONS.get(family) or details["msg"].lower()
