"""Updates of custom nodes with real git and real pip, and the guard of torch."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import zipfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import anyio
import pytest

from supervisor.cli.main import main
from supervisor.core.status import NodeStatus
from supervisor.pod.commands import Runner, last_line
from supervisor.pod.nodes import Moved, Nodes, Record, environment_for
from supervisor.pod.torch_stack import Baseline, changes, constraints, reinstall, stack_of

pytestmark = [pytest.mark.anyio, pytest.mark.needs("git")]
IDENTITY = ("-c", "user.name=t", "-c", "user.email=t@localhost", "-c", "commit.gpgsign=false",
            "-c", "init.defaultBranch=main", "-c", "protocol.file.allow=always")  # fmt: skip


def git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["git", *IDENTITY, *arguments], cwd=folder, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


class Pod:
    """A ComfyUI folder with nodes cloned from upstream repositories beside it."""

    def __init__(self, folder: Path, python: str = sys.executable, **environ: str) -> None:
        self.folder = folder
        self.nodes_folder = folder / "ComfyUI" / "custom_nodes"
        self.nodes_folder.mkdir(parents=True)
        self.python = python
        self.environ = {"PATH": os.environ["PATH"], "HOME": str(folder), **environ}
        self.constraints: Path | None = None

    def node(self, name: str) -> Path:
        """Make a node with one commit, at its upstream and here; returns it here."""
        upstream = self.folder / "upstream" / name
        upstream.mkdir(parents=True)
        git(upstream, "init", "--quiet")
        self.publish(name, "1")
        git(self.nodes_folder, "clone", "--quiet", str(upstream), name)
        return self.nodes_folder / name

    def publish(self, name: str, text: str, **files: str) -> str:
        """Commit at the upstream; returns the commit."""
        upstream = self.folder / "upstream" / name
        for file, content in {"code": text, **files}.items():
            path = upstream / file.replace("_txt", ".txt")
            path.write_text(content)
        git(upstream, "add", ".")
        git(upstream, "commit", "--quiet", "--allow-empty", "-m", text)
        return git(upstream, "rev-parse", "HEAD")

    def nodes(self) -> Nodes:
        return Nodes(
            self.nodes_folder,
            python=Path(self.python),
            runner=Runner(environment_for(self.environ, self.constraints)),
            record=Record(self.folder / "state" / "nodes.json"),
        )

    async def update(self, timeout_s: float = 60.0) -> dict[str, NodeStatus]:
        told: list[NodeStatus] = []
        found = await self.nodes().update(timeout_s=timeout_s, told=told.append)
        assert sorted(told, key=lambda n: n.name) == found
        return {node.name: node for node in found}


def code(node: Path) -> str:
    return (node / "code").read_text()


async def test_nodes_move_forward_and_back(tmp_path: Path) -> None:
    pod = Pod(tmp_path)
    moved, current = pod.node("moved"), pod.node("current")
    (pod.nodes_folder / "no-repository").mkdir()
    hook = moved / ".git" / "hooks" / "post-merge"
    hook.write_text("#!/bin/sh\ntouch ran\n")
    hook.chmod(0o755)
    before = git(moved, "rev-parse", "HEAD")
    after = pod.publish("moved", "2")
    found = await pod.update()
    assert found == {
        "current": NodeStatus("current", "current", *[git(current, "rev-parse", "HEAD")[:10]] * 2),
        "moved": NodeStatus("moved", "updated", before[:10], after[:10]),
    }
    assert code(moved) == "2"
    assert not (moved / "ran").exists(), "a node's hooks are code that nobody asked for"

    pod.publish("moved", "3")
    await pod.update()
    assert code(moved) == "3"
    (back,) = await pod.nodes().roll_back()
    assert (back.name, back.after) == ("moved", before[:10])
    assert code(moved) == "1", "two updates are taken back at once"
    assert await pod.nodes().roll_back() == []


async def test_what_somebody_changed_is_left_alone(tmp_path: Path) -> None:
    pod = Pod(tmp_path)
    names = ("dirty", "pinned", "alone", "diverged")
    nodes = {name: pod.node(name) for name in names}
    (nodes["dirty"] / "code").write_text("mine")
    git(nodes["pinned"], "checkout", "--quiet", "--detach")
    git(nodes["alone"], "checkout", "--quiet", "-b", "own")
    git(nodes["diverged"], "commit", "--quiet", "--allow-empty", "-m", "mine")
    for name in names:
        pod.publish(name, "2")
    found = await pod.update()
    assert {node.state for node in found.values()} == {"kept"}
    reasons = {name: (found[name].message or "") for name in names}
    assert reasons["dirty"] == "has local changes"
    assert reasons["pinned"].startswith("pinned to ")
    assert reasons["alone"] == "its branch follows no other"
    assert reasons["diverged"].startswith("has diverged from its upstream at ")
    assert [code(nodes[name]) for name in names] == ["mine", "1", "1", "1"]


async def test_a_remote_that_hangs_costs_only_the_deadline(tmp_path: Path) -> None:
    pod = Pod(tmp_path)
    hung, well, gone = pod.node("hung"), pod.node("well"), pod.node("gone")
    pod.publish("well", "2")
    git(gone, "remote", "set-url", "origin", str(tmp_path / "nowhere"))
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/x.git"
        git(hung, "remote", "set-url", "origin", url)
        found = await pod.update(timeout_s=10.0)
    assert (found["hung"].state, found["hung"].message) == ("failed", "not done within 10 s")
    assert found["well"].state == "updated"
    assert code(well) == "2"
    assert found["gone"].state == "failed"
    assert "git fetch: fatal: " in (found["gone"].message or "")


async def test_an_update_that_was_cut_off_is_finished_by_the_next_boot(tmp_path: Path) -> None:
    pod = Pod(tmp_path)
    node = pod.node("node")
    before, after = git(node, "rev-parse", "HEAD"), pod.publish("node", "2", new="whole")
    git(node, "fetch", "--quiet")
    # As kill -9 in the middle of git leaves it: noted, half written, locked.
    Record(tmp_path / "state" / "nodes.json").note("node", Moved(before, after, done=False))
    (node / "code").write_text("half")
    (node / "new").write_text("half")
    (node / ".git" / "index.lock").touch()
    found = await pod.update()
    assert found["node"].state == "updated"
    assert code(node) == "2"
    assert git(node, "status", "--porcelain") == ""


async def test_a_damaged_repository_is_not_taken_for_comfyui(tmp_path: Path) -> None:
    pod = Pod(tmp_path)
    comfyui = pod.nodes_folder.parent
    git(comfyui, "init", "--quiet")
    git(comfyui, "commit", "--quiet", "--allow-empty", "-m", "ComfyUI")
    git(comfyui, "branch", "upstream")
    git(comfyui, "branch", "--set-upstream-to", "upstream")
    (pod.nodes_folder / "broken" / ".git").mkdir(parents=True)
    found = await pod.update()
    assert found["broken"].state == "failed"
    assert "not a git repository" in (found["broken"].message or "")


async def test_the_way_back_overwrites_no_changes(tmp_path: Path) -> None:
    pod = Pod(tmp_path)
    node = pod.node("node")
    pod.publish("node", "2")
    await pod.update()
    (node / "code").write_text("mine")
    (back,) = await pod.nodes().roll_back()
    assert back.state == "failed"
    assert code(node) == "mine"
    git(node, "checkout", "--quiet", "code")
    (back,) = await pod.nodes().roll_back()
    assert (back.state, code(node)) == ("updated", "1")


async def test_requirements_that_are_late_leave_the_old_version(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\nexec sleep 600\n")
    python.chmod(0o755)
    pod = Pod(tmp_path, str(python))
    node = pod.node("node")
    pod.publish("node", "2", requirements_txt="late\n")
    found = await pod.update(timeout_s=10.0)
    assert found["node"].state == "failed"
    assert code(node) == "1"
    assert git(node, "status", "--porcelain") == ""


def test_a_password_in_an_address_is_not_told() -> None:
    text = "warning: x\nfatal: unable to access 'https://me:sesame@host/x.git/': no\n"
    assert last_line(text) == "fatal: unable to access 'https://***@host/x.git/': no"


def test_git_and_pip_get_no_secrets() -> None:
    environ = {"PATH": "/bin", "R2_SECRET_ACCESS_KEY": "s3cret", "HF_TOKEN": "s3cret"}
    found = environment_for(environ, None)
    assert "s3cret" not in found.values()
    assert found["GIT_TERMINAL_PROMPT"] == "0"


# -- torch ---------------------------------------------------------------------------------------


def wheel(folder: Path, name: str, version: str, requires: str = "") -> None:
    """A package that holds nothing but its name."""
    info = f"{name}-{version}.dist-info"
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    metadata += f"Requires-Dist: {requires}\n" if requires else ""
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as archive:
        archive.writestr(f"{name.replace('-', '_')}.py", f"__version__ = '{version}'\n")
        archive.writestr(f"{info}/METADATA", metadata)
        tag = "Wheel-Version: 1.0\nGenerator: t\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        archive.writestr(f"{info}/WHEEL", tag)
        archive.writestr(f"{info}/RECORD", "")


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """An interpreter of ComfyUI's with pip and a (tiny) torch, and wheels to install from."""
    folder = tmp_path_factory.mktemp("image")
    wheels = folder / "wheels"
    wheels.mkdir()
    for version in ("2.5.1+cu124", "2.6.0"):
        wheel(wheels, "torch", version)
    wheel(wheels, "torchvision", "0.20.1+cu124")
    wheel(wheels, "greedy", "1.0", "torch>=2.6")
    wheel(wheels, "modest", "1.0", "torch>=2")
    python = environment_with_pip(folder / "venv")
    environ = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(wheels)}
    install(python, environ, "torch==2.5.1+cu124", "torchvision")
    return python, environ


