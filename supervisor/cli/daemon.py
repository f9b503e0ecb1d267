"""Small helpers around the connection to the daemon, shared by the client commands."""

from __future__ import annotations

from supervisor.api.client import Client
from supervisor.cli.environment import socket_path

TYPE_CHECKING = False  # spares the import of typing; type checkers know the name
if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Client", "connect_daemon", "escape", "query"]

# Unreserved characters of RFC 3986; urllib.parse would cost 8 ms to import.
_UNRESERVED = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")


def connect_daemon(environ: Mapping[str, str]) -> Client:
    """Return a client of this machine's daemon.

    It connects with its first request, which raises ``DaemonUnreachableError``, saying
    where it looked, when nobody answers.
    """
    return Client(socket_path(environ))


def escape(text: str) -> str:
    """Percent-encode one part of a path or query."""
    return "".join(chr(b) if b in _UNRESERVED else f"%{b:02X}" for b in text.encode())


def query(**parameters: object) -> str:
    """Build a query string; None and False are left out, True is ``1``."""
    parts = [
        f"{name}={1 if value is True else escape(str(value))}"
        for name, value in parameters.items()
        if value is not None and value is not False
    ]
    return f"?{'&'.join(parts)}" if parts else ""
