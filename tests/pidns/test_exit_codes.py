"""The exit code is the child's own, 128+n for a signal, and nothing else is said."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from tests.pidns.harness import run_init

CODES = (0, 1, 2, 3, 64, 69, 77, 78, 126, 127, 128, 137, 200, 254, 255)
DEADLY = (
    signal.SIGHUP,
    signal.SIGINT,
    signal.SIGQUIT,
    signal.SIGABRT,
    signal.SIGKILL,
    signal.SIGSEGV,
    signal.SIGPIPE,
    signal.SIGTERM,
    signal.SIGRTMIN,
)


@pytest.mark.parametrize("code", CODES)
def test_program_exit_code(code: int, as_pid1: bool) -> None:
    result = run_init("command", "--", "sh", "-c", f"exit {code}", as_pid1=as_pid1)
    assert result == (code, "", "")


@pytest.mark.parametrize("number", DEADLY)
def test_program_killed_by_a_signal(number: signal.Signals, as_pid1: bool) -> None:
    script = f"ulimit -c 0; kill -{int(number)} $$"
    result = run_init("command", "--", "sh", "-c", script, as_pid1=as_pid1)
    assert result == (128 + number, "", "")


@pytest.mark.parametrize("code", [0, 1, 70, 78, 255])
def test_supervisor_exit_code(code: int, as_pid1: bool) -> None:
    assert run_init("supervisor", "exit_with", str(code), as_pid1=as_pid1)[0] == code
    assert run_init("supervisor", "raise_exit", str(code), as_pid1=as_pid1)[0] == code


def test_supervisor_bug_is_shown_and_is_70(as_pid1: bool) -> None:
    code, out, err = run_init("supervisor", "raise_bug", as_pid1=as_pid1)
    assert (code, out) == (70, "")
    assert "RuntimeError: a bug" in err


def test_output_of_the_program_is_untouched(as_pid1: bool) -> None:
    result = run_init("command", "--", "printf", r"a\000b\n", as_pid1=as_pid1)
    assert result == (0, "a\0b\n", "")


def test_inherited_ignored_sigchld_loses_no_code(as_pid1: bool) -> None:
    ignoring = ("sh", "-c", "trap '' CHLD; exec \"$@\"", "sh")
    code, _, _ = run_init("command", "--", "sh", "-c", "exit 9", as_pid1=as_pid1, wrapper=ignoring)
    assert code == 9


def test_missing_program_is_127(as_pid1: bool) -> None:
    code, out, err = run_init("command", "--", "no-such-program", as_pid1=as_pid1)
    assert (code, out) == (127, "")
    assert err == "supervisor: Cannot run 'no-such-program': no such program on PATH\n"
    code, out, err = run_init("command", "--", "/no/such/program", as_pid1=as_pid1)
    assert (code, out) == (127, "")
    assert err.count("\n") == 1


def test_program_that_cannot_be_executed_is_126(tmp_path: Path, as_pid1: bool) -> None:
    plain = tmp_path / "plain"
    plain.write_text("not a program")
    dangling = tmp_path / "dangling"
    dangling.write_text("#!/no/such/interpreter\n")
    dangling.chmod(0o755)
    garbage = tmp_path / "garbage"
    garbage.write_bytes(b"\x7fELF garbage")
    garbage.chmod(0o755)
    for program in (plain, dangling, garbage, tmp_path):
        code, out, err = run_init("command", "--", str(program), as_pid1=as_pid1)
        assert (code, out) == (126, "")
        assert err.startswith(f"supervisor: Cannot run '{program}': ")
        assert err.count("\n") == 1
