"""From settings to download requests. Pure: no disk, no network."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Literal

from supervisor.config.settings import ModelFile, ModelsSection
from supervisor.download.request import DownloadRequest
from supervisor.errors import ConfigError, ConfigProblem
from supervisor.models.folders import folder_from_path, name_from_url, safe_relative
from supervisor.models.references import display_url, parse_civitai, parse_hub, recognise

_FOLDER_HINT = 'say where it goes, for example to = "loras/" or to = "checkpoints/name.safetensors"'


def settings_requests(section: ModelsSection, *, directory: Path) -> tuple[DownloadRequest, ...]:
    """Make the requests of ``[[models.files]]``, ``civitai`` and ``civitai_loras``.

    ``directory`` is the models folder, absolute.

    Raises:
        ConfigError: with every entry that cannot be used.
    """
    requests: list[DownloadRequest] = []
    problems: list[ConfigProblem] = []
    for index, file in enumerate(section.files):
        try:
            requests.append(file_request(file, section=section, directory=directory))
        except ValueError as exc:
            value = file.url or file.huggingface or str(file.civitai)
            key = f"models.files[{index}]"
            problems.append(_problem(key, value, exc))
    for folder, ids in (("", section.civitai), ("loras", section.civitai_loras)):
        requests += (civitai_request(i, folder, section=section, directory=directory) for i in ids)
    try:
        unique = merge(requests)
    except ValueError as exc:
        problems.append(ConfigProblem(key="models.files", reason=str(exc)))
    if problems:
        raise ConfigError("Cannot use [models]: see the problems", problems=tuple(problems))
    return unique


def file_request(file: ModelFile, *, section: ModelsSection, directory: Path) -> DownloadRequest:
    """Make the request of one file.

    Raises:
        ValueError: the source cannot be read, or nothing says where the file goes.
    """
    source, reference = _source(file, section)
    target, named = _destination(file.to, source, reference)
    return DownloadRequest(
        name=target.as_posix() if named else _placeholder(target, source, reference),
        url=_page(source, reference, section),
        destination=directory / target,
        source=source,
        reference=reference,
        size_bytes=file.size_bytes,
        sha256=file.sha256.lower() if file.sha256 else None,
        required=file.required,
        mirrors=file.mirrors,
        directory=not named,
    )


def civitai_request(
    version: int, folder: str, *, section: ModelsSection, directory: Path
) -> DownloadRequest:
    """Make the request of a CivitAI version id; without a folder its type decides."""
    return file_request(
        ModelFile(civitai=version, to=f"{folder}/" if folder else ""),
        section=section,
        directory=directory,
    )


def merge(requests: Iterable[DownloadRequest]) -> tuple[DownloadRequest, ...]:
    """Drop repetitions; what one of them requires or knows, the remaining one does too.

    Raises:
        ValueError: two different files want the same destination.
    """
    by_name: dict[str, DownloadRequest] = {}
    for request in requests:
        known = by_name.get(request.name)
        if known is None:
            by_name[request.name] = request
        elif same_file(known, request):
            by_name[request.name] = replace(
                known,
                required=known.required or request.required,
                sha256=known.sha256 or request.sha256,
                size_bytes=known.size_bytes if known.size_bytes is not None else request.size_bytes,
            )
        else:
            raise ValueError(
                f"{known.url} and {request.url} both want {request.name}; "
                f"give one of them another name"
            )
    return tuple(by_name.values())


def same_file(one: DownloadRequest, other: DownloadRequest) -> bool:
    """Whether two requests for one destination mean the same bytes.

    Copies in several repositories are the same file when their hashes agree.
    """
    if one.sha256 and other.sha256:
        return one.sha256 == other.sha256
    return (one.source, one.reference) == (other.source, other.reference)


def required_names(
    requests: Sequence[DownloadRequest], require: Literal["none", "required", "all"]
) -> frozenset[str]:
    """Names of the downloads that readiness waits for (``[models] require``)."""
    if require == "none":
        return frozenset()
    return frozenset(r.name for r in requests if r.required or require == "all")


def _source(file: ModelFile, section: ModelsSection) -> tuple[str, str]:
    if file.huggingface is not None:
        return "huggingface", str(parse_hub(file.huggingface))
    if file.civitai is not None:
        return "civitai", str(file.civitai)
    return recognise(
        file.url or "",
        hf_endpoint=section.hf_endpoint,
        civitai_endpoint=section.civitai_endpoint,
    )


def _destination(to: str, source: str, reference: str) -> tuple[PurePosixPath, bool]:
    """Return the path below the models folder and whether it names the file itself."""
    tree = source == "huggingface" and parse_hub(reference).tree
    name = None if tree else _known_name(source, reference)
    if to:
        target = safe_relative(to)
        if tree:
            return target, False
        if not to.endswith("/"):
            return target, True
        return (target / name, True) if name else (target, False)
    if source == "civitai":
        return PurePosixPath(), False
    path = parse_hub(reference).path if source == "huggingface" else reference
    folder = None if tree else folder_from_path(path)
    if folder is None or name is None:
        raise ValueError("nothing tells which model folder it belongs in")
    return PurePosixPath(folder) / name, True


def _known_name(source: str, reference: str) -> str | None:
    if source == "huggingface":
        return PurePosixPath(parse_hub(reference).path).name
    return None if source == "civitai" else name_from_url(reference)


def _placeholder(target: PurePosixPath, source: str, reference: str) -> str:
    """A stable name, without a "/" of its own, while the file's name is not known."""
    prefix = f"{target.as_posix()}/" if target.parts else ""
    if source == "huggingface":
        hub = parse_hub(reference)
        return prefix + f"{hub.repo}/{hub.path}".rstrip("/").replace("/", "--")
    if source == "civitai":
        parsed = parse_civitai(reference)
        return f"{prefix}civitai-{'model-' if parsed.model else ''}{parsed.id}"
    return prefix + display_url(reference).rpartition("//")[2].strip("/").replace("/", "--")


def _page(source: str, reference: str, section: ModelsSection) -> str:
    if source == "huggingface":
        return parse_hub(reference).page(section.hf_endpoint)
    if source == "civitai":
        parsed = parse_civitai(reference)
        base = section.civitai_endpoint.rstrip("/")
        kind = "models" if parsed.model else "model-versions"
        return f"{base}/{kind}/{parsed.id}"
    return display_url(reference)


def _problem(key: str, value: str, exc: ValueError) -> ConfigProblem:
    reason = str(exc)
    hint = _FOLDER_HINT if "folder" in reason or "'..'" in reason else None
    shown = display_url(value) if "://" in value else value
    return ConfigProblem(key=key, value=shown, reason=reason, hint=hint)
