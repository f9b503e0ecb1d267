"""Every rule against logs as people posted them, and what becomes of sightings."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from string import Formatter

import pytest

from supervisor.monitor.diagnosis import HOUR_S, MOST_SUBJECTS, SAME_TROUBLE_S, Diagnosis
from supervisor.monitor.rulebook import LINE_LIMIT, Context, Rule, Rulebook, load_rules

SAMPLES = Path(__file__).parents[1] / "data" / "diagnosis"
BOOK = load_rules()
CARD = Context(
    gpu="NVIDIA A10",
    vram_gb=24,
    capability="8.6",
    driver="570.86.15",
    cuda="12.8",
    torch="2.7.1+cu128",
    flags=("--listen", "--lowvram"),
)
PLAIN = replace(CARD, flags=("--listen",))
CONTEXT_WORDS = {"service", "gpu", "vram_gb", "capability", "driver", "cuda", "torch", "flags"}

# Sample → the words that the advice must hold.
EXPECTED = {
    "black-output": ["black"],
    "compiler-missing": ["C compiler"],
    "cuda-oom": ["out of VRAM"],
    "disk-full": ["disk is full", "comfyui"],
    "driver-too-old": ["570.86.15", "12.8", "2.7.1+cu128"],
    "dynamic-vram-off": ["2.7.1+cu128", "2.8"],
    "ffmpeg-missing": ["ffmpeg"],
    "frontend-missing": ["comfyui-frontend-package", "requirements.txt"],
    "gated-model": ["HF_TOKEN"],
    "library-missing": ["libOpenGL.so.0, libGL.so.1", "libgl1"],
    "lora-mismatch": ["LoRA"],
    "manager-security": ["normal or below"],
    "missing-model": [
        "instantid-controlnet.safetensors, v1-5-pruned-emaonly-fp16.safetensors",
        "--pull",
    ],
    "missing-node": ["FaceDetailer, RMBG"],
    "model-damaged": ["verify --repair"],
    "model-damaged-newer": ["verify --repair"],
    "model-damaged-pickle": ["verify --repair"],
    "model-unknown": ["my style.safetensors"],
    "module-missing": ["yaml"],
    "no-gpu": ["no GPU"],
    "no-kernel-image": ["NVIDIA A10", "8.6", "2.7.1+cu128"],
    "node-import-failed": ["ComfyUI-VideoHelperSuite, comfyui-impact-subpack"],
    "numpy-abi": ["NumPy"],
    "partial-load": ["19363 MB", "24 GB"],
    "partial-load-forced": ["--lowvram", "24 GB"],
    "port-taken": ["port is taken"],
    "ram-full": ["RAM (not VRAM)"],
    "result-too-large": ["FORCE_S3_VIDEO"],
    "sage-attention": ["NVIDIA A10", "8.6", "--use-pytorch-cross-attention"],
    "sage-attention-failing": ["SM80 kernel is not available"],
    "sage-attention-missing": ["--use-sage-attention", "sageattention"],
    "sage-kernel-missing": ["NVIDIA A10"],
    "shapes-mismatch": ["text encoder"],
    "torch-abi": ["flash_attn_2_cuda.cpython-312-x86_64-linux-gnu.so"],
    "torch-mismatch": ["2.7.1+cu128"],
    "vae-tiled": ["tiles"],
    "vram-taken": ["12738.98 MB"],
    "websocket-timeout": ["websocket"],
    "xformers-mismatch": ["pip uninstall xformers"],
}  # fmt: skip


def read(name: str) -> str:
    source, _, text = (SAMPLES / f"{name}.log").read_text(encoding="utf-8").partition("\n")
    assert source.startswith("# "), "a sample says where it is from"
    return text


def look(
    diagnosis: Diagnosis,
    text: str,
    *,
    now_s: float = 0.0,
    run: int = 1,
    context: Context = PLAIN,
    service: str = "comfyui",
) -> list[str]:
    found = diagnosis.examine(text, service=service, run=run, now_s=now_s, context=context)
    return [sighting.rule.code for sighting in found]


@pytest.mark.parametrize("name", EXPECTED)
def test_posted_logs_are_understood(name: str) -> None:
    diagnosis = Diagnosis(BOOK)
    context = CARD if name == "partial-load-forced" else PLAIN
    look(diagnosis, read(name), context=context)
    (advice,) = diagnosis.advice()
    assert name.startswith(advice.code)
    told = f"{advice.message} {advice.hint}"
    for word in EXPECTED[name]:
        assert word in told
    assert "unknown" not in told
    assert advice.link == f"docs/troubleshooting.md#{advice.code}"
    assert advice.service == "comfyui"


# What the logs of deaths (tests/unit/data/logs, most of them of real programs) give away.
DEATHS = {
    "comfyui-assets-in-use": ["database-locked"],
    "comfyui-cuda-allocation": ["cuda-oom"],
    "comfyui-cuda-allocation-short": ["cuda-oom"],
    "comfyui-cuda-assert": ["cuda-fault"],
    "comfyui-cuda-error": ["cuda-fault"],
    "comfyui-cuda-oom": ["cuda-oom"],
    "comfyui-cuda-oom-2023": ["cuda-oom"],
    "comfyui-cuda-oom-2024": ["cuda-oom"],
    "comfyui-cuda-oom-driver": ["cuda-oom"],
    "comfyui-database-in-use": ["database-locked"],
    "comfyui-database-locked": ["database-locked"],
    "comfyui-disk-full": ["disk-full"],
    "comfyui-disk-full-database": ["disk-full"],
    "comfyui-driver-too-old": ["driver-too-old"],
    "comfyui-host-memory": ["ram-full", "torch-mismatch"],
    "comfyui-missing-module": ["module-missing"],
    "comfyui-no-driver": ["no-gpu"],
    "comfyui-no-kernel": ["no-kernel-image"],
    "comfyui-port-taken": ["own-nodes-failed", "port-taken", "torch-mismatch"],
    "comfyui-segfault": ["torch-mismatch"],
    "sshd-port-taken": ["port-taken"],
}


def test_logs_of_deaths_are_understood_too() -> None:
    folder = Path(__file__).parent / "data" / "logs"
    found = {}
    for path in sorted(folder.glob("*.log")):
        diagnosis = Diagnosis(BOOK)
        service = path.stem.split("-")[0]
        look(diagnosis, path.read_text(encoding="utf-8"), service=service)
        if codes := sorted(advice.code for advice in diagnosis.advice()):
            found[path.stem] = codes
    assert found == DEATHS


def test_a_log_without_trouble_gives_no_advice() -> None:
    for context in (PLAIN, Context()):
        assert look(Diagnosis(BOOK), read("healthy"), context=context) == []


def test_a_real_session_with_many_troubles() -> None:
    """ComfyUI as it ran here: each trouble is told once, and nothing that was not there."""
    diagnosis = Diagnosis(BOOK)
    look(diagnosis, read("real-session"), context=Context(torch="2.15.0+cu132"))
    told = {advice.code: advice.message for advice in diagnosis.advice()}
    assert sorted(told) == [
        "cuda-oom",
        "disk-full",
        "library-missing",
        "missing-model",
        "missing-node",
        "model-damaged",
        "model-unknown",
        "module-missing",
        "no-gpu",
        "node-import-failed",
        "own-nodes-failed",
        "pickle-refused",
        "ram-full",
        "shapes-mismatch",
        "torch-mismatch",
    ]
    for code, subject in (
        ("library-missing", "libGL.so.77"),
        ("missing-model", "sd_xl_base_1.0.safetensors, nobody.safetensors"),
        ("missing-node", "FaceDetailer"),
        ("model-unknown", "unknown.safetensors"),
        ("module-missing", "a_module_that_is_not_there"),
        ("node-import-failed", "broken_node"),
    ):
        assert told[code].endswith(f": {subject}"), "and not what a line of source says"


def test_every_sample_is_used() -> None:
    used = {*EXPECTED, "healthy", "real-session"}
    assert {path.stem for path in SAMPLES.glob("*.log")} == used


@pytest.mark.parametrize("rule", BOOK.rules, ids=lambda rule: str(rule.code))
def test_a_rule_is_complete(rule: Rule) -> None:
    service = rule.services[0] if rule.services else "any"
    context = replace(CARD, flags=rule.when.flags)
    hit = BOOK.find(rule.example, service, context)
    assert hit is not None
    assert hit[0] is rule
    assert BOOK.suspicious(rule.example, 5), "one of its words is in the example"
    assert rule.severity in ("info", "warning", "error")
    assert rule.lasts in ("run", "hour")
    assert rule.source.startswith("https://")
    groups = {name for pattern in rule.patterns for name in pattern.groupindex}
    assert rule.subject is None or rule.subject in groups
    known = groups | CONTEXT_WORDS | ({"fetch"} if rule.lookup else set())
    for template in (rule.message, rule.hint, rule.hint_unknown):
        assert {name for _, name, _, _ in Formatter().parse(template) if name} <= known
    assert bool(rule.hint_unknown) == (rule.lookup is not None)
    diagnosis = Diagnosis(BOOK)
    look(diagnosis, rule.example, context=context, service=service)
    (advice,) = diagnosis.advice()
    assert "{" not in f"{advice.message}{(advice.hint or '').replace('{ nofile', '')}"


def test_facts_decide_whether_a_rule_fits() -> None:
    line = "loaded partially; 900.00 MB usable, 800.00 MB loaded, 9000.00 MB offloaded"
    small = replace(PLAIN, vram_gb=12)
    assert look(Diagnosis(BOOK), line) == ["partial-load"]
    assert look(Diagnosis(BOOK), line, context=CARD) == ["partial-load-forced"]
    assert look(Diagnosis(BOOK), line, context=small) == []
    assert look(Diagnosis(BOOK), line, context=Context()) == []
    sage = "Patching comfy attention to use sageattn"
    assert look(Diagnosis(BOOK), sage) == ["sage-attention"]
    assert look(Diagnosis(BOOK), sage, context=replace(PLAIN, capability="8.9")) == []
    assert look(Diagnosis(BOOK), sage, context=replace(PLAIN, capability="9.0")) != []
    assert look(Diagnosis(BOOK), sage, context=Context()) == []


def test_rules_of_comfyui_are_not_for_others() -> None:
    line = "Value not in list: ckpt_name: 'x.safetensors' not in []"
    assert look(Diagnosis(BOOK), line, service="xtts") == []
    assert look(Diagnosis(BOOK), "No space left on device", service="xtts") == ["disk-full"]


def test_the_lines_of_one_error_count_once() -> None:
    diagnosis = Diagnosis(BOOK)
    assert look(diagnosis, read("cuda-oom")) == ["cuda-oom"]
    assert look(diagnosis, read("cuda-oom"), now_s=SAME_TROUBLE_S / 2) == []
    assert look(diagnosis, read("cuda-oom"), now_s=SAME_TROUBLE_S + 1) == ["cuda-oom"]
    (advice,) = diagnosis.advice()
    assert advice.count == 2
    assert advice.since == "1970-01-01T00:00:00.000Z"
    assert advice.last_seen == "1970-01-01T00:00:03.000Z"


def test_names_are_collected_and_only_some_shown() -> None:
    diagnosis = Diagnosis(BOOK)
    for number in range(MOST_SUBJECTS * 2):
        look(diagnosis, f"Cannot execute because node Node{number} does not exist.")
    (advice,) = diagnosis.advice()
    assert "Node0, Node1, Node2, Node3 and 16 more" in advice.message
    assert advice.count == MOST_SUBJECTS * 2


def test_each_sighting_keeps_its_own_words() -> None:
    diagnosis = Diagnosis(BOOK)
    found = diagnosis.examine(
        read("missing-model"), service="comfyui", run=1, now_s=0.0, context=PLAIN
    )
    assert [(s.subject, s.groups["model"]) for s in found] == [
        ("instantid-controlnet.safetensors", "instantid-controlnet.safetensors"),
        ("v1-5-pruned-emaonly-fp16.safetensors", "v1-5-pruned-emaonly-fp16.safetensors"),
    ]


def test_commands_that_fetch_are_shown() -> None:
    diagnosis = Diagnosis(BOOK)
    look(diagnosis, read("missing-model"))
    diagnosis.remedy("missing-model", "comfyui", "instantid-controlnet.safetensors", "FETCH IT")
    diagnosis.remedy("missing-model", "nobody", "x", "never shown")
    (advice,) = diagnosis.advice()
    assert advice.hint == "fetch it: FETCH IT"


def test_what_is_mended_by_a_new_run_goes_when_that_is_ready() -> None:
    diagnosis = Diagnosis(BOOK)
    look(diagnosis, read("xformers-mismatch"), run=1)
    look(diagnosis, read("cuda-oom"), run=1)
    assert diagnosis.forget(1.0, {}) == []  # it crashes and is not ready again
    assert diagnosis.forget(1.0, {"comfyui": 1}) == []
    gone = diagnosis.forget(1.0, {"comfyui": 2})
    assert [advice.code for advice in gone] == ["xformers-mismatch"]
    assert [advice.code for advice in diagnosis.advice()] == ["cuda-oom"]


def test_what_a_new_run_shows_again_stays() -> None:
    diagnosis = Diagnosis(BOOK)
    look(diagnosis, read("xformers-mismatch"), run=1)
    look(diagnosis, read("xformers-mismatch"), run=2, now_s=60.0)
    assert diagnosis.forget(61.0, {"comfyui": 2}) == []
    assert diagnosis.advice()[0].count == 2


def test_advice_ages() -> None:
    diagnosis = Diagnosis(BOOK)
    look(diagnosis, read("cuda-oom"))
    assert diagnosis.forget(HOUR_S - 1, {"comfyui": 9}) == []
    assert [advice.code for advice in diagnosis.forget(HOUR_S + 1, {})] == ["cuda-oom"]
    assert diagnosis.advice() == ()


def test_the_worst_comes_first() -> None:
    diagnosis = Diagnosis(BOOK)
    for name in ("lora-mismatch", "missing-node", "disk-full"):
        look(diagnosis, read(name))
    assert [advice.severity for advice in diagnosis.advice()] == ["error", "warning", "info"]


def test_a_flood_of_errors_is_bounded() -> None:
    diagnosis = Diagnosis(BOOK)
    flood = "\n".join(f"ModuleNotFoundError: No module named 'm{n}'" for n in range(5000))
    found = diagnosis.examine(flood, service="x", run=1, now_s=0.0, context=PLAIN)
    assert len(found) == 200
    assert sum(sighting.fresh for sighting in found) == MOST_SUBJECTS, "events are bounded too"
    (advice,) = diagnosis.advice()
    assert len(advice.message) < 500


def test_hostile_lines_are_harmless() -> None:
    diagnosis = Diagnosis(BOOK)
    long = "Value not in list: ckpt_name: '" + "a" * 1_000_000
    assert look(diagnosis, long) == []
    hostile = "Cannot execute because node {gpu.__class__}\x1b[31m\r%s does not exist"
    look(diagnosis, hostile)
    (advice,) = diagnosis.advice()
    assert "{gpu.__class__}" in advice.message
    assert advice.message.isprintable()
    padded = "x" * LINE_LIMIT + "No space left on device"
    assert look(diagnosis, padded) == []


def test_a_rule_with_a_mistake_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "rules.toml"
    for text in ('[a]\ncode_ = "x"', '[a]\ntitle = "x"', '[a]\npatterns = ["("]'):
        path.write_text(text)
        with pytest.raises(ValueError, match=r"^a: "):
            load_rules(path)


def test_no_rules_find_nothing() -> None:
    assert look(Diagnosis(Rulebook([])), read("cuda-oom")) == []
