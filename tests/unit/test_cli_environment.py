"""Where the client commands look for the daemon, and whether they may use colour."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from supervisor.cli import environment
from supervisor.cli.environment import DEFAULT_SOCKET, color_allowed, socket_path, terminal_width
from supervisor.config.settings import SupervisorSection


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def _no_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "_CONFIG_FILES", ())


def test_the_default_is_that_of_the_settings() -> None:
    assert str(SupervisorSection().socket) == DEFAULT_SOCKET


def test_variables_decide_first() -> None:
    both = {"SUPERVISOR_SOCKET": "/a", "SUPERVISOR_SUPERVISOR__SOCKET": "/b"}
    assert socket_path(both) == "/a"
    assert socket_path({"SUPERVISOR_SUPERVISOR__SOCKET": "/b"}) == "/b"


def test_the_file_decides_only_when_nothing_is_at_the_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = tmp_path / "here.sock"
    monkeypatch.setattr(environment, "DEFAULT_SOCKET", str(here))
    config = tmp_path / "c.toml"
    config.write_text('[supervisor]\nsocket = "/moved"\n')
    environ = {"SUPERVISOR_CONFIG": str(config)}
    assert socket_path(environ) == "/moved"
    here.touch()
    assert socket_path(environ) == str(here)


@pytest.mark.parametrize("text", ["broken", "[supervisor]\nsocket = 5", "", "supervisor = 1"])
def test_a_file_that_does_not_say_leaves_the_default(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(environment, "DEFAULT_SOCKET", str(tmp_path / "default.sock"))
    config = tmp_path / "c.toml"
    config.write_text(text)
    found = socket_path({"SUPERVISOR_CONFIG": str(config)})
    assert found == str(tmp_path / "default.sock")


def test_colour() -> None:
    assert color_allowed({}, Terminal())
    assert not color_allowed({"NO_COLOR": "1"}, Terminal())
    assert not color_allowed({"TERM": "dumb"}, Terminal())
    assert not color_allowed({}, io.StringIO())


def test_width() -> None:
    assert terminal_width({"COLUMNS": "42"}) == 42
    assert terminal_width({"COLUMNS": "x"}) > 0
