"""The table of bundles in docs/models.md, made from the shipped catalog."""

from __future__ import annotations

from supervisor.config.aliases import ALIASES, bundle_name
from supervisor.models.catalog import Catalog, choose_files, load_catalog
from supervisor.models.catalog.schema import Bundle, Selector
from supervisor.models.room import human_bytes

_HEAD = "| Switch | What it is | Choices | VRAM | Disk | Licence |\n|---|---|---|---|---|---|\n"


def catalog_table() -> str:
    """Render one row for each bundle; the default of a choice is bold."""
    catalog = load_catalog()
    switches = {bundle_name(a.name): a.name for a in ALIASES if a.path == ("models", "bundles")}
    rows = []
    for name, bundle in sorted(catalog.bundles.items()):
        switch = f"`{switches[name]}`" if name in switches else f'`bundles = ["{name}"]`'
        if bundle.incomplete:
            why = f"not fetched: {bundle.incomplete}"
            rows.append(f"| {switch} | {_cell(bundle.title)} | {_cell(why)} | | | |")
            continue
        keys, vram_gb = choose_files(bundle, {}, ())
        vram = f"{vram_gb:g} GB" if vram_gb else ""
        choices = "<br>".join(_choices(catalog, n, s) for n, s in bundle.selectors.items())
        cells = (switch, bundle.title, choices, vram, _disk(catalog, keys), _terms(bundle))
        rows.append(f"| {' | '.join(map(_cell, cells))} |")
    return _HEAD + "\n".join(rows) + "\n"


def _terms(bundle: Bundle) -> str:
    gated = "gated" if bundle.gated else ""
    return "; ".join(part for part in (bundle.licence, gated) if part)


def _choices(catalog: Catalog, name: str, selector: Selector) -> str:
    defaults = selector.default.split(",")
    shown = []
    for value, choice in selector.choices.items():
        facts = [_disk(catalog, choice.files)] if choice.files else []
        facts += [f"VRAM {choice.min_vram_gb:g} GB"] if choice.min_vram_gb else []
        label = f"**{value}**" if value in defaults else value
        shown.append(label + (f" ({', '.join(facts)})" if facts else ""))
    return f"`{name}`: {', '.join(shown)}"


def _disk(catalog: Catalog, keys: tuple[str, ...]) -> str:
    """The sum of the known sizes; "more than" when some are not known."""
    sizes = [catalog.files[key].estimate_bytes for key in keys]
    total = sum(size or 0 for size in sizes)
    if total == 0:
        return "unknown"
    return f"{'more than ' if None in sizes else ''}{human_bytes(total)}"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
