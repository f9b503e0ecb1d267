"""The listening sockets: the owner's Unix socket and the health port."""

from __future__ import annotations

import os
import socket
import stat
import struct
from pathlib import Path

from supervisor.errors import ControlError, SupervisorError

_BACKLOG = 128
# struct ucred: pid, uid, gid (unix(7)).
_UCRED = struct.Struct("3i")
_LONGEST_PATH_BYTES = 107  # sun_path without its final NUL (unix(7))
_CONNECT_TIMEOUT_S = 1.0


def listen_unix(path: Path) -> socket.socket:
    """Listen at ``path`` for the owner only; what a dead daemon left there is replaced.

    The directory is made with mode 0700 when it is missing; one that exists keeps its
    mode, because it may be shared with others (``/run``).

    Raises:
        ControlError: a living daemon listens there.
        SupervisorError: it cannot be made.
    """
    if len(os.fsencode(path)) > _LONGEST_PATH_BYTES:
        raise _cannot(path, f"longer than {_LONGEST_PATH_BYTES} bytes")
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        _remove_stale(path)
        # The mode of the descriptor becomes that of the file: no moment of wider access.
        os.fchmod(listener.fileno(), 0o600)
        listener.bind(str(path))
        path.chmod(0o600)
        listener.listen(_BACKLOG)
        listener.setblocking(False)
    except OSError as exc:
        listener.close()
        raise _cannot(path, exc.strerror or str(exc)) from exc
    except BaseException:
        listener.close()
        raise
    return listener


def peer_uid(connection: socket.socket) -> int:
    """Return the user id of the process at the other end of a Unix socket."""
    return _credentials(connection)[1]


def file_identity(path: Path) -> tuple[int, int] | None:
    """Return what tells this socket file from one that replaced it."""
    try:
        found = path.lstat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def remove(path: Path, identity: tuple[int, int] | None) -> None:
    """Remove the socket file, unless somebody else's has taken its place."""
    if identity is not None and file_identity(path) == identity:
        path.unlink(missing_ok=True)


def _remove_stale(path: Path) -> None:
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise _cannot(path, "there is a file which is not a socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(_CONNECT_TIMEOUT_S)
        try:
            probe.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            path.unlink(missing_ok=True)
            return
        except TimeoutError:
            owner = ""
        else:
            owner = f" (process {_credentials(probe)[0]})"
    raise ControlError(
        f"Cannot listen on {path}: another supervisor answers there{owner}",
        hint="stop it with `supervisor shutdown`, or set SUPERVISOR_SOCKET for this one",
        status=409,
        code="already-running",
    )


def _credentials(connection: socket.socket) -> tuple[int, int, int]:
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    pid, uid, gid = _UCRED.unpack(raw)
    return pid, uid, gid


def _cannot(path: Path, reason: str) -> SupervisorError:
    return SupervisorError(
        f"Cannot listen on {path}: {reason}",
        hint="name another place with SUPERVISOR_SOCKET or [supervisor] socket",
    )
