"""CivitAI: model versions and models, file choice, hashes, early access.

Contract: https://developer.civitai.com (REST v1). ``downloadUrl`` redirects to signed
storage; the key travels in a header, since ``?token=`` would end in logs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any
from urllib.parse import urljoin, urlsplit

from supervisor.core.clock import wall_time_s
from supervisor.download.request import DownloadRequest, Resolved
from supervisor.errors import (
    AuthRequiredError,
    NotFoundError,
    PermanentTransferError,
    TransientTransferError,
)
from supervisor.models.folders import safe_file_name
from supervisor.models.references import CivitaiReference, parse_civitai
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

# https://github.com/civitai/civitai: ModelType, and where ComfyUI looks for each.
FOLDERS = {
    "checkpoint": "checkpoints",
    "lora": "loras",
    "locon": "loras",
    "dora": "loras",
    "textualinversion": "embeddings",
    "hypernetwork": "hypernetworks",
    "controlnet": "controlnet",
    "upscaler": "upscale_models",
    "vae": "vae",
    "unet": "diffusion_models",
    "textencoder": "text_encoders",
}
_TOKEN_HINT = "set CIVITAI_API_KEY (https://civitai.com/user/account)"  # noqa: S105 - no secret


@dataclass(frozen=True, slots=True)
class CivitaiFile:
    """One file of a version. ``size_bytes`` only when the API gives it exactly."""

    name: str | None
    url: str
    size_bytes: int | None
    sha256: str | None
    kind: str


@dataclass(frozen=True, slots=True)
class CivitaiVersion:
    """One version of a model; ``kind`` is the model's type in lower case."""

    id: int
    model_id: int | None
    kind: str
    early_access: bool
    files: tuple[Mapping[str, Any], ...]


class CivitaiSource:
    """The site, or another address that speaks its API."""

    def __init__(self, context: SourceContext) -> None:
        self._context = context
        token = context.civitai_token
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}

    @understood
    async def resolve(self, request: DownloadRequest) -> Resolved:
        """Ask for the version, choose its file, follow the link to the storage.

        Raises:
            TransferError: see ``Resolver.resolve``.
        """
        reference = _reference(request)
        doing = f"fetch {request.name} from CivitAI"
        version = await self._version(reference, doing=doing)
        file = choose(version.files, reference, doing=doing)
        known = Resolved(
            url=file.url, size_bytes=file.size_bytes, sha256=file.sha256, file_name=file.name
        )
        require_agreement(request, known)
        return await self._locate(known, version, doing=doing)

    @understood
    async def expand(self, request: DownloadRequest) -> tuple[DownloadRequest, ...]:
        """Give the file its name, and its folder when the request has none.

        Raises:
            TransferError: see ``Resolver.resolve``; also when the type has no folder.
        """
        if not request.directory:
            return (request,)
        reference = _reference(request)
        doing = f"fetch {request.name} from CivitAI"
        version = await self._version(reference, doing=doing)
        file = choose(version.files, reference, doing=doing)
        if file.name is None:
            raise PermanentTransferError(f"Cannot {doing}: the file has no usable name")
        prefix, slash, _ = request.name.rpartition("/")
        folder = None if slash else _folder(version, file, doing=doing)
        target = request.destination / folder if folder else request.destination
        return (
            replace(
                request,
                name=f"{folder or prefix}/{file.name}",
                destination=target / file.name,
                directory=False,
                # The id alone may stand for a newer file next time.
                sha256=request.sha256 or file.sha256,
                size_bytes=request.size_bytes or file.size_bytes,
            ),
        )

    async def _version(self, reference: CivitaiReference, *, doing: str) -> CivitaiVersion:
        kind = "models" if reference.model else "model-versions"
        url = f"{self._context.civitai_endpoint}/api/v1/{kind}/{reference.id}"
        async with call(self._context, "GET", url, headers=self._headers, doing=doing) as response:
            if response.status == 404:
                raise NotFoundError(
                    f"Cannot {doing}: there is no {'model' if reference.model else 'version'} "
                    f"{reference.id}",
                    hint="a version id stands behind ?modelVersionId= in the page's address; "
                    "the number in the path is the model's",
                )
            check_status(response.status, response.headers, doing=doing, hint=_TOKEN_HINT)
            data: dict[str, Any] = await read_json(response, dict, doing=doing)
        return _from_model(data, doing=doing) if reference.model else _from_version(data, reference)

    async def _locate(self, known: Resolved, version: CivitaiVersion, *, doing: str) -> Resolved:
        url = known.url
        for _ in range(MAX_REDIRECTS):
            ours = same_host(url, self._context.civitai_endpoint)
            if not ours:
                return replace(known, url=url, headers={})
            async with call(
                self._context, "GET", url, headers=self._headers, doing=doing
            ) as response:
                self._refuse(response.status, response.headers, version, doing=doing)
                location = response.headers.get("Location")
                if response.status not in REDIRECTS or not location:
                    size = whole_number(response.headers.get("Content-Length"))
                    return replace(
                        known,
                        url=url,
                        headers=dict(self._headers),
                        size_bytes=known.size_bytes if known.size_bytes is not None else size,
                        etag=response.headers.get("ETag"),
                    )
            url = urljoin(url, location)
            if urlsplit(url).path.startswith("/login"):
                raise self._no_access(version, doing=doing)
        raise TransientTransferError(f"Cannot {doing}: more than {MAX_REDIRECTS} redirects")

    def _refuse(
        self, status: int, headers: Mapping[str, str], version: CivitaiVersion, *, doing: str
    ) -> None:
        html = headers.get("Content-Type", "").startswith("text/html")
        if status in (401, 403) or (status == 200 and html):
            raise self._no_access(version, doing=doing)
        check_status(status, headers, doing=doing)

    def _no_access(self, version: CivitaiVersion, *, doing: str) -> AuthRequiredError:
        page = f"{self._context.civitai_endpoint}/models/{version.model_id or ''}"
        page = f"{page}?modelVersionId={version.id}" if version.model_id else page
        if version.early_access:
            return AuthRequiredError(
                f"Cannot {doing}: version {version.id} is in early access",
                hint=f"buy access or wait for the release: {page}"
                + ("" if self._context.civitai_token else f"; then {_TOKEN_HINT}"),
            )
        if not self._context.civitai_token:
            return AuthRequiredError(
                f"Cannot {doing}: version {version.id} needs a login", hint=_TOKEN_HINT
            )
        return AuthRequiredError(
            f"Cannot {doing}: CIVITAI_API_KEY gives no access to version {version.id}",
            hint=f"open {page} with the key's account; the key may have been revoked",
        )


