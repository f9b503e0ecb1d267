"""Locks on a shared folder, for pods that see the same files and nothing else of each other.

A lock is a folder; its generations are files named by a number. Whoever creates generation
n+1 exclusively (``O_EXCL``, atomic on local and network file systems, where ``flock`` may
be local or missing) holds the lock; n is its fencing number. The holder rewrites its file
again and again. An observer takes over when the file did not change for a whole lease on
the *observer's* clock, so clocks of machines are never compared. A holder that finds a
higher generation has lost: it is cancelled, and ``Lease.check`` refuses to publish.

Nobody waits a whole lease for an owner that is seen to be gone (``liveness``). Whatever is
concluded there may only shorten the wait: the generations fence.
"""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread

from supervisor.errors import TransientTransferError
from supervisor.models.liveness import Fate, SignOfLife, judged, process_owner

# Long enough for a stalled network volume and for attribute caches (NFS: up to 60 s).
LEASE_S = 90.0
_BEAT_S = 5.0
_RELEASE_S = 2.0


@dataclass(slots=True)
class Lease:
    """A held lock. ``taken_over``: its last holder fell silent and may come back."""

    folder: Path
    generation: int
    owner: str
    sign: SignOfLife
    taken_over: bool = False
    beat: int = field(default=0)

    def check(self) -> None:
        """Make sure that nobody took the lock away. Blocking.

        Raises:
            TransientTransferError: somebody did; the work must not be published.
        """
        latest = _latest(self.folder)
        if latest != self.generation:
            raise TransientTransferError(
                f"Cannot go on with {self.folder.name[:12]}…: another pod took over "
                f"(generation {latest} after {self.generation})"
            )

    def renew(self, state: str = "held") -> None:
        """Write the file anew so that observers see a change. Blocking.

        Raises:
            OSError: the volume does not take it.
        """
        self.beat += 1
        path = self.folder / _name(self.generation)
        temporary = path.with_suffix(".new")
        record = {"owner": self.owner, "beat": self.beat, "state": state, **self.sign.record}
        temporary.write_text(json.dumps(record), encoding="utf-8")
        temporary.replace(path)


class Leases:
    """Locks below one folder."""

    def __init__(self, directory: Path, *, lease_s: float = LEASE_S, pod: str = "") -> None:
        """``pod`` is the same for every container that a pod ever runs, one after the other."""
        self._directory = directory
        self._owner = process_owner()
        self._lease_s = lease_s
        self._beat_s = min(_BEAT_S, lease_s / 5)
        self._pod = pod

    @asynccontextmanager
    async def hold(self, key: str) -> AsyncIterator[Lease]:
        """Wait for the lock, hold it, release it. Losing it cancels the body.

        Raises:
            TransientTransferError: another pod took over, or the volume stopped answering.
        """
        lease = await self._acquire(self._directory / key)
        lost: list[TransientTransferError] = []
        failure: Exception | None = None
        try:
            async with anyio.create_task_group() as group:
                group.start_soon(self._keep, lease, lost, group.cancel_scope)
                try:
                    yield lease
                except Exception as exc:  # noqa: BLE001 - raised below, outside of the group
                    failure = exc
                group.cancel_scope.cancel()
            if lost:
                raise lost[0]
            if failure is not None:
                raise failure
        finally:
            if not lost:
                # A volume that hangs must not hold up a stop: the lock expires by itself.
                with anyio.move_on_after(_RELEASE_S, shield=True):
                    await anyio.to_thread.run_sync(_release, lease, abandon_on_cancel=True)
            lease.sign.close()

    async def _acquire(self, folder: Path) -> Lease:
        seen: tuple[int, bytes] | None = None
        since_s = 0.0
        while True:
            now = await anyio.to_thread.run_sync(_observe, folder)
            if now != seen:
                seen, since_s = now, anyio.current_time()
            silent_s = anyio.current_time() - since_s
            record = _record(now[1])
            free = now[0] == 0 or record.get("state") == "released"
            judge = partial(judged, folder, record, pod=self._pod, silent_s=silent_s)
            fate = Fate.GONE if free else await anyio.to_thread.run_sync(judge)
            if fate is not Fate.ALIVE or silent_s >= self._lease_s:
                taken_over = fate is not Fate.GONE
                make = partial(self._create, folder, now[0] + 1, taken_over=taken_over)
                # A lock that was got must reach the one who releases it.
                with anyio.CancelScope(shield=True):
                    lease = await anyio.to_thread.run_sync(make)
                if lease is not None:
                    return lease
                continue
            await anyio.sleep(min(1.0, self._lease_s / 10))

    def _create(self, folder: Path, generation: int, *, taken_over: bool) -> Lease | None:
        folder.mkdir(parents=True, exist_ok=True)
        sign = SignOfLife.give(folder, generation, pod=self._pod, beat_s=self._beat_s)
        lease = Lease(folder, generation, self._owner, sign, taken_over)
        try:
            got = _create(lease)
        except BaseException:
            sign.withdraw()
            raise
        if not got:
            sign.withdraw()
        return lease if got else None

    async def _keep(
        self, lease: Lease, lost: list[TransientTransferError], scope: anyio.CancelScope
    ) -> None:
        written_s = anyio.current_time()
        while True:
            await anyio.sleep(self._beat_s)
            try:
                await anyio.to_thread.run_sync(lease.check, abandon_on_cancel=True)
                await anyio.to_thread.run_sync(lease.renew, abandon_on_cancel=True)
                written_s = anyio.current_time()
            except TransientTransferError as exc:
                lost.append(exc)
            except OSError as exc:
                if anyio.current_time() - written_s > self._lease_s * 0.6:
                    lost.append(
                        TransientTransferError(f"Cannot renew a lock: {exc.strerror or exc}")
                    )
            if lost:
                scope.cancel()
                return


def _name(generation: int) -> str:
    return f"{generation:010d}"


def _latest(folder: Path) -> int:
    try:
        return max((int(p.name) for p in folder.iterdir() if p.name.isdigit()), default=0)
    except FileNotFoundError:
        return 0


def _observe(folder: Path) -> tuple[int, bytes]:
    latest = _latest(folder)
    if latest == 0:
        return 0, b""
    try:
        return latest, (folder / _name(latest)).read_bytes()
    except FileNotFoundError:  # a successor has just swept it away
        return latest, b""


def _create(lease: Lease) -> bool:
    path = lease.folder / _name(lease.generation)
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    except FileExistsError:
        return False
    os.close(descriptor)
    lease.renew()
    # Only now, with a higher one in place, are the old generations meaningless.
    for old in lease.folder.iterdir():
        number = old.name.partition(".")[0]
        if number.isdigit() and int(number) < lease.generation:
            old.unlink(missing_ok=True)
    return _latest(lease.folder) == lease.generation


def _release(lease: Lease) -> None:
    try:
        lease.check()
        lease.renew("released")
    except (OSError, TransientTransferError):
        return  # it expires by itself, or belongs to somebody else already


def _record(content: bytes) -> dict[str, Any]:
    try:
        record = json.loads(content)
    except ValueError:
        return {}
    return record if isinstance(record, dict) else {}