def environment_with_pip(folder: Path) -> Path:
    """A virtual environment with our own pip: unpacking another takes half a minute."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    spec = find_spec("pip")
    assert spec is not None
    assert spec.origin is not None
    (packages,) = folder.glob("lib/python*/site-packages")
    (packages / "pip").symlink_to(Path(spec.origin).parent)
    return folder / "bin" / "python"


def install(python: Path, environ: dict[str, str], *packages: str) -> None:
    command = [str(python), "-m", "pip", "install", "--quiet", *packages]
    subprocess.run(command, env={**os.environ, **environ}, check=True)


async def test_requirements_of_a_node_never_replace_torch(tmp_path: Path, image: Any) -> None:
    python, environ = image
    pod = Pod(tmp_path, str(python), **environ)
    pod.constraints = tmp_path / "constraints.txt"
    stack = stack_of(python)
    assert stack == {"torch": "2.5.1+cu124", "torchvision": "0.20.1+cu124"}
    pod.constraints.write_text(constraints(stack))
    greedy, modest = pod.node("greedy-node"), pod.node("modest-node")
    pod.publish("greedy-node", "2", requirements_txt="greedy\n")
    pod.publish("modest-node", "2", requirements_txt="modest\n")
    found = await pod.update()
    assert found["modest-node"].state == "updated"
    assert found["greedy-node"].state == "kept"
    assert "requirements cannot be had" in (found["greedy-node"].message or "")
    assert (code(greedy), code(modest)) == ("1", "2")
    assert stack_of(python) == stack
    assert (await pod.update())["greedy-node"].state == "kept", "it is tried again, no worse"


def test_a_replaced_torch_is_told_and_brought_back(
    tmp_path: Path, image: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    python, environ = image
    root = tmp_path / "ComfyUI"
    (root / "comfy").mkdir(parents=True)
    (root / "main.py").touch()
    config = tmp_path / "supervisor.toml"
    config.write_text(
        f'[supervisor]\nstate_dir = "{tmp_path / "state"}"\n'
        f'[comfyui]\nroot = "{root}"\npython = "{python}"\n[models]\nbundles = []\n'
    )
    surroundings = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), **environ}
    baseline = Baseline(python, tmp_path / "state")
    image_stack = stack_of(python)
    baseline.save(image_stack)
    install(python, environ, "torch==2.6.0")
    assert changes(baseline.load() or {}, stack_of(python)) == ("torch 2.5.1+cu124 → 2.6.0",)

    arguments = ["--config", str(config)]
    assert main(["nodes", "rollback", *arguments], surroundings) == 0
    assert stack_of(python) == image_stack
    assert "restart comfyui" in capsys.readouterr().out
    assert main(["nodes", "rollback", *arguments], surroundings) == 0
    assert "nothing to take back" in capsys.readouterr().out

    other = tmp_path / "empty" / "bin" / "python"
    assert main(["nodes", "accept", *arguments, "--set", f"comfyui.python={other}"], surroundings)
    assert "There is no torch beside" in capsys.readouterr().err

    install(python, environ, "torch==2.6.0")
    assert main(["nodes", "accept", *arguments], surroundings) == 0
    assert changes(baseline.load() or {}, stack_of(python)) == ()
    install(python, environ, "torch==2.5.1+cu124")
    baseline.save(image_stack)


def test_torch_of_a_cuda_version_comes_from_its_own_index() -> None:
    command = reinstall(Path("/venv/bin/python"), {"torch": "2.5.1+cu124"})
    assert command[-3:] == [
        "--extra-index-url", "https://download.pytorch.org/whl/cu124", "torch==2.5.1+cu124"
    ]  # fmt: skip
    assert "--no-deps" in command


async def test_a_command_that_is_cancelled_leaves_nothing(tmp_path: Path) -> None:
    stamp = tmp_path / "pid"
    script = f"sleep 600 & echo $! > {stamp}.new; mv {stamp}.new {stamp}; wait"
    async with anyio.create_task_group() as tasks:
        runner = Runner({"PATH": os.environ["PATH"]})
        tasks.start_soon(runner.run, ["sh", "-c", script])
        with anyio.fail_after(30):
            while not stamp.exists():
                await anyio.sleep(0.02)
        tasks.cancel_scope.cancel()
    child = Path("/proc") / stamp.read_text().strip() / "stat"
    with anyio.fail_after(30):
        while child.exists() and child.read_text().rpartition(")")[2].split()[0] != "Z":
            await anyio.sleep(0.02)


def test_the_stack_is_not_written_through_a_link(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("whole")
    baseline = Baseline(tmp_path / "bin" / "python", tmp_path / "state")
    (tmp_path / f".supervisor-torch-stack.json.{os.getpid()}").symlink_to(victim)
    baseline.save({"torch": "2.8.0"})
    assert victim.read_text() == "whole"
    assert baseline.load() == {"torch": "2.8.0"}
