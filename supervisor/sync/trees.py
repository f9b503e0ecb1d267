"""Which folders are synced, and under which keys. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from zoneinfo import ZoneInfo

from supervisor.config.settings import SyncSection
from supervisor.sync.keys import build_key, day_of
from supervisor.sync.model import Identity, Tree

OUTPUTS = "outputs"
LOGS = "logs"
# Rotated logs and reports; a log that is still written is not finished and stays.
_LOG_PATTERNS = ("*.log.*", "*.log", "*.json", "*.txt")


def output_tree(settings: SyncSection, source: Path) -> Tree:
    """Describe ComfyUI's output folder."""
    return Tree(
        OUTPUTS,
        source,
        settings.prefix,
        patterns=settings.patterns,
        ignore=settings.ignore,
        keep_both=settings.on_conflict == "keep-both",
        dated=True,
        outputs=True,
    )


def user_tree(settings: SyncSection, kind: str, comfyui: Path) -> Tree:
    """Describe one kind of user files (workflows, input, settings) below ComfyUI's root."""
    roots = {
        "workflows": comfyui / "user/default/workflows",
        "settings": comfyui / "user/default/comfy.settings.json",
        "input": comfyui / "input",
    }
    return Tree(
        kind,
        roots[kind],
        base_prefix(settings) + kind,
        ignore=settings.ignore,
        file=kind == "settings",
    )


def log_tree(settings: SyncSection, directory: Path) -> Tree:
    """Describe the folder of rotated logs and boot reports."""
    return Tree(
        LOGS,
        directory,
        base_prefix(settings) + LOGS,
        patterns=_LOG_PATTERNS,
        ignore=settings.ignore,
        keep_both=True,
        dated=True,
    )


def watched_trees(
    settings: SyncSection, source: Path, comfyui: Path, logs: Path | None
) -> list[Tree]:
    """Describe every folder that the settings ask to be watched."""
    trees = [output_tree(settings, source)]
    trees += [user_tree(settings, kind, comfyui) for kind in settings.restore]
    if settings.logs and logs is not None:
        trees.append(log_tree(settings, logs))
    return trees


def base_prefix(settings: SyncSection) -> str:
    """Return what stands before ``outputs`` in keys: "" or a prefix that ends in "/"."""
    parent, _, _ = settings.prefix.strip("/").rpartition("/")
    return f"{parent}/" if parent else ""


@dataclass(frozen=True, slots=True)
class KeyScheme:
    """Names the objects of every tree."""

    settings: SyncSection
    host: str

    def key(self, tree: Tree, path: str, identity: Identity, *, incomplete: bool) -> str:
        """Return the first choice of a key for one content of a file."""
        zone = ZoneInfo(self.settings.timezone)
        day = day_of(identity.mtime_ns, zone)
        path = path or tree.root.name
        prefix, template = tree.prefix, "{prefix}/{path}"
        if incomplete:
            prefix = base_prefix(self.settings) + "incomplete"
            template = "{prefix}/{date}/{path}"
        elif tree.outputs:
            template = self.settings.key_template
        elif tree.dated:
            template = "{prefix}/{date}/{host}/{path}"
        return build_key(template, prefix=prefix, day=day, path=path, host=self.host)
