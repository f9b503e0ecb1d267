"""The supervisors and inits that are measured: how each is configured and started."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CACHE = ROOT / ".cache" / "benchmarks"


@dataclass(frozen=True)
class Program:
    """A service: its name and what to execute."""

    name: str
    command: tuple[str, ...]


@dataclass(frozen=True)
class Peer:
    """A supervisor: ``write`` puts its configuration into a folder and returns its command."""

    name: str
    available: Callable[[], bool]
    write: Callable[[Path, list[Program]], list[str]]
    advice: str = ""
    only_init: bool = False


def write_ours(folder: Path, programs: list[Program]) -> list[str]:
    """TOML; JSON's strings are TOML's too."""
    parts = [
        f'[supervisor]\nstate_dir = "{folder}/state"\nsocket = "{folder}/s.sock"',
        "[comfyui]\nenabled = false\n[jupyter]\nenabled = false\n[ssh]\nenabled = false",
        '[health]\nport = 0\nhost = "127.0.0.1"\n[gpu]\nnvenc = false\n[sync]\nenabled = false',
        *(
            f"[services.{p.name}]\ncommand = {json.dumps(p.command)}\nhealthy_after_s = 0\n"
            "max_restarts = 100000"
            for p in programs
        ),
    ]
    (folder / "supervisor.toml").write_text("\n".join(parts) + "\n")
    return [sys.executable, "-m", "supervisor", "run", "--config", str(folder / "supervisor.toml")]


def write_supervisord(folder: Path, programs: list[Program]) -> list[str]:
    """No minimal life (startsecs), so that every restart counts as one of a good program."""
    parts = [f"[supervisord]\nnodaemon=true\nlogfile={folder}/s.log\npidfile={folder}/s.pid"]
    for p in programs:
        script = write_script(folder / f"{p.name}.run", p)
        parts.append(
            f"[program:{p.name}]\ncommand={script}\nautorestart=true\nstartsecs=0\n"
            f"redirect_stderr=true\nstdout_logfile={folder}/{p.name}.log\n"
            "stdout_logfile_maxbytes=10MB"
        )
    (folder / "supervisord.conf").write_text("\n".join(parts) + "\n")
    return [str(tool("supervisord", "supervisord")), "-c", str(folder / "supervisord.conf")]


def write_circus(folder: Path, programs: list[Program]) -> list[str]:
    """The check delay is the smallest that its documentation shows."""
    parts = [
        "[circus]\ncheck_delay = 0.1\nwarmup_delay = 0",
        f"endpoint = ipc://{folder}/e\npubsub_endpoint = ipc://{folder}/p",
    ]
    for p in programs:
        script = write_script(folder / f"{p.name}.run", p)
        parts.append(
            f"[watcher:{p.name}]\ncmd = {script}\nnumprocesses = 1\ncopy_env = true\n"
            f"stdout_stream.class = FileStream\nstdout_stream.filename = {folder}/{p.name}.log\n"
            "stdout_stream.max_bytes = 10000000\nstdout_stream.backup_count = 2"
        )
    (folder / "circus.ini").write_text("\n".join(parts) + "\n")
    return [str(tool("circus", "circusd")), str(folder / "circus.ini")]


def write_s6(folder: Path, programs: list[Program]) -> list[str]:
    """Each service with a logger, as s6 is used."""
    scan = folder / "scan"
    for p in programs:
        (scan / p.name / "log").mkdir(parents=True)
        write_script(scan / p.name / "run", p)
        log = Program("log", ("s6-log", "n2", "s10000000", f"{folder}/{p.name}.logs"))
        write_script(scan / p.name / "log" / "run", log)
    return ["s6-svscan", str(scan)]


def write_init(*command: str) -> Callable[[Path, list[Program]], list[str]]:
    """An init of one program, without configuration."""

    def write(_folder: Path, programs: list[Program]) -> list[str]:
        return [*command, *programs[0].command]

    return write


def write_script(path: Path, program: Program) -> Path:
    """A script that executes the program: quoting differs between the peers, this does not."""
    path.write_text(f"#!/bin/sh\nexec {shlex.join(program.command)}\n")
    path.chmod(0o755)
    return path


def tool(environment: str, name: str) -> Path:
    """Where a peer's program is: in its own environment, else on PATH."""
    own = CACHE / environment / "bin" / name
    return own if own.exists() else Path(shutil.which(name) or own)


PEERS = [
    Peer("ours", (ROOT / "supervisor" / "app").exists, write_ours),
    Peer(
        "supervisord",
        lambda: tool("supervisord", "supervisord").exists(),
        write_supervisord,
        "--setup",
    ),
    Peer("s6", lambda: shutil.which("s6-svscan") is not None, write_s6, "apt install s6"),
    Peer("circus", lambda: tool("circus", "circusd").exists(), write_circus, "--setup"),
    Peer("tini", lambda: bool(shutil.which("tini")), write_init("tini", "--"), "apt", True),
    Peer(
        "dumb-init", lambda: bool(shutil.which("dumb-init")), write_init("dumb-init"), "apt", True
    ),
]


def setup() -> None:
    """Install supervisord and circus into environments of their own."""
    for name, package in (("supervisord", "supervisor"), ("circus", "circus")):
        python = CACHE / name / "bin" / "python"
        if not python.exists():
            subprocess.run([sys.executable, "-m", "venv", str(CACHE / name)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "-q", package], check=True)
