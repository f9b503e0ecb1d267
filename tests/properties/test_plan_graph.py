"""Orders and cycles of arbitrary dependency graphs."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from supervisor.plan.graph import check_graph, find_cycle, start_order
from supervisor.services.spec import Dependency, ServiceSpec

NAMES = [f"s{number}" for number in range(7)]
GRAPHS = st.dictionaries(
    st.sampled_from(NAMES), st.lists(st.sampled_from(NAMES), max_size=4), min_size=1
)


def specs(graph: dict[str, list[str]]) -> list[ServiceSpec]:
    return [
        ServiceSpec(name, ("x",), after=tuple(Dependency(n) for n in after if n in graph))
        for name, after in graph.items()
    ]


@given(GRAPHS)
def test_either_a_real_cycle_is_shown_or_the_order_holds(graph: dict[str, list[str]]) -> None:
    services = specs(graph)
    edges = {spec.name: [d.service for d in spec.after] for spec in services}
    cycle = find_cycle(edges)
    if cycle is not None:
        assert cycle[0] == cycle[-1]
        assert all(later in edges[earlier] for earlier, later in pairwise(cycle))
        assert len(check_graph(services)) == 1
        return
    assert check_graph(services) == []
    order = [spec.name for spec in start_order(services)]
    assert sorted(order) == sorted(edges)
    for name, after in edges.items():
        assert all(order.index(before) < order.index(name) for before in after)


@given(GRAPHS)
def test_services_without_dependencies_keep_their_order(graph: dict[str, list[str]]) -> None:
    services = specs({name: [] for name in graph})
    assert list(start_order(services)) == services
