"""Rescue mode finds its port, socket and token even in a configuration that is broken."""

from __future__ import annotations

from pathlib import Path

from supervisor.app.boot import Source
from supervisor.app.rescue import salvage


def test_the_needed_sections_survive_faults_elsewhere(tmp_path: Path) -> None:
    config = tmp_path / "supervisor.toml"
    config.write_text('[health]\nport = 9123\ntoken = "a-long-enough-token"\n[comfyui]\nprot = 1\n')
    settings = salvage(Source(config, ("gpu.tier=hopper",), {"SUPERVISOR_SOCKET": "/x/s.sock"}))
    assert settings.health.port == 9123
    assert settings.health.token is not None
    assert settings.supervisor.socket == Path("/x/s.sock")


def test_the_environment_wins_over_the_file(tmp_path: Path) -> None:
    config = tmp_path / "supervisor.toml"
    config.write_text("[health]\nport = 9123\n[nonsense]\n")
    settings = salvage(Source(config, (), {"PORT_HEALTH": "9124", "COMFYUI_PORT": "abc"}))
    assert settings.health.port == 9124


def test_a_fault_in_the_needed_sections_costs_that_key_only(tmp_path: Path) -> None:
    config = tmp_path / "supervisor.toml"
    config.write_text('[health]\nport = "many"\nhost = "127.0.0.1"\n')
    settings = salvage(Source(config, (), {}))
    assert settings.health.port == 8000
    assert settings.health.host == "127.0.0.1"


def test_a_file_that_cannot_be_parsed_leaves_the_defaults(tmp_path: Path) -> None:
    config = tmp_path / "supervisor.toml"
    config.write_text("[health\n")
    assert salvage(Source(config, (), {"PORT": "9125"})).health.port == 9125
    assert salvage(Source(tmp_path / "absent.toml", (), {})).health.port == 8000
