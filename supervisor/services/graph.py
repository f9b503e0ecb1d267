"""The order in which services stop. Pure.

``plan.graph`` has checked the dependencies: there are no unknown names and no cycles.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from supervisor.services.spec import ServiceSpec


def dependents(specs: Sequence[ServiceSpec]) -> dict[str, frozenset[str]]:
    """Map each service to those that directly wait for it."""
    found: dict[str, set[str]] = {spec.name: set() for spec in specs}
    for spec in specs:
        for dependency in spec.after:
            found.setdefault(dependency.service, set()).add(spec.name)
    return {name: frozenset(names) for name, names in found.items()}


def stop_depths(specs: Sequence[ServiceSpec]) -> dict[str, int]:
    """Map each service to how many stops must come before its own (0 = stops first)."""
    users = dependents(specs)
    depths: dict[str, int] = {}

    def depth(name: str) -> int:
        if name not in depths:
            depths[name] = 1 + max((depth(user) for user in users[name]), default=-1)
        return depths[name]

    for spec in specs:
        depth(spec.name)
    return depths


def stop_shares(specs: Sequence[ServiceSpec], total_s: float) -> Mapping[str, float]:
    """Share the seconds of a whole stop: by when, from its begin, each must be gone."""
    depths = stop_depths(specs)
    levels = 1 + max(depths.values(), default=0)
    return {name: total_s * (depth + 1) / levels for name, depth in depths.items()}
