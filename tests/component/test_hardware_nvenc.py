"""The NVENC probe with the real ffmpeg and with a stand-in for machines that have a GPU."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import anyio
import pytest

from supervisor.hardware.facts import GpuDevice, GpuFacts, NvencFacts
from supervisor.hardware.nvenc import load_nvenc, nvenc_identity, probe_nvenc, store_nvenc

pytestmark = pytest.mark.anyio
ENVIRON = {"PATH": os.environ.get("PATH", os.defpath)}


def stand_in(folder: Path, script: str) -> str:
    path = folder / "ffmpeg"
    path.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
    path.chmod(0o755)
    return str(path)


def alive(pids: Path) -> list[str]:
    return [p.name for p in pids.iterdir() if Path("/proc", p.name).exists()]


@pytest.mark.needs("ffmpeg")
async def test_the_real_ffmpeg_runs_and_gives_a_reason_per_failure() -> None:
    ffmpeg = shutil.which("ffmpeg")
    facts = await probe_nvenc(ffmpeg=ffmpeg, environ=ENVIRON, timeout_s=60)
    assert set(facts.codecs) == {"h264", "hevc", "av1"}
    if not all(facts.codecs.values()):
        assert facts.error
        assert "no answer within" not in facts.error
        assert "0x" not in facts.error


async def test_each_codec_is_judged_by_its_own_encode(tmp_path: Path) -> None:
    ffmpeg = stand_in(
        tmp_path,
        'case "$*" in *av1_nvenc*) echo "[av1_nvenc @ 0x55] No capable devices found" >&2; '
        "exit 1;; *_nvenc*) exit 0;; esac; exit 2",
    )
    facts = await probe_nvenc(ffmpeg=ffmpeg, environ=ENVIRON, timeout_s=60)
    assert facts.codecs == {"h264": True, "hevc": True, "av1": False}
    assert facts.error == "av1_nvenc: No capable devices found"
    assert facts.available


async def test_a_cause_that_all_share_is_named_once(tmp_path: Path) -> None:
    ffmpeg = stand_in(tmp_path, 'echo "Cannot load libcuda.so.1" >&2; echo "again" >&2; exit 1')
    facts = await probe_nvenc(ffmpeg=ffmpeg, environ=ENVIRON, timeout_s=60)
    assert (facts.available, facts.error) == (False, "Cannot load libcuda.so.1")


async def test_a_hung_encoder_is_killed_at_the_deadline(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    pids.mkdir()
    ffmpeg = stand_in(tmp_path, f'touch "{pids}/$$"; exec sleep 1000')
    with anyio.fail_after(60):
        facts = await probe_nvenc(ffmpeg=ffmpeg, environ=ENVIRON, timeout_s=1.0)
    assert not facts.available
    assert facts.error == "no answer within 1 s"
    assert not alive(pids)


async def test_without_ffmpeg() -> None:
    facts = await probe_nvenc(ffmpeg=None, environ=ENVIRON, timeout_s=1)
    assert facts == NvencFacts(error="ffmpeg is not installed")
    facts = await probe_nvenc(ffmpeg="/nonexistent/ffmpeg", environ=ENVIRON, timeout_s=5)
    assert not facts.available
    assert "cannot run ffmpeg" in (facts.error or "")


def test_a_success_is_kept_for_the_same_hardware_only(tmp_path: Path) -> None:
    ffmpeg = stand_in(tmp_path, "exit 0")
    gpu = GpuFacts((GpuDevice(0, "L4", 1, uuid="GPU-0"),), driver="570")
    same = nvenc_identity(ffmpeg, gpu)
    other = nvenc_identity(ffmpeg, GpuFacts(gpu.devices, driver="580"))
    store_nvenc(tmp_path / "state", same, NvencFacts(ffmpeg, {"h264": False}))
    assert load_nvenc(tmp_path / "state", same) is None
    works = NvencFacts(ffmpeg, {"h264": True, "av1": False})
    store_nvenc(tmp_path / "state", same, works)
    assert load_nvenc(tmp_path / "state", same) == works
    assert load_nvenc(tmp_path / "state", other) is None
    (tmp_path / "state" / "nvenc.json").write_text("{", encoding="utf-8")
    assert load_nvenc(tmp_path / "state", same) is None
