"""Stepping down the VRAM ladder as the app does it: plan after plan."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from supervisor.config.settings import Settings
from supervisor.hardware.facts import ComfyUIFacts
from supervisor.plan.build import GeneratedSecrets, build_plan
from supervisor.plan.ladder import step_down
from supervisor.plan.model import Plan
from tests.unit.plan_machines import CARDS, COMFYUI, machine

GENERATED = GeneratedSecrets("jupyter-generated", "filebrowser-generated", "health-generated")


def descent(card: str, version: str, **sections: Any) -> list[Plan]:
    return descend(card, COMFYUI[version], **sections)


def descend(card: str, installed: ComfyUIFacts, **sections: Any) -> list[Plan]:
    def build(step: int) -> Plan:
        return build_plan(
            settings=Settings.model_validate(sections),
            facts=machine(CARDS[card], installed),
            environ={},
            generated=GENERATED,
            ladder_step=step,
        )

    plans = [build(0)]
    while (lower := step_down(build, plans[-1], installed)) is not None:
        plans.append(lower)
        assert len(plans) < 20
    return plans


def vram_words(plan: Plan) -> str:
    words = plan.services[0].command
    kept = [w for w in words if "vram" in w]
    return " ".join(kept)


def test_with_dynamic_vram() -> None:
    plans = descent("l4-23034", "0.33.0-dynamic-vram")
    assert [vram_words(plan) for plan in plans] == [
        "",
        "--vram-headroom --reserve-vram",
        "--disable-dynamic-vram --reserve-vram",
        "--disable-dynamic-vram --lowvram --reserve-vram",
        "--novram",
    ]
    assert [plan.gpu.ladder_step for plan in plans] == [0, 1, 2, 3, 4]
    assert all(plan.gpu.ladder_reasons for plan in plans[1:])
    assert any("VRAM ladder" in reason for reason in plans[1].services[0].reasons)


def test_options_that_this_version_lacks_are_not_missed() -> None:
    full = COMFYUI["0.33.0-dynamic-vram"]
    assert full.flags is not None
    flags = {name: values for name, values in full.flags.items() if name != "--vram-headroom"}
    plans = descend("l4-23034", replace(full, flags=flags))
    assert [vram_words(plan) for plan in plans[:3]] == [
        "",
        "--reserve-vram",
        "--disable-dynamic-vram --reserve-vram",
    ]


def test_without_dynamic_vram_the_plans_own_flag_is_replaced() -> None:
    plans = descent("a100-81920", "0.3.10-normalvram")
    assert [vram_words(plan) for plan in plans] == [
        "--highvram",
        "--reserve-vram",
        "--lowvram --reserve-vram",
        "--novram",
    ]


def test_a_card_that_starts_low_has_fewer_steps() -> None:
    plans = descent("rtx-3070-8gb", "0.3.10-normalvram")
    assert [vram_words(plan) for plan in plans] == ["--lowvram", "--novram"]


def test_steps_that_the_user_overrules_are_not_taken() -> None:
    plans = descent("l4-23034", "0.3.10-normalvram", comfyui={"args": "--lowvram"})
    assert [vram_words(plan) for plan in plans] == ["--lowvram", "--reserve-vram --lowvram"]


@pytest.mark.parametrize(
    ("card", "version", "sections"),
    [
        ("l4-23034", "0.33.0-dynamic-vram", {"gpu": {"ladder": False}}),
        ("none", "0.33.0-dynamic-vram", {}),
        ("l4-23034", "unreadable", {}),
    ],
)
def test_where_there_is_no_ladder(card: str, version: str, sections: dict[str, Any]) -> None:
    assert len(descent(card, version, **sections)) == 1
