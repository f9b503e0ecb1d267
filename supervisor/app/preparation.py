"""What is done to the machine before the first service: folders and kernel settings."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from supervisor.plan.model import Plan


def prepare_machine(plan: Plan, complain: Callable[[str], None]) -> None:
    """Create the plan's folders and write its sysctls; a failure is told and not fatal."""
    for directory in plan.directories:
        try:
            directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            complain(f"Cannot create {directory}: {error.strerror or error}")
    for key, value in plan.sysctl.items():
        path = Path("/proc/sys", *key.split("."))
        try:
            path.write_text(value, encoding="ascii")
        except OSError as error:
            complain(f"Cannot set {key} = {value}: {error.strerror or error}")
