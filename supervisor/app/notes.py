"""What the plan has to say to people. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from supervisor.app.boot import Boot
    from supervisor.plan.model import Plan


def notes_of(plan: Plan, boot: Boot) -> tuple[str, ...]:
    """Warnings of the configuration, notes of the plan, and what it leaves out."""
    skipped = (f"{item.name} skipped: {item.reason}" for item in plan.skipped)
    return (*boot.loaded.warnings, *plan.notes, *skipped)


def renewed(shown: Iterable[str], old: Iterable[str], new: Iterable[str]) -> tuple[str, ...]:
    """The notes after a reload: the old plan's go, the new one's come, the others stay."""
    gone, first = frozenset(old), tuple(new)
    return (*first, *(note for note in shown if note not in gone and note not in first))
