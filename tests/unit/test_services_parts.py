"""The small parts: notifications, flags, order of stops, cgroup counters, HTTP by hand."""

from __future__ import annotations

import os
import signal
import socket
from pathlib import Path

import anyio
import anyio.abc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from supervisor.errors import SpawnError
from supervisor.services import graph, ports, procfs
from supervisor.services.course import without_flags
from supervisor.services.notify import Notification, parse
from supervisor.services.probes import ProbeError, check, http_get
from supervisor.services.process import Exit, find_account, signal_number
from supervisor.services.spec import Dependency, HttpProbe, ServiceSpec, TcpProbe


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"READY=1", Notification(ready=True)),
        (b"READY=0\nSTATUS=a=b\n", Notification(status="a=b")),
        (b"WATCHDOG=1\nX_MINE=1", Notification(watchdog=True)),
        (b"WATCHDOG=trigger", Notification(watchdog_failed=True)),
        (b"WATCHDOG_USEC=1500000", Notification(watchdog_s=1.5)),
        (b"EXTEND_TIMEOUT_USEC=20000000", Notification(extend_timeout_s=20.0)),
        (b"EXTEND_TIMEOUT_USEC=-1", Notification()),
        (b"\xff\xfe nothing", Notification()),
    ],
)
def test_notifications(data: bytes, message: Notification) -> None:
    assert parse(data) == message


@given(st.binary(max_size=200))
def test_no_notification_is_an_error(data: bytes) -> None:
    parse(data)


def test_flags_go_with_their_values() -> None:
    command = ("python", "main.py", "--listen", "0.0.0.0", "--cache-ram", "20.0", "--x=1", "--y")
    assert without_flags(command, frozenset({"--cache-ram"})) == (*command[:4], "--x=1", "--y")
    assert without_flags(command, frozenset({"--x", "--listen"})) == (
        "python", "main.py", "--cache-ram", "20.0", "--y",
    )  # fmt: skip


def test_users_stop_before_what_they_use_and_share_the_time() -> None:
    specs = [
        ServiceSpec("a", ("x",)),
        ServiceSpec("b", ("x",), after=(Dependency("a"),)),
        ServiceSpec("c", ("x",), after=(Dependency("b"), Dependency("a"))),
        ServiceSpec("alone", ("x",)),
    ]
    assert graph.dependents(specs)["a"] == {"b", "c"}
    assert graph.stop_depths(specs) == {"c": 0, "alone": 0, "b": 1, "a": 2}
    assert graph.stop_shares(specs, 9.0) == {"c": 3.0, "alone": 3.0, "b": 6.0, "a": 9.0}
    assert graph.stop_shares([], 9.0) == {}


@pytest.mark.parametrize(
    ("cgroup", "path", "text"),
    [
        ("0::/", "sys/fs/cgroup/memory.events", "low 0\noom 2\noom_kill 3\n"),
        ("0::/a/b", "sys/fs/cgroup/a/b/memory.events", "oom_kill 3\n"),
        ("0::/not/seen", "sys/fs/cgroup/memory.events", "oom_kill 3\n"),
        ("4:cpu,memory:/d", "sys/fs/cgroup/memory/d/memory.oom_control", "oom_kill 3\n"),
    ],
)
def test_kills_by_the_cgroup_are_counted(cgroup: str, path: str, text: str, tmp_path: Path) -> None:
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text(f"{cgroup}\n")
    file = tmp_path / path
    file.parent.mkdir(parents=True)
    file.write_text(text)
    assert procfs.oom_kills(tmp_path) == 3
    assert procfs.oom_kills(tmp_path / "nowhere") == 0


def test_processes_are_read() -> None:
    own = procfs.read_stat(os.getpid())
    assert own is not None
    assert (own.parent, own.group) == (os.getppid(), os.getpgrp())
    assert procfs.read_stat(2**22 + 1) is None
    assert procfs.variables_of(2**22 + 1, procfs.COOKIE) == {}
    assert os.getpid() in procfs.descendants(os.getppid())
    assert "threads" in procfs.describe(os.getpid())


def test_ports_are_looked_up() -> None:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
        assert ports.holder(port) is None  # bound, but nobody listens
        one.listen()
        found = ports.holder(port)
        assert found is not None
        assert found.pid == os.getpid()
        assert not ports.is_free(port)
    assert ports.is_free(port)


def test_signals_and_exits_have_names() -> None:
    assert signal_number("hup") == signal_number("SIGHUP") == signal_number("1") == 1
    with pytest.raises(ValueError, match="no signal"):
        signal_number("999")
    assert Exit(signal=signal.SIGKILL).signal_name == "SIGKILL"
    assert Exit(signal=40).signal_name == "SIG40"
    assert Exit(signal=9).shell_code == 137
    assert Exit(code=3).shell_code == 3


def test_accounts() -> None:
    assert find_account("0").home == "/root"
    assert find_account("54321").uid == 54321
    with pytest.raises(SpawnError):
        find_account("no-such-user")


ANSWERS = {
    "/length": b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello and more",
    "/chunked": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"3\r\nhel\r\n2;x\r\nlo\r\n0\r\n\r\n",
    "/close": b"HTTP/1.0 200 OK\r\n\r\nhello",
    "/gone": b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n",
    "/rubbish": b"220 smtp ready\r\n\r\n",
}


@pytest.mark.anyio
async def test_http_by_hand() -> None:
    async def serve(stream: anyio.abc.SocketStream) -> None:
        async with stream:
            head = (await stream.receive()).decode()
            await stream.send(ANSWERS[head.split()[1]])

    listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
    port = listener.extra(anyio.abc.SocketAttribute.local_port)  # noqa: S610 - not Django
    base = f"http://127.0.0.1:{port}"

    async def no_command(command: tuple[str, ...]) -> int:
        raise AssertionError(command)

    async def ask(probe: HttpProbe | TcpProbe) -> tuple[bool, str]:
        result = await check(probe, timeout_s=5, run_command=no_command)
        return result.ok, result.detail

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, serve)
        for path in ("/length", "/chunked", "/close"):
            assert await http_get(base + path) == (200, b"hello")
        assert await ask(HttpProbe(f"{base}/gone")) == (False, "answered 404")
        assert await ask(HttpProbe(f"{base}/gone", status=404)) == (True, "answered 404")
        assert not (await ask(HttpProbe(f"{base}/close", body="^bye$")))[0]
        assert (await ask(HttpProbe(f"{base}/close", body="^hel+o$")))[0]
        with pytest.raises(ProbeError):
            await http_get(f"{base}/rubbish")
        tasks.cancel_scope.cancel()
    await listener.aclose()
    refused = await check(TcpProbe("127.0.0.1", port), timeout_s=5, run_command=no_command)
    assert (refused.ok, refused.refused) == (False, True)
