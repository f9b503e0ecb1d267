"""Every way to die, with the log that goes with it."""

from __future__ import annotations

from pathlib import Path

import pytest

from supervisor.services.classify import ExitFacts, ExitReason, classify
from supervisor.services.spec import ServiceKind

LOGS = Path(__file__).parent / "data" / "logs"


def tail(name: str) -> list[str]:
    return (LOGS / f"{name}.log").read_text().splitlines()


CASES = [
    ("comfyui-bad-flag", 2, None, ExitReason.BAD_FLAG, "does not know --normalvram"),
    ("comfyui-usage", 2, None, ExitReason.BAD_FLAG, "argument --port: invalid int value"),
    ("comfyui-port-taken", 1, None, ExitReason.PORT_TAKEN, "port 8188 is held by"),
    ("comfyui-assets-in-use", 1, None, ExitReason.DATABASE_LOCKED, "in_use"),
    ("comfyui-assets-missing-packages", 1, None, ExitReason.ASSETS, "missing_packages"),
    ("comfyui-database-locked", 1, None, ExitReason.DATABASE_LOCKED, "locked"),
    ("comfyui-cuda-oom", 1, None, ExitReason.CUDA_OOM, "CUDA out of memory"),
    ("comfyui-cuda-oom", None, "SIGABRT", ExitReason.CUDA_OOM, "CUDA out of memory"),
    ("comfyui-cuda-allocation", 1, None, ExitReason.CUDA_OOM, "CUDA out of memory"),
    ("comfyui-cuda-error", 1, None, ExitReason.CUDA_ERROR, "illegal memory access"),
    ("comfyui-cuda-error", None, "SIGSEGV", ExitReason.CUDA_ERROR, "illegal memory access"),
    ("comfyui-no-kernel", 1, None, ExitReason.CUDA_ERROR, "no kernel image"),
    ("comfyui-driver-too-old", 1, None, ExitReason.CUDA_ERROR, "too old"),
    ("comfyui-segfault", None, "SIGSEGV", ExitReason.SEGFAULT, "native.py"),
    ("comfyui-segfault", 139, None, ExitReason.SEGFAULT, "SIGSEGV"),
    ("comfyui-missing-module", 1, None, ExitReason.MISSING_MODULE, "No module named 'yaml'"),
    ("comfyui-disk-full", 1, None, ExitReason.DISK_FULL, "disk is full"),
    ("comfyui-host-memory", 1, None, ExitReason.MEMORY, "RAM"),
    ("jupyter-plain-failure", 1, None, ExitReason.EXIT_CODE, "exited with 1"),
    ("sshd-port-taken", 255, None, ExitReason.PORT_TAKEN, "port 8188"),
]


@pytest.mark.parametrize(("log", "code", "signal", "reason", "text"), CASES)
def test_logs_are_understood(
    log: str, code: int | None, signal: str | None, reason: ExitReason, text: str
) -> None:
    kind = ServiceKind.COMFYUI if log.startswith("comfyui") else ServiceKind.GENERIC
    told = classify(ExitFacts(code=code, signal=signal, tail=tail(log), kind=kind, port=8188))
    assert told.reason is reason
    assert text in told.message
    assert told.hint
    assert not told.success


def test_every_log_is_used() -> None:
    assert {case[0] for case in CASES} == {path.stem for path in LOGS.glob("*.log")}


def test_what_the_supervisor_did_is_not_blamed_on_the_log() -> None:
    facts = ExitFacts(
        signal="SIGKILL", tail=tail("comfyui-cuda-oom"), oom_kills=1, cause=ExitReason.STOPPED
    )
    assert classify(facts).reason is ExitReason.STOPPED
    assert classify(facts).success


def test_a_start_that_was_too_slow_for_a_reason_is_that_reason() -> None:
    slow = ExitFacts(signal="SIGTERM", cause=ExitReason.NOT_READY, detail="not ready within 90 s")
    assert classify(slow).reason is ExitReason.NOT_READY
    told = classify(
        ExitFacts(
            signal="SIGTERM",
            cause=ExitReason.NOT_READY,
            detail="not ready within 90 s",
            tail=tail("comfyui-cuda-oom"),
        )
    )
    assert (told.reason, told.message) == (ExitReason.CUDA_OOM, "not ready within 90 s")


@pytest.mark.parametrize(
    ("facts", "reason"),
    [
        (ExitFacts(signal="SIGKILL", oom_kills=1), ExitReason.OOM_KILL),
        (ExitFacts(code=137, oom_kills=2), ExitReason.OOM_KILL),
        (ExitFacts(signal="SIGKILL"), ExitReason.KILLED),
        (ExitFacts(signal="SIGTERM"), ExitReason.TERMINATED),
        (ExitFacts(code=143), ExitReason.TERMINATED),
        (ExitFacts(signal="SIGABRT"), ExitReason.SIGNAL),
        (ExitFacts(code=5), ExitReason.EXIT_CODE),
        (ExitFacts(code=0), ExitReason.EXITED),
        (ExitFacts(code=0, marker=True), ExitReason.PLANNED),
        (ExitFacts(code=1, marker=True), ExitReason.EXIT_CODE),
        (ExitFacts(code=2), ExitReason.EXIT_CODE),
    ],
)
def test_facts_without_words(facts: ExitFacts, reason: ExitReason) -> None:
    assert classify(facts).reason is reason


def test_flags_of_the_planner_are_dropped_and_those_of_people_are_not() -> None:
    facts = ExitFacts(
        code=2,
        tail=tail("comfyui-bad-flag"),
        kind=ServiceKind.COMFYUI,
        planner_flags=("--cache-ram", "20.0"),
    )
    told = classify(facts)
    assert told.drop_flags == ("--cache-ram",)
    assert not told.permanent
    told = classify(ExitFacts(code=2, tail=tail("comfyui-bad-flag"), kind=ServiceKind.COMFYUI))
    assert told.permanent
    assert "COMFYUI_ARGS" in (told.hint or "")
