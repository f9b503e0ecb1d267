"""How people name a model, turned into (source, reference). Pure.

References: ``huggingface`` "owner/repo:path@revision" (a path ending in "/" is a folder,
no path the whole repository); ``civitai`` "12345" (version), "model:12345", both with
"?format=SafeTensor&fp=fp16&size=pruned&type=Model" to choose a file; ``http`` and ``file``
the URL itself.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import parse_qs, parse_qsl, quote, unquote, urlencode, urlsplit, urlunsplit

HUGGING_FACE = "https://huggingface.co"
CIVITAI = "https://civitai.com"
DEFAULT_REVISION = "main"
_CHOICES = ("type", "format", "size", "fp")
# First components of the hub's addresses that are not an owner of models.
_NOT_OWNERS = frozenset(
    {"api", "datasets", "spaces", "docs", "blog", "papers", "collections", "models"}
)
_REPO = re.compile(r"^[\w.-]+/[\w.-]+$")


@dataclass(frozen=True, slots=True)
class HubReference:
    """A file, folder (path ends in "/") or whole repository (path empty) on the hub."""

    repo: str
    path: str = ""
    revision: str = DEFAULT_REVISION

    @property
    def tree(self) -> bool:
        """Whether it stands for several files."""
        return not self.path or self.path.endswith("/")

    def __str__(self) -> str:
        plain = self.revision == DEFAULT_REVISION and "@" not in self.path
        revision = "" if plain else f"@{self.revision}"
        return f"{self.repo}:{self.path}{revision}"

    def page(self, endpoint: str = HUGGING_FACE) -> str:
        """The address that a person opens."""
        if not self.path:
            return f"{endpoint.rstrip('/')}/{self.repo}"
        kind = "tree" if self.tree else "resolve"
        path = quote(self.path.rstrip("/"))
        return f"{endpoint.rstrip('/')}/{self.repo}/{kind}/{quote(self.revision, safe='')}/{path}"


@dataclass(frozen=True, slots=True)
class CivitaiReference:
    """A model version, or the newest version of a model; ``choices`` picks the file."""

    id: int
    model: bool = False
    choices: tuple[tuple[str, str], ...] = ()

    def __str__(self) -> str:
        kind = "model:" if self.model else ""
        query = "?" + urlencode(self.choices) if self.choices else ""
        return f"{kind}{self.id}{query}"


def parse_hub(reference: str) -> HubReference:
    """Read "owner/repo[:path][@revision]".

    Raises:
        ValueError: it has another shape or leaves the repository.
    """
    repo, colon, rest = reference.partition(":")
    path, revision = rest, DEFAULT_REVISION
    if not colon:
        repo, at, tail = reference.partition("@")
        path, revision = "", tail if at else DEFAULT_REVISION
    elif "@" in rest:
        path, revision = rest.rsplit("@", 1)
    if not _REPO.match(repo) or not revision:
        raise ValueError('write "owner/repo:path/in/repo", optionally with "@revision"')
    if path.startswith("/") or ".." in path.split("/"):
        raise ValueError("the path must lie inside the repository")
    return HubReference(repo, path, revision)


def parse_civitai(reference: str) -> CivitaiReference:
    """Read "12345" or "model:12345", with "?format=…" and so on.

    Raises:
        ValueError: there is no number.
    """
    identity, _, query = reference.partition("?")
    model = identity.startswith("model:")
    number = identity.removeprefix("model:")
    if not number.isascii() or not number.isdigit():
        raise ValueError("a CivitAI id is a number")
    choices = tuple((k, v) for k, v in parse_qsl(query) if k in _CHOICES)
    return CivitaiReference(int(number), model, choices)


def recognise(
    url: str, *, hf_endpoint: str = HUGGING_FACE, civitai_endpoint: str = CIVITAI
) -> tuple[str, str]:
    """Say which source serves ``url`` best, and its reference there.

    A link to the hub or to CivitAI becomes theirs, so that hashes, tokens and expiring
    addresses are handled; any other stays ``http`` or ``file``.

    Raises:
        ValueError: it is not an http, https or file URL.
    """
    parts = urlsplit(url)
    if parts.scheme == "file":
        return "file", url
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("write an address that starts with https://, http:// or file://")
    hub = _hosts(HUGGING_FACE, "https://hf.co")
    if parts.netloc in _hosts(hf_endpoint) | hub:
        reference = _from_hub_path(parts.path)
        # "/a/b" on a mirror may be anything; on the hub it is a repository.
        if reference is not None and (reference.path or parts.netloc in hub):
            return "huggingface", str(reference)
    if parts.netloc in _hosts(civitai_endpoint, CIVITAI, "https://www.civitai.com"):
        civitai = _from_civitai_path(parts.path, parts.query)
        if civitai is not None:
            return "civitai", str(civitai)
    return "http", url


def display_url(url: str) -> str:
    """The URL without query, fragment, user and password: signatures and tokens live there."""
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    return urlunsplit((parts.scheme, host, parts.path, "", ""))


def _hosts(*endpoints: str) -> frozenset[str]:
    return frozenset(urlsplit(endpoint).netloc for endpoint in endpoints)


def _from_hub_path(path: str) -> HubReference | None:
    # A revision such as refs/pr/1 is one part when it is escaped, else three.
    parts = [unquote(part) for part in path.strip("/").split("/")]
    if parts[3:4] == ["refs"] and parts[4:5] in (["pr"], ["convert"]):
        parts[3:6] = ["/".join(parts[3:6])]
    if len(parts) < 2 or parts[0] in _NOT_OWNERS:
        return None
    repo = "/".join(parts[:2])
    if len(parts) == 2:
        return HubReference(repo)
    if len(parts) >= 5 and parts[2] in ("resolve", "blob", "raw"):
        return HubReference(repo, "/".join(parts[4:]), parts[3])
    if len(parts) >= 4 and parts[2] == "tree":
        folder = "/".join(parts[4:])
        return HubReference(repo, folder + "/" if folder else "", parts[3])
    return None


def _from_civitai_path(path: str, query: str) -> CivitaiReference | None:
    values = parse_qs(query)
    choices = tuple((k, values[k][0]) for k in _CHOICES if k in values)
    if match := re.match(r"^/api/download/models/(\d+)", path):
        return CivitaiReference(int(match[1]), choices=choices)
    if match := re.match(r"^(?:/api/v1)?/model-versions/(\d+)", path):
        return CivitaiReference(int(match[1]), choices=choices)
    if match := re.match(r"^/models/(\d+)", path):
        version = values.get("modelVersionId", [""])[0]
        if version.isdigit():
            return CivitaiReference(int(version), choices=choices)
        return CivitaiReference(int(match[1]), model=True, choices=choices)
    return None
