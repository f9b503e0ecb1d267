"""Names in ``[models]`` that the catalog does not have: most likely typing errors. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from supervisor.config.problems import nearest_name
from supervisor.config.settings import ModelsSection
from supervisor.errors import ConfigProblem
from supervisor.models.catalog import Catalog
from supervisor.models.catalog.schema import Selector


def misspelled(catalog: Catalog, section: ModelsSection) -> Iterator[ConfigProblem]:
    """Find bundles, selectors and choices that do not exist.

    A pod boots without them, because ComfyUI is of use with other models; whoever asks
    whether the configuration is right is told that it is not.
    """
    for index, name in enumerate(section.bundles):
        if name not in catalog.bundles:
            yield ConfigProblem(
                key=f"models.bundles[{index}]",
                value=f'"{name}"',
                reason="there is no such bundle",
                hint=_hint(name, catalog.bundles),
            )
    selectors = {n: s for bundle in catalog.bundles.values() for n, s in bundle.selectors.items()}
    for name, text in section.selectors.items():
        selector = selectors.get(name)
        if selector is None:
            reason, hint = "no bundle has such a selector", _hint(name, selectors)
        elif wrong := _wrong_choice(selector, text):
            reason, hint = f'there is no choice "{wrong}"', _hint(wrong, selector.choices)
        else:
            continue
        yield ConfigProblem(
            key=f"models.selectors.{name}", value=f'"{text}"', reason=reason, hint=hint
        )


def _wrong_choice(selector: Selector, text: str) -> str | None:
    known = {choice.casefold() for choice in selector.choices}
    values = text.split(",") if selector.multiple else [text]
    return next(
        (v.strip() for v in values if v.strip() and v.strip().casefold() not in known), None
    )


def _hint(name: str, names: Mapping[str, object]) -> str:
    """The likeliest name that was meant, else all of them."""
    plain = {known.casefold(): known for known in names}
    near = nearest_name(name.casefold().removeprefix("enable_"), plain)
    return f"did you mean {plain[near]}?" if near else f"there are {', '.join(names)}"
