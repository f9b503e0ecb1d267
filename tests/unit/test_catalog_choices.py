"""What the variables of older images select, from the environment to the requests."""

from __future__ import annotations

from pathlib import Path

import pytest

from supervisor.config.load import load_settings
from supervisor.models.catalog import Catalog, load_catalog
from supervisor.models.planning import ModelPlan, plan_models

MODELS = Path("/models")
NOTHING = {"ENABLE_VIBEVOICE": "false", "ENABLE_CONTROLNET": "false", "WAN_720P": "false"}
WAN = "vae/wan_2.1_vae.safetensors", "text_encoders/umt5_xxl_fp8_e4m3fn_scaled.safetensors"
DM = "diffusion_models"

# (variables, files that must be among the requests). What the older scripts meant by them.
MEANT: list[tuple[dict[str, str], tuple[str, ...]]] = [
    (
        {"ENABLE_VIBEVOICE": "true"},
        ("vibevoice/VibeVoice-Large/config.json", "vibevoice/tokenizer/vocab.json"),
    ),
    (
        {"ENABLE_VIBEVOICE": "true", "VIBEVOICE_MODEL": "1.5B"},
        ("vibevoice/VibeVoice-1.5B/model-00003-of-00003.safetensors",),
    ),
    (
        {"ENABLE_VIBEVOICE": "true", "VIBEVOICE_MODEL": "Large-Q8"},
        ("vibevoice/VibeVoice-Large-Q8/FabioSarracino--VibeVoice-Large-Q8",),
    ),
    (
        {"ENABLE_CONTROLNET": "true"},
        (
            "controlnet/control_v11p_sd15_canny_fp16.safetensors",
            "controlnet/control_v11f1p_sd15_depth_fp16.safetensors",
            "controlnet/control_v11p_sd15_openpose_fp16.safetensors",
        ),
    ),
    (
        {"ENABLE_CONTROLNET": "true", "CONTROLNET_MODELS": "lineart,normal"},
        (
            "controlnet/control_v11p_sd15_lineart_fp16.safetensors",
            "controlnet/control_v11p_sd15_normalbae_fp16.safetensors",
        ),
    ),
    (
        {"ENABLE_ZIMAGE": "true"},
        (
            f"{DM}/z_image_turbo_bf16.safetensors",
            "text_encoders/qwen_3_4b.safetensors",
            "vae/ae.safetensors",
        ),
    ),
    ({"WAN_720P": "true"}, (f"{DM}/wan2.1_t2v_14B_fp8_e4m3fn.safetensors", *WAN)),
    ({"WAN_480P": "true"}, (f"{DM}/wan2.1_t2v_1.3B_fp16.safetensors", *WAN)),
    (
        {"WAN_720P": "true", "ENABLE_I2V": "true"},
        (
            f"{DM}/wan2.1_i2v_720p_14B_fp8_e4m3fn.safetensors",
            "clip_vision/clip_vision_h.safetensors",
        ),
    ),
    ({"ENABLE_VACE": "true"}, (f"{DM}/wan2.1_vace_14B_fp16.safetensors", *WAN)),
    (
        {"ENABLE_FUN_INP": "true"},
        tuple(
            f"{DM}/wan2.2_fun_inpaint_{noise}_noise_14B_fp8_scaled.safetensors"
            for noise in ("high", "low")
        ),
    ),
    (
        {"ENABLE_WAN22_DISTILL": "true"},
        (
            f"{DM}/wan2.2_i2v_low_noise_14B_fp8_scaled.safetensors",
            "loras/wan2.2_i2v_lightx2v_4steps_lora_v1_high_noise.safetensors",
        ),
    ),
    (
        {"ENABLE_TURBODIFFUSION": "true"},
        (f"{DM}/TurboWan2.2-I2V-A14B-high-720P-quant.pth",),
    ),
    (
        {"ENABLE_STEADYDANCER": "true"},
        (f"{DM}/Wan21_SteadyDancer_fp8_e4m3fn_scaled_KJ.safetensors", *WAN),
    ),
    (
        {"ENABLE_STEADYDANCER": "true", "STEADYDANCER_VARIANT": "bf16"},
        (f"{DM}/Wan21_I2V_SteadyDancer_fp16.safetensors",),
    ),
    (
        {"ENABLE_STEADYDANCER": "true", "STEADYDANCER_VARIANT": "gguf"},
        (
            f"{DM}/Wan21_I2V_SteadyDancer_fp16-Q6_K_fix_5d_tensor_from_fp8_e4m3fn_scaled_KJ.gguf",
            *WAN,
        ),
    ),
    (
        {"ENABLE_SCAIL": "true"},
        (f"{DM}/Wan21-14B-SCAIL-preview_fp8_e4m3fn_scaled_KJ.safetensors", *WAN),
    ),
    (
        {"ENABLE_ILLUSTRIOUS": "true"},
        ("checkpoints/realismIllustriousBy_v50FP16.safetensors",),
    ),
    (
        {"ENABLE_ILLUSTRIOUS": "true", "ENABLE_ILLUSTRIOUS_EMBEDDINGS": "true"},
        (
            "embeddings/Stable_Yogis_Illustrious_Positives.safetensors",
            "embeddings/Stable_Yogis_Illustrious_Negatives.safetensors",
        ),
    ),
    ({"ENABLE_MVINVERSE": "true"}, ("mvinverse/model.safetensors",)),
    *(
        (
            {"ENABLE_QWEN_EDIT": "true", "QWEN_EDIT_MODEL": quant},
            (
                f"{DM}/qwen-image-edit-2511-{quant}.gguf",
                "text_encoders/qwen_2.5_vl_7b_fp8_scaled.safetensors",
                "vae/qwen_image_vae.safetensors",
            ),
        )
        for quant in ("Q2_K", "Q3_K_M", "Q4_K_M", "Q5_K_M", "Q6_K", "Q8_0")
    ),
    (
        {"ENABLE_QWEN_EDIT": "true", "QWEN_EDIT_MODEL": "full"},
        (f"{DM}/qwen_image_edit_2511_bf16.safetensors",),
    ),
]

