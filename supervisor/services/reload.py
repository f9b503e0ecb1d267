"""What a new configuration changes. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields

from supervisor.services.spec import ServiceSpec

# What a running process cannot take over: everything else applies from the next moment.
_NEEDS_RESTART = frozenset(
    {
        "command",
        "kind",
        "environment",
        "user",
        "cwd",
        "umask",
        "nice",
        "limit_nofile",
        "limit_core_bytes",
        "port",
        "prepare",
    }
)
_INVISIBLE = frozenset({"reasons", "secret_names"})


@dataclass(frozen=True, slots=True)
class ServiceChange:
    """One changed service: names of what differs, never values, and whether it restarts."""

    fields: tuple[str, ...]
    restart: bool


@dataclass(frozen=True, slots=True)
class ServiceDiff:
    """What a reload does."""

    added: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    changed: Mapping[str, ServiceChange] = field(default_factory=dict)


def diff(old: Sequence[ServiceSpec], new: Sequence[ServiceSpec]) -> ServiceDiff:
    """Compare two sets of services by name."""
    before = {spec.name: spec for spec in old}
    after = {spec.name: spec for spec in new}
    changed = {
        name: ServiceChange(tuple(names), restart=_restarts(names))
        for name, spec in after.items()
        if name in before and (names := _differences(before[name], spec))
    }
    return ServiceDiff(
        added=tuple(name for name in after if name not in before),
        removed=tuple(name for name in before if name not in after),
        changed=changed,
    )


def _differences(old: ServiceSpec, new: ServiceSpec) -> list[str]:
    names: list[str] = []
    for item in fields(ServiceSpec):
        was, now = getattr(old, item.name), getattr(new, item.name)
        if was == now or item.name in _INVISIBLE:
            continue
        if item.name == "environment":
            keys = sorted(k for k in {*was, *now} if was.get(k) != now.get(k))
            names += [f"environment.{key}" for key in keys]
        else:
            names.append(item.name)
    return names


def _restarts(names: Sequence[str]) -> bool:
    return any(name.partition(".")[0] in _NEEDS_RESTART for name in names)
