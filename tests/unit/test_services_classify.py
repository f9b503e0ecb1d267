"""Every way to die, with the log that goes with it."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from supervisor.services.classify import Classification, ExitFacts, ExitReason, classify
from supervisor.services.spec import ServiceKind

LOGS = Path(__file__).parent / "data" / "logs"


def tail(name: str) -> list[str]:
    return (LOGS / f"{name}.log").read_text().splitlines()


CASES = [
    ("comfyui-bad-flag", 2, None, ExitReason.BAD_FLAG, "does not know --cache-ram 20.0 --vram-"),
    ("comfyui-usage", 2, None, ExitReason.BAD_FLAG, "argument --port: invalid int value"),
    ("comfyui-exclusive-flags", 2, None, ExitReason.BAD_FLAG, "--novram: not allowed with"),
    ("comfyui-port-taken", 1, None, ExitReason.PORT_TAKEN, "port 36387 is held by"),
    ("comfyui-assets-in-use", 1, None, ExitReason.DATABASE_LOCKED, "in_use"),
    ("comfyui-assets-missing-packages", 1, None, ExitReason.ASSETS, "missing_packages"),
    ("comfyui-database-in-use", 1, None, ExitReason.DATABASE_LOCKED, "locked"),
    ("comfyui-database-locked", 1, None, ExitReason.DATABASE_LOCKED, "locked"),
    ("comfyui-cuda-oom", 1, None, ExitReason.CUDA_OOM, "CUDA out of memory"),
    ("comfyui-cuda-oom", None, "SIGABRT", ExitReason.CUDA_OOM, "CUDA out of memory"),
    ("comfyui-cuda-oom-2023", 1, None, ExitReason.CUDA_OOM, "CUDA out of memory"),
    ("comfyui-cuda-oom-2024", 1, None, ExitReason.CUDA_OOM, "CUDA out of memory"),
    ("comfyui-cuda-oom-driver", 1, None, ExitReason.CUDA_OOM, "CUDA out of memory"),
    ("comfyui-cuda-allocation", 1, None, ExitReason.CUDA_OOM, "CUDA out of memory"),
    ("comfyui-cuda-allocation-short", 1, None, ExitReason.CUDA_OOM, "CUDA out of memory"),
    ("comfyui-cuda-error", 1, None, ExitReason.CUDA_ERROR, "illegal memory access"),
    ("comfyui-cuda-error", None, "SIGSEGV", ExitReason.CUDA_ERROR, "illegal memory access"),
    ("comfyui-cuda-assert", 1, None, ExitReason.CUDA_ERROR, "device-side assert"),
    ("comfyui-no-kernel", 1, None, ExitReason.CUDA_ERROR, "no kernel image"),
    ("comfyui-no-driver", 1, None, ExitReason.CUDA_ERROR, "Found no NVIDIA driver"),
    ("comfyui-driver-too-old", 1, None, ExitReason.CUDA_ERROR, "too old"),
    ("comfyui-segfault", None, "SIGSEGV", ExitReason.SEGFAULT, "native_node/__init__.py"),
    ("comfyui-segfault", 139, None, ExitReason.SEGFAULT, "SIGSEGV"),
    ("comfyui-missing-module", 1, None, ExitReason.MISSING_MODULE, "No module named 'PIL'"),
    ("comfyui-disk-full", 1, None, ExitReason.DISK_FULL, "disk is full"),
    ("comfyui-disk-full-database", 1, None, ExitReason.DISK_FULL, "disk is full"),
    ("comfyui-host-memory", 1, None, ExitReason.MEMORY, "RAM"),
    ("jupyter-plain-failure", 1, None, ExitReason.EXIT_CODE, "exited with 1"),
    ("sshd-port-taken", 255, None, ExitReason.PORT_TAKEN, "port 22 is held by"),
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


@pytest.mark.parametrize(
    ("line", "port"),
    [
        ("Port 8188 is already in use on address 0.0.0.0. Please close", 8188),
        ("OSError: [Errno 98] error while binding on address ('::1', 81, 0, 0): in use", 81),
        ("listen tcp 0.0.0.0:8080: bind: address already in use", 8080),
        ("Error: listen EADDRINUSE: address already in use :::3000", None),
        ("Error: listen EADDRINUSE: address already in use 127.0.0.1:3000", 3000),
        ("OSError: [Errno 98] Address already in use", None),
    ],
)
def test_the_port_that_was_taken_is_read(line: str, port: int | None) -> None:
    told = classify(ExitFacts(code=1, tail=["at 10.0.0.1:99", line]))
    assert (told.reason, told.port) == (ExitReason.PORT_TAKEN, port)


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
    told = refused("comfyui-bad-flag", "--cache-ram", "20.0")
    assert told.drop_flags == ("--cache-ram",)
    assert not told.permanent
    told = refused("comfyui-bad-flag")
    assert told.permanent
    assert "COMFYUI_ARGS" in (told.hint or "")


def test_a_flag_of_the_planner_gives_way_to_one_of_people() -> None:
    told = refused("comfyui-exclusive-flags", "--lowvram")
    assert told.drop_flags == ("--lowvram",)
    assert "not allowed with argument --lowvram" in (told.hint or "")
    assert refused("comfyui-exclusive-flags").permanent


def refused(log: str, *planner_flags: str) -> Classification:
    facts = ExitFacts(code=2, tail=tail(log), kind=ServiceKind.COMFYUI, planner_flags=planner_flags)
    return classify(facts)


DUMP = [
    "Fatal Python error: Segmentation fault",
    "",
    "Thread 0x00007f1 (most recent call first):",
    '  File "/usr/lib/python3.11/threading.py", line 331 in wait',
    "",
    "Current thread 0x00007f2 (most recent call first):",
    '  File "/opt/venv/torch/cuda.py", line 9 in sync',
    '  File "/opt/ComfyUI/execution.py", line 277 in process_inputs',
    "",
    "Thread 0x00007f3 (most recent call first):",
    '  File "/usr/lib/python3.11/time.py", line 1 in sleep',
    '  File "/opt/ComfyUI/custom_nodes/sleeper/x.py", line 22 in go',
    "",
    "Extension modules: numpy",
]


def test_the_thread_that_crashed_is_told_of_many() -> None:
    told = classify(ExitFacts(signal="SIGSEGV", tail=[*DUMP, *["more words"] * 90]))
    assert told.message.endswith('at File "/opt/venv/torch/cuda.py", line 9 in sync')


def test_a_hang_names_the_custom_node_it_was_in() -> None:
    hung = ExitFacts(signal="SIGABRT", tail=DUMP, cause=ExitReason.STALLED, detail="no progress")
    message = 'no progress at File "/opt/ComfyUI/custom_nodes/sleeper/x.py", line 22 in go'
    assert classify(hung).message == message
    message = 'no progress at File "/opt/venv/torch/cuda.py", line 9 in sync'
    assert classify(replace(hung, tail=DUMP[:9])).message == message
    assert classify(replace(hung, tail=["nothing of the kind"])).message == "no progress"


def test_an_error_of_long_ago_is_not_the_reason() -> None:
    lines = [*tail("comfyui-cuda-oom"), *["got prompt"] * 100]
    assert classify(ExitFacts(code=1, tail=lines)).reason is ExitReason.EXIT_CODE


@pytest.mark.parametrize("name", ["services.md", "monitoring.md", "grafana.json"])
def test_the_documents_know_the_reasons(name: str) -> None:
    text = Path(__file__).parents[2].joinpath("docs", name).read_text(encoding="utf-8")
    if name == "services.md":
        assert [reason for reason in ExitReason if f"`{reason}`" not in text] == []
    restarts = re.findall(r'restarts_total\{[^}]*reason!?=~?\\?"([^"\\]+)', text)
    assert restarts or name != "monitoring.md"
    used = {reason for found in restarts for reason in found.split("|")}
    assert used <= {str(reason) for reason in ExitReason}
