"""What services inherit and what is tuned."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from supervisor.config.secrets import is_secret_name
from supervisor.config.settings import Settings
from supervisor.hardware.facts import HardwareFacts, NvencFacts
from supervisor.plan.env_policy import (
    THREAD_VARIABLES,
    EnvironmentPlan,
    handed_over,
    plan_environment,
)
from tests.unit.plan_machines import CARDS, COMFYUI, POD, machine

FACTS = machine(CARDS["rtx-5090-32607"], COMFYUI["0.33.0-dynamic-vram"])


def environment(
    environ: dict[str, str] | None = None, facts: HardwareFacts = FACTS, tuning: Any = None
) -> EnvironmentPlan:
    settings = Settings.model_validate({"tuning": tuning or {}})
    return plan_environment(settings, facts, environ or {}, workspace=Path("/workspace"))


def test_everything_is_tuned_with_a_reason() -> None:
    plan = environment()
    assert plan.base["LD_PRELOAD"] == str(POD.tcmalloc)
    assert {plan.base[name] for name in THREAD_VARIABLES} == {"12"}  # 12.8 cores of quota
    assert plan.base["TORCH_CUDA_ARCH_LIST"] == "12.0"
    assert plan.base["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"
    assert plan.base["HF_HOME"] == "/workspace/.cache/huggingface"
    assert plan.base["PYTORCH_CUDA_ALLOC_CONF"]
    assert set(plan.base) == set(plan.reasons)
    assert all(plan.reasons.values())


@pytest.mark.parametrize(
    ("switch", "gone"),
    [
        ("tcmalloc", {"LD_PRELOAD"}),
        ("threads", set(THREAD_VARIABLES)),
        ("allocator", {"PYTORCH_CUDA_ALLOC_CONF"}),
        ("cuda", {"CUDA_DEVICE_ORDER", "TORCH_CUDA_ARCH_LIST"}),
        ("hf_cache", {"HF_HOME"}),
    ],
)
def test_each_part_can_be_turned_off(switch: str, gone: set[str]) -> None:
    assert set(environment().base) - set(environment(tuning={switch: False}).base) == gone


def test_what_the_container_was_started_with_is_kept() -> None:
    plan = environment({"OMP_NUM_THREADS": "3", "LD_PRELOAD": "/lib/libjemalloc.so.2"})
    assert plan.base["OMP_NUM_THREADS"] == "3"
    assert plan.base["LD_PRELOAD"] == "/lib/libjemalloc.so.2"
    assert "OMP_NUM_THREADS" not in plan.reasons
    assert "OMP_NUM_THREADS=3 was set outside and is kept" in plan.notes


def test_a_small_quota_still_gives_one_thread() -> None:
    facts = replace(FACTS, host=replace(POD, cpu_limit=0.5))
    assert environment(facts=facts).base["OMP_NUM_THREADS"] == "1"


def test_nothing_for_cuda_without_a_gpu() -> None:
    plan = environment(facts=machine(None, None))
    assert not {"TORCH_CUDA_ARCH_LIST", "PYTORCH_CUDA_ALLOC_CONF"} & set(plan.base)
    assert plan.base["SUPERVISOR_NVENC"] == "0"


def test_different_gpus_are_all_in_the_arch_list() -> None:
    cards = [CARDS["l4-23034"], CARDS["a100-81920"], CARDS["l4-23034"]]
    gpu = replace(FACTS.gpu, devices=tuple(card for card in cards if card))
    plan = environment(facts=replace(FACTS, gpu=gpu))
    assert plan.base["TORCH_CUDA_ARCH_LIST"] == "8.0;8.9"


def test_nvenc_is_told_when_it_is_known() -> None:
    assert "SUPERVISOR_NVENC" not in environment().base
    works = replace(FACTS, nvenc=NvencFacts("/usr/bin/ffmpeg", {"h264": True, "av1": False}))
    assert environment(facts=works).base["SUPERVISOR_NVENC"] == "1"
    broken = replace(FACTS, nvenc=NvencFacts("/usr/bin/ffmpeg", {"h264": False}, "no"))
    assert environment(facts=broken).base["SUPERVISOR_NVENC"] == "0"


@pytest.mark.parametrize(
    "name",
    [
        "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "CIVITAI_API_KEY", "RUNPOD_API_KEY", "MY_SECRET",
        "AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID", "AWS_SESSION_TOKEN", "DB_PASSWORD",
        "OPENAI_APIKEY", "GITHUB_TOKEN", "SSH_PRIVATE_KEY", "PGPASSWORD", "OPENAI_KEY", "DB_PASS",
        "NGROK_AUTHTOKEN", "TS_AUTHKEY", "GITHUB_PAT", "SLACK_WEBHOOK_URL", "DISCORD_WEBHOOK",
        "REDIS_AUTH", "SENTRY_DSN", "GOOGLE_CREDS", "ENCRYPTION_KEY", "HF_TOKEN_READ",
    ],
)  # fmt: skip
def test_names_of_secrets(name: str) -> None:
    assert is_secret_name(name)


@pytest.mark.parametrize(
    "name",
    [
        "PATH", "TOKENIZERS_PARALLELISM", "PUBLIC_KEY", "KEYBOARD", "COMPASS", "HF_ENDPOINT",
        "RUNPOD_POD_ID", "PASSENGER_ROOT", "SECRETARY", "PWD", "OLDPWD", "SSH_AUTH_SOCK",
        "SSH_PUBLIC_KEY", "MAX_TOKENS", "GIT_ASKPASS", "PATTERNS", "XAUTHORITY",
    ],
)  # fmt: skip
def test_names_that_only_look_like_secrets(name: str) -> None:
    assert not is_secret_name(name)


def test_names_that_the_configuration_knows_are_removed_too() -> None:
    environ = {"WEIRD": "secret", "HOME": "/root", "R2_BUCKET": "b", "SUPERVISOR_CONFIG": "c"}
    environ["HF_TOKEN_FILE"] = "/run/secrets/hf"
    plan = plan_environment(Settings(), HardwareFacts(), environ, secrets={"WEIRD"})
    assert not {"WEIRD", "R2_BUCKET", "SUPERVISOR_CONFIG", "HF_TOKEN_FILE"} & set(plan.base)
    assert plan.base["HOME"] == "/root"


def test_secrets_are_handed_over_by_name_from_either_place() -> None:
    settings = Settings.model_validate({"models": {"civitai_token": "from-toml"}})
    names = ("HF_TOKEN", "CIVITAI_API_KEY", "NOWHERE")
    found, missing = handed_over(names, {"HF_TOKEN": "from-env"}, settings)
    assert found == {"HF_TOKEN": "from-env", "CIVITAI_API_KEY": "from-toml"}
    assert missing == ("NOWHERE",)
