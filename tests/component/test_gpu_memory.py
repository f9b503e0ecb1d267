"""Whether a card gives its memory back, with a compiled NVML."""

from __future__ import annotations

import json
import os

import pytest

from tests.fake_nvml import FakeNvml, fake_nvml, nvml_library

__all__ = ["fake_nvml", "nvml_library"]

# The card is looked at once when the pod boots, and again after ComfyUI has ended.
SCRIPT = """
import json, os
from pathlib import Path
from types import SimpleNamespace as Some
import anyio
from supervisor.app import gpu_memory
from supervisor.hardware.gpu import read_gpu
from supervisor.services.spec import ServiceKind, ServiceSpec

gpu_memory._PATIENCE_S = 0.6
settings = Some(gpu=Some(index=0, probe_timeout_s=60.0))
memory = gpu_memory.GpuMemory(Some(settings=settings, facts=Some(gpu=read_gpu())))
later = os.environ["LATER"].replace("SELF", str(os.getpid()))
Path(os.environ["FAKE_NVML"]).write_text(later)
spec = ServiceSpec("comfyui", ("x",), kind=ServiceKind.COMFYUI)
print(json.dumps(anyio.run(memory.wait_released, spec)))
"""


@pytest.mark.parametrize(
    ("used_mib", "process", "told"),
    [
        (1400, "", None),  # the driver keeps a little
        (9192, "process 0 SELF 8000", ("8.0 GiB", "pid", "python")),
        (9192, "process 0 4000000 8000", ("8.0 GiB", "pid 4000000 (not of this container)")),
        (9192, "", ("8.0 GiB", "NVML names no process")),
    ],
)
def test_memory_that_was_not_given_back_is_told_with_its_holder(
    fake_nvml: FakeNvml,
    monkeypatch: pytest.MonkeyPatch,
    used_mib: int,
    process: str,
    told: tuple[str, ...] | None,
) -> None:
    fake_nvml.describe("gpu L4 23028 1000 GPU-1 8 9 0")
    monkeypatch.setitem(
        os.environ, "LATER", f"driver 570\ngpu L4 23028 {used_mib} GPU-1 8 9 0\n{process}\n"
    )
    message = json.loads(fake_nvml.python(SCRIPT))
    assert (message is None) == (told is None)
    assert all(part in message for part in told or ())
