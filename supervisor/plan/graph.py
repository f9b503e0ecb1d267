"""Dependencies between services: checks and the order of start."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable, Mapping, Sequence
from graphlib import CycleError, TopologicalSorter

from supervisor.errors import ConfigProblem
from supervisor.services.spec import ServiceSpec


def check_graph(
    services: Iterable[ServiceSpec], *, absent: Collection[str] = ()
) -> list[ConfigProblem]:
    """Problems of the dependencies: unknown names, self-reference and cycles.

    ``absent`` names services that exist but will not run; depending on one is no problem
    of the file (the plan marks such a service as unavailable).
    """
    specs = {spec.name: spec for spec in services}
    known = {*specs, *absent}
    problems = [
        _unknown(spec, dependency.service, known)
        for spec in specs.values()
        for dependency in spec.after
        if dependency.service not in known
    ]
    if cycle := find_cycle(_edges(specs.values())):
        problems.append(
            ConfigProblem(
                key=f"services.{cycle[0]}.after",
                value=" -> ".join(cycle),
                reason="these services wait for each other",
                hint="remove one of the dependencies",
            )
        )
    return problems


def find_cycle(edges: Mapping[str, Sequence[str]]) -> list[str] | None:
    """A cycle as a path whose first and last names are the same; each waits for the next."""
    sorter = TopologicalSorter(edges)
    try:
        sorter.prepare()
    except CycleError as exc:
        path: list[str] = exc.args[1]
        # graphlib lists predecessors first; people read "waits for".
        return path[::-1]
    return None


def start_order(services: Sequence[ServiceSpec]) -> tuple[ServiceSpec, ...]:
    """Dependencies before dependents, otherwise as given.

    Raises:
        ValueError: there is a cycle (``check_graph`` finds it first).
    """
    specs = {spec.name: spec for spec in services}
    edges = _edges(services)
    placed: dict[str, ServiceSpec] = {}
    while len(placed) < len(specs):
        free = next(
            (
                name
                for name in specs
                if name not in placed and all(d in placed or d not in specs for d in edges[name])
            ),
            None,
        )
        if free is None:
            raise ValueError("the services wait for each other")
        placed[free] = specs[free]
    return tuple(placed.values())


def _edges(services: Iterable[ServiceSpec]) -> dict[str, list[str]]:
    return {spec.name: [dependency.service for dependency in spec.after] for spec in services}


def _unknown(spec: ServiceSpec, missing: str, known: Collection[str]) -> ConfigProblem:
    near = difflib.get_close_matches(missing, known, n=1)
    hint = f"did you mean {near[0]}?" if near else f"there are: {', '.join(sorted(known))}"
    return ConfigProblem(
        key=f"services.{spec.name}.after",
        value=missing,
        reason="there is no service of that name",
        hint=hint,
    )
