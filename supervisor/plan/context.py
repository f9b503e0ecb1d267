"""What every part of the plan is decided from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from supervisor.config.settings import Settings
from supervisor.hardware.facts import HardwareFacts
from supervisor.plan.env_policy import handed_over
from supervisor.plan.secrets import GeneratedSecrets


def programs_to_find(settings: Settings) -> tuple[str, ...]:
    """Programs that the plan wants to know (for ``hardware.host.find_programs``)."""
    return (
        settings.jupyter.command[0],
        settings.filebrowser.command,
        settings.ssh.command,
        "ffmpeg",
    )


@dataclass(frozen=True, slots=True)
class PlanContext:
    """Inputs of the planner plus the few decisions that all services share."""

    settings: Settings
    facts: HardwareFacts
    environ: Mapping[str, str]
    generated: GeneratedSecrets
    workspace: Path

    def program(self, name: str) -> str | None:
        """Where a program is; an absolute path is taken as given, unknown is not found."""
        if name in self.facts.programs:
            return self.facts.programs[name]
        return name if name.startswith("/") else None

    def passed(self, names: tuple[str, ...], service: str) -> tuple[dict[str, str], list[str]]:
        """Secrets for ``env_pass`` and a note for each that does not exist."""
        found, missing = handed_over(names, self.environ, self.settings)
        return found, [f"{service}: env_pass names {name}, which is not set" for name in missing]


def reachable(listen: str) -> str:
    """An address that reaches a server listening on ``listen`` (a list is allowed)."""
    first = listen.split(",", maxsplit=1)[0].strip()
    if first in ("", "0.0.0.0", "localhost"):  # noqa: S104 - compared, not bound
        return "127.0.0.1"
    if first == "::":
        return "127.0.0.1" if "0.0.0.0" in listen else "[::1]"  # noqa: S104
    return f"[{first}]" if ":" in first else first
