"""Custom nodes are updated before ComfyUI starts, and the pod says so."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from supervisor.demo.world import DemoWorld
from tests.e2e.pod import edit, ready_pod

IDENTITY = ("-c", "user.name=t", "-c", "user.email=t@localhost", "-c", "commit.gpgsign=false")


def git(folder: Path, *arguments: str) -> None:
    subprocess.run(["git", *IDENTITY, *arguments], cwd=folder, check=True, capture_output=True)


@pytest.mark.needs("git")
def test_nodes_are_new_when_comfyui_starts(world: DemoWorld, tmp_path: Path) -> None:
    upstream, nodes = tmp_path / "upstream", world.comfyui_root / "custom_nodes"
    upstream.mkdir()
    nodes.mkdir(exist_ok=True)
    git(upstream, "init", "--quiet")
    git(upstream, "commit", "--quiet", "--allow-empty", "-m", "1")
    git(nodes, "clone", "--quiet", str(upstream), "example")
    (upstream / "new.py").write_text("x = 1\n")
    git(upstream, "add", ".")
    git(upstream, "commit", "--quiet", "-m", "2")
    edit(world, "comfyui", update_nodes=True)
    with ready_pod(world) as pod:
        status = pod.status()
        assert [(n["name"], n["state"]) for n in status["nodes"]["nodes"]] == [
            ("example", "updated")
        ]
        assert (nodes / "example" / "new.py").exists()
        assert "example  updated" in pod.cli("nodes", "status").stdout
        assert "1 updated" in pod.cli("status").stdout
        log = pod.text()
        assert log.index("node example:") < log.index("comfyui is ready")
        plan = pod.cli("plan", "--config", str(world.config)).stdout
        assert "custom nodes are updated before the start" in plan
