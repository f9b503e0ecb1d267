"""One pod for the tests that only look."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from supervisor.demo.world import DemoWorld, demo_world
from tests.e2e.pod import Pod, edit, ready_pod

SECRETS = {
    "HF_TOKEN": "hf_sentinelHF0000000000000000000001",
    "CIVITAI_API_KEY": "sentinelcivitai0000000000000000002",
    "RUNPOD_API_KEY": "rpa_sentinelRUNPOD00000000000000003",
    "R2_ACCESS_KEY_ID": "sentinelr2keyid000000000000000004",
    "R2_SECRET_ACCESS_KEY": "sentinelr2secret0000000000000005",
    "BUCKET_ACCESS_KEY_ID": "sentinelbucketid0000000000000006",
    "BUCKET_SECRET_ACCESS_KEY": "sentinelbucketsecret000000000007",
    "NGROK_AUTHTOKEN": "sentinelngrok00000000000000000008",
    "GITHUB_PAT": "sentinelpat0000000000000000000009",
}
"""What must never be seen, by the names of the variables that hand it over."""


@pytest.fixture
def world() -> Iterator[DemoWorld]:
    """A world without JupyterLab, which takes seconds to start."""
    with demo_world(environ=os.environ, port=0, prompt_every_s=0.3) as made:
        edit(made, "jupyter", enabled=False)
        yield made


@pytest.fixture(scope="module")
def pod() -> Iterator[Pod]:
    """A ready pod with JupyterLab, two services of its own, and secrets."""
    with demo_world(environ=os.environ, port=0, prompt_every_s=0.5) as made:
        sleeper = ["sh", "-c", "echo up; exec sleep 3600"]
        edit(made, "services.plain", command=sleeper)
        edit(made, "services.trusted", command=sleeper, env_pass=["HF_TOKEN"], after=["comfyui"])
        with ready_pod(made, environment=SECRETS) as running:
            running.wait(
                lambda s: (
                    all(service["ready"] for service in s["services"].values())
                    and s["downloads"]["done"] == s["downloads"]["total"] > 0
                    and s["sync"]["uploaded"]
                ),
                "everything is up",
            )
            yield running
