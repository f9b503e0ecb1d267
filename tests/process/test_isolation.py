"""Services cannot read the supervisor's secrets where the kernel can be made to help."""

from __future__ import annotations

import subprocess
import sys

import pytest

# A "supervisor" with a secret in its environment starts a "service" that looks for it.
PARENT = """
import os, subprocess, sys
from supervisor.services.isolation import hide_process
if sys.argv[1] == "hidden":
    hide_process()
environment = {k: v for k, v in os.environ.items() if k != "R2_SECRET_ACCESS_KEY"}
look = (
    "import os, sys\\n"
    "found = []\\n"
    "for what in ('environ', 'fd'):\\n"
    "    try:\\n"
    "        path = f'/proc/{sys.argv[1]}/{what}'\\n"
    "        data = os.readlink(path + '/0') if what == 'fd' else open(path, 'rb').read(100000)\\n"
    "        found.append(what)\\n"
    "    except OSError: pass\\n"
    "print(found, 'R2_SECRET_ACCESS_KEY' in os.environ)"
)
as_user = sys.argv[2:]
print(subprocess.run([*as_user, sys.executable, "-S", "-c", look, str(os.getpid())],
                     env=environment, capture_output=True, text=True).stdout, end="")
"""


# What Docker grants to root: neither CAP_SYS_PTRACE nor CAP_PERFMON or CAP_SYS_ADMIN, by
# which newer kernels allow to read another process's memory too.
DOCKER = (
    "-all,+chown,+dac_override,+fowner,+fsetid,+kill,+setgid,+setuid,+setpcap,"
    "+net_bind_service,+net_raw,+sys_chroot,+mknod,+audit_write,+setfcap"
)
NOBODY = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")


def look(how: str, *service: str) -> str:
    """Return what a service finds in the /proc of its supervisor, in a container of Docker's."""
    container = ("setpriv", f"--bounding-set={DOCKER}", "--inh-caps=-all")
    done = subprocess.run(
        [*container, sys.executable, "-c", PARENT, how, *service],
        env={"PATH": "/usr/bin:/bin", "R2_SECRET_ACCESS_KEY": "hunter2"},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


@pytest.mark.needs("root", "setpriv")
def test_root_cannot_look_into_a_hidden_supervisor_without_capabilities() -> None:
    assert look("open") == "['environ', 'fd'] False"  # what the hiding is for
    assert look("hidden") == "[] False"


@pytest.mark.needs("root", "setpriv")
@pytest.mark.parametrize("how", ["open", "hidden"])
def test_another_user_cannot_look_at_all(how: str) -> None:
    assert look(how, *NOBODY) == "[] False"
