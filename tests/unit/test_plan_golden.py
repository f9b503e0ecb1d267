"""The plan of every card with every ComfyUI version, compared with what was reviewed.

``UPDATE_GOLDENS=1 python -m pytest tests/unit/test_plan_golden.py`` writes them anew; read
the difference before it is committed.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from supervisor.config.settings import Settings
from supervisor.hardware.facts import ComfyUIFacts
from supervisor.plan.build import GeneratedSecrets, build_plan
from supervisor.plan.render import plan_to_json
from tests.unit.plan_machines import CARDS, COMFYUI, machine

GOLDENS = Path(__file__).parent / "data" / "plans"
GENERATED = GeneratedSecrets("generated-token-1", "generated-password-1", "generated-token-2")


def decided(card: str, version: str) -> dict[str, Any]:
    """The part of the plan that depends on card and version."""
    plan = plan_to_json(
        build_plan(
            settings=Settings(),
            facts=machine(CARDS[card], COMFYUI[version]),
            environ={"PATH": "/usr/bin", "HF_TOKEN": "not shown"},
            generated=GENERATED,
        )
    )
    comfyui = next(s for s in plan["services"] if s["name"] == "comfyui")
    return {
        "tier": plan["gpu"]["tier"],
        "mode": plan["gpu"]["mode"],
        "reasons": plan["gpu"]["reasons"],
        "command": comfyui["command"],
        "environment": comfyui["environment"],
        "why": [r for r in comfyui["reasons"] if r not in plan["gpu"]["reasons"]],
        "notes": plan["notes"],
    }


@pytest.mark.parametrize("version", COMFYUI)
def test_plans_are_the_reviewed_ones(version: str) -> None:
    found = {card: decided(card, version) for card in CARDS}
    path = GOLDENS / f"{version}.json"
    if os.environ.get("UPDATE_GOLDENS"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    assert found == json.loads(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("version", COMFYUI)
@pytest.mark.parametrize("card", CARDS)
def test_no_option_is_passed_that_the_version_does_not_know(card: str, version: str) -> None:
    installed: ComfyUIFacts = COMFYUI[version]
    passed = [w for w in decided(card, version)["command"] if w.startswith("--")]
    known = set(installed.flags or {"--listen", "--port", "--cpu"})
    assert set(passed) <= known
    for group in installed.exclusive:
        assert len(group & set(passed)) <= 1
