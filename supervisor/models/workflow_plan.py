"""From the files that workflows mention to what is there, missing or unknown. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from itertools import chain
from pathlib import Path, PurePosixPath

from supervisor.config.settings import ModelFile, ModelsSection
from supervisor.download.request import DownloadRequest
from supervisor.models.catalog import Catalog
from supervisor.models.folders import ALIASES, CORE_FOLDERS, MODEL_EXTENSIONS, safe_relative
from supervisor.models.references import display_url
from supervisor.models.requests import file_request, same_file
from supervisor.models.selection import catalog_request
from supervisor.models.workflow import Reference, distinct


class Finding(StrEnum):
    """What is known about a mentioned file."""

    FETCHABLE = "fetchable"
    THERE = "there"  # nobody says where it comes from, but it is in place
    UNKNOWN = "unknown"  # nobody says where it comes from
    REFUSED = "refused"  # unsafe, contradictory, or outside ComfyUI's folders


@dataclass(frozen=True, slots=True)
class Item:
    """One mentioned file. ``key`` is its path below the models folder, when that is known."""

    reference: Reference
    finding: Finding
    request: DownloadRequest | None = None
    reason: str = ""

    @property
    def key(self) -> str:
        """The request's name, else what the workflow says."""
        if self.request is not None:
            return self.request.name
        folder = f"{self.reference.directory}/" if self.reference.directory else ""
        return folder + self.reference.name


@dataclass(frozen=True, slots=True)
class WorkflowModels:
    """All files of one or several workflows."""

    items: tuple[Item, ...] = ()

    @property
    def requests(self) -> tuple[DownloadRequest, ...]:
        """What can be fetched."""
        return tuple(i.request for i in self.items if i.request is not None)

    @property
    def complaints(self) -> tuple[str, ...]:
        """One line for each file that cannot be fetched, or that several addresses claim."""
        return tuple(f"{i.key}: {i.reason}" for i in self.items if i.reason)

    def with_files_in(self, directory: Path) -> WorkflowModels:
        """Find what is in place already though nobody knows its source. Reads the disk."""
        return WorkflowModels(
            tuple(
                replace(item, finding=Finding.THERE, reason="")
                if item.request is None and _in_place(item.reference, directory)
                else item
                for item in self.items
            )
        )


def workflow_requests(
    references: Iterable[Reference],
    catalog: Catalog,
    *,
    section: ModelsSection,
    directory: Path,
    known: Mapping[str, tuple[str, ...]] | None = None,
) -> WorkflowModels:
    """Judge every active reference.

    ``known`` maps keys to "owner/repo:path" of the official templates (``known.py``); it
    answers for files of which the workflow only gives the name.
    """
    items: dict[str, Item] = {}
    for reference in distinct(references):
        item = _judge(reference, catalog, known or {}, section=section, directory=directory)
        other = items.get(item.key)
        items[item.key] = item if other is None else _reconcile(other, item)
    return WorkflowModels(tuple(items.values()))


def _in_place(reference: Reference, directory: Path) -> bool:
    folders = (reference.directory,) if reference.directory else sorted(CORE_FOLDERS)
    old = [alias for alias, folder in ALIASES.items() if folder in folders]
    try:
        safe_relative(reference.name)
        paths = [directory / safe_relative(f) / reference.name for f in (*folders, *old)]
    except ValueError:
        return False
    if _bare_embedding(reference):
        paths = [p.with_name(p.name + suffix) for p in paths for suffix in MODEL_EXTENSIONS]
    return any(path.is_file() for path in paths)


def _bare_embedding(reference: Reference) -> bool:
    """Prompts name embeddings without the file's extension."""
    suffix = PurePosixPath(reference.name).suffix.lower()
    return reference.directory == "embeddings" and suffix not in MODEL_EXTENSIONS


