"""Outputs that the end of the pod would delete with its disk.

RunPod clears the container's disk when a pod is stopped, and a pod's own volume too when
it is terminated; a network volume stays (RunPod's documentation, 2026-08).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from supervisor.config.settings import StorageMode
from supervisor.hardware.host import mount_of, read_mounts
from supervisor.plan.storage import is_volume

if TYPE_CHECKING:
    from supervisor.config.settings import Settings
    from supervisor.plan.model import SyncPlan

_ENOUGH = 1000
_PLACEHOLDER = "_will_be_put_here"  # how ComfyUI's own files in empty folders end


def outputs_at_risk(settings: Settings, sync: SyncPlan) -> int:
    """How many outputs exist only where the end of the pod deletes them; at most 1000.

    Blocking. What a running sync still has to store is not counted here.
    """
    if settings.idle.action == "exit" or sync.source is None:
        return 0
    if sync.enabled and sync.folder is None:  # a bucket
        return 0
    places = [sync.source, *([sync.folder] if sync.enabled and sync.folder else [])]
    if any(outlives(settings, place) for place in places):
        return 0
    return sum(1 for _ in islice(_files(sync.source), _ENOUGH))


def outlives(settings: Settings, path: Path) -> bool:
    """Whether files below ``path`` are still there after the pod has ended."""
    mode = settings.storage.mode
    if mode is not StorageMode.AUTO:  # people know better
        return mode is StorageMode.PERSISTENT
    mount = mount_of(path.resolve(), read_mounts())  # the folder may be a link to the volume
    return is_volume(mount) and (settings.idle.action != "terminate" or mount.network)


def _files(folder: Path) -> Iterator[Path]:
    for directory, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            if not name.startswith(".") and not name.endswith(_PLACEHOLDER):
                yield Path(directory, name)
