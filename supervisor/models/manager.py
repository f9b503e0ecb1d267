"""Runs all downloads: order, concurrency, retries, progress. The engine moves the bytes."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import anyio
import anyio.abc

from supervisor.config.settings import ModelsSection
from supervisor.core.events import EventBus
from supervisor.core.retry import Backoff
from supervisor.core.state import StateStore
from supervisor.core.status import DownloadState
from supervisor.download.request import (
    Downloader,
    DownloadRequest,
    Resolver,
    TransferResult,
)
from supervisor.errors import (
    ControlError,
    PermanentTransferError,
    TransferError,
    TransientTransferError,
)
from supervisor.models.outcomes import Outcomes
from supervisor.models.preflight import ROOM_HINT, Preflight, free_bytes, os_error
from supervisor.models.queue import Job
from supervisor.models.reporter import Reporter
from supervisor.models.requests import required_names, same_file
from supervisor.models.transfers import ResolvedAhead
from supervisor.models.unasked import Unasked
from supervisor.models.wanted import Wanted

log = logging.getLogger("supervisor.models")

# Tries at the quick pace when the settings leave it to us; then one every few minutes.
_QUICK_TRIES = 5
_QUICK = Backoff(initial_s=2.0, max_s=30.0)
_SLOW = Backoff(initial_s=300.0, max_s=300.0)
# Files whose size is known need not wait longer than this for the answers about others.
_PATIENCE_S = 20.0


class ModelManager:
    """Downloads what is asked for, required and small files first.

    One file's failure never stops the others: permanent errors fail that file at once,
    anything else is tried again for ever, ever more slowly.
    """

    def __init__(
        self,
        *,
        settings: ModelsSection,
        state: StateStore,
        bus: EventBus,
        downloader: Downloader,
        resolvers: Mapping[str, Resolver],
        free: Callable[[Path], int] = free_bytes,
        quick: Backoff = _QUICK,
        slow: Backoff = _SLOW,
        give_up_after: int | None = None,
        ask_again_s: float = 300.0,
    ) -> None:
        """``give_up_after`` failed tries a file counts as failed; None never gives up."""
        self._settings = settings
        self._state = state
        self._downloader = downloader
        self._preflight = Preflight(resolvers, free, store=settings.store)
        self._quick, self._slow = quick, slow
        self._give_up_after = give_up_after
        self._wanted = Wanted()
        self._jobs: Mapping[str, Job] = self._wanted.jobs
        self._wake = anyio.Event()
        self._touched = anyio.Event()  # a new one each time: who waits misses no change
        self._preparing = False
        self._short: dict[str, str] = {}  # group → the note that there is no room for it
        self.outcomes = Outcomes(bus)
        self._unasked = Unasked(self._preflight, self.outcomes.kept)
        self._ask_again_s = ask_again_s
        self._reporter = Reporter(state, self.outcomes, self._jobs)

    # -- what others call ---------------------------------------------------------------

    def enqueue(self, requests: Iterable[DownloadRequest]) -> None:
        """Take requests in before ``run``, so that status shows them from the start."""
        self._insert(requests)
        self._reporter.publish()

    async def run(
        self,
        requests: Sequence[DownloadRequest] = (),
        *,
        task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED,
    ) -> None:
        """Download until cancelled; partial files stay and are resumed by a later run."""
        self.enqueue(requests)
        task_status.started()
        async with anyio.create_task_group() as group:
            group.start_soon(self._reporter.run)
            group.start_soon(self._ask_again)
            while True:
                self._wake = anyio.Event()
                with anyio.move_on_after(self._dispatch(group)):
                    await self._wake.wait()

    async def run_until_done(self, requests: Sequence[DownloadRequest]) -> bool:
        """Download everything and return whether all of it is in place."""
        async with anyio.create_task_group() as group:
            await group.start(self.run, requests)
            await self.wait_until_idle()
            group.cancel_scope.cancel()
        return not any(j.state is DownloadState.FAILED for j in self._jobs.values())

    async def wait_until_idle(self) -> None:
        """Return when every file is in place, failed or skipped, and the state says so."""
        while not all(job.ended for job in self._jobs.values()):
            await self._touched.wait()
        self._reporter.publish()

    @property
    def busy(self) -> bool:
        """Whether bytes are moving (the pod is not idle)."""
        return any(job.running for job in self._jobs.values())

    @property
    def requests(self) -> tuple[DownloadRequest, ...]:
        """Everything that was asked for, in order of arrival."""
        return self._wanted.requests

    def add(self, request: DownloadRequest, *, now: bool = False) -> None:
        """Take one more file in; ``now`` puts it before all others.

        A file that failed or was cancelled is tried again.

        Raises:
            ControlError: another file already has that destination.
        """
        known = self._jobs.get(request.name)
        if known is not None and not same_file(known.request, request):
            raise ControlError(
                f"Cannot add {request.name}: {known.request.url} has that destination",
                status=409,
                code="conflict",
            )
        if known is None:
            self._insert([request], urgent=now)
        elif known.ended:
            known.requeue(urgent=now)
        elif now:
            known.urgent = True
        self._touch()

    def reconcile(
        self, requests: Iterable[DownloadRequest], *, settings: ModelsSection | None = None
    ) -> None:
        """Want exactly ``requests`` from now on: what is the same goes on undisturbed.

        Files that are no longer wanted stop and vanish from status; nothing is deleted.
        What failed is tried again: a person has changed something, perhaps elsewhere.
        Of ``settings`` only order, numbers and readiness are taken over.
        """
        self._settings = settings or self._settings
        self._swap(*self._wanted.keep(requests))
        for job in self._jobs.values():
            if job.state is DownloadState.FAILED:
                job.requeue(urgent=job.urgent)
        self._demand()
        self._touch()

    def prioritise(self, name: str) -> None:
        """Put a file, bundle or folder first; it does not wait for a free slot.

        Raises:
            ControlError: there is no such file.
        """
        for job in self._wanted.named(name):
            job.urgent = True
        self.retry(name)

    def retry(self, name: str) -> None:
        """Try what failed or was cancelled again, and what waits for its next try at once.

        Raises:
            ControlError: there is no such file.
        """
        for job in self._wanted.named(name):
            if job.ended and job.state is not DownloadState.DONE:
                job.requeue(urgent=job.urgent)
            job.not_before_s = 0.0
        self._touch()

    def cancel(self, name: str) -> None:
        """Stop files and leave them out; their partial bytes stay for a later retry.

        Raises:
            ControlError: there is no such file, or all of it is already in place.
        """
        jobs = [j for j in self._wanted.named(name) if j.state is not DownloadState.DONE]
        if not jobs:
            raise ControlError(
                f"Cannot cancel {name}: it is already in place", status=409, code="conflict"
            )
        for job in jobs:
            self._end(job, DownloadState.SKIPPED, error="cancelled")
            self.outcomes.cancelled(job.request)
            if job.scope is not None:
                job.scope.cancel()

    # -- jobs ---------------------------------------------------------------------------

    def _insert(self, requests: Iterable[DownloadRequest], *, urgent: bool = False) -> None:
        for request in requests:
            try:
                self._wanted.insert(request, urgent=urgent)
            except PermanentTransferError as exc:
                self.outcomes.failed(request, exc)
        self._demand()

    def _swap(self, dropped: Iterable[Job], fresh: Iterable[DownloadRequest]) -> None:
        for job in dropped:
            self._end(job, DownloadState.SKIPPED)
            if job.scope is not None:
                job.scope.cancel()
        self._insert(fresh)

    def _demand(self) -> None:
        """Tell readiness which files it waits for."""
        names = required_names(self.requests, self._settings.require)
        self._state.update(required_downloads=names)

    def _dispatch(self, group: anyio.abc.TaskGroup) -> float:
        """Start what may start; return the seconds until something else becomes due."""
        now_s = anyio.current_time()
        waiting = [
            j for j in self._jobs.values() if j.state is DownloadState.QUEUED and not j.running
        ]
        if not self._preparing and any(not j.prepared for j in waiting):
            self._preparing = True
            group.start_soon(self._prepare, [j for j in waiting if not j.prepared])
        ready = sorted(
            (j for j in waiting if j.prepared and j.not_before_s <= now_s), key=lambda j: j.order
        )
        running = sum(1 for j in self._jobs.values() if j.running)
        for job in ready:
            # What somebody waits for right now does not queue behind large files.
            if running >= self._settings.concurrent_files + (1 if job.urgent else 0):
                break
            job.scope = anyio.CancelScope()
            group.start_soon(self._work, job, job.scope)
            running += 1
        later = [j.not_before_s - now_s for j in waiting if j.not_before_s > now_s]
        return min(later, default=3600.0)

    async def _prepare(self, jobs: list[Job]) -> None:
        """Learn names and sizes, then refuse what the disk cannot take as a whole."""
        try:
            with anyio.move_on_after(_PATIENCE_S):
                async with anyio.create_task_group() as group:
                    for job in jobs:
                        if job.request.directory:
                            group.start_soon(self._unfold_early, job)
                await self._preflight.look(self._unprepared)
            fresh = self._unprepared
            accepted = [j for j in self._jobs.values() if j.prepared and not j.ended]
            short = await self._preflight.without_room(fresh, accepted, self._wanted.group)
            for job in fresh:
                job.prepared = True
            for name, reason in short.items():
                self._refuse(name, reason, [j for j in fresh if self._wanted.group(j) == name])
            self._note(fresh, short)
        finally:
            self._preparing = False
            self._touch()

    def _note(self, judged: Iterable[Job], short: Mapping[str, str]) -> None:
        """Show what is left out as the plan does; what was left out before may fit now."""
        again = {self._wanted.group(job) for job in judged}
        was = frozenset(self._short.values())
        kept = {group: note for group, note in self._short.items() if group not in again}
        self._short = kept | {group: f"{group} skipped: {why}" for group, why in short.items()}
        notes = (note for note in self._state.snapshot.notes if note not in was)
        self._state.update(notes=(*notes, *self._short.values()))

    @property
    def _unprepared(self) -> list[Job]:
        return [j for j in self._jobs.values() if not j.prepared and not j.ended]

    def _refuse(self, group: str, reason: str, jobs: Sequence[Job]) -> None:
        """Fail all files of a group: a part of it would be of no use."""
        what = "" if group == jobs[0].request.name else f"the whole of {group} "
        for job in jobs:
            error = f"Cannot fetch {job.request.name}: {what}{reason}"
            self._end(job, DownloadState.FAILED, error=error, hint=ROOM_HINT)
        self.outcomes.refused(group, reason, source=jobs[0].request.source)

    async def _work(self, job: Job, scope: anyio.CancelScope) -> None:
        """Carry one job out; never raises but for cancellation."""
        with scope:
            try:
                await self._attempt(job)
            except TransientTransferError as exc:
                self._postpone(job, exc)
            except TransferError as exc:
                self._fail(job, exc)
            except OSError as exc:
                self._fail(job, os_error(job.request, exc))
            except Exception:
                log.exception("unexpected error while fetching %s", job.request.name)
                self._fail(job, PermanentTransferError(f"Cannot fetch {job.request.name}: bug"))
        job.scope = None
        job.rate_bytes_per_s = 0.0
        self._touch()

    async def _attempt(self, job: Job) -> None:
        job.state, job.started_s = DownloadState.ACTIVE, anyio.current_time()
        self._touch()
        if job.request.directory:
            await self._unfold(job)
            return
        request = replace(job.request, urgent=job.urgent)
        resolver = self._preflight.resolver(request)
        progress = self._reporter.progress_of(job)
        ahead = ResolvedAhead(resolver, job.take_resolved(anyio.current_time()))
        self._finish(job, await self._unasked.fetch(self._downloader, request, ahead, progress))

    async def _unfold_early(self, job: Job) -> None:
        with suppress(TransferError):  # the transfer meets it again and reports it
            await self._unfold(job)

    async def _unfold(self, job: Job) -> None:
        """Replace a folder, or a file without a name, by the files it stands for."""
        children = await self._unasked.unfold(job.request)
        if self._jobs.get(job.request.name) is not job:
            return  # no longer wanted
        self._wanted.remove_folder(job, children)
        self._insert(children, urgent=job.urgent)

    async def _ask_again(self) -> None:
        """Ask for the folders that are taken for what they were, until somebody answers."""
        while True:
            await anyio.sleep(self._ask_again_s)
            for folder in self._unasked.unanswered:
                with suppress(TransferError):
                    files = await self._unasked.ask_again(folder)
                    self._swap(*self._wanted.refresh(folder.name, files))

    # -- outcomes -----------------------------------------------------------------------

    def _finish(self, job: Job, result: TransferResult) -> None:
        if job.ended:  # cancelled in the very last moment
            return
        job.bytes_total = job.bytes_done = result.size_bytes
        self._end(job, DownloadState.DONE)
        took_s = anyio.current_time() - job.started_s
        self.outcomes.done(job.request, result, took_s=took_s)

    def _postpone(self, job: Job, exc: TransientTransferError) -> None:
        if job.ended:
            return
        job.attempt += 1
        if self._give_up_after is not None and job.attempt >= self._give_up_after:
            self._fail(job, exc)
            return
        quick_tries = self._settings.retry_attempts or _QUICK_TRIES
        pace = self._quick if job.attempt <= quick_tries else self._slow
        delay_s = max(pace.delay_s(job.attempt - 1), exc.retry_after_s or 0.0)
        job.state, job.error, job.hint = DownloadState.QUEUED, exc.message, exc.hint
        job.not_before_s = anyio.current_time() + delay_s
        self.outcomes.postponed(job.request, exc, delay_s=delay_s, attempt=job.attempt)

    def _fail(self, job: Job, exc: TransferError) -> None:
        if job.ended:
            return
        self._end(job, DownloadState.FAILED, error=exc.message, hint=exc.hint)
        self.outcomes.failed(job.request, exc)

    def _end(
        self, job: Job, state: DownloadState, *, error: str | None = None, hint: str | None = None
    ) -> None:
        job.end(state, error=error, hint=hint)
        self._touch()

    def _touch(self) -> None:
        self._wake.set()
        self._touched.set()
        self._touched = anyio.Event()
        self._reporter.touch()
