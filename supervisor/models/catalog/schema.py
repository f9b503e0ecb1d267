"""The shape of a catalog file. A key that nobody knows is an error."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator, Field, model_validator

from supervisor.config.settings import Section
from supervisor.models.folders import safe_relative
from supervisor.models.references import parse_hub

_ABOUT = re.compile(r"^(\d+(?:\.\d+)?) ?(kB|KB|MB|GB)$")
_UNITS = {"kb": 10**3, "mb": 10**6, "gb": 10**9}


def _key(value: str) -> str:
    safe_relative(value)
    if "/" not in value:
        raise ValueError("name a folder and a file, like 'loras/x.safetensors'")
    return value


def _about(value: str) -> str:
    if not _ABOUT.match(value):
        raise ValueError('write a rounded size like "6.46 GB"')
    return value


FileKey = Annotated[str, AfterValidator(_key)]


class CatalogFile(Section):
    """One file, or a whole repository or folder when its key ends in "/"."""

    huggingface: str | None = Field(None, description='"owner/repo:path[@revision]".')
    civitai: int | None = Field(None, description="CivitAI model version id.")
    url: str | None = Field(None, description="http(s) or file address.")
    mirrors: tuple[str, ...] = Field((), description="Other addresses of the same bytes.")
    size_bytes: int | None = Field(None, ge=0, description="Exact size.")
    size_about: Annotated[str, AfterValidator(_about)] | None = Field(
        None, description="Rounded size, where the exact one is unknown."
    )
    sha256: str | None = Field(None, pattern="^[0-9a-f]{64}$", description="Hash.")
    licence: str | None = Field(None, description="Licence, as its source states it.")
    gated: bool | None = Field(None, description="Terms must be accepted; None = unknown.")
    min_vram_gb: float | None = Field(None, gt=0, description="VRAM it needs, as claimed.")

    @model_validator(mode="after")
    def _one_source(self) -> CatalogFile:
        given = [k for k in ("huggingface", "civitai", "url") if getattr(self, k) is not None]
        if len(given) != 1:
            found = ", ".join(given) or "none"
            raise ValueError(f"give exactly one of huggingface, civitai, url (found {found})")
        if self.huggingface is not None:
            parse_hub(self.huggingface)
        return self

    @property
    def estimate_bytes(self) -> int | None:
        """The exact size, else the rounded one."""
        if self.size_bytes is not None or self.size_about is None:
            return self.size_bytes
        match = _ABOUT.match(self.size_about)
        if match is None:  # the validator lets nothing else in
            return None
        return round(float(match[1]) * _UNITS[match[2].lower()])


class Choice(Section):
    """What one value of a selector adds."""

    files: tuple[str, ...] = Field((), description="Keys of files.")
    min_vram_gb: float | None = Field(None, gt=0, description="VRAM that it needs.")
    note: str | None = Field(None, description="What people who choose it should know.")


class Selector(Section):
    """A choice that the user makes by ``[models] selectors`` or a variable of its name."""

    default: str = Field(description="The value without a choice.")
    multiple: bool = Field(False, description="Several values, comma separated.")
    choices: dict[str, Choice] = Field(description="The values.", min_length=1)

    @model_validator(mode="after")
    def _default_exists(self) -> Selector:
        values = self.default.split(",") if self.multiple else [self.default]
        unknown = [v for v in values if v not in self.choices]
        if unknown:
            raise ValueError(f"the default {unknown[0]!r} is not one of the choices")
        return self


class Bundle(Section):
    """Files that belong together."""

    title: str = Field("", description="What it is, for people.")
    files: tuple[str, ...] = Field((), description="Keys of files that are always wanted.")
    together: dict[str, tuple[str, ...]] = Field(
        default_factory=dict, description="Further files when another bundle is on too."
    )
    selectors: dict[str, Selector] = Field(default_factory=dict, description="Choices.")
    min_vram_gb: float | None = Field(None, gt=0, description="VRAM that it needs, as claimed.")
    licence: str | None = Field(None, description="Licence in one line.")
    gated: bool | None = Field(None, description="Some file is gated; None = unknown.")
    custom_nodes: tuple[str, ...] = Field((), description="Custom nodes it needs (GitHub).")
    incomplete: str | None = Field(None, description="Why it cannot be fetched.")
    required: bool = Field(False, description="Readiness waits for its files.")
    notes: tuple[str, ...] = Field((), description="What people should know; the plan shows it.")

    @property
    def all_files(self) -> frozenset[str]:
        """Every file that some choice wants."""
        keys = [*self.files, *(k for files in self.together.values() for k in files)]
        for selector in self.selectors.values():
            keys += (k for choice in selector.choices.values() for k in choice.files)
        return frozenset(keys)


class CatalogData(Section):
    """A whole catalog."""

    bundles: dict[str, Bundle] = Field(default_factory=dict)
    files: dict[FileKey, CatalogFile] = Field(default_factory=dict)
