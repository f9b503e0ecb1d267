"""The exposition: the names of INTERFACE.md, read from a snapshot, and what is counted."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from supervisor.api.health import Health, ping_status
from supervisor.api.metrics import Histogram, Recorder, render
from supervisor.core.events import EventBus
from supervisor.core.state import StateStore
from supervisor.core.status import (
    Alert,
    BootStatus,
    DiskStatus,
    DownloadFileStatus,
    DownloadsStatus,
    DownloadState,
    GpuDeviceStatus,
    GpuStatus,
    HostStatus,
    IdleStatus,
    Phase,
    ServiceState,
    ServiceStatus,
    Snapshot,
    SyncStatus,
)

# INTERFACE.md, Metrics: names and labels; the last line is added to it.
INTERFACE = """
supervisor_build_info{version}, supervisor_boot_seconds{phase}, supervisor_service_up{service},
supervisor_service_state{service,state}, supervisor_service_restarts_total{service,reason},
supervisor_probe_seconds{service,probe}, supervisor_download_bytes_total{source},
supervisor_download_remaining_bytes, supervisor_download_failures_total{source,reason},
supervisor_sync_uploaded_total, supervisor_sync_uploaded_bytes_total, supervisor_sync_pending_files,
supervisor_sync_latency_seconds, supervisor_sync_failures_total{reason},
supervisor_gpu_memory_used_bytes{gpu}, supervisor_gpu_utilization_ratio{gpu},
supervisor_gpu_temperature_celsius{gpu}, supervisor_comfyui_queue_length,
supervisor_comfyui_response_seconds, supervisor_cpu_ratio, supervisor_memory_used_bytes,
supervisor_memory_limit_bytes, supervisor_disk_free_bytes{mount}, supervisor_idle_seconds,
supervisor_alert_active{alert},
supervisor_advice_total{code}, supervisor_service_memory_bytes{service},
supervisor_idle_limit_seconds, supervisor_service_cpu_cores{service},
supervisor_boot_usual_seconds{phase}
"""
FULL = Snapshot(
    version="1.2.3",
    gpu=GpuStatus(
        devices=(
            GpuDeviceStatus(
                0, "L4", memory_used_bytes=7, utilization_ratio=0.5, temperature_celsius=61
            ),
        )
    ),
    services={
        "comfyui": ServiceStatus(
            "comfyui", ServiceState.BACKOFF, restart_reasons={"oom-killed": 2, "planned": 1}
        )
    },
    downloads=DownloadsStatus(
        files=(
            DownloadFileStatus("a", DownloadState.ACTIVE, 1000, 250),
            DownloadFileStatus("b", DownloadState.SKIPPED, 5000),
        )
    ),
    sync=SyncStatus(enabled=True, pending=4, uploaded=3, uploaded_bytes=99),
    host=HostStatus(
        cpu_ratio=0.25,
        memory_used_bytes=10,
        memory_limit_bytes=20,
        disks={"/workspace": DiskStatus(30, 100)},
        service_memory_bytes={"comfyui": 40},
        service_cpu_cores={"comfyui": 1.5},
        comfyui_queue_length=2,
        comfyui_response_s=0.1,
    ),
    idle=IdleStatus(enabled=True, idle_s=12),
    alerts=(Alert("disk", "full"),),
    boot=BootStatus(spans_s={"launch": 0.2}, median_s={"launch": 0.3}),
)


def full_recorder() -> Recorder:
    recorder, bus = Recorder(), EventBus()
    recorder.stored(size_bytes=5, latency_s=0.3)
    recorder.failed("transient")
    recorder.probe("comfyui", "http", 0.02)
    recorder.advised("cuda-oom")
    recorder.advised("cuda-oom")
    done: dict[str, Any] = {"source": "huggingface", "bytes_fetched": 10}
    recorder.event(bus.publish("download.done", "", subject="x", **done))
    failed: dict[str, Any] = {"source": "civitai", "reason": "AuthRequired"}
    recorder.event(bus.publish("download.failed", "", subject="y", **failed))
    return recorder


def scrape(snapshot: Snapshot, recorder: Recorder | None = None) -> dict[str, float]:
    """Samples as ``name{label="value"}`` → value, read by Prometheus' own parser."""
    body, content_type = render(lambda: snapshot, recorder or Recorder())
    assert content_type.startswith("text/plain; version=")
    found: dict[str, float] = {}
    for family in text_string_to_metric_families(body.decode()):
        for sample in family.samples:
            labels = ",".join(f"{k}={v}" for k, v in sorted(sample.labels.items()))
            found[f"{sample.name}{{{labels}}}" if labels else sample.name] = sample.value
    return found


