"""A real JupyterLab: ready by its probe, killed, restarted, stopped, no kernel left."""

from __future__ import annotations

import json
import os
import signal
import sys
import urllib.request
from importlib.util import find_spec
from pathlib import Path

import anyio
import anyio.to_thread
import pytest

from supervisor.core.status import ServiceState
from supervisor.services import procfs
from supervisor.services.spec import (
    HttpProbe,
    Liveness,
    Readiness,
    ServiceKind,
    ServiceSpec,
    StopStep,
)
from tests.conftest import require
from tests.process.pod import QUICK, leftovers, running

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(180)]

TOKEN = "not-so-secret"


def jupyter(folder: Path, port: int) -> ServiceSpec:
    probe = HttpProbe(f"http://127.0.0.1:{port}/api")
    command = (sys.executable, "-m", "jupyter", "lab", "--no-browser", "--allow-root")
    return ServiceSpec(
        "jupyter",
        (*command, "--ip=127.0.0.1", f"--port={port}", "--ServerApp.port_retries=0"),
        kind=ServiceKind.JUPYTER,
        cwd=folder,
        environment={
            "JUPYTER_TOKEN": TOKEN,
            "HOME": str(folder),
            "JUPYTER_RUNTIME_DIR": str(folder / "runtime"),
        },
        port=port,
        readiness=Readiness(probe, timeout_s=90),
        liveness=Liveness(probe, interval_s=5, timeout_s=10),
        stop=(StopStep("SIGTERM", 10.0),),
        backoff=QUICK,
    )


def start_kernel(port: int) -> None:
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/api/kernels",
        data=json.dumps({"name": "python3"}).encode(),
        headers={"Authorization": f"token {TOKEN}", "Content-Type": "application/json"},
        method="POST",
    )
    with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310
        assert answer.status == 201


async def kernel_of(server: int) -> int:
    """Wait for the kernel's process, which lives in a session of its own."""
    with anyio.fail_after(60):
        while True:
            for pid in await anyio.to_thread.run_sync(procfs.descendants, server):
                stat = procfs.read_stat(pid)
                if stat is not None and stat.session != server:
                    return pid
            await anyio.sleep(0.05)


@pytest.fixture(autouse=True)
def installed() -> None:
    require(available=find_spec("jupyterlab") is not None, what="jupyterlab")


async def test_a_real_jupyterlab(tmp_path: Path, free_tcp_port: int) -> None:
    async with running(jupyter(tmp_path, free_tcp_port)) as pod:
        with anyio.fail_after(90):
            await pod.state.wait(lambda s: s.services["jupyter"].ready)
        first = pod["jupyter"].pid
        assert first is not None
        await anyio.to_thread.run_sync(start_kernel, free_tcp_port)
        kernel = await kernel_of(first)

        os.kill(first, signal.SIGKILL)
        with anyio.fail_after(90):
            await pod.state.wait(
                lambda s: s.services["jupyter"].ready and s.services["jupyter"].generation == 2
            )
        assert not procfs.is_alive(kernel)
        assert pod["jupyter"].restart_reasons == {"killed": 1}

        second = pod["jupyter"].pid
        assert second is not None
        await anyio.to_thread.run_sync(start_kernel, free_tcp_port)
        await kernel_of(second)
        await pod.manager.stop("jupyter")
        assert pod["jupyter"].state is ServiceState.STOPPED
        assert leftovers(pod.manager.instance) == []
        assert not any(TOKEN in line for line in pod.output("jupyter"))