# Bundles that cannot be had, and a word of the reason that the plan gives.
WHY_NOT = [
    ("ENABLE_XTTS", "TTS_HOME"),
    ("ENABLE_GENFOCUS", "FLUX.1-dev"),
    ("ENABLE_FLASHPORTRAIT", "Wan2.1-I2V-14B-720P"),
    ("ENABLE_STORYMEM", "WAN 2.2"),
    ("ENABLE_INFCAM", "UniDepth"),
    ("ENABLE_DWPOSE", "controlnet_aux"),
]


@pytest.fixture(scope="module")
def catalog() -> Catalog:
    return load_catalog()


def plan(environ: dict[str, str], *, vram_mib: int | None = None) -> ModelPlan:
    loaded = load_settings(config=None, environ=NOTHING | environ)
    return plan_models(loaded.settings.models, directory=MODELS, vram_mib=vram_mib)


@pytest.fixture(autouse=True)
def _no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("environ", "files"), MEANT, ids=["-".join(environ.values()) for environ, _ in MEANT]
)
def test_variables_select_what_they_meant(environ: dict[str, str], files: tuple[str, ...]) -> None:
    chosen = plan(environ, vram_mib=96_000)
    assert not chosen.refused
    assert {r.name for r in chosen.requests} >= set(files)


@pytest.mark.parametrize(("variable", "word"), WHY_NOT)
def test_the_plan_says_why_not(variable: str, word: str) -> None:
    chosen = plan({variable: "true"}, vram_mib=96_000)
    assert chosen.requests == ()
    assert [word in refused.reason for refused in chosen.refused] == [True]


