"""The status screen: everything that matters, nothing that breaks a terminal."""

from __future__ import annotations

import re

import pytest

from supervisor.cli.render import Paint, duration, fold, render_status, size
from supervisor.core.status import (
    Advice,
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
    LastExit,
    Phase,
    ServiceState,
    ServiceStatus,
    Snapshot,
    SyncStatus,
)

PLAIN = Paint(enabled=False)
FULL = Snapshot(
    phase=Phase.DEGRADED,
    version="1.2.3",
    config_file="/etc/supervisor/supervisor.toml",
    health={"host": "0.0.0.0", "port": 8000},
    gpu=GpuStatus(
        devices=(
            GpuDeviceStatus(
                0,
                "NVIDIA L4",
                memory_total_bytes=24 * 2**30,
                memory_used_bytes=2**30,
                utilization_ratio=0.5,
                temperature_celsius=61,
            ),
        ),
        tier="prosumer",
        mode="full",
        nvenc={"h264": True, "av1": False},
        ladder_step=1,
        ladder_reasons=("out of memory twice",),
    ),
    services={
        "comfyui": ServiceStatus(
            "comfyui",
            ServiceState.BACKOFF,
            pid=None,
            restarts=3,
            required=True,
            message="waits 4 s",
            last_exit=LastExit(1, None, "port taken", "2026-01-01T00:00:00Z"),
            hint="set comfyui.port",
        ),
        "jupyter": ServiceStatus(
            "jupyter", ServiceState.READY, ready=True, pid=77, url="http://127.0.0.1:8888"
        ),
    },
    downloads=DownloadsStatus(
        files=(
            DownloadFileStatus("a.safetensors", DownloadState.ACTIVE, 1000, 250),
            DownloadFileStatus("b", DownloadState.FAILED, error="gated", hint="set HF_TOKEN"),
            DownloadFileStatus("c", DownloadState.DONE, 10**9, 10**9),
        ),
        rate_bytes_per_s=2e8,
        eta_s=90,
    ),
    sync=SyncStatus(
        True, "s3://b/outputs", 2, 10, 1, last_error="refused", hint="look at R2_BUCKET"
    ),
    host=HostStatus(
        cpu_ratio=0.25,
        memory_used_bytes=2**31,
        disks={"/workspace": DiskStatus(10**10, 10**11)},
        silent_disks=("/mnt/nas",),
        service_memory_bytes={"jupyter": 2**30},
    ),
    idle=IdleStatus(True, 300, 3600, ()),
    alerts=(Alert("disk", "disk is 95 % full"),),
    advice=(
        Advice("x", "use SDPA", hint="--use-pytorch", count=4),
        Advice("y", "out of VRAM", count=2, last_seen="2026-01-01T10:20:30.000Z", link="docs/t#y"),
    ),
    notes=("a note",),
)


def render(snapshot: Snapshot, width: int = 100, paint: Paint = PLAIN) -> str:
    return render_status(snapshot.to_json(), paint, width)


def test_everything_that_matters_is_there() -> None:
    screen = render(FULL)
    for text in (
        "degraded", "1.2.3", "/etc/supervisor/supervisor.toml", "waits for comfyui",
        "NVIDIA L4", "1.0 GiB of 24.0 GiB", "50 %", "61 °C",
        "tier prosumer", "mode full", "nvenc h264", "VRAM ladder step 1", "out of memory twice",
        "! comfyui", "backoff", "3 restarts", "waits 4 s", "ended by exit 1: port taken",
        "hint: set comfyui.port", "pid 77", "http://127.0.0.1:8888",
        "1 of 3 files, 1.0 GB of 1.0 GB, 200.0 MB/s, 1m30s left, 1 failed",
        "failed b", "gated", "hint: set HF_TOKEN", "active 25 % a.safetensors",
        "s3://b/outputs  10 stored, 2 pending, 1 failed", "refused", "look at R2_BUCKET",
        "cpu 25 %", "/workspace 10.0 GB free", "5m00s of 1h00m", "disk is 95 % full",
        "/mnt/nas does not answer", "pid 77       1.0 GiB", "use SDPA (4 times)",
        "--use-pytorch", "a note",
        "out of VRAM (2 times, last at 10:20 UTC)", "see docs/t#y",
    ):  # fmt: skip
        assert text in screen
    assert "av1" not in screen


