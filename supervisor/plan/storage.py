"""Where things live: the workspace, whether it survives the pod, and ComfyUI's place on it."""

from __future__ import annotations

from pathlib import Path

from supervisor.config.settings import Settings, StorageMode
from supervisor.hardware.facts import HostFacts, MountFacts
from supervisor.plan.model import StoragePlan
from supervisor.services.spec import RunFirst

# RunPod's mounts: pods, then serverless (CONTRACTS: RunPod, volumes).
VOLUMES = (Path("/workspace"), Path("/runpod-volume"))
FLEETING = frozenset({"overlay", "tmpfs", "ramfs", "aufs", "rootfs", "squashfs"})
SEED_TIMEOUT_S = 900.0

# Copies beside the target first, so that a copy cut short is never taken for ComfyUI. When
# the target holds something already (a models folder), it is merged and main.py comes last.
_SEED_SCRIPT = """set -e
rm -rf "$2.seeding"; mkdir -p "$2.seeding"
cp -a "$1/." "$2.seeding/"
if ! mv -T "$2.seeding" "$2" 2>/dev/null; then
  mv "$2.seeding/main.py" "$2.main.py"
  cp -an "$2.seeding/." "$2/"
  mv "$2.main.py" "$2/main.py"
  rm -rf "$2.seeding"
fi"""


def paths_to_probe(settings: Settings) -> tuple[Path, ...]:
    """Paths whose mounts the plan wants to know (for ``hardware.host.read_host``)."""
    homes = (settings.comfyui.root, *(volume / "ComfyUI" for volume in VOLUMES))
    given = (
        settings.storage.workspace,
        settings.comfyui.root,
        *(home / folder for home in homes for folder in ("output", "models")),
        settings.comfyui.output_directory,
        settings.models.directory,
        settings.supervisor.state_dir,
    )
    return tuple(dict.fromkeys((*VOLUMES, *(path for path in given if path is not None))))


def choose_workspace(settings: Settings, host: HostFacts) -> Path:
    """The configured one, else a mounted volume, else a folder that exists, else ComfyUI's."""
    if settings.storage.workspace is not None:
        return settings.storage.workspace
    for path in VOLUMES:
        if is_volume(host.mounts.get(path)):
            return path
    for path in VOLUMES:
        mount = host.mounts.get(path)
        if mount is not None and mount.exists and mount.writable:
            return path
    return settings.comfyui.root


def plan_storage(settings: Settings, host: HostFacts) -> StoragePlan:
    """Decide whether the workspace survives the pod, from its real mount."""
    workspace = choose_workspace(settings, host)
    mount = host.mounts.get(workspace)
    mode = settings.storage.mode
    if mode is not StorageMode.AUTO:
        reason = f"storage {mode}: set in the configuration"
    elif mount is None:
        mode, reason = StorageMode.EPHEMERAL, f"the mount of {workspace} is unknown"
    elif is_volume(mount):
        mode = StorageMode.PERSISTENT
        reason = f"{workspace} is a volume of its own ({mount.kind} on {mount.mount_point})"
    else:
        mode = StorageMode.EPHEMERAL
        reason = f"{workspace} is on the container's own disk ({mount.kind})"
    return StoragePlan(
        mode=str(mode),
        kind=mount.kind if mount else None,
        network=mount.network if mount else False,
        free_bytes=mount.free_bytes if mount else None,
        reason=reason,
    )


def volume_root(settings: Settings, host: HostFacts) -> Path | None:
    """ComfyUI's place on a persistent volume; None when it runs where it is installed.

    Whoever reads the ComfyUI facts looks there first: a ``main.py`` in it is the user's
    own copy from an earlier boot.
    """
    if not settings.storage.seed_comfyui:
        return None
    if plan_storage(settings, host).mode != StorageMode.PERSISTENT:
        return None
    workspace = choose_workspace(settings, host)
    if settings.comfyui.root.is_relative_to(workspace):
        return None
    return workspace / "ComfyUI"


def seed_step(source: Path, target: Path) -> RunFirst:
    """Copy ComfyUI onto the volume unless it is there already."""
    return RunFirst(
        command=("sh", "-c", _SEED_SCRIPT, "seed", str(source), str(target)),
        creates=target / "main.py",
        timeout_s=SEED_TIMEOUT_S,
    )


def is_volume(mount: MountFacts | None) -> bool:
    """Whether this is a mount of its own and not the container's disk."""
    return (
        mount is not None
        and mount.exists
        and mount.mount_point != Path("/")
        and mount.path.is_relative_to(mount.mount_point)
        and mount.kind not in FLEETING
    )
