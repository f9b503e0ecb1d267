"""Model files without a daemon: what is wanted, what can be had, fetch it."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import anyio

from supervisor.cli.configuration import refuse_misspellings
from supervisor.cli.planning import make_plan, read_facts
from supervisor.cli.render import clean
from supervisor.config.load import LoadedSettings
from supervisor.config.problems import nearest
from supervisor.config.settings import ModelsSection
from supervisor.download.request import DownloadRequest
from supervisor.errors import ControlError, SupervisorError
from supervisor.models.catalog import load_catalog
from supervisor.models.embedded import read_workflow
from supervisor.models.known import load_known_models
from supervisor.models.preflight import Checked, Preflight
from supervisor.models.runtime import opened_sources
from supervisor.models.workflow import Reference
from supervisor.models.workflow_plan import Item, workflow_requests


def wanted_requests(
    loaded: LoadedSettings, environ: Mapping[str, str], names: Sequence[str] = ()
) -> tuple[DownloadRequest, ...]:
    """Return the files of the configuration; only those of the named files and bundles.

    What the plan leaves out, and its notes about models, go to standard error.

    Raises:
        ControlError: no file or bundle of that name is configured, or it is left out.
        ConfigError: the configuration makes no sense, or names what the catalog lacks.
    """
    if not names:
        refuse_misspellings(loaded)
    facts = read_facts(loaded, environ)
    plan = make_plan(loaded, facts, environ)
    bare = make_plan(loaded, facts, environ, models=False)
    skipped = {item.name: item.reason for item in plan.skipped[len(bare.skipped) :]}
    if names:
        return tuple(_named(names, plan.downloads, skipped))
    told = [f"{name} skipped: {reason}" for name, reason in skipped.items()]
    for line in (*plan.notes[len(bare.notes) :], *told):
        print(f"supervisor: {clean(line)}", file=sys.stderr)
    return plan.downloads


def _named(
    names: Sequence[str], requests: Sequence[DownloadRequest], skipped: Mapping[str, str]
) -> Iterator[DownloadRequest]:
    """Every file that a name stands for, each once, in the order of the configuration."""
    bundles = {request.bundle for request in requests if request.bundle}
    known = {request.name for request in requests} | bundles
    for name in names:
        if name in skipped:
            raise ControlError(f"Cannot fetch {name}: {skipped[name]}")
        if name not in known:
            hint = nearest(name, known) or "`supervisor plan` lists what is configured"
            raise ControlError(f"Cannot find the model {name}", hint=hint)
    wanted = frozenset(names)
    return (r for r in requests if r.name in wanted or r.bundle in wanted)


def check_requests(
    section: ModelsSection, environ: Mapping[str, str], requests: Sequence[DownloadRequest]
) -> list[Checked]:
    """Ask every source for size, hash and access, without a byte of payload."""

    async def check() -> list[Checked]:
        async with opened_sources(section, environ) as sources:
            return await Preflight(sources, store=section.store).check(requests)

    return anyio.run(check)


def workflow_items(
    loaded: LoadedSettings, environ: Mapping[str, str], paths: Sequence[Path]
) -> tuple[tuple[Item, ...], tuple[SupervisorError, ...]]:
    """Find the model files that workflows need; images and videos may embed one.

    Files that cannot be read, or hold no workflow, leave an error each.
    """
    planned = make_plan(loaded, read_facts(loaded, environ), environ).models_directory
    directory = planned or Path("models")
    section = loaded.settings.models
    references: list[Reference] = []
    errors: list[SupervisorError] = []
    for path in paths:
        try:
            references += read_workflow(path)
        except SupervisorError as exc:
            errors.append(exc)
    found = workflow_requests(
        references,
        load_catalog(section.catalog),
        section=section,
        directory=directory,
        known=load_known_models(),
    )
    return found.with_files_in(directory).items, tuple(errors)