def test_names_and_labels_are_those_of_the_interface() -> None:
    body, _ = render(lambda: FULL, full_recorder())
    found: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(body.decode()):
        name = f"{family.name}_total" if family.type == "counter" else family.name
        found[name] = {label for s in family.samples for label in s.labels if label != "le"}
    assert found == interface_labels()


def test_values_are_those_of_the_snapshot() -> None:
    found = scrape(FULL, full_recorder())
    for name, value in {
        "supervisor_build_info{version=1.2.3}": 1,
        "supervisor_boot_seconds{phase=launch}": 0.2,
        "supervisor_service_up{service=comfyui}": 0,
        "supervisor_service_state{service=comfyui,state=backoff}": 1,
        "supervisor_service_state{service=comfyui,state=ready}": 0,
        "supervisor_service_restarts_total{reason=oom-killed,service=comfyui}": 2,
        "supervisor_download_remaining_bytes": 750,
        "supervisor_download_failures_total{reason=AuthRequired,source=civitai}": 1,
        "supervisor_download_bytes_total{source=huggingface}": 10,
        "supervisor_sync_uploaded_bytes_total": 99,
        "supervisor_sync_pending_files": 4,
        "supervisor_sync_latency_seconds_bucket{le=0.25}": 0,
        "supervisor_sync_latency_seconds_bucket{le=0.5}": 1,
        "supervisor_sync_latency_seconds_count": 1,
        "supervisor_probe_seconds_sum{probe=http,service=comfyui}": 0.02,
        "supervisor_gpu_utilization_ratio{gpu=0}": 0.5,
        "supervisor_disk_free_bytes{mount=/workspace}": 30,
        "supervisor_idle_seconds": 12,
        "supervisor_alert_active{alert=disk}": 1,
        "supervisor_advice_total{code=cuda-oom}": 2,
    }.items():
        assert found[name] == pytest.approx(value), name


def test_what_is_not_known_is_left_out() -> None:
    found = scrape(Snapshot())
    for name in ("cpu_ratio", "memory_limit_bytes", "comfyui_queue_length", "idle_seconds"):
        assert f"supervisor_{name}" not in found


def test_every_name_is_there_from_the_first_scrape() -> None:
    body, _ = render(Snapshot, Recorder())
    described = set(re.findall(r"^# TYPE (\S+) ", body.decode(), re.MULTILINE))
    assert described == interface_labels().keys()


def test_labels_are_escaped() -> None:
    evil = Snapshot(host=HostStatus(disks={'/a"b\\c\nd': DiskStatus(1, 2)}))
    assert scrape(evil)['supervisor_disk_free_bytes{mount=/a"b\\c\nd}'] == 1


def downloads(state: DownloadState, done: int) -> DownloadsStatus:
    return DownloadsStatus((DownloadFileStatus("a", state, 1000, done, source="huggingface"),))


def test_a_resumed_file_counts_what_came_over_the_network() -> None:
    recorder, bus, active = Recorder(), EventBus(), DownloadState.ACTIVE
    for done in (0, 400, 600, 600, 700):  # 380 were on the disk before
        recorder.downloads(downloads(active, done))
    assert recorder.downloaded_bytes["huggingface"] == 300
    data: dict[str, Any] = {"source": "huggingface", "bytes_fetched": 620}
    recorder.event(bus.publish("download.done", "", subject="a", **data))
    recorder.downloads(downloads(DownloadState.DONE, 1000))
    assert recorder.downloaded_bytes["huggingface"] == 620


