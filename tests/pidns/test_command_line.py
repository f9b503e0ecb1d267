"""``supervisor run -- COMMAND`` itself: options, exit codes, and what it does not import."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from tests.pidns.harness import REPOSITORY, run_init, start_init

RUN = (sys.executable, "-m", "supervisor", "run")


def test_exit_code_and_output_are_the_programs(as_pid1: bool) -> None:
    result = run_init("--", "sh", "-c", "echo out; exit 42", as_pid1=as_pid1, program=RUN)
    assert result == (42, "out\n", "")
    result = run_init("--", "sh", "-c", "kill -9 $$", as_pid1=as_pid1, program=RUN)
    assert result == (137, "", "")
    assert run_init("--", "no-such-program", as_pid1=as_pid1, program=RUN)[:2] == (127, "")
    assert run_init("--", str(REPOSITORY), as_pid1=as_pid1, program=RUN)[:2] == (126, "")


def test_arguments_after_the_dashes_are_the_programs(as_pid1: bool) -> None:
    arguments = ("--", "printf", "%s|", "--config", "--", "-h", "")
    result = run_init(*arguments, as_pid1=as_pid1, program=RUN)
    assert result == (0, "--config|--|-h||", "")


@pytest.mark.parametrize("options", [(), ("--no-group",), ("--no-setsid",)])
def test_signal_reaches_the_program(options: tuple[str, ...], as_pid1: bool) -> None:
    script = "trap 'exit 9' USR1; echo ready; while :; do sleep 0.05; done"
    arguments = (*options, "--", "sh", "-c", script)
    with start_init(*arguments, as_pid1=as_pid1, program=RUN) as init:
        assert init.read_line() == "ready"
        init.send(signal.SIGUSR1)
        assert init.wait() == 9


def test_broken_configuration_does_not_matter(as_pid1: bool) -> None:
    environment = {"SUPERVISOR_CONFIG": "/no/such/file", "SUPERVISOR_GPU__TIER": "nonsense"}
    result = run_init("--", "true", as_pid1=as_pid1, program=RUN, environment=environment)
    assert result == (0, "", "")


def test_nothing_heavy_is_imported() -> None:
    code, _, err = run_init(
        "--", "true", as_pid1=False, program=(sys.executable, "-X", "importtime", *RUN[1:])
    )
    assert code == 0
    imported = {line.rpartition("|")[2].strip() for line in err.splitlines()}
    assert "supervisor.pid1" in imported
    heavy = {"aiohttp", "anyio", "argparse", "asyncio", "logging", "pydantic", "subprocess"}
    assert not imported & ((heavy | {"socket", "ssl", "typing"}) - _at_start())


def _at_start() -> set[str]:
    """What the interpreter of this environment imports by itself (.pth files)."""
    script = "import sys; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    return set(done.stdout.split())
