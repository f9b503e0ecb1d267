"""Model files without a daemon: what is wanted, what can be had, fetch it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import anyio

from supervisor.cli.planning import make_plan, read_facts
from supervisor.config.load import LoadedSettings
from supervisor.config.settings import ModelsSection
from supervisor.download.request import DownloadRequest
from supervisor.errors import ControlError
from supervisor.models.catalog import load_catalog
from supervisor.models.embedded import read_workflow
from supervisor.models.known import load_known_models
from supervisor.models.preflight import Checked, Preflight
from supervisor.models.runtime import opened_sources
from supervisor.models.workflow_plan import Item, workflow_requests


def wanted_requests(
    loaded: LoadedSettings, environ: Mapping[str, str], names: Sequence[str] = ()
) -> tuple[DownloadRequest, ...]:
    """Return the files of the configuration; only those named, when some are.

    Raises:
        ControlError: no file of that name is configured.
        ConfigError: the configuration makes no sense.
    """
    requests = make_plan(loaded, read_facts(loaded, environ), environ).downloads
    if not names:
        return requests
    known = {request.name: request for request in requests}
    unknown = [name for name in names if name not in known]
    if unknown:
        hint = f"configured: {', '.join(known) or 'none'}"
        raise ControlError(f"Cannot find the model {unknown[0]}", hint=hint)
    return tuple(known[name] for name in names)


def check_requests(
    section: ModelsSection, environ: Mapping[str, str], requests: Sequence[DownloadRequest]
) -> list[Checked]:
    """Ask every source for size, hash and access, without a byte of payload."""

    async def check() -> list[Checked]:
        async with opened_sources(section, environ) as sources:
            return await Preflight(sources).check(requests)

    return anyio.run(check)


def workflow_items(
    loaded: LoadedSettings, environ: Mapping[str, str], paths: Sequence[Path]
) -> tuple[Item, ...]:
    """Find the model files that workflows need; images and videos may embed one.

    Raises:
        SupervisorError: a file cannot be read, or holds no workflow.
    """
    planned = make_plan(loaded, read_facts(loaded, environ), environ).models_directory
    directory = planned or Path("models")
    section = loaded.settings.models
    references = [reference for path in paths for reference in read_workflow(path)]
    found = workflow_requests(
        references,
        load_catalog(section.catalog),
        section=section,
        directory=directory,
        known=load_known_models(),
    )
    return found.with_files_in(directory).items
