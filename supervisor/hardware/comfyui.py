"""What the installed ComfyUI is and which options it accepts, without importing it. Blocking.

The options come from ``comfy/cli_args.py`` (read with ``ast``, a few ms), else from
``main.py --help`` (a second or two). Either answer is kept under the file's identity.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from supervisor.errors import HardwareError
from supervisor.hardware.facts import ComfyUIFacts

CLI_ARGS = Path("comfy/cli_args.py")
CGROUP_READER = Path("comfy/system_memory.py")  # since ComfyUI#15927, August 2026
HELP_TIMEOUT_S = 30.0
CACHE_FILE = "comfyui-options.json"
CACHE_FORMAT = 1
VIRTUAL_ENVIRONMENTS = ("venv", ".venv")


class UnreadableParserError(HardwareError):
    """The options cannot be told from the source or from the help text."""


@dataclass(frozen=True, slots=True)
class Options:
    """What an argparse parser accepts; see ``ComfyUIFacts`` for the meaning."""

    flags: Mapping[str, tuple[str, ...]]
    arity: Mapping[str, str]
    exclusive: tuple[frozenset[str], ...]
    source: str


def read_comfyui(
    root: Path,
    *,
    python: Path | None,
    cache_directory: Path | None,
    environ: Mapping[str, str],
) -> ComfyUIFacts:
    """Facts about the ComfyUI in ``root``; never raises."""
    interpreter = str(python) if python is not None else find_python(root, environ)
    if not (root / "main.py").is_file():
        return ComfyUIFacts(
            root=root,
            installed=False,
            python=interpreter,
            error=f"Cannot start ComfyUI: there is no main.py in {root}",
        )
    options, error = _options(root, interpreter, cache_directory, environ)
    return ComfyUIFacts(
        root=root,
        installed=True,
        python=interpreter,
        version=read_version(root),
        flags=options.flags if options else None,
        flags_source=options.source if options else None,
        error=error,
        arity=options.arity if options else {},
        exclusive=options.exclusive if options else (),
        torch=read_torch_version(Path(interpreter)),
        cgroup_aware=(root / CGROUP_READER).is_file(),
    )


def find_python(root: Path, environ: Mapping[str, str]) -> str:
    """ComfyUI's interpreter: a virtual environment in or beside it, else python3 on PATH.

    The supervisor's own environment is passed over, for torch is never in it.
    """
    for folder in (root, root.parent):
        for name in VIRTUAL_ENVIRONMENTS:
            candidate = folder / name / "bin" / "python"
            if candidate.exists():
                return str(candidate)
    own = str(Path(sys.prefix) / "bin") if sys.prefix != sys.base_prefix else None
    entries = [e for e in environ.get("PATH", os.defpath).split(os.pathsep) if e != own]
    return shutil.which("python3", path=os.pathsep.join(entries)) or "python3"


def read_version(root: Path) -> str | None:
    """ComfyUI's version, from ``comfyui_version.py`` or ``pyproject.toml``."""
    for name, pattern in (
        ("comfyui_version.py", r"__version__\s*=\s*[\"']([^\"']+)"),
        ("pyproject.toml", r"(?m)^version\s*=\s*[\"']([^\"']+)"),
    ):
        match = re.search(pattern, _read(root / name))
        if match:
            return match[1]
    return None


def read_torch_version(python: Path) -> str | None:
    """Version of the torch that ``python`` would import, from its files."""
    for location in dict.fromkeys((python, python.resolve())):
        for version_file in _site_files(location.parent.parent, "torch/version.py"):
            match = re.search(r"__version__\s*=\s*[\"']([^\"']+)", _read(version_file))
            if match:
                return match[1]
    return None


def options_from_help(text: str) -> Options:
    """Read the usage of an argparse help text that was not wrapped.

    Raises:
        UnreadableParserError: there is no usage in it.
    """
    usage = re.search(r"(?ms)^usage:(.*?)(?:\n\s*\n|\Z)", text)
    if usage is None:
        raise UnreadableParserError("Cannot read ComfyUI's options: --help shows no usage")
    flags: dict[str, tuple[str, ...]] = {}
    arity: dict[str, str] = {}
    exclusive: list[frozenset[str]] = []
    for group in _bracketed(usage[1]):
        members: list[str] = []
        for part in group.split(" | "):
            name, _, rest = part.strip().partition(" ")
            if not name.startswith("--"):
                continue
            members.append(name)
            flags[name], arity[name] = _metavar(rest.strip())
        if len(members) > 1:
            exclusive.append(frozenset(members))
    if not flags:
        raise UnreadableParserError("Cannot read ComfyUI's options: --help lists none")
    return Options(flags, arity, tuple(exclusive), "--help")


