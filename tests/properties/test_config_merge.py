"""Whatever is set where, the highest layer that sets a key decides it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import tomli_w
from hypothesis import given, settings
from hypothesis import strategies as st

from supervisor.config.keys import KeyPath
from supervisor.config.layers import Layers
from supervisor.config.load import load_settings

PORTS = st.integers(1, 65535)
# Each layer sets some of these keys: section, key, plain name.
KEYS = [
    ("comfyui", "port", "COMFYUI_PORT"),
    ("models", "concurrent_files", "MAX_CONCURRENT_DOWNLOADS"),
    ("idle", "minutes", "IDLE_SHUTDOWN_MINUTES"),
    ("worker", "reconnect_attempts", "WEBSOCKET_RECONNECT_ATTEMPTS"),
]
LAYER = st.fixed_dictionaries({}, optional={key[:2]: st.integers(1, 64) for key in KEYS})


@settings(max_examples=60, deadline=None)
@given(file=LAYER, prefixed=LAYER, plain=LAYER, overrides=LAYER)
def test_highest_layer_wins(
    tmp_path_factory: Any,
    file: dict[tuple[str, str], int],
    prefixed: dict[tuple[str, str], int],
    plain: dict[tuple[str, str], int],
    overrides: dict[tuple[str, str], int],
) -> None:
    path: Path = tmp_path_factory.mktemp("config") / "supervisor.toml"
    tables: dict[str, dict[str, int]] = {}
    for (section, key), value in file.items():
        tables.setdefault(section, {})[key] = value
    path.write_text(tomli_w.dumps(tables))
    names = {key[:2]: key[2] for key in KEYS}
    environ = {f"SUPERVISOR_{s.upper()}__{k.upper()}": str(v) for (s, k), v in prefixed.items()}
    environ |= {names[key]: str(value) for key, value in plain.items()}
    loaded = load_settings(
        config=path,
        environ=environ,
        overrides=[f"{s}.{k}={v}" for (s, k), v in overrides.items()],
    )
    for section, key, name in KEYS:
        found = getattr(getattr(loaded.settings, section), key)
        layers = [layer.get((section, key)) for layer in (overrides, plain, prefixed, file)]
        origins = [f"--set {section}.{key}", name, f"SUPERVISOR_{section.upper()}__{key.upper()}"]
        expected = next((value for value in layers if value is not None), None)
        if expected is None:
            assert loaded.origin((section, key)) is None
            continue
        assert found == expected
        rank = layers.index(expected) if layers.count(expected) == 1 else None
        if rank is not None and rank < 3:
            assert loaded.origin((section, key)) == origins[rank]


TABLES = st.recursive(
    st.integers() | st.lists(st.integers(), max_size=2),
    lambda inner: st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
    max_leaves=8,
)


@given(lower=st.dictionaries(st.sampled_from("abc"), TABLES), upper=TABLES)
def test_tables_merge_and_everything_else_replaces(lower: dict[str, Any], upper: Any) -> None:
    layers = Layers()
    layers.put((), lower, "lower")
    before = json.dumps(layers.tree)
    layers.put(("a",), upper, "upper")
    if not isinstance(upper, dict):
        assert layers.get(("a",)) == upper
        assert layers.origin(("a",)) == "upper"
    for path, value in _leaves(layers.tree, ()):
        origin = layers.origins.get(path)
        source: Any = {"a": upper} if origin == "upper" else lower
        for name in path:
            source = source[name]
        assert source == value
    assert json.loads(before).keys() <= layers.tree.keys() | {"a"}


def _leaves(value: Any, path: KeyPath) -> list[tuple[KeyPath, Any]]:
    if isinstance(value, dict):
        return [leaf for name, inner in value.items() for leaf in _leaves(inner, (*path, name))]
    return [(path, value)]
