"""A list of models that cannot be read is not an empty list."""

from __future__ import annotations

from supervisor.demo.world import MODELS, DemoWorld
from tests.e2e.pod import Json, Pod, edit, wait_for

BROKEN = '\n[[models.files]]\nurl = "https://example.com/files/anything.safetensors"\n'
REASON = "nothing tells which model folder it belongs in"

GIANT = f"""
[[models.files]]
url = "https://example.com/giant.safetensors"
to = "loras/giant.safetensors"
size_bytes = {10**14}
required = true
"""


def told(status: Json) -> str:
    return "\n".join(status["notes"])


def test_what_cannot_be_read_is_not_ready_until_a_reload_mends_it(world: DemoWorld) -> None:
    good = world.config.read_text().replace("bundles = []", 'bundles = ["zimge"]')
    world.config.write_text(good + BROKEN)
    with Pod(world) as pod:
        status = pod.wait(
            lambda s: s["missing"] == ["model list"] and REASON in told(s), "the fault is told"
        )
        assert status["phase"] == "degraded"
        assert status["services"]["comfyui"]["ready"]
        assert status["downloads"]["files"] == []
        assert f"models.files[{len(MODELS)}]" in told(status)
        assert "hint: say where it goes" in told(status)
        assert pod.ping() == 503
        code, names = pod.get("/readyz")
        assert code == 503
        assert "model list" in names
        assert REASON in pod.cli("status").stdout
        assert pod.cli("check", "--config", str(world.config)).returncode == 78

        refused = pod.cli("reload")
        assert refused.returncode == 1
        assert REASON in refused.stderr
        assert pod.ping() == 503

        world.config.write_text(good + GIANT)
        assert pod.cli("reload").returncode == 0
        status = pod.wait(lambda s: s["missing"] == ["loras/giant.safetensors"], "no disk takes it")
        assert "loras/giant.safetensors skipped: needs 100 TB" in told(status)
        assert REASON not in told(status)
        assert pod.ping() == 503

        world.config.write_text(good)
        mended = pod.cli("reload")
        assert mended.returncode == 0, mended.stderr
        status = pod.wait(
            lambda s: s["ready"] and s["downloads"]["done"] == len(MODELS), "all models are there"
        )
        # A misspelled bundle is told, and hinders nothing.
        assert "zimge is not fetched: there is no such bundle" in pod.text()
        assert "did you mean 'zimage'?" in told(status)
        assert "giant" not in told(status)
        assert pod.ping() == 200
        assert pod.stop() == 0


def test_nothing_required_means_ready_all_the_same(world: DemoWorld) -> None:
    world.config.write_text(world.config.read_text() + BROKEN)
    edit(world, "models", require="none")
    with Pod(world) as pod:
        status = pod.wait(lambda s: s["ready"] and REASON in told(s), "ready, and the fault told")
        assert status["missing"] == []
        wait_for(lambda: pod.ping() == 200, "/ping says so, too")
        assert pod.stop() == 0
