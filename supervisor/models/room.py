"""Which files fit on a disk. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

# Left free for outputs, logs and the file system's own bookkeeping.
RESERVE_BYTES = 1024**3


@dataclass(frozen=True, slots=True)
class Need:
    """Bytes that a file will still take; None when nobody knows."""

    name: str
    size_bytes: int | None


def without_room(needs: Iterable[Need], *, free_bytes: int) -> dict[str, str]:
    """Walk ``needs`` in order of priority; return those that do not fit, with the numbers.

    A file that does not fit leaves its room to smaller ones behind it. Unknown sizes count
    as nothing: the engine checks again when it learns them.
    """
    left = free_bytes - RESERVE_BYTES
    refused: dict[str, str] = {}
    for need in needs:
        size = need.size_bytes or 0
        if size and size > left:
            refused[need.name] = (
                f"needs {human_bytes(size)}, {human_bytes(max(left, 0))} of "
                f"{human_bytes(free_bytes)} free are left for it"
            )
        else:
            left -= size
    return refused


def human_bytes(count: float) -> str:
    """Decimal units, as hubs and disks are labelled: 12.3 GB."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(count) < 999.5:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"
