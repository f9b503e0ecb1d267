"""The plan as a whole: what users rely on, whatever the parts do."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from supervisor.config.settings import Settings
from supervisor.errors import ConfigError
from supervisor.hardware.facts import HardwareFacts
from supervisor.plan.build import GeneratedSecrets, build_plan
from supervisor.plan.model import Plan
from supervisor.plan.render import plan_to_json, render_plan
from supervisor.plan.storage import paths_to_probe
from tests.unit.plan_machines import CARDS, COMFYUI, machine, mount

GENERATED = GeneratedSecrets("jupyter-generated-token", "filebrowser-generated", "health-generated")


def plan(environ: dict[str, str] | None = None, **sections: Any) -> Plan:
    return build_plan(
        settings=Settings.model_validate(sections),
        facts=HardwareFacts(programs={"jupyter": "/usr/bin/jupyter", "filebrowser": None}),
        environ=environ or {},
        generated=GENERATED,
    )


def test_no_secret_is_in_the_rendered_plan() -> None:
    decided = plan(
        {"HF_TOKEN": "hf-secret", "R2_SECRET_ACCESS_KEY": "r2-secret"},
        jupyter={"enabled": True},
        filebrowser={"enabled": True},
        services={"api": {"command": ["api"], "env_pass": ["HF_TOKEN"]}},
    )
    text = render_plan(decided) + json.dumps(plan_to_json(decided))
    for secret in ("hf-secret", "r2-secret", GENERATED.jupyter_token, "filebrowser-generated"):
        assert secret not in text
    api = next(s for s in plan_to_json(decided)["services"] if s["name"] == "api")
    assert api["environment"]["HF_TOKEN"] == "***"


def test_services_inherit_no_secret() -> None:
    decided = plan(
        {
            "PATH": "/bin",
            "HF_TOKEN": "x",
            "CIVITAI_API_KEY": "x",
            "R2_BUCKET": "x",
            "RUNPOD_API_KEY": "x",
            "AWS_SECRET_ACCESS_KEY": "x",
            "JUPYTER_PASSWORD": "x",
            "HF_TOKEN_FILE": "/run/secrets/hf",
            "SUPERVISOR_LOG": "x",
            "TOKENIZERS_PARALLELISM": "false",
            "RUNPOD_POD_ID": "pod",
        }
    )
    assert set(decided.base_environment) >= {"PATH", "TOKENIZERS_PARALLELISM", "RUNPOD_POD_ID"}
    assert "x" not in decided.base_environment.values()
    assert "HF_TOKEN_FILE" not in decided.base_environment


def test_unknown_dependency_names_the_nearest_and_a_cycle_is_shown_as_a_path() -> None:
    with pytest.raises(ConfigError) as caught:
        plan(
            services={
                "a": {"command": ["a"], "after": ["b"]},
                "b": {"command": ["b"], "after": ["a"]},
                "c": {"command": ["c"], "after": ["comfiui"]},
            }
        )
    problems = {problem.value: problem for problem in caught.value.problems}
    assert problems["comfiui"].hint == "did you mean comfyui?"
    assert {"a -> b -> a", "b -> a -> b"} & set(problems)


def test_a_service_after_a_disabled_one_is_shown_and_not_lost() -> None:
    decided = plan(
        comfyui={"enabled": False},
        services={"xtts": {"command": ["xtts"], "after": ["comfyui:started"]}},
    )
    (spec,) = decided.services
    assert spec.unavailable == "Cannot start xtts: it comes after comfyui, which does not run"
    assert spec.hint


def test_sync_into_the_watched_folder_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"sync\.folder"):
        plan(sync={"target": "folder", "folder": "/opt/ComfyUI/output/copies"})


def test_sync_is_on_when_a_target_is_configured() -> None:
    assert not plan().sync.enabled
    assert plan(sync={"folder": "/backup"}).sync.folder == Path("/backup")
    keys = {"access_key_id": "k", "secret_access_key": "s"}
    bucket = plan(sync={"target": "s3", **keys}).sync
    assert (bucket.enabled, bucket.target) == (True, "s3://runpod/outputs")


def test_lowvram_of_the_user_is_passed_and_judged() -> None:
    def notes(card: str, version: str, args: str) -> tuple[str, ...]:
        settings = Settings.model_validate({"comfyui": {"args": args}})
        facts = machine(CARDS[card], COMFYUI[version])
        decided = build_plan(settings=settings, facts=facts, environ={}, generated=GENERATED)
        assert "--lowvram" in decided.services[0].command
        return tuple(note for note in decided.notes if "--lowvram" in note)

    assert "does nothing" in notes("l4-23034", "0.33.0-dynamic-vram", "--lowvram")[0]
    assert "slows a 24 GB card down" in notes("l4-23034", "0.3.10-normalvram", "--lowvram")[0]
    assert notes("rtx-3070-8gb", "0.3.10-normalvram", "--lowvram") == ()
    assert notes("rtx-3070-8gb", "0.33.0-dynamic-vram", "--disable-dynamic-vram --lowvram") == ()


def test_the_ram_cache_is_told_what_the_container_may_use() -> None:
    def cache_ram(version: str) -> list[str]:
        facts = machine(CARDS["l4-23034"], COMFYUI[version])
        decided = build_plan(settings=Settings(), facts=facts, environ={}, generated=GENERATED)
        command = decided.services[0].command
        if "--cache-ram" not in command:
            return []
        start = command.index("--cache-ram") + 1
        return [w for w in command[start : start + 2] if not w.startswith("--")]

    assert cache_ram("0.33.0-dynamic-vram") == ["5.0"]  # a tenth of 50 GB
    # It counts 300 GB of the host as free, of which 250 are not the container's.
    assert cache_ram("0.30.0-host-ram") == ["255.0", "300.0"]
    assert cache_ram("0.3.76-no-dynamic-vram") == []
    assert cache_ram("0.3.10-normalvram") == []


def test_a_pod_that_came_back_without_its_gpu_is_told() -> None:
    (note,) = plan({"RUNPOD_POD_ID": "p", "RUNPOD_GPU_COUNT": "0"}).notes
    assert "came up with no GPU" in note
    (note,) = plan({"RUNPOD_POD_ID": "p", "RUNPOD_GPU_COUNT": "1"}).notes
    assert "none can be used" in note


def test_an_output_folder_that_cannot_be_written_is_noted() -> None:
    output = Path("/opt/ComfyUI/output")
    assert output in paths_to_probe(Settings())
    read_only = replace(mount(str(output), point="/", kind="overlay"), writable=False)
    host = replace(HardwareFacts().host, mounts={output: read_only})
    decided = build_plan(
        settings=Settings(),
        facts=HardwareFacts(host=host),
        environ={},
        generated=GENERATED,
    )
    assert f"{output} cannot be written" in decided.notes