def test_the_count_never_goes_back() -> None:
    recorder, last = Recorder(), 0
    for done in (100, 300, 50, 80, 500):  # a changed remote file begins again
        recorder.downloads(downloads(DownloadState.ACTIVE, done))
        count = recorder.downloaded_bytes["huggingface"]
        assert count >= last
        last = count


def test_histogram_bounds_are_inclusive() -> None:
    histogram = Histogram((1.0, 2.0))
    for value in (1.0, 1.5, 2.0, 3.0):
        histogram.observe(value)
    assert histogram.cumulative() == [("1.0", 1), ("2.0", 3), ("+Inf", 4)]
    assert histogram.total == 7.5


@pytest.mark.parametrize(
    ("snapshot", "status"),
    [
        (Snapshot(), 204),
        (Snapshot(phase=Phase.READY), 200),
        (Snapshot(phase=Phase.DEGRADED), 204),
        (Snapshot(phase=Phase.RESCUE), 503),
        (Snapshot(phase=Phase.STOPPING), 503),
        (
            Snapshot(
                phase=Phase.DEGRADED,
                services={"a": ServiceStatus("a", ServiceState.FAILED, required=True)},
            ),
            503,
        ),
    ],
)
def test_ping(snapshot: Snapshot, status: int) -> None:
    assert ping_status(snapshot) == status


def test_health_follows_the_state() -> None:
    state = StateStore()
    health = Health(state)
    assert health.ping == 204
    state.set_service(ServiceStatus("a", ServiceState.READY, ready=True, required=True))
    assert (health.ping, health.ready[0]) == (200, 200)
    state.set_service(replace(state.snapshot.services["a"], ready=False))
    assert health.ready == (503, {"ready": False, "phase": "degraded", "missing": ["a"]})


DOCS = Path(__file__).parents[2] / "docs"
HISTOGRAM_PARTS = ("_bucket", "_sum", "_count")


def interface_labels() -> dict[str, set[str]]:
    found = re.findall(r"(supervisor_\w+)(?:\{([\w,]+)\})?", INTERFACE)
    return {name: set(filter(None, labels.split(","))) for name, labels in found}


def used_metrics(text: str) -> dict[str, set[str]]:
    """Names in a text, without the suffixes of histograms, and the labels they are asked for."""
    found: dict[str, set[str]] = {}
    for name, selector in re.findall(r"\b(supervisor_[a-z_]+)(?:\{([^}]*)\})?", text):
        known = name
        for part in HISTOGRAM_PARTS:
            if name.removesuffix(part) in interface_labels():
                known = name.removesuffix(part)
        labels = re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", selector)
        found.setdefault(known, set()).update(labels)
    return found


@pytest.mark.parametrize("name", ["monitoring.md", "grafana.json"])
def test_documents_name_metrics_and_labels_that_exist(name: str) -> None:
    text = (DOCS / name).read_text()
    if name.endswith(".json"):
        panels = [panel for panel in json.loads(text)["panels"] if panel["type"] != "row"]
        text = "\n".join(target["expr"] for panel in panels for target in panel["targets"])
        assert len({(p["gridPos"]["x"], p["gridPos"]["y"]) for p in panels}) == len(panels)
    used, known = used_metrics(text), interface_labels()
    assert set(used) == set(known), "each metric is documented, none is made up"
    for metric, labels in used.items():
        assert labels <= known[metric] | {"instance", "le"}, metric


def test_alert_rules_can_be_read() -> None:
    text = (DOCS / "monitoring.md").read_text()
    (block,) = re.findall(r"```yaml\n(groups:.*?)```", text, re.DOTALL)
    names = re.findall(r"- alert: (\w+)\n +expr: (.+)", block)
    assert len(names) == len(set(names)) == block.count("- alert:")
    for alert, expression in names:
        assert expression.count("(") == expression.count(")"), alert
        assert set(re.findall(r"\$labels\.(\w+)", block)) <= {
            "instance", "alert", "service", "source", "reason",
        }  # fmt: skip