def _judge(
    reference: Reference,
    catalog: Catalog,
    known: Mapping[str, tuple[str, ...]],
    *,
    section: ModelsSection,
    directory: Path,
) -> Item:
    try:
        safe_relative(reference.name)
        if reference.url is None:
            return _by_name(reference, catalog, known, section=section, directory=directory)
        if reference.directory is None:
            raise ValueError("the workflow does not say which folder it belongs in")
        if reference.directory not in CORE_FOLDERS:
            raise ValueError(f"{reference.directory!r} is no folder of ComfyUI's")
        key = f"{reference.directory}/{reference.name}"
        # Templates append "?download=true"; the name stays the workflow's, not the URL's.
        file = ModelFile(url=display_url(reference.url), to=key, sha256=reference.sha256)
        request = file_request(file, section=section, directory=directory)
    except ValueError as exc:
        return Item(reference, Finding.REFUSED, reason=str(exc))
    if key in catalog.files:
        entry = catalog_request(catalog, key, section=section, directory=directory)
        if same_file(entry, request) and (entry.source, entry.reference) == (
            request.source,
            request.reference,
        ):
            request = replace(
                entry,
                sha256=request.sha256 or entry.sha256,
                size_bytes=entry.size_bytes,
            )
    return Item(reference, Finding.FETCHABLE, request)


def _by_name(
    reference: Reference,
    catalog: Catalog,
    known: Mapping[str, tuple[str, ...]],
    *,
    section: ModelsSection,
    directory: Path,
) -> Item:
    """Look a bare name up: in the catalog, then among the templates' models."""
    reference = _with_extension(reference, chain(catalog.files, known))
    base = PurePosixPath(reference.name).name
    keys = _matching(catalog.by_file_name.get(base, ()), reference)
    if len(keys) == 1:
        request = catalog_request(catalog, keys[0], section=section, directory=directory)
        return Item(reference, Finding.FETCHABLE, _named(request, reference, directory))
    template_keys = _matching([k for k in known if k.rpartition("/")[2] == base], reference)
    sources = {(k, source) for k in template_keys for source in known[k]}
    if len(sources) == 1:
        key, source = next(iter(sources))
        file = ModelFile(huggingface=source, to=key)
        request = file_request(file, section=section, directory=directory)
        return Item(reference, Finding.FETCHABLE, _named(request, reference, directory))
    if keys or sources:
        places = sorted({*keys, *(f"{k} from {s}" for k, s in sources)})
        return Item(reference, Finding.UNKNOWN, reason=f"ambiguous: {'; '.join(places)}")
    return Item(reference, Finding.UNKNOWN, reason="no address in the workflow or the catalog")


def _with_extension(reference: Reference, keys: Iterable[str]) -> Reference:
    """Complete the name of an embedding that exactly one known file may be."""
    if not _bare_embedding(reference):
        return reference
    base = PurePosixPath(reference.name).name
    paths = {PurePosixPath(k) for k in keys if k.startswith("embeddings/")}
    found = {path.suffix for path in paths if path.stem == base}
    return replace(reference, name=reference.name + found.pop()) if len(found) == 1 else reference


def _matching(keys: Iterable[str], reference: Reference) -> list[str]:
    if reference.directory is None:
        return list(keys)
    return [k for k in keys if k.split("/", 1)[0] == reference.directory]


def _named(request: DownloadRequest, reference: Reference, directory: Path) -> DownloadRequest:
    """Place the file where the workflow will look: under its own sub-folder and name."""
    folder = request.name.split("/", 1)[0]
    name = f"{folder}/{reference.name}"
    return replace(request, name=name, destination=directory / name)


def _reconcile(first: Item, second: Item) -> Item:
    """Two references want one destination."""
    if first.request is None:
        return second
    if second.request is None or same_file(first.request, second.request):
        return first
    if first.request.sha256 and second.request.sha256:
        reason = f"two different files have this name: {first.request.url}, {second.request.url}"
        return Item(first.reference, Finding.REFUSED, reason=reason)
    # Copies in several repositories are common; the hub's hash decides when it is fetched.
    return replace(first, reason=f"is also said to come from {second.request.url}")
