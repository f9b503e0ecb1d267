"""Where models come from. One module a source; ``registry`` maps its name to a factory.

Nothing here is imported before ComfyUI has been launched.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from supervisor.download.request import Resolver
from supervisor.models.sources.base import SourceContext
from supervisor.models.sources.civitai import CivitaiSource
from supervisor.models.sources.file import FileSource
from supervisor.models.sources.http import HttpSource
from supervisor.models.sources.huggingface import HuggingFaceSource

registry: Mapping[str, Callable[[SourceContext], Resolver]] = MappingProxyType(
    {
        "http": HttpSource,
        "huggingface": HuggingFaceSource,
        "civitai": CivitaiSource,
        "file": FileSource,
    }
)


def open_sources(context: SourceContext) -> dict[str, Resolver]:
    """Make every source."""
    return {name: factory(context) for name, factory in registry.items()}
