"""Keeping the supervisor's own secrets to itself."""

from __future__ import annotations

import ctypes
import errno
import os

_PR_SET_DUMPABLE = 4  # include/uapi/linux/prctl.h


def hide_process() -> None:
    """Make this process's memory and environment unreadable for its equals.

    With PR_SET_DUMPABLE = 0 a process of the same user, root included, can read
    ``/proc/PID/environ``, ``mem`` and ``fd`` of this one only with CAP_SYS_PTRACE, which
    Docker and RunPod do not grant. A program that is executed is dumpable again, so
    services are not concerned; every process that holds the secrets (the init too) must
    call this.

    Raises:
        OSError: the kernel refused.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0) != 0:
        code = ctypes.get_errno() or errno.EINVAL
        raise OSError(code, os.strerror(code))
