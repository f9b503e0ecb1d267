"""Hugging Face: single files, sub-folders and whole repositories, gated ones included.

Contract: https://huggingface.co/docs/hub/api and what ``huggingface_hub`` 1.x relies on:
``X-Linked-ETag`` / ``X-Linked-Size`` / ``X-Repo-Commit`` on the first answer, ``X-Error-Code``
on refusals, ``Link: <…>; rel="next"`` for the pages of a tree.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import quote, urljoin, urlsplit, urlunsplit

from supervisor.download.request import DownloadRequest, Resolved
from supervisor.errors import (
    AuthRequiredError,
    NotFoundError,
    PermanentTransferError,
    TransientTransferError,
    UnreachableError,
)
from supervisor.models.folders import safe_relative
from supervisor.models.references import HubReference, parse_hub
from supervisor.models.sources.base import (
    MAX_REDIRECTS,
    REDIRECTS,
    SourceContext,
    call,
    check_status,
    read_json,
    require_agreement,
    same_host,
    sha256_of,
    understood,
    whole_number,
)

# Repository furniture that no model loader reads.
_NOT_WANTED = frozenset({".gitattributes", ".gitignore", "README.md", "LICENSE"})
_MAX_PAGES = 1000
# Besides HF_ENDPOINT, the hosts that a token may be shown to (huggingface_hub 2.4).
_HUB = ("https://huggingface.co", "https://hf.co")
# ``X-Error-Message`` where there is no code of its own (huggingface_hub 2.4, utils/_http.py).
_DISABLED = "Access to this resource is disabled."
_BAD_TOKEN = "Invalid credentials in Authorization header"  # noqa: S105 - a message


@dataclass(frozen=True, slots=True)
class HubFile:
    """One file of a repository tree."""

    path: str
    size_bytes: int
    sha256: str | None


def is_hub(url: str) -> bool:
    """Whether an address is Hugging Face's own, to which mirrors send what they lack."""
    return any(same_host(url, own) for own in _HUB)


def at_endpoint(url: str, endpoint: str) -> str:
    """The address at the mirror, when an answer passed on by a mirror names the hub itself."""
    if not is_hub(url) or is_hub(endpoint):
        return url
    parts = urlsplit(url)
    return endpoint + urlunsplit(("", "", parts.path, parts.query, ""))


