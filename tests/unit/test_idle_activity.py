"""What counts as use of the pod."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from supervisor.pod.activity import IdleFacts, busy_because, count_sessions


def test_nothing_happens() -> None:
    assert busy_because(IdleFacts()) == ()


@pytest.mark.parametrize(
    ("facts", "reason"),
    [
        (IdleFacts(queue_length=2, queue_changed=True), "jobs in ComfyUI's queue: 2"),
        (IdleFacts(queue_changed=True), "ComfyUI's queue changed"),
        (IdleFacts(queue_length=None), "ComfyUI's queue is unknown"),
        (IdleFacts(busy_kernels=1, jupyter_active=True), "busy Jupyter kernels: 1"),
        (IdleFacts(busy_kernels=None), "Jupyter's kernels are unknown"),
        (IdleFacts(jupyter_active=True), "Jupyter is in use"),
        (IdleFacts(ssh_sessions=1), "SSH sessions: 1"),
        (IdleFacts(ssh_sessions=None), "SSH sessions are unknown"),
        (IdleFacts(downloads=3), "downloads running: 3"),
        (IdleFacts(uploads=4), "uploads running: 4"),
        (IdleFacts(kept=True), "kept by request"),
    ],
)
def test_each_kind_of_use_is_one_reason(facts: IdleFacts, reason: str) -> None:
    assert busy_because(facts) == (reason,)


def test_sessions_are_counted_from_the_kernels_table() -> None:
    table = Path("/proc/net/tcp")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert count_sessions(table.read_text(), port) == 0  # listening is no session
        with socket.create_connection(("127.0.0.1", port)), server.accept()[0]:
            assert count_sessions(table.read_text(), port) == 1
