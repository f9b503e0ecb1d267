"""The plan as a whole: what users rely on, whatever the parts do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from supervisor.config.settings import Settings
from supervisor.errors import ConfigError
from supervisor.hardware.facts import HardwareFacts
from supervisor.plan.build import GeneratedSecrets, build_plan
from supervisor.plan.model import Plan
from supervisor.plan.render import plan_to_json, render_plan

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
