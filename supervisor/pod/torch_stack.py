"""Which torch and CUDA libraries an interpreter has, and whether they are still the image's.

Nothing is imported and no interpreter is started: the folders ``NAME-VERSION.dist-info`` say
it all (https://packaging.python.org/specifications/recording-installed-packages/).
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

Stack = dict[str, str]

_NAMES = re.compile(
    r"torch|torchvision|torchaudio|xformers|triton|pytorch-triton|nvidia-(?!ml-py$).+"
)
_BASELINE = ".supervisor-torch-stack.json"


def stack_of(python: Path) -> Stack:
    """Versions of torch, its siblings and NVIDIA's libraries, by normalised name."""
    found = {}
    for folder in site_folders(python):
        with suppress(OSError):
            for entry in os.listdir(folder):  # noqa: PTH208 - names only
                name, _, version = entry.removesuffix(".dist-info").partition("-")
                name = re.sub(r"[-_.]+", "-", name).lower()
                if entry.endswith(".dist-info") and version and _NAMES.fullmatch(name):
                    found[name] = version
    return dict(sorted(found.items()))


def site_folders(python: Path) -> list[Path]:
    """Where an interpreter's packages may be; the link of a venv is not followed."""
    prefix = python.parent.parent
    patterns = ("lib/python3*/site-packages", "lib/python3*/dist-packages",
                "local/lib/python3*/dist-packages")  # fmt: skip
    return [folder for pattern in patterns for folder in sorted(prefix.glob(pattern))]


class Baseline:
    """The stack as the image brought it, kept in the environment that it describes.

    So it lives as long as that environment: a new container begins anew, a venv on a volume
    keeps its own. Where that is read-only, ``fallback`` takes it.
    """

    def __init__(self, python: Path, fallback: Path) -> None:
        self._python = python
        self._paths = (python.parent.parent / _BASELINE, fallback / "torch-stack.json")

    def load(self) -> Stack | None:
        """Return what was kept; None when nothing was."""
        for path in self._paths:
            with suppress(OSError, ValueError, KeyError, AttributeError, TypeError):
                kept = json.loads(path.read_text(encoding="utf-8"))
                if kept["python"] == str(self._python):
                    # An older release may have kept more names.
                    return {n: v for n, v in kept["stack"].items() if _NAMES.fullmatch(n)}
        return None

    def save(self, stack: Stack) -> None:
        """Keep it.

        Raises:
            OSError: neither place can be written.
        """
        text = json.dumps({"python": str(self._python), "stack": stack}, indent=1)
        failure: OSError | None = None
        for path in self._paths:
            temporary = path.with_name(f"{path.name}.{os.getpid()}")
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                temporary.unlink(missing_ok=True)  # never through a link of another user's
                with temporary.open("x", encoding="utf-8") as file:
                    file.write(text)
                temporary.replace(path)
            except OSError as error:
                failure = error
            else:
                return
        assert failure is not None  # noqa: S101 - there are two places
        raise failure


def changes(before: Mapping[str, str], now: Mapping[str, str]) -> tuple[str, ...]:
    """What differs, for people. New packages are no harm."""
    return tuple(
        f"{name} {version} → {now.get(name, 'gone')}"
        for name, version in before.items()
        if now.get(name) != version
    )


def constraints(stack: Mapping[str, str]) -> str:
    """Lines for pip and uv that keep installs from replacing the stack."""
    return "".join(f"{name}=={version}\n" for name, version in stack.items())


def reinstall(python: Path, stack: Mapping[str, str]) -> list[str]:
    """The command that brings a stack back.

    Builds for a CUDA version carry it as local label (2.5.1+cu124) and are on PyTorch's own
    index only (https://pytorch.org/get-started/previous-versions/).
    """
    labels = {version.partition("+")[2] for version in stack.values()} - {""}
    indexes = [
        word
        for label in sorted(labels)
        for word in ("--extra-index-url", f"https://download.pytorch.org/whl/{label}")
    ]
    wanted = [f"{name}=={version}" for name, version in stack.items()]
    return [str(python), "-m", "pip", "install", "--no-deps", "--no-input", *indexes, *wanted]
