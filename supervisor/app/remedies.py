"""Where a missing model can be had: the command that fetches it."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

from supervisor.errors import ConfigError
from supervisor.models.catalog import Catalog, load_catalog
from supervisor.models.folders import safe_relative
from supervisor.models.known import load_known_models
from supervisor.models.workflow import folder_of_input


class ModelFinder:
    """Looks names up in the catalog and among the models of ComfyUI's templates."""

    def __init__(self, extra: Sequence[Path] = ()) -> None:
        self._extra = tuple(extra)

    def command(self, groups: Mapping[str, str]) -> str | None:
        """Return the command for what a log says; None when nobody knows the file.

        ``groups`` has ``model`` (a name, perhaps with a sub-folder) and ``folder`` or the
        ``input`` of the loader. Blocking: reads the catalog, which is seldom needed.
        """
        try:
            name = str(safe_relative(groups["model"].replace("\\\\", "/").replace("\\", "/")))
            catalog = load_catalog(self._extra)
        except (ValueError, ConfigError):
            return None
        folder = groups.get("folder") or folder_of_input(groups.get("input", ""))
        found = _source(catalog, load_known_models(), name=PurePosixPath(name).name, folder=folder)
        if found is None:
            return None
        key, source = found
        place = f"{key.split('/', 1)[0]}/{name}"
        return f"supervisor models add {shlex.quote(source)} --to {shlex.quote(place)}"


def _source(
    catalog: Catalog, known: Mapping[str, tuple[str, ...]], *, name: str, folder: str | None
) -> tuple[str, str] | None:
    """Return key and source of the only file of that name."""
    keys = [k for k in catalog.by_file_name.get(name, ()) if _fits(k, folder)]
    if len(keys) == 1:
        file = catalog.files[keys[0]]
        source = file.huggingface or file.url or str(file.civitai)
        return keys[0], source
    templates = [k for k in known if PurePosixPath(k).name == name and _fits(k, folder)]
    if not keys and len(templates) == 1:
        # Several repositories hold copies of popular files; the hub has a hash of each.
        return templates[0], known[templates[0]][0]
    return None


def _fits(key: str, folder: str | None) -> bool:
    return folder is None or key.split("/", 1)[0] == folder
