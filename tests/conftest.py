"""Shared fixtures. A test that lacks what it needs fails in CI and skips elsewhere."""

from __future__ import annotations

import os
import shutil
import signal

import hypothesis
import pytest


def pytest_configure() -> None:
    """Make the surroundings alike everywhere."""
    # A shell starts what it puts into the background deaf to SIGINT, and so would we.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # Hypothesis gives every example 200 ms: on a busy machine one of thousands takes longer.
    hypothesis.settings.register_profile("busy machine", deadline=None)
    hypothesis.settings.load_profile("busy machine")


@pytest.fixture
def anyio_backend() -> str:
    """Run async tests on asyncio; tests of neutral code may parametrise this."""
    return "asyncio"


def pytest_runtest_setup(item: pytest.Item) -> None:
    for marker in item.iter_markers("needs"):
        for program in marker.args:
            if not _available(program):
                require(available=False, what=program)


def require(*, available: bool, what: str) -> None:
    """Skip when something is not there; in CI its absence is a failure."""
    if available:
        return
    if os.environ.get("CI"):
        pytest.fail(f"needs {what}, which .ci/run should have installed", pytrace=False)
    pytest.skip(f"needs {what}")


def _available(program: str) -> bool:
    if program == "root":
        return os.geteuid() == 0
    return shutil.which(program, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin") is not None
