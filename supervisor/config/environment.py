"""The environment as configuration: ``SUPERVISOR_SECTION__KEY`` and the plain names.

Not pydantic-settings: it lets unknown top-level names pass, does not know which variable a
wrong value came from, and costs time before the first service (docs/adr/0004-settings-source.md).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from supervisor.config.aliases import ALIASES, PORT_ALIASES, Alias, apply_alias
from supervisor.config.keys import KeyPath, Kind, dotted, resolve, walk
from supervisor.config.layers import Layers, value_from_text
from supervisor.config.problems import nearest, nearest_name, shown
from supervisor.errors import ConfigProblem

PREFIX = "SUPERVISOR_"
# Variables of this prefix that are no settings: read elsewhere, or given to services.
_OTHERS = frozenset({"CONFIG", "DEBUG", "SERVICE", "NVENC"})
_SHORTHAND = {"SOCKET": ("supervisor", "socket")}
# RunPod substitutes these; when they arrive as they are, the secret does not exist.
_UNSUBSTITUTED = "{{ RUNPOD_SECRET_"
_LARGEST_SECRET_BYTES = 64 * 1024


class EnvironmentReader:
    """Lays one environment over ``layers`` and collects what is wrong with it."""

    def __init__(self, environ: Mapping[str, str], layers: Layers) -> None:
        self._environ = environ
        self._layers = layers
        self.problems: list[ConfigProblem] = []
        self.warnings: list[str] = []

    def read_plain_port(self) -> None:
        """Lay PORT and PORT_HEALTH; they come before ``SUPERVISOR_*``."""
        self._read_aliases(PORT_ALIASES)

    def read_plain(self) -> None:
        """Lay all other plain names."""
        self._read_aliases(ALIASES)
        self._warn_about_near_misses()

    def read_prefixed(self) -> None:
        """Lay ``SUPERVISOR_*``; a name that is no setting is a problem."""
        for name in sorted(self._environ):
            if not name.startswith(PREFIX) or name.removeprefix(PREFIX) in _OTHERS:
                continue
            path = self._path(name.removeprefix(PREFIX))
            variable = name
            if path is None and name.endswith("_FILE"):
                variable = name.removesuffix("_FILE")
                path = self._path(variable.removeprefix(PREFIX))
            if path is None:
                if self._environ[name].strip():
                    self._unknown(name)
                continue
            self._put(variable, path)

    def _read_aliases(self, aliases: tuple[Alias, ...]) -> None:
        for alias in aliases:
            self._put(alias.name, alias.path, alias)

    def _put(self, variable: str, path: KeyPath, alias: Alias | None = None) -> None:
        text, origin = self._text(variable, path)
        if not text:
            return
        try:
            if not _is_text(text):
                raise ValueError("is not UTF-8")
            if alias is not None and alias.apply is not None:
                apply_alias(alias, self._layers, text, origin)
            else:
                key = resolve(path)
                assert key is not None  # noqa: S101 - paths were resolved before
                self._layers.put(path, value_from_text(text, key), origin)
        except ValueError as error:
            value = shown(path, text)
            self.problems.append(
                ConfigProblem(key=dotted(path), value=value, source=origin, reason=str(error))
            )

    def _text(self, variable: str, path: KeyPath) -> tuple[str, str]:
        """Return the text of a variable or of its file (empty = unset) and its origin."""
        text, file = self._environ.get(variable, "").strip(), f"{variable}_FILE"
        if text.startswith(_UNSUBSTITUTED):
            self.warnings.append(
                f"{variable} holds the unsubstituted {text}: create that secret in RunPod's "
                "console, or remove the variable; it is ignored"
            )
            text = ""
        file_name = self._environ.get(file, "").strip()
        if not file_name or resolve(self._path(file.removeprefix(PREFIX)) or ("",)):
            return text, variable
        try:
            if text:
                raise ValueError(f"both {variable} and {file} are set")
            with Path(file_name).open("rb") as stream:
                content = stream.read(_LARGEST_SECRET_BYTES)
            if b"\0" in content:
                raise ValueError("it is not a text")
            return content.decode().strip(), file
        except (OSError, ValueError) as error:
            cause = str(getattr(error, "strerror", None) or error)
            reason = cause if text else f"cannot be read: {cause}"
            hint = "keep one of the two" if text else "mount the file or remove the variable"
            self.problems.append(
                ConfigProblem(
                    key=dotted(path), value=file_name, source=file, reason=reason, hint=hint
                )
            )
            return "", file

    def _path(self, name: str) -> KeyPath | None:
        """Find the key that a name without its prefix means; None when there is none."""
        if name in _SHORTHAND:
            return _SHORTHAND[name]
        path: KeyPath = ()
        for part in name.split("__"):
            above = resolve(path)
            if above is None or not part:
                return None
            free = above.kind is Kind.MAP
            path = (*path, self._free_name(path, part) if free else part.lower())
        return path if resolve(path) is not None else None

    def _free_name(self, path: KeyPath, part: str) -> str:
        """Name a key of a map: a service's as the file writes it, a variable's as it is."""
        if path != ("services",):
            return part
        wanted = part.lower().replace("-", "_")
        known = self._layers.get(path) or {}
        same = [name for name in known if name.lower().replace("-", "_") == wanted]
        return same[0] if same else wanted

    def _unknown(self, name: str) -> None:
        known = [*_OTHERS, *_SHORTHAND, *(n.removeprefix(PREFIX) for n in known_variables())]
        match = nearest_name(name.removeprefix(PREFIX), known)
        reason = "is not a setting"
        hint = f"names are {PREFIX}<SECTION>__<KEY>, like SUPERVISOR_HEALTH__PORT"
        if match is not None:
            hint = f"did you mean {PREFIX}{match}?"
        meant = self._path(match) if match is not None else None
        value = shown(meant or (name,), self._environ[name])
        self.problems.append(
            ConfigProblem(key=name, value=value, source="environment", reason=reason, hint=hint)
        )

    def _warn_about_near_misses(self) -> None:
        """Other people's variables share this space, so a typo can only be a warning."""
        known = [alias.name for alias in (*ALIASES, *PORT_ALIASES)]
        starts = tuple({name.split("_")[0] + "_" for name in known if "_" in name})
        for name in sorted(self._environ):
            if name in known or not name.startswith(starts) or name.endswith("_FILE"):
                continue
            hint = nearest(name, known, cutoff=0.9)
            if hint:
                self.warnings.append(f"{name} is not known: {hint}")


def _is_text(value: str) -> bool:
    """Whether a variable's bytes were UTF-8; others come as surrogates."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def known_variables() -> list[str]:
    """Return every ``SUPERVISOR_SECTION__KEY`` with a fixed name."""
    return [PREFIX + "__".join(str(part).upper() for part in path) for path, _ in walk()]
