"""What a service inherits: environment, descriptors, signals, user, limits."""

from __future__ import annotations

import os
import resource
import signal
import socket
import sys
from pathlib import Path

import pytest

from supervisor.core.status import ServiceState
from supervisor.services.spec import EnsureDirectory, EnsureLines, RunFirst, ServiceSpec
from tests.process.pod import python, running, shell

pytestmark = pytest.mark.anyio


async def output_of(spec: ServiceSpec, **options: object) -> list[str]:
    from dataclasses import replace

    from supervisor.services.spec import RestartPolicy

    spec = replace(spec, restart=RestartPolicy.NEVER)
    async with running(spec, **options) as pod:  # type: ignore[arg-type]
        status = await pod.reaches(spec.name, ServiceState.STOPPED, ServiceState.FAILED)
        assert status.state is ServiceState.STOPPED, status
        return pod.output(spec.name, "stdout")


async def test_the_environment_is_what_was_decided_and_nothing_else() -> None:
    spec = shell("a", "env", environment={"PERCENT": "100% $HOME `x` %(y)s", "OTHER": "o"})
    base = {"PATH": os.environ["PATH"], "OTHER": "base"}
    lines = await output_of(spec, environment=base)
    found = dict(line.split("=", 1) for line in lines)
    assert found.pop("SUPERVISOR_SERVICE") == "a/1"
    assert len(found.pop("SUPERVISOR_INSTANCE")) == 16
    assert found.pop("PERCENT") == "100% $HOME `x` %(y)s"
    assert found.pop("OTHER") == "o"
    assert set(found) <= {"PATH", "PWD", "SHLVL", "_"}


async def test_no_descriptor_leaks_and_signals_are_clean() -> None:
    script = """
import os, signal
print(sorted(int(n) for n in os.listdir("/proc/self/fd"))[:3], len(os.listdir("/proc/self/fd")))
status = open("/proc/self/status").read()
print([l.split()[1] for l in status.splitlines() if l.startswith(("SigBlk", "SigIgn"))])
print(os.getsid(0) == os.getpid() == os.getpgrp(), os.readlink("/proc/self/fd/0"))
"""
    held = [socket.socket() for _ in range(5)]
    for one in held:
        one.set_inheritable(True)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
    before = signal.signal(signal.SIGQUIT, signal.SIG_IGN)
    try:
        spec = ServiceSpec("a", ("/usr/bin/env", sys.executable, "-S", "-c", script))
        lines = await output_of(spec)
    finally:
        signal.signal(signal.SIGQUIT, before)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR1})
        for one in held:
            one.close()
    # 0, 1, 2 and the one that lists.
    assert lines[0] == "[0, 1, 2] 4"
    blocked, ignored = eval(lines[1])  # noqa: S307 - a list of our own script
    internal = 0b11 << 31  # glibc keeps 32 and 33 for itself; GNU make leaves them ignored
    assert int(blocked, 16) & ~internal == 0
    # Python itself ignores SIGPIPE (13) and SIGXFSZ (25).
    assert int(ignored, 16) & ~(1 << 12 | 1 << 24 | internal) == 0
    assert lines[2] == "True /dev/null"


async def test_limits_nice_umask_and_folder(tmp_path: Path) -> None:
    script = """
import os, resource
print(resource.getrlimit(resource.RLIMIT_NOFILE)[0], resource.getrlimit(resource.RLIMIT_CORE)[0])
print(os.getpriority(os.PRIO_PROCESS, 0), oct(os.umask(0)), os.getcwd())
"""
    own_nofile = resource.getrlimit(resource.RLIMIT_NOFILE)
    spec = python(
        "a", script, limit_nofile=123, limit_core_bytes=0, nice=5, umask=0o027, cwd=tmp_path
    )
    lines = await output_of(spec)
    assert lines == ["123 0", f"5 0o27 {tmp_path}"]
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == own_nofile


@pytest.mark.needs("root")
async def test_another_user_with_its_groups_and_home() -> None:
    lines = await output_of(shell("a", "id -u; id -g; id -G; echo $HOME $USER", user="nobody"))
    import pwd

    nobody = pwd.getpwnam("nobody")
    groups = " ".join(map(str, os.getgrouplist("nobody", nobody.pw_gid)))
    assert lines == [
        str(nobody.pw_uid),
        str(nobody.pw_gid),
        groups,
        f"{nobody.pw_dir} nobody",
    ]


