"""What counts as use of the pod."""

from __future__ import annotations

import socket
from dataclasses import replace
from pathlib import Path

import pytest

from supervisor.pod.activity import IdleFacts, Idleness, busy_because, peers


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
        (IdleFacts(pages=1), "open ComfyUI pages: 1"),
        (IdleFacts(pages=None), "open ComfyUI pages are unknown"),
        (IdleFacts(terminals=2), "terminals in use: 2"),
        (IdleFacts(terminals=None), "terminals are unknown"),
        (IdleFacts(kept=True), "kept by request"),
    ],
)
def test_each_kind_of_use_is_one_reason(facts: IdleFacts, reason: str) -> None:
    assert busy_because(facts) == (reason,)


def test_sessions_are_counted_from_the_kernels_table() -> None:
    table = Path("/proc/net/tcp")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert not peers(table.read_text(), port)  # listening is no session
        with socket.create_connection(("127.0.0.1", port)), server.accept()[0]:
            assert len(peers(table.read_text(), port)) == 1


def test_idle_time_begins_anew_with_any_use() -> None:
    idleness = Idleness(0.0).after(IdleFacts(), 10.0)
    assert idleness.idle_s(10.0) == 10.0
    used = replace(idleness, warned=True).after(IdleFacts(queue_length=1), 12.0)
    assert (used.idle_s(12.0), used.warned) == (0.0, False)
    assert used.after(IdleFacts(), 20.0).idle_s(20.0) == 8.0
