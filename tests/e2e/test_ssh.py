"""A real sshd, set up from PUBLIC_KEY, and a real login."""

from __future__ import annotations

import shlex
import subprocess
from pathlib import Path

import pytest

from supervisor.demo.world import DemoWorld
from tests.e2e.pod import Pod, edit, ready_pod, wait_for

# Copies on write of what sshd's setup changes: the machine's own stay as they are.
PRIVATE = """
for path in /root /etc/ssh; do
  top={scratch}$path; mkdir -p $top/upper $top/work
  mount -t overlay overlay -o lowerdir=$path,upperdir=$top/upper,workdir=$top/work $path
done
mkdir -p {scratch}/run; mount --bind {scratch}/run /run
exec "$@"
"""


@pytest.mark.needs("sshd", "ssh", "ssh-keygen", "unshare", "root")
def test_a_key_logs_in_and_nothing_else_does(
    world: DemoWorld, tmp_path: Path, free_tcp_port: int
) -> None:
    key = tmp_path / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(scratch)], check=True)
    try:
        edit(world, "ssh", enabled=True, port=free_tcp_port)
        private = PRIVATE.format(scratch=shlex.quote(str(scratch)))
        with ready_pod(
            world,
            wrapper=["unshare", "--mount", "sh", "-ec", private, "sh"],
            environment={"PUBLIC_KEY": key.with_suffix(".pub").read_text(), "HOME": "/root"},
        ) as pod:
            pod.wait(lambda s: s["services"]["ssh"]["ready"], "sshd is ready")
            assert login(pod, key, free_tcp_port).stdout == "hello\n"
            stranger = tmp_path / "stranger"
            make = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(stranger)]
            subprocess.run(make, check=True)
            assert login(pod, stranger, free_tcp_port).returncode == 255
            assert pod.cli("restart", "ssh").returncode == 0
            wait_for(
                lambda: login(pod, key, free_tcp_port).returncode == 0, "a login after the restart"
            )
            # Set up twice, the key is there once.
            keys = scratch / "root" / "upper" / ".ssh" / "authorized_keys"
            assert keys.read_text().count(key.with_suffix(".pub").read_text().strip()) == 1
            assert keys.stat().st_mode & 0o777 == 0o600
            assert pod.stop() == 0
    finally:
        subprocess.run(["umount", "-l", str(scratch)], check=True)


def login(pod: Pod, key: Path, port: int) -> subprocess.CompletedProcess[str]:
    options = ("StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "BatchMode=yes")
    return subprocess.run(
        [
            *("ssh", "-F", "none", "-i", str(key), "-p", str(port), "-o", "LogLevel=ERROR"),
            *(part for option in options for part in ("-o", option)),
            *("-o", "IdentitiesOnly=yes", "root@127.0.0.1", "echo", "hello"),
        ],
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
    )
