"""Everything the plan needs to know about models, in one call. Reads TOML and file sizes;
no network, and nothing is written."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from supervisor.config.settings import ModelsSection
from supervisor.download.request import DownloadRequest
from supervisor.errors import ConfigProblem, SupervisorError
from supervisor.models.catalog import Catalog, load_catalog
from supervisor.models.embedded import read_workflow
from supervisor.models.known import load_known_models
from supervisor.models.memory import Memory
from supervisor.models.requests import same_file, settings_requests
from supervisor.models.selection import Group, Refused, Selection, select
from supervisor.models.spelling import misspelled
from supervisor.models.store import ModelStore
from supervisor.models.workflow_plan import workflow_requests


@dataclass(frozen=True, slots=True)
class ModelPlan:
    """Requests in the order of the configuration, what is left out, and notes."""

    requests: tuple[DownloadRequest, ...] = ()
    refused: tuple[Refused, ...] = ()
    notes: tuple[str, ...] = ()


def plan_models(
    section: ModelsSection,
    *,
    directory: Path,
    vram_mib: int | None = None,
    free_bytes: int | None = None,
) -> ModelPlan:
    """Decide which models are fetched into ``directory``.

    ``vram_mib``: see ``select``. ``free_bytes`` of the volume that takes the bytes (the store's,
    when there is one); None = do not judge the room.

    Raises:
        ConfigError: an entry of ``[models]`` or a catalog file is unusable.
    """
    singles = list(settings_requests(section, directory=directory))
    if not (section.bundles or section.workflows or singles):
        return ModelPlan()
    catalog = load_catalog(section.catalog)
    selection = select(catalog, section, directory=directory, vram_mib=vram_mib, extra=singles)
    selection = _with_workflows(selection, catalog, section, directory=directory)
    if free_bytes is not None:
        selection = selection.fit(free_bytes=free_bytes, in_place=_in_place(selection, section))
    return ModelPlan(selection.requests, selection.refused, selection.notes)


def misspellings(section: ModelsSection) -> tuple[ConfigProblem, ...]:
    """Find the bundles, selectors and choices of the settings that do not exist.

    Raises:
        ConfigError: a catalog file is unusable.
    """
    return tuple(misspelled(load_catalog(section.catalog), section))


def _in_place(selection: Selection, section: ModelsSection) -> dict[str, int]:
    """Sizes, by name, of what need not be fetched: in its place, or in the store."""
    store = ModelStore(section.store) if section.store else None
    memory, estimates = Memory(store), selection.estimates or {}
    sizes: dict[str, int] = {}
    for request in selection.requests:
        if request.directory:
            if memory.recall(request):  # whole; the estimate is a rounded one
                sizes[request.name] = request.size_bytes or estimates.get(request.name, 0)
            continue
        places = [request.destination]
        if store is not None and request.sha256 is not None:
            places.append(store.path(request.sha256))
        for place in places:
            with suppress(OSError):
                sizes[request.name] = max(place.stat().st_size, sizes.get(request.name, 0))
    return sizes


def _with_workflows(
    selection: Selection, catalog: Catalog, section: ModelsSection, *, directory: Path
) -> Selection:
    """Add what the configured workflows mention; a bad file is a note and stops nothing.

    What the settings or a bundle put at the same place has precedence.
    """
    if not section.workflows:
        return selection
    known = load_known_models()
    taken = {r.name: r for r in selection.requests}
    groups, notes = list(selection.groups), list(selection.notes)
    for path in section.workflows:
        try:
            references = read_workflow(path)
        except SupervisorError as exc:
            notes.append(exc.message)
            continue
        found = workflow_requests(
            references, catalog, section=section, directory=directory, known=known
        )
        found = found.with_files_in(directory)
        notes += (f"workflow {path.name}: {line}" for line in found.complaints)
        for request in found.requests:
            other = taken.setdefault(request.name, request)
            if other is request:
                groups.append(Group(request.name, (request,)))
            elif not same_file(other, request):
                notes.append(
                    f"workflow {path.name}: {request.name} comes from {other.url}, "
                    f"not from {request.url}"
                )
    return replace(selection, groups=tuple(groups), notes=tuple(notes))