def choose(
    files: Sequence[Mapping[str, Any]], reference: CivitaiReference, *, doing: str
) -> CivitaiFile:
    """Pick the file that the reference asks for, else the primary one. Pure.

    Raises:
        NotFoundError: no file, or none with the wanted format, size or precision.
    """
    wanted = {key: value.lower() for key, value in reference.choices}
    matching = [f for f in files if all(_property(f, k) == v for k, v in wanted.items())]
    if not matching:
        offered = ", ".join(sorted({_describe(f) for f in files})) or "none"
        asked = ", ".join(f"{k}={v}" for k, v in wanted.items())
        reason = f"no file with {asked}" if asked else "the version has no files"
        raise NotFoundError(f"Cannot {doing}: {reason}", hint=f"offered: {offered}")
    # Primary first; a pickle only when nothing else is there.
    best = min(
        matching,
        key=lambda f: (_property(f, "format") == "pickletensor", not f.get("primary", False)),
    )
    hashes = best.get("hashes") or {}
    name = str(best.get("name") or "")
    return CivitaiFile(
        name=safe_file_name(name),
        url=str(best.get("downloadUrl") or ""),
        size_bytes=_exact_bytes(best.get("sizeKB")),
        sha256=sha256_of(str(hashes.get("SHA256") or "")),
        kind=str(best.get("type") or "").lower(),
    )


def _property(file: Mapping[str, Any], key: str) -> str:
    value = file.get("type") if key == "type" else (file.get("metadata") or {}).get(key)
    return str(value or "").lower()


def _describe(file: Mapping[str, Any]) -> str:
    return " ".join(filter(None, (_property(file, k) for k in ("type", "format", "size", "fp"))))


def _exact_bytes(size_kb: Any) -> int | None:
    """``sizeKB`` is bytes / 1024; only an unrounded one gives the exact size."""
    if not isinstance(size_kb, int | float):
        return None
    size = size_kb * 1024
    return round(size) if size > 0 and abs(size - round(size)) < 1e-3 else None


def _folder(version: CivitaiVersion, file: CivitaiFile, *, doing: str) -> str:
    # A checkpoint's version may also offer its VAE or text encoder as a file.
    by_file = {"vae": "vae", "text encoder": "text_encoders"}.get(file.kind)
    folder = by_file or FOLDERS.get(version.kind)
    if folder is None:
        raise PermanentTransferError(
            f"Cannot {doing}: its type {version.kind or 'unknown'!r} has no model folder",
            hint='say where it goes with to = "folder/"',
        )
    return folder


def _reference(request: DownloadRequest) -> CivitaiReference:
    try:
        return parse_civitai(request.reference)
    except ValueError as exc:
        raise PermanentTransferError(f"Cannot fetch {request.name}: {exc}") from exc


def _from_version(data: Mapping[str, Any], reference: CivitaiReference) -> CivitaiVersion:
    model = data.get("model") or {}
    model_id = data.get("modelId")
    return CivitaiVersion(
        id=int(data.get("id") or reference.id),
        model_id=int(model_id) if model_id else None,
        kind=str(model.get("type") or "").lower(),
        early_access=_early(data),
        files=tuple(data.get("files") or ()),
    )


def _from_model(data: Mapping[str, Any], *, doing: str) -> CivitaiVersion:
    versions = data.get("modelVersions") or []
    if not versions:
        raise NotFoundError(f"Cannot {doing}: the model has no versions")
    # Newest first; one that everybody may have is better than one in early access.
    latest = next((v for v in versions if not _early(v)), versions[0])
    return CivitaiVersion(
        id=int(latest["id"]),
        model_id=int(data["id"]) if data.get("id") else None,
        kind=str(data.get("type") or "").lower(),
        early_access=_early(latest),
        files=tuple(latest.get("files") or ()),
    )


def _early(version: Mapping[str, Any]) -> bool:
    """Whether one must pay still; what has ended stays written in some answers."""
    ends = str(version.get("earlyAccessEndsAt") or "")
    with suppress(ValueError):
        return datetime.fromisoformat(ends).timestamp() > wall_time_s()
    return bool(ends) or str(version.get("availability") or "").lower() == "earlyaccess"
