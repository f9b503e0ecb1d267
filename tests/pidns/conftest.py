"""Each test runs twice: as PID 1 of a namespace, and as an ordinary process (subreaper)."""

from __future__ import annotations

import shutil

import pytest

from tests.conftest import require


@pytest.fixture(params=["pid1", "subreaper"])
def as_pid1(request: pytest.FixtureRequest) -> bool:
    """Whether the init is PID 1."""
    if request.param == "pid1":
        import os

        require(available=shutil.which("unshare") is not None, what="unshare")
        require(available=os.geteuid() == 0, what="root")
    return bool(request.param == "pid1")