def _options(
    root: Path, python: str, cache_directory: Path | None, environ: Mapping[str, str]
) -> tuple[Options | None, str | None]:
    """The options and, when there are none, one sentence why."""
    identity = _identity(root / CLI_ARGS, root / "main.py")
    cache = cache_directory / CACHE_FILE if cache_directory is not None else None
    if cache is not None and (known := _load(cache, identity)):
        return known, None
    try:
        options = _from_source(root / CLI_ARGS)
    except UnreadableParserError:
        try:
            options = _from_program(root, python, environ)
        except UnreadableParserError as exc:
            return None, exc.message
    if cache is not None:
        _store(cache, identity, options)
    return options, None


def _from_source(path: Path) -> Options:
    from supervisor.hardware.cli_args import options_from_source  # noqa: PLC0415 - ast: 10 ms

    flags, arity, exclusive = options_from_source(_read(path))
    if not flags:
        raise UnreadableParserError(f"Cannot read ComfyUI's options from {path}")
    return Options(flags, arity, exclusive, "cli_args.py")


def _from_program(root: Path, python: str, environ: Mapping[str, str]) -> Options:
    try:
        done = subprocess.run(
            [python, str(root / "main.py"), "--help"],
            cwd=root,
            env={**environ, "COLUMNS": "100000", "NO_COLOR": "1", "PYTHON_COLORS": "0"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=HELP_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.SubprocessError) as exc:
        raise UnreadableParserError(f"Cannot ask ComfyUI for its options: {exc}") from exc
    return options_from_help(done.stdout)


def _bracketed(usage: str) -> Iterator[str]:
    """The top-level ``[…]`` parts of a usage line."""
    depth, start = 0, 0
    for position, character in enumerate(usage):
        if character == "[":
            if depth == 0:
                start = position + 1
            depth += 1
        elif character == "]" and depth:
            depth -= 1
            if depth == 0:
                yield usage[start:position]


def _metavar(text: str) -> tuple[tuple[str, ...], str]:
    """Choices and arity from what follows an option in the usage."""
    if not text:
        return (), "0"
    choices = re.search(r"[{\[]([\w.-]+(?:,[\w.-]+)+)[}\]]", text)
    allowed = tuple(choices[1].split(",")) if choices else ()
    if "..." in text:
        return allowed, "*" if text.startswith("[") else "+"
    # An enum's metavar is written [a,b]; an optional value is [NAME] or [{a,b}].
    optional = text.startswith("[") and not (choices and text.startswith(f"[{choices[1]}"))
    return allowed, "?" if optional else str(len(text.split(" ")))


def _site_files(prefix: Path, name: str) -> Iterator[Path]:
    for pattern in (
        "lib/python3*/site-packages",
        "local/lib/python3*/dist-packages",
        "lib/python3*/dist-packages",
    ):
        for folder in sorted(prefix.glob(pattern), reverse=True):
            if (folder / name).is_file():
                yield folder / name


def _identity(*paths: Path) -> list[Any]:
    """Path, size and modification time of each file: changed code is another parser."""
    found: list[Any] = [CACHE_FORMAT]
    for path in paths:
        try:
            stat = path.stat()
        except OSError:
            found.append([str(path), None, None])
        else:
            found.append([str(path), stat.st_size, stat.st_mtime_ns])
    return found


def _load(cache: Path, identity: list[Any]) -> Options | None:
    try:
        data = json.loads(cache.read_text(encoding="utf-8"))
        if data["identity"] != identity:
            return None
        return Options(
            {name: tuple(choices) for name, choices in data["flags"].items()},
            dict(data["arity"]),
            tuple(frozenset(group) for group in data["exclusive"]),
            str(data["source"]),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None  # a cache is only a cache


def _store(cache: Path, identity: list[Any], options: Options) -> None:
    data = {
        "identity": identity,
        "flags": {name: list(choices) for name, choices in options.flags.items()},
        "arity": dict(options.arity),
        "exclusive": [sorted(group) for group in options.exclusive],
        "source": options.source,
    }
    temporary = cache.with_name(f"{cache.name}.{os.getpid()}.new")
    try:
        cache.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps(data), encoding="utf-8")
        temporary.replace(cache)
    except OSError:
        with suppress(OSError):  # a read-only file system refuses this too
            temporary.unlink(missing_ok=True)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
