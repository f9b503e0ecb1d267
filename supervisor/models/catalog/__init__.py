"""Bundles and files as data: loading, merging with the user's own, choosing. Pure but for
reading the TOML files.

``load_catalog`` reads the shipped files and the user's; ``select`` turns the settings into
what is wanted; ``Selection.fit`` leaves out what the disk cannot take.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

from pydantic import ValidationError

from supervisor.errors import ConfigError, ConfigProblem
from supervisor.models.catalog.schema import Bundle, CatalogData, CatalogFile, Choice

SHIPPED = Path(__file__).parent
_SOURCES = ("huggingface", "civitai", "url")


@dataclass(frozen=True)
class Catalog:
    """All bundles and files. A file's key is its path below the models folder."""

    bundles: Mapping[str, Bundle] = field(default_factory=dict)
    files: Mapping[str, CatalogFile] = field(default_factory=dict)

    @cached_property
    def by_file_name(self) -> Mapping[str, tuple[str, ...]]:
        """Keys by the last component, for workflows that only name a file."""
        index: dict[str, tuple[str, ...]] = {}
        for key in self.files:
            name = PurePosixPath(key).name
            index[name] = (*index.get(name, ()), key)
        return index


def load_catalog(extra: Iterable[Path] = ()) -> Catalog:
    """Read the shipped catalog and lay the user's files over it, in order.

    A user's entry replaces single values of a shipped one; a new source replaces the old
    source together with the size and hash that belonged to it.

    Raises:
        ConfigError: with every problem of every file.
    """
    problems: list[ConfigProblem] = []
    merged: dict[str, Any] = {"bundles": {}, "files": {}}
    paths = [*sorted(SHIPPED.glob("*.toml")), *extra]
    for path in paths:
        try:
            _merge(merged, tomllib.loads(path.read_text(encoding="utf-8")), path=path)
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, TypeError) as exc:
            reason = exc.strerror if isinstance(exc, OSError) and exc.strerror else str(exc)
            problems.append(_problem(str(path), reason))
    origin = ", ".join(str(p) for p in paths[-1:])
    try:
        data = CatalogData.model_validate(merged)
    except ValidationError as exc:
        problems += (
            _problem(".".join(str(p) for p in e["loc"]), str(e["msg"]), source=origin)
            for e in exc.errors()
        )
        data = CatalogData()
    problems += dangling(data)
    if problems:
        raise ConfigError("Cannot use the model catalog", problems=tuple(problems))
    return Catalog(bundles=data.bundles, files=data.files)


def dangling(data: CatalogData) -> list[ConfigProblem]:
    """Find the names that bundles use and nobody defines."""
    problems = []
    for name, bundle in data.bundles.items():
        for key in sorted(bundle.all_files - data.files.keys()):
            reason, hint = f"there is no file {key!r}", near(key, data.files)
            problems += [_problem(f"bundles.{name}", reason, hint=hint)]
        for other in sorted(bundle.together.keys() - data.bundles.keys()):
            reason, hint = f"there is no bundle {other!r}", near(other, data.bundles)
            problems += [_problem(f"bundles.{name}.together", reason, hint=hint)]
    return problems


def near(name: str, names: Iterable[str]) -> str | None:
    """ "did you mean …", when something is close."""
    matches = get_close_matches(name, list(names), n=1)
    return f"did you mean {matches[0]!r}?" if matches else None


def _merge(into: dict[str, Any], data: Mapping[str, Any], *, path: Path) -> None:
    for section, entries in data.items():
        if section not in into:
            raise TypeError(f"unknown table [{section}]; a catalog has [bundles] and [files]")
        if not isinstance(entries, dict):
            raise TypeError(f"[{section}] must be a table")
        for name, entry in entries.items():
            if not isinstance(entry, dict):
                raise TypeError(f"{section}.{name} must be a table")
            known = dict(into[section].get(name, {}))
            if section == "files" and any(source in entry for source in _SOURCES):
                for stale in (*_SOURCES, "size_bytes", "size_about", "sha256", "mirrors"):
                    known.pop(stale, None)
            if path.parent == SHIPPED and known:
                raise TypeError(f"{section}.{name} is defined twice")
            into[section][name] = known | entry


def _problem(
    key: str, reason: str, *, source: str | None = None, hint: str | None = None
) -> ConfigProblem:
    return ConfigProblem(key=key, reason=reason, source=source, hint=hint)


def chosen(bundle: Bundle, selectors: Mapping[str, str]) -> list[tuple[str, str, Choice]]:
    """Return (selector, value, choice) for each value that is chosen.

    Raises:
        ValueError: a choice does not exist.
    """
    found = []
    for name, selector in bundle.selectors.items():
        text = selectors.get(name, selector.default)
        wanted = [part.strip() for part in text.split(",")] if selector.multiple else [text.strip()]
        for choice in filter(None, wanted):
            match = next((c for c in selector.choices if c.casefold() == choice.casefold()), None)
            if match is None:
                offered, hint = ", ".join(selector.choices), near(choice, selector.choices)
                reason = f"{name} = {choice!r} is not one of {offered}"
                raise ValueError(f"{reason}; {hint}" if hint else reason)
            found.append((name, match, selector.choices[match]))
    return found


def choose_files(
    bundle: Bundle, selectors: Mapping[str, str], enabled: Sequence[str]
) -> tuple[tuple[str, ...], float | None]:
    """Return the files that a bundle wants under these choices, and the VRAM they need in GB.

    Raises:
        ValueError: a choice does not exist.
    """
    keys = list(bundle.files)
    needed = [bundle.min_vram_gb]
    for other, files in bundle.together.items():
        keys += files if other in enabled else ()
    for _, _, choice in chosen(bundle, selectors):
        keys += choice.files
        needed.append(choice.min_vram_gb)
    return tuple(dict.fromkeys(keys)), max((n for n in needed if n is not None), default=None)
