"""The files that are wanted: each once, and what came out of which folder. No I/O."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import count

from supervisor.config.problems import nearest
from supervisor.core.status import DownloadState
from supervisor.download.request import DownloadRequest
from supervisor.errors import ControlError, PermanentTransferError
from supervisor.models.queue import Job
from supervisor.models.requests import same_file


class Wanted:
    """Jobs by name, in order of arrival."""

    def __init__(self) -> None:
        self.jobs: dict[str, Job] = {}
        self._folders: dict[str, str] = {}  # file → the request for a folder it came from
        self._seq = count()

    @property
    def requests(self) -> tuple[DownloadRequest, ...]:
        """What was asked for, folders as the files they stand for."""
        return tuple(job.request for job in self.jobs.values())

    def named(self, name: str) -> list[Job]:
        """The jobs that a name stands for: a file, or all of a bundle or folder.

        Raises:
            ControlError: there is none.
        """
        found = [j for j in self.jobs.values() if name in (j.request.name, self.group(j))]
        if not found:
            known = {*self.jobs, *map(self.group, self.jobs.values())}
            hint = nearest(name, known) or "`supervisor models list` names them"
            raise ControlError(
                f"Cannot find a download named {name}", hint=hint, status=404, code="not-found"
            )
        return found

    def insert(self, request: DownloadRequest, *, urgent: bool = False) -> None:
        """Take one more file in; one that is there already changes nothing.

        Raises:
            PermanentTransferError: another file has that destination. The first one wins:
                an earlier source in the configuration has precedence.
        """
        known = self.jobs.get(request.name)
        if known is None:
            self.jobs[request.name] = Job(request, next(self._seq), urgent=urgent)
        elif not same_file(known.request, request):
            raise PermanentTransferError(
                f"Cannot fetch {request.url}: {known.request.url} goes to {request.name} too"
            )

    def remove_folder(self, job: Job, children: Iterable[DownloadRequest]) -> None:
        """Forget the job of a folder; remember which files it stands for."""
        self.jobs.pop(job.request.name, None)
        job.state = DownloadState.SKIPPED
        for child in children:
            self._folders[child.name] = job.request.name

    def refresh(
        self, folder: str, files: Iterable[DownloadRequest]
    ) -> tuple[list[Job], list[DownloadRequest]]:
        """Want what ``folder`` stands for now: return the jobs that were dropped, what is new."""
        dropped: list[Job] = []
        fresh: list[DownloadRequest] = []
        if folder not in self._folders.values():
            return dropped, fresh  # nobody wants it any more
        for file in files:
            job = self.jobs.get(file.name)
            if job is not None:
                same = same_file(job.request, file) and job.request.size_bytes == file.size_bytes
                if same or self._folders.get(file.name) != folder:
                    continue
                dropped.append(self.jobs.pop(file.name))
            self._folders[file.name] = folder
            fresh.append(file)
        return dropped, fresh

    def keep(self, requests: Iterable[DownloadRequest]) -> tuple[list[Job], list[DownloadRequest]]:
        """Want exactly ``requests``: return the jobs that were dropped, and what is new."""
        wanted = {request.name: request for request in requests}
        dropped = []
        for name, job in list(self.jobs.items()):
            replacement = wanted.get(name)
            if replacement is not None and same_file(job.request, replacement):
                job.request = replacement
            elif self._folders.get(name) not in wanted:
                del self.jobs[name]
                self._folders.pop(name, None)
                dropped.append(job)
        known = self.jobs.keys() | self._folders.values()
        return dropped, [request for name, request in wanted.items() if name not in known]

    def group(self, job: Job) -> str:
        """The name of what is of use only as a whole: a bundle, a folder, or the file."""
        request = job.request
        return request.bundle or self._folders.get(request.name) or request.name
