"""What is done before a start: folders, lines in files, one-off commands."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import assert_never

import anyio
import anyio.to_thread

from supervisor.errors import SpawnError
from supervisor.services.process import Order, spawn
from supervisor.services.spec import EnsureDirectory, EnsureLines, PrepareStep, RunFirst

# A pipe in the file's place must not hold the start up.
_WRITE = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK
_OUTPUT_BYTES = 64 * 1024


async def prepare(steps: Sequence[PrepareStep], order: Order) -> None:
    """Carry out the steps in order, commands as the service's user.

    Raises:
        SpawnError: a step failed; the service must not start.
    """
    for step in steps:
        match step:
            case EnsureDirectory() | EnsureLines():
                try:
                    await anyio.to_thread.run_sync(_ensure, step)
                except OSError as exc:
                    raise SpawnError(
                        f"Cannot prepare {step.path}: {exc.strerror or exc}",
                        hint="is the folder above it writable?",
                    ) from exc
            case RunFirst():
                if step.creates is None or not await anyio.Path(step.creates).exists():
                    await _run_first(step, order)
            case _:
                assert_never(step)


def _ensure(step: EnsureDirectory | EnsureLines) -> None:
    if isinstance(step, EnsureDirectory):
        step.path.mkdir(parents=True, exist_ok=True)
        step.path.chmod(step.mode)
    else:
        _ensure_lines(step.path, step.lines, step.mode)


def _ensure_lines(path: Path, lines: Sequence[str], mode: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, _WRITE | (0 if _is_ours(path.parent) else os.O_NOFOLLOW), mode)
    with os.fdopen(descriptor, "r+", encoding="utf-8") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "it is not a file")
        text = file.read()
        present = {line.strip() for line in text.splitlines()}
        missing = [line for line in dict.fromkeys(lines) if line.strip() not in present]
        if missing and text and not text.endswith("\n"):
            file.write("\n")
        file.writelines(f"{line}\n" for line in missing)
        os.fchmod(descriptor, mode)


def _is_ours(folder: Path) -> bool:
    """Whether nobody else can put anything into a folder.

    Where a service of another user can, it must not lead us to a file of ours by a link.
    """
    info = folder.stat()
    return info.st_uid == os.geteuid() and not info.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


async def _run_first(step: RunFirst, order: Order) -> None:
    secret = step.secret or ""
    command = tuple(word.replace("{secret}", secret) for word in step.command)
    shown = step.command[0]
    code, output = await run_command(command, order, timeout_s=step.timeout_s)
    if code != 0:
        last = output.decode("utf-8", "replace").strip().rpartition("\n")[2]
        if secret:
            last = last.replace(secret, "***")
        cause = f"no end within {step.timeout_s:g} s" if code is None else f"exit code {code}"
        raise SpawnError(f"Cannot prepare with {shown}: {cause}", hint=last or None)


async def run_command(
    command: tuple[str, ...], order: Order, *, timeout_s: float | None = None
) -> tuple[int | None, bytes]:
    """Run a command to its end in the surroundings of ``order``.

    Returns its exit code (None after a timeout) and the end of what it wrote. The whole
    group is killed when it takes too long or the caller is cancelled.

    Raises:
        SpawnError: it cannot be executed.
    """
    child = spawn(_with_command(order, command))
    output = bytearray()

    def collect(data: bytes) -> bool:
        output.extend(data)
        del output[:-_OUTPUT_BYTES]
        return False

    code: int | None = None
    try:
        with anyio.move_on_after(timeout_s):
            async with anyio.create_task_group() as readers:
                for stream in ("stdout", "stderr"):
                    readers.start_soon(child.read_output, stream, collect, lambda: None)
                code = (await child.wait()).shell_code
                readers.cancel_scope.cancel()
    finally:
        child.send(9)
        with anyio.CancelScope(shield=True):
            await child.wait()
            for stream in ("stdout", "stderr"):
                await child.drain(stream, collect, limit_bytes=_OUTPUT_BYTES)
        child.close()
    return code, bytes(output)


def _with_command(order: Order, command: tuple[str, ...]) -> Order:
    """The same surroundings for another command; limits and nice are the service's own."""
    return Order(
        command=command,
        environment=order.environment,
        user=order.user,
        cwd=order.cwd,
        umask=order.umask,
    )
