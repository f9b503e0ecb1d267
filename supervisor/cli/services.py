"""Actions on one service, for the commands that are one each."""

from __future__ import annotations

from supervisor.cli.daemon import connect_daemon, escape

TYPE_CHECKING = False  # spares the import of typing; type checkers know the name
if TYPE_CHECKING:
    from collections.abc import Mapping

_DONE = {"start": "started", "stop": "stopped", "restart": "restarted", "signal": "signalled"}


def act(environ: Mapping[str, str], service: str, action: str, **body: object) -> int:
    """Ask the daemon for an action and wait until it is done.

    Raises:
        ControlError: unknown service, or not possible in its state.
        DaemonUnreachableError: no daemon.
    """
    client = connect_daemon(environ)
    client.post(f"/v1/services/{escape(service)}/{action}", body or None)
    print(f"{service}: {_DONE[action]}")
    return 0
