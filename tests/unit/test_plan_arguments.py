"""COMFYUI_ARGS wins, and nothing that argparse would exit on is ever passed."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from supervisor.errors import ConfigError
from supervisor.plan.comfyui_args import Arguments, join_arguments
from supervisor.plan.gpu_policy import Flag
from tests.unit.plan_machines import COMFYUI

NEWEST = COMFYUI["0.33.0-dynamic-vram"]
PLANNED = (
    Flag("--port", ("8188",), "setting"),
    Flag("--highvram", (), "large card"),
    Flag("--cache-ram", ("5.0",), "limit"),
    Flag("--brand-new-option", (), "from the future"),
)


def join(text: str) -> Arguments:
    return join_arguments(PLANNED, text, NEWEST)


def test_unknown_planner_options_are_not_passed() -> None:
    result = join("")
    assert result.words == ("--port", "8188", "--highvram", "--cache-ram", "5.0")
    assert result.planner_flags == ("--port", "--highvram", "--cache-ram")
    assert result.notes == ()


def test_the_users_value_replaces_the_plans() -> None:
    result = join("--port 9000")
    assert result.words == ("--highvram", "--cache-ram", "5.0", "--port", "9000")
    assert result.value("--port") == "9000"
    assert "--port of the plan is left out: COMFYUI_ARGS sets it" in result.reasons


def test_an_exclusive_option_of_the_user_replaces_the_plans() -> None:
    result = join("--novram --cache-lru 20")
    assert result.words == ("--port", "8188", "--novram", "--cache-lru", "20")


def test_asking_for_dynamic_vram_removes_what_would_turn_it_off() -> None:
    assert "--highvram" not in join("--enable-dynamic-vram").words


def test_quotes_equal_signs_and_abbreviations() -> None:
    result = join('--output-directory "/my outputs" --port=9001 --lowv')
    assert result.value("--output-directory") == "/my outputs"
    assert result.value("--port") == "9001"
    assert "--highvram" not in result.words  # --lowv is --lowvram
    assert result.words[-1] == "--lowv"


@pytest.mark.parametrize(
    ("text", "note"),
    [
        ("--medvram", "does not know --medvram (the nearest is --"),
        ("--preview-method fancy", "takes none, auto, latent2rgb, taesd and not 'fancy'"),
        ("--port", "--port takes 1 value and got 0"),
        ("--novram yes", "--novram takes no value and got 'yes'"),
        ("8189", "'8189' belongs to no option"),
        ("--extra-model-paths-config", "needs a value"),
    ],
)
def test_what_would_stop_comfyui_is_left_out_and_said(text: str, note: str) -> None:
    result = join(text)
    assert result.user == ()
    (only,) = result.notes
    assert note in only
    assert "left out, or ComfyUI would exit with code 2" in only


def test_of_two_options_that_exclude_each_other_the_last_stays() -> None:
    result = join("--lowvram --novram")
    assert result.words[-1] == "--novram"
    assert "--lowvram" not in result.words
    assert "exclude each other" in result.notes[0]


def test_an_unreadable_parser_gets_only_what_every_version_knows() -> None:
    result = join_arguments(PLANNED, "--whatever 3", COMFYUI["unreadable"])
    assert result.words == ("--port", "8188", "--whatever", "3")


def test_groups_are_known_without_being_read() -> None:
    bare = replace(NEWEST, exclusive=())
    assert "--highvram" not in join_arguments(PLANNED, "--lowvram", bare).words


def test_an_open_quote_is_a_configuration_error() -> None:
    with pytest.raises(ConfigError) as caught:
        join('--output-directory "/my')
    (problem,) = caught.value.problems
    assert (problem.key, problem.reason) == (
        "comfyui.args",
        "cannot be split into words: no closing quotation",
    )


WORDS = st.lists(
    st.sampled_from([*(NEWEST.flags or {}), "--nope", "-x", "1", "auto", "--port=7", "--low"]),
    max_size=8,
)


@settings(max_examples=200, deadline=None)
@given(WORDS)
def test_argparse_accepts_whatever_comes_out(words: list[str]) -> None:
    import argparse

    parser = argparse.ArgumentParser(exit_on_error=False)
    groups = {name: parser.add_mutually_exclusive_group() for name in ("vram", "cache", "attn")}
    for name, choices in (NEWEST.flags or {}).items():
        home: argparse._ActionsContainer = parser
        for label, members in zip(groups, NEWEST.exclusive, strict=True):
            home = groups[label] if name in members else home
        arity = NEWEST.arity[name]
        if arity == "0":
            home.add_argument(name, action="store_true")
        else:
            nargs = None if arity == "1" else arity
            home.add_argument(name, nargs=nargs, choices=choices or None)
    result = join_arguments(PLANNED, " ".join(words), NEWEST)
    try:
        parser.parse_args(list(result.words))
    except (argparse.ArgumentError, SystemExit) as exc:
        pytest.fail(f"{result.words}: {exc}")
