"""What can be known before the first byte: names, sizes, access, room."""

from __future__ import annotations

import errno
import os
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import anyio
import anyio.to_thread

from supervisor.download.files import reserved_bytes
from supervisor.download.request import DownloadRequest, Resolved, Resolver
from supervisor.errors import DiskFullError, PermanentTransferError, SupervisorError, TransferError
from supervisor.models.abilities import Expander
from supervisor.models.folders import safe_file_name
from supervisor.models.memory import Memory
from supervisor.models.queue import Job
from supervisor.models.room import Need, without_room
from supervisor.models.store import ModelStore

_AT_ONCE = 8
ROOM_HINT = "free space, or use a larger volume; then `supervisor reload` tries it again"


@dataclass(frozen=True, slots=True)
class Checked:
    """The answer of ``check`` for one file."""

    request: DownloadRequest
    resolved: Resolved | None = None
    in_place: bool = False
    error: SupervisorError | None = None

    @property
    def ok(self) -> bool:
        """Whether it can be had."""
        return self.error is None

    @property
    def size_bytes(self) -> int | None:
        """The announced size, else the expected one."""
        if self.resolved is not None and self.resolved.size_bytes is not None:
            return self.resolved.size_bytes
        return self.request.size_bytes


class Preflight:
    """Asks the sources without fetching a byte of payload."""

    def __init__(
        self,
        resolvers: Mapping[str, Resolver],
        free: Callable[[Path], int] | None = None,
        *,
        store: Path | None = None,
    ) -> None:
        """With a ``store`` the bytes go there, and the destinations are links."""
        self._resolvers = resolvers
        self._store = store
        self.memory = Memory(ModelStore(store) if store else None)
        self._free = free or free_bytes
        self._limit = anyio.CapacityLimiter(_AT_ONCE)

    async def expand(self, request: DownloadRequest) -> tuple[DownloadRequest, ...]:
        """Turn a folder, or a file without a name, into files with destinations.

        Raises:
            TransferError: the source cannot say.
        """
        if not request.directory:
            return (request,)
        resolver = self.resolver(request)
        if isinstance(resolver, Expander):
            return await resolver.expand(request)
        resolved = await resolver.resolve(request)
        name = safe_file_name(resolved.file_name or "")
        if name is None:
            raise PermanentTransferError(
                f"Cannot fetch {request.name}: the server does not name the file",
                hint='say how to call it, for example to = "loras/name.safetensors"',
            )
        prefix = request.name.rpartition("/")[0]
        return (
            replace(
                request,
                name=f"{prefix}/{name}".lstrip("/"),
                destination=request.destination / name,
                directory=False,
            ),
        )

    async def check(self, requests: Iterable[DownloadRequest]) -> list[Checked]:
        """Resolve everything side by side: size, hash, access, room. Order is kept."""
        wanted = list(requests)
        answers: dict[int, list[Checked]] = {}
        async with anyio.create_task_group() as group:
            for index, request in enumerate(wanted):
                group.start_soon(self._check_into, answers, index, request)
        found = [
            (wanted[i].bundle or wanted[i].name, c) for i in sorted(answers) for c in answers[i]
        ]
        groups = {
            Job(c.request, number, bytes_total=c.size_bytes): name
            for number, (name, c) in enumerate(found)
            if c.ok and not c.in_place
        }
        short = await self.without_room(list(groups), [], groups.__getitem__)
        return [_judged(checked, short.get(name)) for name, checked in found]

    async def look(self, jobs: Sequence[Job]) -> None:
        """Ask for sizes nobody knows. Trouble is left to the transfer."""
        unknown = [
            j for j in jobs if j.size_bytes is None and not j.request.directory and not j.ended
        ]
        async with anyio.create_task_group() as group:
            for job in unknown:
                group.start_soon(self._size_up, job)

    async def without_room(
        self, jobs: Sequence[Job], accepted: Sequence[Job], group: Callable[[Job], str]
    ) -> dict[str, str]:
        """Return the groups among ``jobs`` that the disk cannot take, with the numbers.

        ``group`` names what is of use only as a whole. Required groups come first, then
        small ones. What the ``accepted`` jobs still have to write is taken as spoken for.
        """
        judge = partial(self._without_room, list(jobs), list(accepted), group)
        return await anyio.to_thread.run_sync(judge)

    def _without_room(
        self, jobs: list[Job], accepted: list[Job], group: Callable[[Job], str]
    ) -> dict[str, str]:
        by_device: defaultdict[int, list[Job]] = defaultdict(list)
        for job in jobs:
            by_device[self._disk(job).stat().st_dev].append(job)
        refused: dict[str, str] = {}
        for device, members in by_device.items():
            where = self._disk(members[0])
            spoken_for = sum(
                self._to_write(j) for j in accepted if self._disk(j).stat().st_dev == device
            )
            needs = _needs(members, group, self._to_write)
            refused |= without_room(needs, free_bytes=max(self._free(where) - spoken_for, 0))
        return refused

    def _to_write(self, job: Job) -> int:
        """Bytes that are still to be taken from the free ones: the engine preallocates files."""
        if job.size_bytes is None:
            return 0
        if self.memory.holds(replace(job.request, size_bytes=job.size_bytes)):
            return 0
        there = max(job.bytes_done, reserved_bytes(job.request.destination))
        return max(job.size_bytes - there, 0)

    def _disk(self, job: Job) -> Path:
        return _existing(self._store or job.request.destination)

    async def _size_up(self, job: Job) -> None:
        async with self._limit:
            try:
                if await anyio.to_thread.run_sync(self.memory.holds, job.request):
                    return
                job.resolved = await self.resolver(job.request).resolve(job.request)
            except TransferError:
                return  # the transfer meets it again and reports it
            job.resolved_s = anyio.current_time()
            job.bytes_total = job.resolved.size_bytes

    async def _check_into(
        self, answers: dict[int, list[Checked]], index: int, request: DownloadRequest
    ) -> None:
        try:
            async with self._limit:
                children = await self.expand(request)
        except TransferError as exc:
            answers[index] = [Checked(request, error=exc)]
            return
        found: dict[int, Checked] = {}

        async def check(number: int, child: DownloadRequest) -> None:
            async with self._limit:
                found[number] = await self._check_one(child)

        async with anyio.create_task_group() as group:
            for number, child in enumerate(children):
                group.start_soon(check, number, child)
        answers[index] = [found[number] for number in range(len(children))]

    async def _check_one(self, request: DownloadRequest) -> Checked:
        size = await anyio.to_thread.run_sync(_size_of, request.destination)
        in_place = size is not None and request.size_bytes in (None, size)
        try:
            resolved = await self.resolver(request).resolve(request)
        except TransferError as exc:
            return Checked(request, in_place=in_place, error=exc)
        in_place = in_place and resolved.size_bytes in (None, size)
        return Checked(request, resolved, in_place)

    def resolver(self, request: DownloadRequest) -> Resolver:
        """The source of a request.

        Raises:
            PermanentTransferError: there is none of that name.
        """
        try:
            return self._resolvers[request.source]
        except KeyError:
            raise PermanentTransferError(
                f"Cannot fetch {request.name}: there is no source called {request.source}"
            ) from None


