"""Whether the run before this one ended in order, and what it left running.

A mark lies in the state directory while a supervisor runs. Who finds one at its start follows
a supervisor that was killed. In a container nothing survives the init; where the supervisor is
not PID 1 (a shell script around it, a bare machine) its services do: they hold ports and VRAM.
"""

from __future__ import annotations

import json
import os
import signal
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from supervisor.core.clock import iso_utc, wall_time_s
from supervisor.services import procfs

_NAME = "running.json"


@dataclass(frozen=True, slots=True)
class Death:
    """A run that did not end in order, and how many processes of it were ended just now."""

    began_at: str
    strays: int

    def __str__(self) -> str:
        text = (
            f"The run that began at {self.began_at} did not end in order: it was killed, ran out "
            "of memory, or the machine went away"
        )
        if not self.strays:
            return text
        what = "one process" if self.strays == 1 else f"{self.strays} processes"
        return f"{text}; {what} that it had left running ended now"


class RunMark:
    """The mark of this run. Blocking: a file of a hundred bytes, and /proc after a death."""

    def __init__(self, state_dir: Path, instance: str) -> None:
        self._path = state_dir / _NAME
        self._instance = instance

    def begin(self) -> Death | None:
        """Leave the mark; return what an earlier one tells.

        A state directory that cannot be written leaves no mark, and so nothing is told later.
        """
        death = self._look()
        stat = procfs.read_stat(os.getpid())
        mark = {
            "instance": self._instance,
            "began_at": iso_utc(wall_time_s()),
            "process": [os.getpid(), stat.started_ticks if stat else 0],
        }
        with suppress(OSError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            temporary = self._path.with_suffix(f".{os.getpid()}")
            temporary.write_text(json.dumps(mark), encoding="utf-8")
            temporary.replace(self._path)
        return death

    def end(self) -> None:
        """Take the mark away, unless another run has put its own there."""
        with suppress(OSError, ValueError, KeyError, TypeError):
            if json.loads(self._path.read_text(encoding="utf-8"))["instance"] == self._instance:
                self._path.unlink()

    def _look(self) -> Death | None:
        try:
            mark = json.loads(self._path.read_text(encoding="utf-8"))
            instance, began_at = str(mark["instance"]), str(mark["began_at"])
            pid, started_ticks = mark["process"]
            stat = procfs.read_stat(int(pid))
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return None
        if stat is not None and not stat.dead and stat.started_ticks == started_ticks:
            return None  # it runs: two supervisors share the directory
        return Death(began_at, _end_strays(instance))


def _end_strays(instance: str) -> int:
    """Kill what carries the mark of that run; its values cannot be guessed by others."""
    found = [pid for pid in procfs.of_instance(instance) if pid != os.getpid()]
    for pid in found:
        with suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)
    return len(found)
