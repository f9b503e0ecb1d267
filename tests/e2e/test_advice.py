"""What ComfyUI prints becomes advice that can be followed."""

from __future__ import annotations

import json
import urllib.error
import urllib.request

from supervisor.demo.world import DemoWorld
from tests.e2e.pod import Json, Pod, edit, ready_pod


def post_prompt(pod: Pod, prompt: Json) -> int:
    """Hand ComfyUI a workflow; returns the answer's status."""
    url = f"http://127.0.0.1:{pod.world.comfyui_port}/prompt"
    body = json.dumps({"prompt": prompt}).encode()
    try:
        with urllib.request.urlopen(url, body, timeout=60) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


def codes(status: Json) -> list[str]:
    return [advice["code"] for advice in status["advice"]]


def test_missing_nodes_and_models(world: DemoWorld) -> None:
    edit(world, "comfyui.environment", DEMO_COMFYUI_PROMPT_EVERY_S="0")
    with ready_pod(world) as pod:
        save = {"class_type": "SaveImage", "inputs": {"images": ["1", 0]}}
        assert post_prompt(pod, {"1": {"class_type": "FaceDetailer", "inputs": {}}}) == 400
        for name in ("sd_xl_base_1.0.safetensors", "nobody-knows.safetensors"):
            loader = {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": name}}
            assert post_prompt(pod, {"1": loader, "2": save}) == 400
        status = pod.wait(
            lambda s: (
                sorted(codes(s)) == ["missing-model", "missing-node"]
                and all(
                    "nobody-knows" in a["message"] or "Face" in a["message"] for a in s["advice"]
                )
                and any((a["hint"] or "").startswith("fetch it: ") for a in s["advice"])
            ),
            "both are advised on",
        )
        model = next(a for a in status["advice"] if a["code"] == "missing-model")
        assert model["message"].endswith(": sd_xl_base_1.0.safetensors, nobody-knows.safetensors")
        command = model["hint"].removeprefix("fetch it: ")
        assert command.endswith("--to checkpoints/sd_xl_base_1.0.safetensors")
        page = pod.cli("status").stdout
        assert command in page
        assert "FaceDetailer" in page
        assert "docs/troubleshooting.md#missing-node" in page
        assert pod.stop() == 0
