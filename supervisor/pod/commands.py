"""Runs a program to its end, and nothing of it longer."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import anyio

_OUTPUT_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class Runner:
    """Surroundings of programs: a complete environment, and the user (None = ours)."""

    environment: Mapping[str, str]
    uid: int | None = None
    gid: int | None = None

    async def run(self, command: Sequence[str], cwd: Path | None = None) -> tuple[int, str]:
        """Return exit code (127: it cannot be run) and the end of what it wrote.

        Cancelling kills its whole process group.
        """
        try:
            process = await anyio.open_process(
                command,
                cwd=cwd,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                user=self.uid,
                group=self.gid,
                extra_groups=None if self.uid is None else [],
            )
        except OSError as error:
            return 127, f"{command[0]}: {error.strerror}"
        output = bytearray()
        try:
            assert process.stdout is not None  # noqa: S101 - it is a pipe
            async for chunk in process.stdout:
                output += chunk
                del output[:-_OUTPUT_BYTES]
            await process.wait()
        finally:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            with anyio.CancelScope(shield=True):
                await process.aclose()
        return process.returncode or 0, output.decode(errors="replace").strip()


def last_line(text: str) -> str:
    """The line of a program's output that says why it failed, without passwords in addresses."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    told = [line for line in lines if line.lower().startswith(("error", "fatal"))]
    return re.sub(r"(\w://)[^/@\s]+@", r"\1***@", (told or lines or [""])[-1])[:300]
