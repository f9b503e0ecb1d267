"""The order of services: which must be there first, and how deep the chain is. Pure."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping, Sequence
from graphlib import CycleError, TopologicalSorter

from supervisor.errors import ConfigProblem
from supervisor.services.spec import ServiceSpec


def problems(specs: Sequence[ServiceSpec], *, skipped: Collection[str] = ()) -> list[ConfigProblem]:
    """Return every fault of the dependencies: unknown names, names given twice, cycles.

    ``skipped`` names services that exist but will not run; depending on one is a fault
    with a sentence of its own.
    """
    names = [spec.name for spec in specs]
    found = [
        ConfigProblem(key=f"services.{name}", reason="the name is given twice")
        for name in sorted({name for name in names if names.count(name) > 1})
    ]
    found += [
        _unknown(spec.name, dependency.service, names, skipped)
        for spec in specs
        for dependency in spec.after
        if dependency.service not in names
    ]
    if not found and (cycle := _cycle(specs)):
        found.append(
            ConfigProblem(
                key=f"services.{cycle[0]}.after",
                reason=f"the services wait for each other: {' → '.join(cycle)}",
                hint="remove one of these dependencies",
            )
        )
    return found


def _unknown(
    name: str, dependency: str, names: Sequence[str], skipped: Collection[str]
) -> ConfigProblem:
    if dependency in skipped:
        reason = f"the service {dependency} is not run here"
        return ConfigProblem(key=f"services.{name}.after", value=dependency, reason=reason)
    near = difflib.get_close_matches(dependency, names, n=1)
    return ConfigProblem(
        key=f"services.{name}.after",
        value=dependency,
        reason="there is no service of that name",
        hint=f"did you mean {near[0]}?" if near else None,
    )


def _cycle(specs: Sequence[ServiceSpec]) -> list[str]:
    graph = {spec.name: [d.service for d in spec.after] for spec in specs}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as exc:
        return list(exc.args[1])
    return []


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
