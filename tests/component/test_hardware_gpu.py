"""GPU facts through the real pynvml and a compiled library that plays every machine."""

from __future__ import annotations

import ast
import json
from typing import Any

import pytest

from tests.fake_nvml import FakeNvml, fake_nvml, nvml_library

__all__ = ["fake_nvml", "nvml_library"]

FACTS = """
import json, dataclasses
from supervisor.hardware.gpu import read_gpu
print(json.dumps(dataclasses.asdict(read_gpu())))
"""

SAMPLES = """
import dataclasses
from supervisor.hardware.gpu import GpuSampler
sampler = GpuSampler()
print([dataclasses.asdict(s) for s in sampler.sample()])
sampler.close()
"""


def facts(machine: FakeNvml, *, library: bool = True) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(machine.python(FACTS, library=library))
    return found


@pytest.mark.parametrize("total_mib", [12282, 23028, 46068, 143771])
def test_everything_about_one_card(fake_nvml: FakeNvml, total_mib: int) -> None:
    fake_nvml.describe(f"gpu NVIDIA_Card {total_mib} 1000 GPU-1234 8 9 0")
    found = facts(fake_nvml)
    assert found["devices"] == [
        {
            "index": 0,
            "name": "NVIDIA Card",
            "memory_total_bytes": total_mib * 1024**2,
            "memory_free_bytes": (total_mib - 1000) * 1024**2,
            "uuid": "GPU-1234",
            "compute_capability": [8, 9],
            "mig": False,
        }
    ]
    assert (found["driver"], found["cuda"], found["error"]) == ("570.86.15", "12.8", None)


def test_eight_cards_keep_their_order(fake_nvml: FakeNvml) -> None:
    fake_nvml.describe(*(f"gpu H100 81559 0 GPU-{n} 9 0 0" for n in range(8)))
    devices = facts(fake_nvml)["devices"]
    assert [(d["index"], d["uuid"]) for d in devices] == [(n, f"GPU-{n}") for n in range(8)]


def test_mig_instances_replace_their_card(fake_nvml: FakeNvml) -> None:
    fake_nvml.describe(
        "gpu H200 143771 0 GPU-0 9 0 1",
        "mig 0 H200_MIG_1g.18gb 16384 10 MIG-a",
        "mig 0 H200_MIG_2g.35gb 33280 20 MIG-b",
        "gpu H200 143771 0 GPU-1 9 0 0",
    )
    devices = facts(fake_nvml)["devices"]
    assert [(d["uuid"], d["mig"], d["compute_capability"]) for d in devices] == [
        ("MIG-a", True, [9, 0]),
        ("MIG-b", True, [9, 0]),
        ("GPU-1", False, [9, 0]),
    ]


def test_no_library_is_a_machine_without_a_gpu(fake_nvml: FakeNvml) -> None:
    found = facts(fake_nvml, library=False)
    assert (found["devices"], found["uncertain"]) == ([], False)
    assert "libnvidia-ml.so.1" in found["error"]


def test_a_driver_that_lists_no_card(fake_nvml: FakeNvml) -> None:
    found = facts(fake_nvml)
    assert (found["devices"], found["error"], found["uncertain"]) == ([], None, False)


@pytest.mark.parametrize(
    ("directive", "uncertain"),
    [
        ("fail nvmlInitWithFlags 9", False),  # driver not loaded
        ("fail nvmlInitWithFlags 18", True),  # library and driver do not match
        ("fail nvmlInitWithFlags 999", True),
        ("fail nvmlDeviceGetCount_v2 999", True),
        ("fail nvmlDeviceGetHandleByIndex_v2 15", True),  # GPU is lost
        ("fail nvmlDeviceGetMemoryInfo 999", True),
    ],
)
def test_errors_are_told_and_never_raised(
    fake_nvml: FakeNvml, directive: str, uncertain: bool
) -> None:
    fake_nvml.describe("gpu L4 23034 0 GPU-0 8 9 0", directive)
    found = facts(fake_nvml)
    assert found["devices"] == []
    assert found["error"]
    assert found["uncertain"] is uncertain


@pytest.mark.parametrize(
    "function",
    [
        "nvmlDeviceGetName",
        "nvmlDeviceGetUUID",
        "nvmlDeviceGetCudaComputeCapability",
        "nvmlDeviceGetMigMode",
        "nvmlSystemGetDriverVersion",
        "nvmlSystemGetCudaDriverVersion_v2",
        "nvmlShutdown",
    ],
)
def test_a_detail_that_the_driver_does_not_know_costs_only_that(
    fake_nvml: FakeNvml, function: str
) -> None:
    fake_nvml.describe("gpu L4 23034 0 GPU-0 8 9 0", f"fail {function} 3")
    (device,) = facts(fake_nvml)["devices"]
    assert device["memory_total_bytes"] == 23034 * 1024**2


def test_one_broken_card_does_not_hide_the_others(fake_nvml: FakeNvml) -> None:
    code = """
import supervisor.hardware.nvml as nvml
import pynvml
real = pynvml.nvmlDeviceGetHandleByIndex
def lost(index):
    if index == 0:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_GPU_IS_LOST)
    return real(index)
pynvml.nvmlDeviceGetHandleByIndex = lost
from supervisor.hardware.gpu import read_gpu
facts = read_gpu()
print([d.uuid for d in facts.devices], facts.error is not None)
"""
    fake_nvml.describe("gpu A 24564 0 GPU-0 8 6 0", "gpu B 24564 0 GPU-1 8 6 0")
    assert fake_nvml.python(code).strip() == "['GPU-1'] True"


def test_a_hanging_driver_delays_neither_the_answer_nor_the_exit(fake_nvml: FakeNvml) -> None:
    code = """
from supervisor.hardware.gpu import GpuProbe
facts = GpuProbe().result(0.2)
print(facts.uncertain, facts.error)
"""
    fake_nvml.describe("gpu L4 23034 0 GPU-0 8 9 0", "hang nvmlDeviceGetMemoryInfo")
    # The process ends although the thread never does: python() would time out otherwise.
    assert fake_nvml.python(code).strip() == "True NVML did not answer within 0.2 s"


def test_samples(fake_nvml: FakeNvml) -> None:
    fake_nvml.describe(
        "gpu L4 23034 5000 GPU-0 8 9 0",
        "load 0 87 71 68",  # power cap and hardware thermal slowdown
        "process 0 4242 4000",
        "process 0 4243 900",
    )
    (sample,) = ast.literal_eval(fake_nvml.python(SAMPLES))
    assert sample["utilization_ratio"] == 0.87
    assert sample["temperature_celsius"] == 71.0
    assert sample["memory_used_bytes"] == 5000 * 1024**2
    assert sample["throttle_reasons"] == ("power cap", "hardware thermal slowdown")
    assert [(p["pid"], p["memory_used_bytes"]) for p in sample["processes"]] == [
        (4242, 4000 * 1024**2),
        (4243, 900 * 1024**2),
    ]


def test_sampling_without_a_gpu_is_no_error(fake_nvml: FakeNvml) -> None:
    assert fake_nvml.python(SAMPLES, library=False).strip() == "[]"