class HuggingFaceSource:
    """The hub, or a mirror named by HF_ENDPOINT. The token goes to the hub's hosts only."""

    def __init__(self, context: SourceContext) -> None:
        self._context = context
        token = context.hf_token
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}

    @understood
    async def resolve(self, request: DownloadRequest) -> Resolved:
        """Ask the hub where the file is now.

        Raises:
            TransferError: see ``Resolver.resolve``.
        """
        reference = _reference(request)
        self._require_online(request.name)
        path = quote(reference.path)
        revision = quote(reference.revision, safe="")
        url = f"{self._context.hf_endpoint}/{reference.repo}/resolve/{revision}/{path}"
        doing = f"fetch {request.name} from Hugging Face"
        for _ in range(MAX_REDIRECTS):
            async with call(
                self._context, "HEAD", url, headers=self._headers, doing=doing
            ) as response:
                self._check(response.status, response.headers, reference, doing=doing)
                location = response.headers.get("Location")
                if response.status not in REDIRECTS or not location:
                    return require_agreement(
                        request, _resolved(url, self._headers, response.headers, reference)
                    )
                target = urljoin(url, location)
                if not same_host(target, url) and not is_hub(target):
                    return require_agreement(
                        request, _resolved(target, {}, response.headers, reference)
                    )
            url = target  # renamed repositories and small files stay on the hub
        raise TransientTransferError(f"Cannot {doing}: more than {MAX_REDIRECTS} redirects")

    @understood
    async def expand(self, request: DownloadRequest) -> tuple[DownloadRequest, ...]:
        """List the files of a folder or repository; a single file stays as it is.

        Raises:
            TransferError: see ``Resolver.resolve``.
        """
        reference = _reference(request)
        if not reference.tree:
            name = PurePosixPath(reference.path).name
            return (_placed(request, name, reference.path),) if request.directory else (request,)
        files = [f for f in await self.tree(reference, name=request.name) if _wanted(f.path)]
        if not files:
            raise NotFoundError(
                f"Cannot fetch {request.name}: {reference} holds no files",
                hint=f"look at {reference.page(self._context.hf_endpoint)}",
            )
        return tuple(self._member(request, reference, file) for file in files)

    async def tree(self, reference: HubReference, *, name: str) -> list[HubFile]:
        """List all files below ``reference``, page by page.

        Raises:
            TransferError: see ``Resolver.resolve``.
        """
        self._require_online(name)
        doing = f"list {reference.repo} on Hugging Face"
        folder = quote(reference.path.rstrip("/"))
        revision = quote(reference.revision, safe="")
        endpoint = self._context.hf_endpoint
        url: str | None = f"{endpoint}/api/models/{reference.repo}/tree/{revision}"
        url = f"{url}/{folder}?recursive=1" if folder else f"{url}?recursive=1"
        files: list[HubFile] = []
        for _ in range(_MAX_PAGES):
            entries, url = await self._page(url, reference, doing=doing)
            files += (_hub_file(entry) for entry in entries if entry.get("type") == "file")
            if url is None:
                return files
        raise PermanentTransferError(f"Cannot {doing}: more than {_MAX_PAGES} pages")

    async def _page(
        self, url: str, reference: HubReference, *, doing: str
    ) -> tuple[list[dict[str, Any]], str | None]:
        for _ in range(MAX_REDIRECTS):
            async with call(
                self._context, "GET", url, headers=self._headers, doing=doing
            ) as response:
                self._check(response.status, response.headers, reference, doing=doing)
                location = response.headers.get("Location")
                if response.status in REDIRECTS and location:
                    url = self._same_host(url, location, doing=doing)
                    continue
                listed: list[Any] = await read_json(response, list, doing=doing)
                entries = [e for e in listed if isinstance(e, dict) and "path" in e]
                following = response.links.get("next")
                if following is None:
                    return entries, None
                return entries, self._same_host(url, str(following["url"]), doing=doing)
        raise TransientTransferError(f"Cannot {doing}: more than {MAX_REDIRECTS} redirects")

    def _same_host(self, url: str, location: str, *, doing: str) -> str:
        target = at_endpoint(urljoin(url, location), self._context.hf_endpoint)
        if not same_host(target, self._context.hf_endpoint):
            raise PermanentTransferError(f"Cannot {doing}: the hub pointed to another host")
        return target

    def _member(
        self, request: DownloadRequest, reference: HubReference, file: HubFile
    ) -> DownloadRequest:
        relative = file.path.removeprefix(reference.path)
        single = HubReference(reference.repo, file.path, reference.revision)
        return replace(
            _placed(request, relative, file.path),
            reference=str(single),
            url=single.page(self._context.hf_endpoint),
            size_bytes=file.size_bytes,
            sha256=file.sha256,
        )

    def mirrors(self, addresses: Sequence[str]) -> tuple[str, ...]:
        """Other addresses of a file as the endpoint has them; none of the hub's when offline."""
        if self._context.hf_offline:
            return tuple(address for address in addresses if not is_hub(address))
        return tuple(at_endpoint(address, self._context.hf_endpoint) for address in addresses)

    def _require_online(self, name: str) -> None:
        if self._context.hf_offline:
            raise UnreachableError(
                f"Cannot fetch {name} from Hugging Face: HF_HUB_OFFLINE is set",
                hint="unset HF_HUB_OFFLINE, or put the file in place by hand",
            )

    def _check(
        self, status: int, headers: Mapping[str, str], reference: HubReference, *, doing: str
    ) -> None:
        """Translate the hub's refusals into what a person has to do."""
        if status < 400 or status == 429 or status >= 500:
            check_status(status, headers, doing=doing)
            return
        code = headers.get("X-Error-Code", "")
        said = headers.get("X-Error-Message", "")
        page = f"{self._context.hf_endpoint}/{reference.repo}"
        if said == _DISABLED:
            raise NotFoundError(
                f"Cannot {doing}: Hugging Face has disabled {reference.repo}",
                hint=f"{page} may say why; look for a copy elsewhere",
            )
        if said == _BAD_TOKEN:
            raise AuthRequiredError(
                f"Cannot {doing}: Hugging Face does not know the token",
                hint="set a valid HF_TOKEN, or none: public files need none",
            )
        if status == 403 and not code:
            raise AuthRequiredError(
                f"Cannot {doing}: access to {reference.repo} is denied (403)",
                hint=f"check what HF_TOKEN may read, and the terms on {page}",
            )
        if code == "GatedRepo":
            raise AuthRequiredError(
                f"Cannot {doing}: {reference.repo} is gated", hint=self._gated_hint(page)
            )
        if code == "RevisionNotFound":
            raise NotFoundError(
                f"Cannot {doing}: {reference.repo} has no revision {reference.revision}",
                hint=f"look at {page}/branches",
            )
        if code == "EntryNotFound":
            raise NotFoundError(
                f"Cannot {doing}: {reference.repo} has no file {reference.path}",
                hint=f'look at {page}/tree/{reference.revision}; a folder is written with a "/" at '
                "its end",
            )
        if code == "RepoNotFound" or status in (401, 404):
            raise self._no_repo(reference, doing=doing, page=page)
        check_status(status, headers, doing=doing)

    def _gated_hint(self, page: str) -> str:
        if self._context.hf_token:
            return (
                f"accept the terms on {page} with the account that HF_TOKEN belongs to; "
                "a fine-grained token also needs read access to gated repositories"
            )
        return f"accept the terms on {page}, then set HF_TOKEN"

    def _no_repo(
        self, reference: HubReference, *, doing: str, page: str
    ) -> AuthRequiredError | NotFoundError:
        # The hub answers the same for "private" and for "does not exist".
        message = f"Cannot {doing}: {reference.repo} does not exist or is private"
        if self._context.hf_token:
            return NotFoundError(
                message,
                hint=f"check the name at {page}, and that HF_TOKEN is valid and may read it",
            )
        return AuthRequiredError(
            message, hint=f"check the name at {page}; for a private one set HF_TOKEN"
        )