def test_addresses_with_tokens_are_shown_whole() -> None:
    page = f"https://pod-8000.proxy.runpod.net/?token={'t' * 40}"
    status = {**FULL.to_json(), "access": {"page": page}}
    assert f"page       {page}" in render_status(status, PLAIN, 40).splitlines()


def test_a_program_that_never_ran_did_not_end() -> None:
    last = LastExit(None, None, "spawn-failed", "2026-01-01T00:00:00Z")
    service = ServiceStatus("x", ServiceState.BACKOFF, last_exit=last)
    assert "did not start: spawn-failed" in render(Snapshot(services={"x": service}))


def test_this_boot_is_told_beside_the_usual_one() -> None:
    boot = BootStatus(spans_s={"launch": 0.2, "ready": 31.0}, median_s={"ready": 12.0})
    assert "ready after 31s (usually 12s)" in render(Snapshot(phase=Phase.READY, boot=boot))
    fast = BootStatus(spans_s={"ready": 0.52}, median_s={"ready": 0.61})
    assert "ready after 0.5s (usually 0.6s)" in render(Snapshot(phase=Phase.READY, boot=fast))


def test_an_empty_snapshot_renders() -> None:
    assert render(Snapshot()).startswith("pod        booting")


def test_rescue_shows_every_line_of_the_errors() -> None:
    screen = render(Snapshot(phase=Phase.RESCUE, rescue=("health.port: bad\n  hint: 8000",)))
    assert "error      health.port: bad" in screen
    assert "hint: 8000" in screen


@pytest.mark.parametrize("width", [20, 40, 59, 80, 200])
def test_no_line_is_wider_than_the_terminal(width: int) -> None:
    for paint in (PLAIN, Paint(enabled=True)):
        for line in render(FULL, width, paint).splitlines():
            assert len(re.sub(r"\x1b\[\d+m", "", line)) <= width


def test_colour_only_when_allowed() -> None:
    assert "\x1b" not in render(FULL)
    assert "\x1b[33mdegraded" in render(FULL, paint=Paint(enabled=True))


def test_foreign_text_cannot_steer_the_terminal() -> None:
    evil = ServiceStatus("x", message="\x1b[2J\x07\rboo", hint="a\nb")
    screen = render(Snapshot(services={"x": evil}))
    assert "\x1b" not in screen
    assert "\x07" not in screen
    assert "hint: a b" in screen


def test_long_lines_are_folded_and_nothing_is_left_out() -> None:
    assert fold("abc", 3) == "abc"
    assert fold("    one two three", 12) == "    one two\n    three"
    assert fold("error      one two three", 20) == "error      one two\n          three"
    assert fold("abcdefgh", 3) == "abc\n de\n fg\n h"
    painted = "\x1b[31mabcd\x1b[0m"
    assert fold(painted, 4) == painted
    assert fold(painted, 3) == "\x1b[31mabc\n d\x1b[0m"


@pytest.mark.parametrize("width", [20, 40])
def test_a_narrow_screen_says_as_much_as_a_wide_one(width: int) -> None:
    narrow, wide = ("".join(render(FULL, columns).split()) for columns in (width, 500))
    assert narrow == wide.replace("pid77", "")  # the one column that has no room


def test_units() -> None:
    assert [size(n) for n in (0, 999, 1000, 1.5e9, 2e13)] == [
        "0 B", "999 B", "1.0 kB", "1.5 GB", "20.0 TB",
    ]  # fmt: skip
    assert [duration(s) for s in (5, 65, 700, 3700, 90000)] == [
        "5s", "1m05s", "11m", "1h01m", "1d1h",
    ]  # fmt: skip