async def test_a_kernel_without_pidfds_will_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(pid: int, flags: int = 0) -> int:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(os, "pidfd_open", missing)
    async with running(*(shell(f"s{n}", "exec sleep 1000") for n in range(50))) as pod:
        for number in range(50):
            await pod.reaches(f"s{number}", ServiceState.READY)
        pid = pod["s7"].pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        await pod.when("s7", lambda s: s.ready and s.generation == 2)


async def test_an_unknown_user_and_a_missing_folder_are_said() -> None:
    specs = [
        shell("a", "true", user="no-such-user", max_restarts=0),
        shell("b", "true", cwd=Path("/no/such/folder"), max_restarts=0),
    ]
    async with running(*specs) as pod:
        a = await pod.reaches("a", ServiceState.FAILED)
        assert "Cannot run as no-such-user: there is no such user" in a.message
        b = await pod.reaches("b", ServiceState.FAILED)
        assert "the working folder /no/such/folder: No such file or directory" in b.message


async def test_steps_before_the_start(tmp_path: Path) -> None:
    keys, made = tmp_path / "deep" / "keys", tmp_path / "made"
    keys.parent.mkdir()
    keys.write_text("old")
    steps = (
        EnsureDirectory(tmp_path / "dir", 0o700),
        EnsureLines(keys, ("one", "old", "two"), 0o600),
        RunFirst(("/bin/sh", "-c", f"echo made; touch {made}"), creates=made),
    )
    await output_of(shell("a", f"test -e {made}", prepare=steps))
    await output_of(shell("a", f"test -e {made}", prepare=steps))
    assert keys.read_text() == "old\none\ntwo\n"
    assert keys.stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "dir").stat().st_mode & 0o777 == 0o700


async def test_a_failed_step_tells_what_it_said_without_the_secret() -> None:
    step = RunFirst(("/bin/sh", "-c", "echo bad {secret}; exit 4"), secret="hunter2")
    async with running(shell("a", "true", prepare=(step,), max_restarts=0)) as pod:
        status = await pod.reaches("a", ServiceState.FAILED)
        assert "exit code 4" in status.message
        assert status.hint == "bad ***"


async def test_a_port_that_only_the_log_names_has_a_holder_too() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        script = f"import socket; socket.create_server(('127.0.0.1', {port}))"
        say = f"listen 127.0.0.1:{port}"
        script = f"try: {script}\nexcept OSError as e: raise SystemExit(f'{say}: {{e}}')"
        async with running(python("a", script, max_restarts=0)) as pod:
            status = await pod.reaches("a", ServiceState.FAILED)
            assert f"port {port} is held by" in status.message
            assert f"pid {os.getpid()}" in status.message


async def test_a_taken_port_names_its_holder() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        async with running(shell("a", "exec sleep 1000", port=port, max_restarts=0)) as pod:
            status = await pod.reaches("a", ServiceState.FAILED)
            assert f"port {port} is held by" in status.message
            assert f"pid {os.getpid()}" in status.message
            assert pod.exits("a") == ["port-taken"]
        taken.close()
    async with running(shell("a", "exec sleep 1000", port=port)) as pod:
        await pod.reaches("a", ServiceState.READY)


@pytest.mark.parametrize("trap", ["link", "pipe"])
async def test_what_others_put_in_the_place_of_a_file_is_not_used(
    tmp_path: Path, trap: str
) -> None:
    shared, victim = tmp_path / "shared", tmp_path / "victim"
    victim.write_text("secret\n")
    victim.chmod(0o600)
    shared.mkdir()
    shared.chmod(0o1777)  # a service of another user writes here
    if trap == "link":
        (shared / "list").symlink_to(victim)
    else:
        os.mkfifo(shared / "list")
    step = EnsureLines(shared / "list", ("line",), 0o644)
    async with running(shell("a", "true", prepare=(step,), max_restarts=0)) as pod:
        await pod.reaches("a", ServiceState.FAILED)
    assert victim.read_text() == "secret\n"
    assert victim.stat().st_mode & 0o777 == 0o600


async def test_a_link_in_a_folder_of_our_own_is_followed(tmp_path: Path) -> None:
    (tmp_path / "kept").write_text("old\n")
    (tmp_path / "keys").symlink_to(tmp_path / "kept")
    step = EnsureLines(tmp_path / "keys", ("new",), 0o600)
    await output_of(shell("a", "true", prepare=(step,)))
    assert (tmp_path / "kept").read_text() == "old\nnew\n"