def _reference(request: DownloadRequest) -> HubReference:
    try:
        return parse_hub(request.reference)
    except ValueError as exc:
        raise PermanentTransferError(f"Cannot fetch {request.name}: {exc}") from exc


def _resolved(
    url: str, headers: Mapping[str, str], answer: Mapping[str, str], reference: HubReference
) -> Resolved:
    linked = answer.get("X-Linked-ETag")
    # The length of a redirect is that of its own text.
    own = None if "Location" in answer else answer.get("Content-Length")
    size = answer.get("X-Linked-Size") or own
    return Resolved(
        url=url,
        headers=dict(headers),
        size_bytes=whole_number(size),
        sha256=sha256_of(linked),
        etag=linked or answer.get("ETag"),
        file_name=PurePosixPath(reference.path).name,
    )


def _hub_file(entry: Mapping[str, Any]) -> HubFile:
    lfs = entry.get("lfs") or {}
    return HubFile(
        path=str(entry["path"]),
        size_bytes=int(lfs.get("size", entry.get("size", 0))),
        sha256=sha256_of(str(lfs.get("oid", "")).removeprefix("sha256:")),
    )


def _wanted(path: str) -> bool:
    return PurePosixPath(path).name not in _NOT_WANTED


def _placed(request: DownloadRequest, relative: str, path: str) -> DownloadRequest:
    """Put a file below the folder that the request names."""
    try:
        safe = safe_relative(relative)
    except ValueError as exc:
        raise PermanentTransferError(f"Cannot fetch {path!r}: {exc}") from exc
    # A request's name is its path below the models folder.
    name = f"{request.name.rpartition('/')[0]}/{safe}".lstrip("/")
    return replace(request, name=name, destination=request.destination / safe, directory=False)