def test_one_choice_leaves_the_others_out() -> None:
    environ = {"ENABLE_QWEN_EDIT": "true", "QWEN_EDIT_MODEL": "full"}
    names = {r.name for r in plan(environ).requests}
    assert len(names) == 3
    assert not [name for name in names if name.endswith(".gguf")]


def test_what_differs_from_the_older_scripts_is_said() -> None:
    notes = " ".join(plan({"ENABLE_QWEN_EDIT": "true", "QWEN_EDIT_MODEL": "full"}).notes)
    assert "QWEN_EDIT_MODEL=full: the bf16 file" in notes
    notes = " ".join(plan({"ENABLE_ILLUSTRIOUS": "true"}).notes)
    assert "ENABLE_ILLUSTRIOUS_EMBEDDINGS=true" in notes
    environ = {"ENABLE_STEADYDANCER": "true", "STEADYDANCER_VARIANT": "bf16"}
    assert "fp16 file" in " ".join(plan(environ).notes)


@pytest.mark.parametrize(
    ("environ", "vram_mib", "advice"),
    [
        ({"ENABLE_VIBEVOICE": "true"}, 16_000, "VIBEVOICE_MODEL=Large-Q8 needs 12 GB"),
        ({"ENABLE_VIBEVOICE": "true"}, 8_000, "VIBEVOICE_MODEL=Q4 needs 8 GB"),
        ({"ENABLE_QWEN_EDIT": "true"}, 14_500, "QWEN_EDIT_MODEL=Q3_K_M needs 14 GB"),
    ],
)
def test_a_choice_that_fits_is_named(environ: dict[str, str], vram_mib: int, advice: str) -> None:
    (refused,) = plan(environ, vram_mib=vram_mib).refused
    assert refused.reason.endswith(advice)


@pytest.mark.parametrize(
    ("environ", "vram_mib"),
    [
        ({"ENABLE_VIBEVOICE": "true"}, 2_000),  # nothing is small enough
        ({"ENABLE_VIBEVOICE": "true"}, 0),  # no card
        ({"WAN_720P": "true"}, 8_000),  # nothing to choose
    ],
)
def test_no_advice_where_none_helps(environ: dict[str, str], vram_mib: int) -> None:
    (refused,) = plan(environ, vram_mib=vram_mib).refused
    assert ";" not in refused.reason


def test_a_misspelled_choice_names_the_nearest_and_stops_nobody_else() -> None:
    environ = {"ENABLE_VIBEVOICE": "true", "VIBEVOICE_MODEL": "larg", "WAN_480P": "true"}
    found = plan(environ, vram_mib=24_000)
    (refused,) = found.refused
    assert "did you mean 'Large'?" in refused.reason
    assert {r.bundle for r in found.requests} == {"wan_480p"}


def test_flux_fits_a_usual_card_unless_told_otherwise() -> None:
    on = {"ENABLE_FLUX": "true"}
    assert not plan(on, vram_mib=24_000).refused
    large = plan(on | {"FLUX_TEXT_ENCODER": "fp16"}, vram_mib=24_000)
    assert "needs 32 GB" in large.refused[0].reason


def test_no_choice_needs_less_than_one_of_its_files(catalog: Catalog) -> None:
    """The claims of files and of the bundles that the fit is judged by agree."""
    for name, bundle in catalog.bundles.items():
        claims = [("", bundle.files, bundle.min_vram_gb)]
        for selector in bundle.selectors.values():
            claims += (
                (value, choice.files, max(choice.min_vram_gb or 0, bundle.min_vram_gb or 0))
                for value, choice in selector.choices.items()
            )
        for value, files, claimed in claims:
            for key in files:
                needs = catalog.files[key].min_vram_gb
                assert needs is None or needs <= (claimed or 0), (name, value, key)


def test_every_mirror_is_held_to_a_hash(catalog: Catalog) -> None:
    mirrored = [entry for entry in catalog.files.values() if entry.mirrors]
    assert mirrored
    assert all(entry.sha256 and entry.size_bytes for entry in mirrored)
