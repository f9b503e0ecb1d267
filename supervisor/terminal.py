"""The controlling terminal, for ``pid1.run_command``. Standard library only, quick to load."""

from __future__ import annotations

import os
import signal
from contextlib import suppress


class Terminal:
    """The controlling terminal, if standard input is one, on its way to the child.

    A session leader gives its terminal up, so that the child's new session can have it.
    Under a shell the session is the shell's: there the child becomes the foreground group,
    and when it is stopped (Ctrl-Z) the init stops too, for the shell to take over.
    """

    def __init__(self, *, setsid: bool) -> None:
        self.own_session = setsid
        self.shell_above = False
        self._own_group = os.getpgrp()
        self._in_front = False
        self._given_up = False
        try:
            front = os.tcgetpgrp(0)
        except OSError:
            return  # not a terminal, or not the one that controls this session
        if setsid and os.getsid(0) == os.getpid():
            self._give_up()
        else:
            self.own_session = False
            self._in_front = front == self._own_group
            self.shell_above = os.getpid() != 1

    def enter_child(self) -> None:
        """In the child: make its session or group, and take the terminal."""
        if not self.own_session:
            os.setpgid(0, 0)
            self._put_in_front(os.getpid())
            return
        os.setsid()
        if self._given_up:
            import fcntl  # noqa: PLC0415 - only with a terminal
            import termios  # noqa: PLC0415

            with suppress(OSError):
                fcntl.ioctl(0, termios.TIOCSCTTY, 0)

    def give(self, group: int) -> None:
        """Hand the foreground on to ``group``, if the shell has just made it ours."""
        if not self.own_session:
            with suppress(OSError):
                self._in_front = os.tcgetpgrp(0) == self._own_group
                self._put_in_front(group)

    def take_back(self) -> None:
        """Make our own group the foreground again, if the child had it from us."""
        self._put_in_front(self._own_group)

    def _put_in_front(self, group: int) -> None:
        if self._in_front:
            with suppress(OSError):
                os.tcsetpgrp(0, group)  # allowed from the background: SIGTTOU is blocked

    def _give_up(self) -> None:
        import fcntl  # noqa: PLC0415 - only with a terminal
        import termios  # noqa: PLC0415

        with suppress(OSError):
            fcntl.ioctl(0, termios.TIOCNOTTY)
            self._given_up = True
            # The kernel tells the foreground group that it lost the terminal: not a request.
            for number in (signal.SIGHUP, signal.SIGCONT):
                signal.sigtimedwait({number}, 0)
