"""What is wrong, told from logs: sightings are counted, merged and forgotten. Pure.

Time is an argument, and so is the number of a service's run (its generation).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from supervisor.core.clock import iso_utc
from supervisor.core.status import Advice
from supervisor.monitor.rulebook import Context, Rule, Rulebook

# One error is told in several lines (message, traceback, summary): that counts once.
SAME_TROUBLE_S = 2.0
HOUR_S = 3600.0
# A log full of one error must not cost more than a quiet one.
LINES_AT_ONCE = 200
MOST_ADVICE = 20
MOST_SUBJECTS = 20
_SUBJECTS_SHOWN = 4
_SUBJECT_LENGTH = 120
_ORDER = {"error": 0, "warning": 1, "info": 2}


@dataclass(frozen=True, slots=True)
class Sighting:
    """A line that a rule fits. ``fresh``: rule and subject are new, and worth an event."""

    rule: Rule
    service: str
    subject: str | None
    groups: Mapping[str, str]
    message: str
    fresh: bool


@dataclass(slots=True)
class _Case:
    """All that was seen of one rule in one service."""

    rule: Rule
    service: str
    first_s: float
    last_s: float
    run: int
    context: Context
    groups: dict[str, str]
    count: int = 0
    counted_s: dict[str | None, float] = field(default_factory=dict)  # by subject
    remedies: dict[str, str] = field(default_factory=dict)  # by subject


class Diagnosis:
    """The advice in force."""

    def __init__(self, rulebook: Rulebook) -> None:
        self._rulebook = rulebook
        self._cases: dict[tuple[str, str], _Case] = {}

    def examine(
        self, text: str, *, service: str, run: int, now_s: float, context: Context
    ) -> list[Sighting]:
        """Look at lines of one service; return what counts as a new sighting.

        ``now_s`` is wall time, because people are told when it was. At most
        ``LINES_AT_ONCE`` suspicious lines are judged per call.
        """
        found = []
        for line in self._rulebook.suspicious(text, LINES_AT_ONCE):
            hit = self._rulebook.find(line, service, context)
            if hit is None:
                continue
            sighting = self._note(*hit, service=service, run=run, now_s=now_s, context=context)
            if sighting is not None:
                found.append(sighting)
        return found

    def remedy(self, code: str, service: str, subject: str, command: str) -> None:
        """Add the command that mends one subject (the rule's ``{fetch}``)."""
        if (case := self._cases.get((code, service))) is not None:
            case.remedies[subject] = command

    def forget(self, now_s: float, ready_runs: Mapping[str, int]) -> list[Advice]:
        """Drop what is out of date; return it.

        ``ready_runs`` has the run of every service that is ready now: what was seen only in
        an earlier one is over. While a service crashes again and again, its advice stays.
        """
        gone = [
            key
            for key, case in self._cases.items()
            if now_s - case.last_s > HOUR_S
            or (case.rule.lasts == "run" and ready_runs.get(case.service, case.run) > case.run)
        ]
        return [_advice(self._cases.pop(key)) for key in gone]

    def advice(self) -> tuple[Advice, ...]:
        """What to tell, the worst first."""
        cases = sorted(self._cases.values(), key=lambda c: (_ORDER[c.rule.severity], c.first_s))
        return tuple(_advice(case) for case in cases)

    def _note(
        self,
        rule: Rule,
        match: re.Match[str],
        *,
        service: str,
        run: int,
        now_s: float,
        context: Context,
    ) -> Sighting | None:
        groups = {name: _clean(text) for name, text in match.groupdict().items() if text}
        subject = groups.get(rule.subject) if rule.subject else None
        case = self._cases.get((rule.code, service))
        if case is None:
            if len(self._cases) >= MOST_ADVICE:
                return None
            case = _Case(rule, service, now_s, now_s, run, context, dict(groups))
            self._cases[rule.code, service] = case
        case.last_s, case.run, case.context = now_s, run, context
        case.groups.update(groups)
        counted_s = case.counted_s.get(subject)
        if counted_s is not None and now_s - counted_s < SAME_TROUBLE_S:
            return None
        case.count += 1
        fresh = counted_s is None and len(case.counted_s) < MOST_SUBJECTS
        if fresh or counted_s is not None:
            case.counted_s[subject] = now_s
        message = _fill(rule.message, _words(case, (subject,)))
        return Sighting(rule, service, subject, groups, message, fresh)


def _advice(case: _Case) -> Advice:
    rule = case.rule
    subjects = tuple(case.counted_s)
    words = _words(case, subjects)
    wanted = [s for s in subjects if s is not None]
    commands = [case.remedies[s] for s in wanted if s in case.remedies]
    hint = rule.hint
    if rule.lookup is not None:
        words["fetch"] = "; ".join(commands[:_SUBJECTS_SHOWN])
        hint = rule.hint if commands else rule.hint_unknown
    return Advice(
        code=rule.code,
        message=_fill(rule.message, words),
        hint=_fill(hint, words),
        severity=rule.severity,
        service=case.service,
        link=rule.link,
        count=case.count,
        since=iso_utc(case.first_s),
        last_seen=iso_utc(case.last_s),
    )


def _words(case: _Case, subjects: tuple[str | None, ...]) -> dict[str, str]:
    """What the message may name; what is unknown is said to be so."""
    context, rule = case.context, case.rule
    words = {
        "service": case.service,
        "gpu": context.gpu or "this GPU",
        "vram_gb": str(context.vram_gb or "?"),
        "capability": context.capability or "unknown",
        "driver": context.driver or "unknown",
        "cuda": context.cuda or "unknown",
        "torch": context.torch or "as installed",
        "flags": " ".join(f for f in rule.when.flags if f in context.flags),
    }
    for name in {name for pattern in rule.patterns for name in pattern.groupindex}:
        words[name] = case.groups.get(name, "unknown")
    names = [subject for subject in subjects if subject is not None]
    if rule.subject is not None and names:
        shown = ", ".join(names[:_SUBJECTS_SHOWN])
        more = len(names) - _SUBJECTS_SHOWN
        words[rule.subject] = f"{shown} and {more} more" if more > 0 else shown
    return words


def _fill(template: str, words: Mapping[str, str]) -> str:
    return template.format_map(words)


def _clean(text: str) -> str:
    """A word of a log for one line of a status: short and printable."""
    text = "".join(c if c.isprintable() else " " for c in text.strip())
    return text if len(text) <= _SUBJECT_LENGTH else f"{text[: _SUBJECT_LENGTH - 1]}…"