def _judged(checked: Checked, no_room: str | None) -> Checked:
    if no_room is None or not checked.ok or checked.in_place:
        return checked
    message = f"Cannot fetch {checked.request.name}: {no_room}"
    return replace(checked, error=DiskFullError(message, hint=ROOM_HINT))


def free_bytes(path: Path) -> int:
    """Bytes that an unprivileged user may still write below ``path``."""
    return shutil.disk_usage(_existing(path)).free


def os_error(request: DownloadRequest, exc: OSError) -> TransferError:
    """Translate a local error into what a person has to do."""
    message = f"Cannot write {request.destination}: {exc.strerror or exc}"
    if exc.errno in (errno.ENOSPC, errno.EDQUOT):
        return DiskFullError(message, hint=ROOM_HINT)
    return PermanentTransferError(message, hint="check that the models folder is writable")


def _needs(
    jobs: Iterable[Job], group: Callable[[Job], str], to_write: Callable[[Job], int]
) -> list[Need]:
    """What each group still takes, in the order in which room is given away."""
    groups: defaultdict[str, list[Job]] = defaultdict(list)
    for job in jobs:
        groups[group(job)].append(job)

    def order(members: list[Job]) -> tuple[bool, bool, int, int]:
        return (
            not any(j.urgent for j in members),
            not any(j.request.required for j in members),
            sum(j.order[2] for j in members),
            min(j.seq for j in members),
        )

    in_order = sorted(groups.items(), key=lambda item: order(item[1]))
    return [Need(name, sum(to_write(j) for j in members)) for name, members in in_order]


def _existing(path: Path) -> Path:
    for candidate in (path, *path.parents):
        if candidate.exists():
            return candidate
    return Path(path.anchor or os.curdir)


def _size_of(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except OSError:
        return None
