"""What commands say: words for people, not the shapes of the program."""

from __future__ import annotations

from argparse import ArgumentTypeError

import pytest

from supervisor.cli.commands.idle import seconds_of
from supervisor.cli.commands.reload import lines


@pytest.mark.parametrize(
    ("text", "seconds"), [("30s", 30), ("90m", 5400), ("2h", 7200), ("5", 300)]
)
def test_durations(text: str, seconds: float) -> None:
    assert seconds_of(text) == seconds


@pytest.mark.parametrize("text", ["x", "", "-1h", "infh", "nan"])
def test_what_is_no_duration_is_told_with_the_form(text: str) -> None:
    with pytest.raises(ArgumentTypeError, match="is not a duration like 30s, 90m or 2h"):
        seconds_of(text)


def test_a_reload_is_told_in_lines() -> None:
    answer = {
        "dry_run": True,
        "services": {"added": ["xtts"], "removed": [], "changed": ["comfyui", "jupyter"]},
        "downloads": {"added": [], "removed": ["loras/a.safetensors"]},
        "needs_restart": ["health"],
    }
    assert list(lines(answer)) == [
        "services added: xtts",
        "services changed: comfyui, jupyter",
        "downloads removed: loras/a.safetensors",
        "needs restart: health",
    ]
    assert list(lines({"dry_run": False, "services": {}, "needs_restart": []})) == []
