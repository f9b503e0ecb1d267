"""From file, environment and command line to ``Settings``, or to every error at once.

Precedence, lowest first: the file, ``SUPERVISOR_<SECTION>__<KEY>``, the plain names,
``--set``. (The health port alone prefers ``SUPERVISOR_HEALTH__PORT`` to ``PORT_HEALTH``
to ``PORT``.) An empty variable counts as unset.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import BaseModel, SecretStr, ValidationError

from supervisor.config.checks import cross_problems, cross_warnings
from supervisor.config.environment import EnvironmentReader
from supervisor.config.keys import KeyPath, about, dotted, resolve, undotted
from supervisor.config.layers import Layers, Origin, value_from_text
from supervisor.config.problems import nearest, problems_of, shown
from supervisor.config.secrets import (
    is_secret_name,
    secret_arguments,
    secret_values,
    secret_variables,
)
from supervisor.config.settings import Settings
from supervisor.config.toml_file import find_file, key_lines, parse_file
from supervisor.errors import ConfigError, ConfigProblem


@dataclass(frozen=True, slots=True)
class LoadedSettings:
    """The settings and what else was learnt while loading them.

    ``secrets`` are all secret values, for redaction. ``environment_secrets`` names the
    variables that no service gets unasked. ``warnings`` are sentences for people.
    """

    settings: Settings
    path: Path | None
    secrets: tuple[str, ...] = field(repr=False)
    environment_secrets: frozenset[str]
    warnings: tuple[str, ...] = ()
    layers: Layers = field(default_factory=Layers, repr=False)

    def origin(self, path: KeyPath) -> str | None:
        """Say where a value was set; None for a default."""
        return self.layers.origin(path)

    def error(self, problems: Sequence[ConfigProblem]) -> ConfigError:
        """Make the error of what was found later; each problem gets the place of its value."""
        for problem in problems:
            problem.source = problem.source or self.layers.set_at(undotted(problem.key))
        return _error(self.path, problems)


def load_settings(
    *,
    config: Path | None,
    environ: Mapping[str, str],
    overrides: Sequence[str] = (),
    read_file: bool = True,
) -> LoadedSettings:
    """Read and validate everything; with ``read_file`` false everything but the file.

    Raises:
        ConfigError: with every problem that was found, not just the first.
    """
    path = find_file(config, environ) if read_file else None
    layers = Layers()
    if path is not None:
        tables, text = parse_file(path)
        layers.put((), tables, _lines_of(path, text))
    reader = EnvironmentReader(environ, layers)
    reader.read_plain_port()
    reader.read_prefixed()
    reader.read_plain()
    problems = [*reader.problems, *_put_overrides(layers, overrides)]
    settings = None
    try:
        settings = Settings.model_validate(layers.tree)
    except ValidationError as error:
        problems.extend(problems_of(error, layers))
    if settings is not None:
        problems.extend(cross_problems(settings, layers))
    if settings is None or problems:
        raise _error(path, problems)
    return LoadedSettings(
        settings=settings,
        path=path,
        secrets=tuple(dict.fromkeys([*_secrets_of(settings), *secret_values(environ)])),
        environment_secrets=secret_variables(environ),
        warnings=(*reader.warnings, *cross_warnings(settings)),
        layers=layers,
    )


def _error(path: Path | None, problems: Sequence[ConfigProblem]) -> ConfigError:
    for problem in problems:
        problem.hint = problem.hint or about(undotted(problem.key))
    count = "1 error" if len(problems) == 1 else f"{len(problems)} errors"
    where = f" {path}" if path else ""
    return ConfigError(
        f"Cannot use the configuration{where}: {count}",
        hint="`supervisor check` lists them",
        problems=tuple(problems),
    )


def _lines_of(path: Path, text: str) -> Callable[[KeyPath], str]:
    """Return a function that names file and line; the lines are only found when asked."""
    lines = cache(lambda: key_lines(text))

    def origin(key: KeyPath) -> str:
        for length in range(len(key), 0, -1):
            line = lines().get(key[:length])
            if line is not None:
                return f"{path}:{line}"
        return str(path)

    return origin


def _put_overrides(layers: Layers, overrides: Sequence[str]) -> Iterator[ConfigProblem]:
    for override in overrides:
        name, separator, text = override.partition("=")
        origin: Origin = f"--set {name}"
        path = tuple(name.strip().split("."))
        key = resolve(path)
        if not separator or key is None or not name.strip():
            yield _bad_override(override, path, has_value=bool(separator))
            continue
        try:
            layers.put(path, value_from_text(text, key), origin)
        except ValueError as error:
            value = shown(path, text)
            yield ConfigProblem(key=dotted(path), value=value, source="--set", reason=str(error))


def _bad_override(override: str, path: KeyPath, *, has_value: bool) -> ConfigProblem:
    if not has_value:
        return ConfigProblem(
            key=override,
            source="--set",
            reason="is not key=value",
            hint="for example --set health.port=9000",
        )
    above = resolve(path[:-1])
    names = above.names() if above else Settings.model_fields
    hint = nearest(str(path[-1] if above else path[0]), names)
    hint = hint or f"known here: {', '.join(names)}"
    return ConfigProblem(key=dotted(path), source="--set", reason="is not a known key", hint=hint)


def _secrets_of(value: Any, name: str = "", *, free: bool = False) -> Iterator[str]:
    """Find the secrets; ``free`` marks a name that the user chose: only such a name tells."""
    if isinstance(value, SecretStr):
        if value.get_secret_value():
            yield value.get_secret_value()
    elif isinstance(value, BaseModel):
        for field_name in type(value).model_fields:
            yield from _secrets_of(getattr(value, field_name), field_name)
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _secrets_of(inner, key, free=True)
    elif isinstance(value, tuple):
        if name in ("command", "exec"):
            yield from secret_arguments(value)
        for inner in value:
            yield from _secrets_of(inner)
    elif isinstance(value, str) and name == "args":
        yield from secret_arguments(_words(value))
    elif isinstance(value, str) and value and free and is_secret_name(name):
        yield value


def _words(arguments: str) -> list[str]:
    try:
        return shlex.split(arguments)
    except ValueError:
        return arguments.split()  # a quote is missing: somebody else says so
