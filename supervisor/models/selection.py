"""From bundles to requests that fit the card and the disk. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from supervisor.config.settings import ModelFile, ModelsSection
from supervisor.download.request import DownloadRequest
from supervisor.models.catalog import Catalog, choose_files, chosen, near
from supervisor.models.catalog.schema import Bundle
from supervisor.models.requests import file_request, merge
from supervisor.models.room import RESERVE_BYTES, human_bytes

# A "24 GB" card reports as little as 22 500 MiB (ECC, the driver's share): the smallest
# ratio among the known ones is the A10G's 0.925.
VRAM_SLACK = 0.92


@dataclass(frozen=True, slots=True)
class Refused:
    """Something wanted that will not be fetched, with the numbers."""

    name: str
    reason: str
    required: bool = False


@dataclass(frozen=True, slots=True)
class Group:
    """Files that make sense only together: a bundle, or one file."""

    name: str
    requests: tuple[DownloadRequest, ...]

    @property
    def required(self) -> bool:
        """Whether any of it is required."""
        return any(r.required for r in self.requests)


@dataclass(frozen=True, slots=True)
class Selection:
    """What is wanted. ``estimates`` are rounded sizes by name where no exact one is known."""

    groups: tuple[Group, ...] = ()
    refused: tuple[Refused, ...] = ()
    notes: tuple[str, ...] = ()
    estimates: Mapping[str, int] | None = None

    @property
    def requests(self) -> tuple[DownloadRequest, ...]:
        """All files, each once."""
        return merge(r for group in self.groups for r in group.requests)

    def fit(self, *, free_bytes: int, in_place: Mapping[str, int]) -> Selection:
        """Leave out the groups that the disk cannot take: required ones first, largest last.

        ``in_place`` holds the sizes, by name, of files that are on the disk already.
        """
        left = free_bytes - RESERVE_BYTES
        counted: set[str] = set()
        kept: list[Group] = []
        refused = list(self.refused)
        for group in sorted(self.groups, key=lambda g: (not g.required, self._bytes(g, {}, set()))):
            needed = self._bytes(group, in_place, counted)
            if needed and needed > left:
                refused.append(
                    Refused(
                        group.name,
                        f"needs {human_bytes(needed)} of disk, "
                        f"{human_bytes(max(left, 0))} of {human_bytes(free_bytes)} free are left",
                        group.required,
                    )
                )
                continue
            left -= needed
            counted |= {r.name for r in group.requests}
            kept.append(group)
        in_order = tuple(g for g in self.groups if g in kept)
        return replace(self, groups=in_order, refused=tuple(refused))

    def _bytes(self, group: Group, in_place: Mapping[str, int], counted: set[str]) -> int:
        estimates = self.estimates or {}
        total = 0
        for request in group.requests:
            if request.name in counted:
                continue
            size = request.size_bytes or estimates.get(request.name, 0)
            there = in_place.get(request.name)
            # A truncated file is fetched anew beside the old one.
            total += 0 if there is not None and there >= size else size
        return total


def select(
    catalog: Catalog,
    section: ModelsSection,
    *,
    directory: Path,
    vram_mib: int | None,
    extra: Sequence[DownloadRequest] = (),
) -> Selection:
    """Turn the bundles of the settings, and ``extra`` single files, into groups.

    ``vram_mib`` is the card's total memory, 0 without a card, None when nobody knows (then
    nothing is refused for it). A destination that two sources want goes to the first, and
    a bundle in conflict with it is refused.
    """
    groups: list[Group] = [Group(r.name, (r,)) for r in extra]
    refused: list[Refused] = []
    notes: list[str] = []
    estimates: dict[str, int] = {}
    for name in dict.fromkeys(section.bundles):
        bundle = catalog.bundles.get(name)
        if bundle is None:
            hint = near(name, catalog.bundles)
            refused.append(Refused(name, f"there is no such bundle{f'; {hint}' if hint else ''}"))
            continue
        try:
            group = _group(catalog, name, bundle, section, directory=directory, vram_mib=vram_mib)
            merge(r for g in (*groups, group) for r in g.requests)
        except ValueError as exc:
            refused.append(Refused(name, str(exc), bundle.required))
            continue
        groups.append(group)
        for key in (r.name for r in group.requests if r.size_bytes is None):
            about = catalog.files[key].estimate_bytes if key in catalog.files else None
            if about is not None:
                estimates[key] = about
        notes += (f"bundle {name}: {note}" for note in _notes(bundle, section))
    known = {s for b in catalog.bundles.values() for s in b.selectors}
    for name in sorted(section.selectors.keys() - known):
        hint = near(name, known)
        notes.append(f"no bundle has a selector {name}{f'; {hint}' if hint else ''}")
    return Selection(tuple(groups), tuple(refused), tuple(notes), estimates)


def _group(
    catalog: Catalog,
    name: str,
    bundle: Bundle,
    section: ModelsSection,
    *,
    directory: Path,
    vram_mib: int | None,
) -> Group:
    """Raises: ValueError with the reason why the bundle is refused."""
    if bundle.incomplete:
        raise ValueError(f"the catalog does not know it well enough: {bundle.incomplete}")
    keys, vram_gb = choose_files(bundle, section.selectors, section.bundles)
    if vram_gb is not None and vram_mib is not None and not _fits(vram_gb, vram_mib):
        has = f"the card has {vram_mib / 1024:.1f} GB" if vram_mib else "there is no GPU"
        smaller = _smaller(bundle, section, vram_mib)
        raise ValueError(f"needs {vram_gb:g} GB of VRAM, {has}{smaller}")
    return Group(
        name,
        tuple(
            replace(
                catalog_request(catalog, key, section=section, directory=directory),
                bundle=name,
                required=bundle.required,
            )
            for key in keys
        ),
    )


def _fits(vram_gb: float, vram_mib: int) -> bool:
    return vram_mib >= vram_gb * 1024 * VRAM_SLACK


def _smaller(bundle: Bundle, section: ModelsSection, vram_mib: int) -> str:
    """Name the choices that this card takes instead of those that are too large for it."""
    if not vram_mib or (bundle.min_vram_gb and not _fits(bundle.min_vram_gb, vram_mib)):
        return ""
    offers = []
    for name, value, choice in chosen(bundle, section.selectors):
        if choice.min_vram_gb is None or _fits(choice.min_vram_gb, vram_mib):
            continue
        others = [
            (other.min_vram_gb, other_value)
            for other_value, other in bundle.selectors[name].choices.items()
            if other_value != value and other.min_vram_gb and _fits(other.min_vram_gb, vram_mib)
        ]
        if not others:
            return ""  # another choice elsewhere would not help either
        needs, best = max(others)
        offers.append(f"{name}={best} needs {needs:g} GB")
    return "".join(f"; {offer}" for offer in offers)


def _notes(bundle: Bundle, section: ModelsSection) -> list[str]:
    """What the plan says about a bundle that is fetched."""
    notes = list(bundle.notes)
    if bundle.custom_nodes:
        notes.append(f"needs custom nodes: {', '.join(bundle.custom_nodes)}")
    for name, value, choice in chosen(bundle, section.selectors):
        if choice.note:
            notes.append(f"{name}={value}: {choice.note}")
    return notes


def catalog_request(
    catalog: Catalog, key: str, *, section: ModelsSection, directory: Path
) -> DownloadRequest:
    """Make the request of one file of the catalog.

    Raises:
        KeyError: there is no such file.
        ValueError: its source cannot be read.
    """
    entry = catalog.files[key]
    file = ModelFile(
        url=entry.url,
        huggingface=entry.huggingface,
        civitai=entry.civitai,
        to=key,
        sha256=entry.sha256,
        size_bytes=entry.size_bytes,
        mirrors=entry.mirrors,
    )
    return file_request(file, section=section, directory=directory)
