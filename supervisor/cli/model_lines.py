"""What ``supervisor models`` writes for people."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from supervisor.cli.render import Paint, clean, duration, size

if TYPE_CHECKING:
    from supervisor.models.preflight import Checked

_STATE = 9  # the longest state is "verifying"
_INDENT = " " * (_STATE + 2)


def known_size(size_bytes: int | None) -> str:
    """A size, or a question mark while nobody knows it."""
    return "?" if size_bytes is None else size(size_bytes)


def download_lines(downloads: Mapping[str, Any], paint: Paint) -> Iterator[str]:
    """One line a file, troubles below it, and the sum."""
    files: Sequence[Mapping[str, Any]] = downloads["files"]
    shares = [_share(file) for file in files]
    width = max(map(len, shares), default=0)
    for file, share in zip(files, shares, strict=True):
        origin = ", ".join(
            clean(part)
            for part in (file["source"], file["bundle"] and f"bundle {file['bundle']}")
            if part
        )
        required = ", required" if file["required"] else ""
        name = f"{clean(file['name'])}  ({origin}{required})"
        yield f"{paint.state(file['state'], _STATE)}  {share:>{width}}  {name}"
        yield from _trouble(file["error"], file["hint"])
    if not files:
        yield "no model files are wanted"
        return
    yield _sum(downloads)


def _share(file: Mapping[str, Any]) -> str:
    total, done = file["bytes_total"], file["bytes_done"]
    if total is None or not 0 < done < total:
        return known_size(total)
    return f"{100 * done / total:.0f} % of {size(total)}"


def _sum(downloads: Mapping[str, Any]) -> str:
    parts = [f"{downloads['done']} of {downloads['total']} files in place"]
    if downloads["failed"]:
        parts.append(f"{downloads['failed']} failed")
    left = downloads["bytes_total"] - downloads["bytes_done"]
    if downloads["rate_bytes_per_s"]:
        parts.append(f"{size(left)} left at {size(downloads['rate_bytes_per_s'])}/s")
    if downloads["eta_s"]:
        parts.append(f"about {duration(downloads['eta_s'])}")
    return ", ".join(parts)


def checked_lines(answers: Sequence[Checked], paint: Paint) -> Iterator[str]:
    """What can be had, and what it would take."""
    width = max((len(known_size(a.size_bytes)) for a in answers), default=0)
    for answer in answers:
        state = "refused" if answer.error else "in place" if answer.in_place else "ok"
        shown = paint(f"{state:<{_STATE}}", "red" if answer.error else "green")
        yield f"{shown}  {known_size(answer.size_bytes):>{width}}  {clean(answer.request.name)}"
        if answer.error:
            yield from _trouble(answer.error.message, answer.error.hint)
    if not answers:
        yield "no model files are wanted"
        return
    missing = [a for a in answers if a.ok and not a.in_place]
    unknown = sum(1 for a in missing if a.size_bytes is None)
    more = f" and {unknown} of unknown size" if unknown else ""
    there = sum(1 for a in answers if a.in_place)
    refused = sum(1 for a in answers if not a.ok)
    yield (
        f"{there} of {len(answers)} files in place, {refused} refused, "
        f"{size(sum(a.size_bytes or 0 for a in missing))}{more} to fetch"
    )


def workflow_lines(found: Sequence[Mapping[str, Any]], paint: Paint) -> Iterator[str]:
    """What the workflows mention, and where it would come from."""
    styles = {"there": "green", "missing": "yellow"}
    for row in found:
        shown = paint(f"{row['state']:<{_STATE}}", styles.get(row["state"], "red"))
        yield f"{shown}  {clean(row['name'])}"
        about = row["reason"] or (row["url"] if row["state"] != "there" else "")
        if about:
            yield f"{_INDENT}{clean(about)}"
    if not found:
        yield "no model files are mentioned"


def _trouble(error: str | None, hint: str | None) -> Iterator[str]:
    if error:
        yield f"{_INDENT}{clean(error)}"
    if hint:
        yield f"{_INDENT}hint: {clean(hint)}"
