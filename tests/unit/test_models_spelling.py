"""Names in [models] that do not exist: `check` and the models commands refuse them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from supervisor.cli.main import main
from supervisor.config.settings import ModelsSection
from supervisor.models.catalog import load_catalog
from supervisor.models.spelling import misspelled


def found(**keys: Any) -> dict[str, tuple[str, str | None]]:
    section = ModelsSection.model_validate({"bundles": [], **keys})
    return {p.key: (p.reason, p.hint) for p in misspelled(load_catalog(), section)}


def test_what_exists_is_no_problem_however_it_is_written() -> None:
    assert not found(
        bundles=["wan_720p", "controlnet"],
        selectors={"CONTROLNET_MODELS": "Canny, DEPTH ,", "VIBEVOICE_MODEL": " large-q8 "},
    )


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("wan_720", "wan_720p"),
        ("WAN_720P", "wan_720p"),
        ("ENABLE_VACE", "vace"),
        ("zimgae", "zimage"),
    ],
)
def test_a_bundle_is_suggested(name: str, meant: str) -> None:
    reason, hint = found(bundles=["controlnet", name])["models.bundles[1]"]
    assert reason == "there is no such bundle"
    assert hint == f"did you mean {meant}?"


def test_selectors_and_choices_are_looked_at_although_their_bundle_is_off() -> None:
    problems = found(
        selectors={"VIBEVOICE_MODEL": "Larg", "CONTROLNET_MODELS": "canny,deep", "VIBEVOICE": "x"}
    )
    assert problems["models.selectors.VIBEVOICE_MODEL"] == (
        'there is no choice "Larg"',
        "did you mean Large?",
    )
    assert problems["models.selectors.CONTROLNET_MODELS"][0] == 'there is no choice "deep"'
    assert problems["models.selectors.VIBEVOICE"][1] == "did you mean VIBEVOICE_MODEL?"


def test_what_is_like_nothing_gets_the_list() -> None:
    reason_and_hint = found(selectors={"QWEN_EDIT_MODEL": "best"})
    hint = reason_and_hint["models.selectors.QWEN_EDIT_MODEL"][1]
    assert hint is not None
    assert "Q4_K_M" in hint


def test_check_says_where_each_name_stands(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "supervisor.toml"
    config.write_text(
        '[models]\nbundles = ["wan_720"]\n[[models.files]]\nurl = "https://x/y.safetensors"\n'
        '[services.a]\ncommand = ["a"]\nafter = ["b"]\n'
    )
    environ = {"VIBEVOICE_MODEL": "Larg", "ENABLE_ZIMAGE": "true"}
    assert main(["check", "--config", str(config), "--json"], environ) == 78
    answer = json.loads(capsys.readouterr().out)
    places = {problem["key"]: problem["source"] for problem in answer["problems"]}
    assert places == {
        "models.bundles[0]": f"{config}:2, ENABLE_ZIMAGE",
        "models.files[0]": f"{config}:3",
        "models.selectors.VIBEVOICE_MODEL": "VIBEVOICE_MODEL",
        "services.a.after": f"{config}:7",
    }
    assert answer["message"].endswith("4 errors")
