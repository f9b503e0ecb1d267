"""Rules that turn lines of a log into advice: their fields, and how they are read.

``diagnoses.toml`` holds one table per rule; the table's name is the advice's code and the
anchor of its section in docs/troubleshooting.md.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

SHIPPED = Path(__file__).with_name("diagnoses.toml")
DOCS_PAGE = "docs/troubleshooting.md"

# How tracebacks show lines of source, which hold the words of messages that nobody said.
_SOURCE_INDENT = "    "

# Regular expressions see no more of a line: what a rule looks for stands at its beginning.
LINE_LIMIT = 2000


@dataclass(frozen=True, slots=True)
class Context:
    """What is known about the pod. None = unknown: rules that ask for it do not fit.

    ``vram_gb`` is the nominal size of ComfyUI's card, ``capability`` like "8.9", ``flags``
    are the options ComfyUI runs with.
    """

    gpu: str | None = None
    vram_gb: int | None = None
    capability: str | None = None
    driver: str | None = None
    cuda: str | None = None
    torch: str | None = None
    comfyui: str | None = None
    mode: str | None = None
    flags: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class When:
    """Facts that must hold for a rule to apply; empty = always."""

    min_vram_gb: int | None = None
    flags: tuple[str, ...] = ()  # one of them is given to ComfyUI
    capabilities_except: tuple[str, ...] = ()  # the card's is known and none of these

    def holds(self, context: Context) -> bool:
        """Whether the facts are known and as wanted."""
        if self.min_vram_gb is not None and (context.vram_gb or 0) < self.min_vram_gb:
            return False
        if self.flags and not set(self.flags) & set(context.flags):
            return False
        if self.capabilities_except:
            known = context.capability
            return known is not None and known not in self.capabilities_except
        return True


@dataclass(frozen=True, slots=True)
class Rule:
    """One cause that logs give away.

    A line that holds one of ``words`` is matched against ``patterns``, line by line.
    ``message`` and ``hint`` may name groups of the patterns, fields of the context and
    ``{service}``. Lines that differ in the group ``subject`` are told together, by name.
    ``lasts`` says when the advice goes: with the next ``run`` of the service in which it
    does not come again, or an ``hour`` after it was last seen. ``lookup`` = "model": the
    app knows where the subject can be had, as ``{fetch}``; ``hint_unknown`` is for when it
    does not. ``cause``, ``remedy``, ``example`` and ``source`` are for the documentation.
    """

    code: str
    title: str
    severity: str
    words: tuple[str, ...]
    patterns: tuple[re.Pattern[str], ...]
    message: str
    hint: str
    cause: str
    remedy: tuple[str, ...]
    example: str
    source: str
    services: tuple[str, ...] = ()
    subject: str | None = None
    lookup: str | None = None
    hint_unknown: str = ""
    lasts: str = "run"
    when: When = field(default_factory=When)

    @property
    def link(self) -> str:
        """Where the documentation explains it."""
        return f"{DOCS_PAGE}#{self.code}"

    def search(self, line: str) -> re.Match[str] | None:
        """Find the first pattern that fits."""
        return next((m for p in self.patterns if (m := p.search(line, 0, LINE_LIMIT))), None)


class Rulebook:
    """All rules, with one filter that most lines do not pass."""

    def __init__(self, rules: Sequence[Rule]) -> None:
        self.rules = tuple(rules)
        self._words = sorted({word for rule in rules for word in rule.words})

    def suspicious(self, text: str, limit: int) -> list[str]:
        """Return the lines of ``text`` that hold a word of any rule, at most ``limit``.

        Lines of source in tracebacks are left out.
        One search per word is four times as fast as one regular expression of all words.
        """
        spans: dict[int, int] = {}
        for word in self._words:
            position = found = 0
            while found < limit and (hit := text.find(word, position)) >= 0:
                end = text.find("\n", hit)
                position = end if end >= 0 else len(text)
                spans[text.rfind("\n", 0, hit) + 1] = position
                found += 1
        lines = [text[start : spans[start]] for start in sorted(spans)[:limit]]
        return [line for line in lines if not line.startswith(_SOURCE_INDENT)]

    def find(self, line: str, service: str, context: Context) -> tuple[Rule, re.Match[str]] | None:
        """Return the first rule that fits, with what its pattern found."""
        for rule in self.rules:
            if rule.services and service not in rule.services:
                continue
            if not any(word in line for word in rule.words) or not rule.when.holds(context):
                continue
            if (match := rule.search(line)) is not None:
                return rule, match
        return None


def load_rules(path: Path = SHIPPED) -> Rulebook:
    """Read the rules. Blocking: one small file.

    Raises:
        ValueError: a rule is not complete or not understood.
    """
    data = tomllib.loads(path.read_text(encoding="utf-8"))
    return Rulebook([_rule(code, table) for code, table in data.items()])


def _rule(code: str, table: Mapping[str, Any]) -> Rule:
    values: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in table.items()
    }
    unknown = values.keys() - {f.name for f in fields(Rule)}
    if unknown:
        raise ValueError(f"{code}: unknown field {min(unknown)}")
    when: dict[str, Any] = {
        k: tuple(v) if isinstance(v, list) else v for k, v in values.get("when", {}).items()
    }
    try:
        values["patterns"] = tuple(map(re.compile, values["patterns"]))
        return Rule(**{**values, "code": code, "when": When(**when)})
    except (KeyError, TypeError, re.error) as exc:
        raise ValueError(f"{code}: {exc}") from exc
