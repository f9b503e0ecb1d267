"""A machine with whatever GPUs a test wants, for the real ``pynvml``.

Import ``fake_nvml`` into a test module (or its conftest) to use the fixture. Programs that
shall see the GPUs are started with ``FakeNvml.environ``; an empty machine has no library.
"""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import require

SOURCE = Path(__file__).with_name("nvml.c")


@dataclass(frozen=True)
class FakeNvml:
    """The compiled library's folder and the file that describes the machine."""

    library_folder: Path
    description: Path

    @property
    def environ(self) -> dict[str, str]:
        """Variables under which a child process finds the library and the description."""
        return {"LD_LIBRARY_PATH": str(self.library_folder), "FAKE_NVML": str(self.description)}

    def describe(self, *directives: str) -> None:
        """Say what the machine has; see nvml.c for the directives."""
        lines = ("driver 570.86.15", "cuda 12080", *directives)
        self.description.write_text("\n".join(lines) + "\n", encoding="utf-8")

    def python(self, code: str, *, library: bool = True, timeout_s: float = 60) -> str:
        """Run Python code on that machine and return what it prints."""
        added = self.environ if library else {"LD_LIBRARY_PATH": ""}
        done = subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, **added},
            cwd=SOURCE.parents[2],
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout


def build(folder: Path) -> Path:
    """Compile the library into ``folder``."""
    library = folder / "libnvidia-ml.so.1"
    command = ["gcc", "-shared", "-fPIC", "-O1", "-Wall", "-Werror",
               "-Wl,-soname,libnvidia-ml.so.1", "-o", str(library), str(SOURCE)]  # fmt: skip
    subprocess.run(command, check=True, capture_output=True)
    return library


@pytest.fixture(scope="session")
def nvml_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the compiled library, once per test run."""
    import shutil

    require(available=shutil.which("gcc") is not None, what="gcc")
    return build(tmp_path_factory.mktemp("nvml")).parent


@pytest.fixture
def fake_nvml(nvml_library: Path, tmp_path: Path) -> FakeNvml:
    """A machine without a GPU until ``describe`` says otherwise."""
    machine = FakeNvml(nvml_library, tmp_path / "machine.txt")
    machine.describe()
    return machine
