"""The process's surroundings, read here and nowhere else and passed on as values."""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False  # spares the import of typing; type checkers know the name
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import IO

DEFAULT_SOCKET = "/run/supervisor/supervisor.sock"  # SupervisorSection.socket, by a test
_CONFIG_FILES = ("/etc/supervisor/supervisor.toml", "supervisor.toml")
_DEFAULT_WIDTH = 100


def read_environment() -> dict[str, str]:
    """Copy the environment as it is now."""
    return dict(os.environ)


def open_standard_streams() -> None:
    """Put /dev/null where the process was started without one of its standard streams.

    Else the next socket or log file gets its number, and what is printed goes there.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            os.open(os.devnull, os.O_RDWR)  # the lowest free number is this one
            mode = "r" if number == 0 else "w"
            stream = open(number, mode, encoding="utf-8", closefd=False)  # noqa: SIM115
            setattr(sys, name, stream)


def skip_pydantic_plugins() -> None:
    """Keep pydantic from searching every installed distribution for plugins at its import."""
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")


def socket_path(environ: Mapping[str, str]) -> str:
    """Find the daemon's socket as cheaply as the common case allows.

    ``SUPERVISOR_SOCKET``, else ``SUPERVISOR_SUPERVISOR__SOCKET``, else the default; only
    when nothing is there, the configuration file is asked whether it has moved.
    """
    for name in ("SUPERVISOR_SOCKET", "SUPERVISOR_SUPERVISOR__SOCKET"):
        if environ.get(name):
            return environ[name]
    if os.path.exists(DEFAULT_SOCKET):  # noqa: PTH110 - pathlib would cost 5 ms here
        return DEFAULT_SOCKET
    return _configured_socket(environ) or DEFAULT_SOCKET


def color_allowed(environ: Mapping[str, str], stream: IO[str]) -> bool:
    """Whether ANSI colours may be written (https://no-color.org)."""
    return not environ.get("NO_COLOR") and environ.get("TERM") != "dumb" and stream.isatty()


def terminal_width(environ: Mapping[str, str]) -> int:
    """Columns of the terminal; a generous default where there is none."""
    columns = environ.get("COLUMNS", "")
    if columns.isdecimal() and int(columns) > 0:
        return int(columns)
    try:
        return os.get_terminal_size(sys.stdout.fileno()).columns or _DEFAULT_WIDTH
    except (OSError, ValueError):
        return _DEFAULT_WIDTH


def silence_stdout() -> None:
    """Point standard output at nothing, so that the exit flushes into no broken pipe."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, sys.stdout.fileno())
    os.close(null)


def _configured_socket(environ: Mapping[str, str]) -> str | None:
    files = [environ["SUPERVISOR_CONFIG"]] if environ.get("SUPERVISOR_CONFIG") else _CONFIG_FILES
    for file in files:
        if os.path.isfile(file):  # noqa: PTH113 - see above
            import tomllib  # noqa: PLC0415 - only when the socket is not where it should be

            try:
                with open(file, "rb") as stream:  # noqa: PTH123 - see above
                    found = tomllib.load(stream)["supervisor"]["socket"]
            except (OSError, ValueError, KeyError, TypeError):
                return None  # `supervisor check` is the one to complain
            return found if isinstance(found, str) else None
    return None
