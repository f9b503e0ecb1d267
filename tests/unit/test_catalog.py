"""The catalog: shipped entries are consistent, users override, bundles fit or are skipped."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

import pytest

from supervisor.config.load import load_settings
from supervisor.config.settings import ModelFile, ModelsSection
from supervisor.errors import ConfigError
from supervisor.models.catalog import Catalog, choose_files, load_catalog
from supervisor.models.folders import CORE_FOLDERS, MODEL_EXTENSIONS
from supervisor.models.known import load_known_models
from supervisor.models.planning import plan_models
from supervisor.models.requests import required_names, settings_requests
from supervisor.models.selection import Selection, select

MODELS = Path("/models")
GB = 10**9

# Folders that ComfyUI does not know: a bundle's custom node reads them.
CUSTOM_NODE_FOLDERS = {"vibevoice", "mvinverse", "nlf", "flash_portrait"}

# Every toggle of SCOPE.md, as the configuration spells the bundle.
TOGGLES = [
    "vibevoice",
    "controlnet",
    "zimage",
    "steadydancer",
    "scail",
    "xtts",
    "turbodiffusion",
    "i2v",
    "vace",
    "fun_inp",
    "illustrious",
    "wan22_distill",
    "genfocus",
    "qwen_edit",
    "mvinverse",
    "flashportrait",
    "storymem",
    "infcam",
    "wan_720p",
    "wan_480p",
]


@pytest.fixture(scope="module")
def catalog() -> Catalog:
    return load_catalog()


def chosen(
    catalog: Catalog, *bundles: str, vram_mib: int | None = None, **selectors: str
) -> Selection:
    section = ModelsSection(bundles=bundles, selectors=selectors)
    return select(catalog, section, directory=MODELS, vram_mib=vram_mib)


def names(selection: Selection) -> set[str]:
    return {r.name for r in selection.requests}


# -- what is shipped ------------------------------------------------------------------------


def test_every_toggle_has_a_bundle(catalog: Catalog) -> None:
    assert set(TOGGLES) <= catalog.bundles.keys()


def test_folders_are_comfyuis(catalog: Catalog) -> None:
    folders = {key.split("/", 1)[0] for key in catalog.files}
    assert folders - CORE_FOLDERS <= CUSTOM_NODE_FOLDERS


def test_no_destination_differs_only_by_case(catalog: Catalog) -> None:
    counts = Counter(key.casefold() for key in catalog.files)
    assert [key for key, count in counts.items() if count > 1] == []


def test_no_two_entries_are_the_same_bytes(catalog: Catalog) -> None:
    counts = Counter(f.sha256 for f in catalog.files.values() if f.sha256)
    assert [digest for digest, count in counts.items() if count > 1] == []


def test_files_have_model_extensions(catalog: Catalog) -> None:
    loaded = {k for k in catalog.files if k.split("/", 1)[0] in CORE_FOLDERS}
    assert {k for k in loaded if Path(k).suffix not in MODEL_EXTENSIONS} == set()


def test_bundles_are_complete_or_say_why(catalog: Catalog) -> None:
    for name, bundle in catalog.bundles.items():
        assert bool(bundle.all_files) != bool(bundle.incomplete), name
        assert bundle.title, name


def test_every_choice_makes_requests(catalog: Catalog) -> None:
    for name, bundle in catalog.bundles.items():
        for variable, selector in bundle.selectors.items():
            for choice in selector.choices:
                section = ModelsSection(bundles=(name,), selectors={variable: choice})
                selection = select(catalog, section, directory=MODELS, vram_mib=None)
                assert not selection.refused, (name, choice)
                assert selection.requests, (name, choice)


def test_nothing_wrong_of_the_older_project_is_left(catalog: Catalog) -> None:
    text = json.dumps([f.model_dump() for f in catalog.files.values()]) + str(list(catalog.files))
    for wrong in (
        "kijai/wan-2.1-turbodiffusion",
        "Wan-AI/Wan2.2-Fun-InP-14B",
        "kijai/SteadyDancer-14B-pruned",
        "Tongyi-MAI/Z-Image-Turbo",
        "dwpose_v2.pth",
        "realismIllustriousByStableYogi",
    ):
        assert wrong not in text
    assert not [k for k in catalog.files if k.startswith(("qwen/", "unet/", "clip/", "other/"))]
    i2v = chosen(catalog, "i2v")
    assert names(i2v) == {"clip_vision/clip_vision_h.safetensors"}


def test_unknown_stays_unknown(catalog: Catalog) -> None:
    unknown = catalog.files["diffusion_models/wan2.1_t2v_14B_fp8_e4m3fn.safetensors"]
    assert unknown.size_bytes is None
    assert unknown.estimate_bytes == 14_300_000_000


def test_known_models_are_comfyuis_too() -> None:
    known = load_known_models()
    assert {key.split("/", 1)[0] for key in known} <= CORE_FOLDERS
    assert all(":" in source for sources in known.values() for source in sources)


# -- toggles and selectors ------------------------------------------------------------------


def test_selectors_choose(catalog: Catalog) -> None:
    default = names(chosen(catalog, "qwen_edit"))
    assert "diffusion_models/qwen-image-edit-2511-Q4_K_M.gguf" in default
    assert "vae/qwen_image_vae.safetensors" in default
    small = names(chosen(catalog, "qwen_edit", QWEN_EDIT_MODEL="Q2_K"))
    assert "diffusion_models/qwen-image-edit-2511-Q2_K.gguf" in small
    assert "diffusion_models/qwen-image-edit-2511-Q4_K_M.gguf" not in small
    assert names(chosen(catalog, "qwen_edit", QWEN_EDIT_MODEL="q2_k")) == small
    large = names(chosen(catalog, "vibevoice", VIBEVOICE_MODEL="1.5B"))
    assert "vibevoice/VibeVoice-1.5B/config.json" in large
    assert not [n for n in large if "Large" in n]


def test_several_choices_and_the_name_that_never_worked(catalog: Catalog) -> None:
    picked = names(chosen(catalog, "controlnet", CONTROLNET_MODELS="canny, normal"))
    assert picked == {
        "controlnet/control_v11p_sd15_canny_fp16.safetensors",
        "controlnet/control_v11p_sd15_normalbae_fp16.safetensors",
    }


def test_a_wrong_choice_is_refused_with_the_right_ones(catalog: Catalog) -> None:
    (refused,) = chosen(catalog, "vibevoice", VIBEVOICE_MODEL="Huge").refused
    assert "Huge" in refused.reason
    assert "Large-Q8" in refused.reason


def test_unknown_names_are_told(catalog: Catalog) -> None:
    selection = chosen(catalog, "zimag", QWEN_EDIT_MODLE="full")
    assert "zimage" in selection.refused[0].reason
    assert "QWEN_EDIT_MODEL" in " ".join(selection.notes)


def test_bundles_add_to_each_other(catalog: Catalog) -> None:
    i2v = "diffusion_models/wan2.1_i2v_720p_14B_fp8_e4m3fn.safetensors"
    assert i2v not in names(chosen(catalog, "wan_720p"))
    assert i2v in names(chosen(catalog, "wan_720p", "i2v"))


def test_shared_files_are_wanted_once(catalog: Catalog) -> None:
    both = chosen(catalog, "wan_720p", "wan_480p", "vace")
    counts = Counter(r.name for r in both.requests)
    assert set(counts.values()) == {1}


def test_a_repository_is_one_request_for_a_folder(catalog: Catalog) -> None:
    selection = chosen(catalog, "vibevoice", VIBEVOICE_MODEL="Large-Q8")
    (tree,) = [r for r in selection.requests if r.directory]
    assert tree.reference == "FabioSarracino/VibeVoice-Large-Q8:"
    assert tree.destination == MODELS / "vibevoice/VibeVoice-Large-Q8"


# -- fit ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("vram_mib", "fits"),
    [(23028, True), (24576, True), (22731, True), (20480, False), (0, False), (None, True)],
)
def test_vram_in_real_numbers(catalog: Catalog, vram_mib: int | None, fits: bool) -> None:
    selection = chosen(catalog, "wan_720p", vram_mib=vram_mib)
    assert bool(selection.requests) == fits
    if not fits:
        assert "24 GB of VRAM" in selection.refused[0].reason


def test_incomplete_bundles_say_so(catalog: Catalog) -> None:
    selection = chosen(catalog, "infcam", "storymem", vram_mib=90000)
    assert not selection.requests
    assert all("does not know it well enough" in r.reason for r in selection.refused)


def test_disk_leaves_the_largest_out(catalog: Catalog) -> None:
    selection = chosen(catalog, "vace", "zimage", "controlnet")
    fitted = selection.fit(free_bytes=30 * GB, in_place={})
    assert {g.name for g in fitted.groups} == {"zimage", "controlnet"}
    (refused,) = fitted.refused
    assert refused.name == "vace"
    assert "41.7 GB" in refused.reason
    assert "30 GB" in refused.reason


def test_what_is_there_or_shared_needs_no_room(catalog: Catalog) -> None:
    selection = chosen(catalog, "vace")
    in_place = {"diffusion_models/wan2.1_vace_14B_fp16.safetensors": 34675323640}
    assert selection.fit(free_bytes=10 * GB, in_place=in_place).requests
    both = chosen(catalog, "wan_480p", "vace")  # 9.8 GB, and 34.7 beside what they share
    assert len(both.fit(free_bytes=46 * GB, in_place={}).groups) == 2


def test_required_goes_first(catalog: Catalog, tmp_path: Path) -> None:
    own = tmp_path / "own.toml"
    own.write_text("[bundles.vace]\nrequired = true\n")
    section = ModelsSection(bundles=("zimage", "vace"))
    selection = select(load_catalog([own]), section, directory=MODELS, vram_mib=None)
    fitted = selection.fit(free_bytes=45 * GB, in_place={})
    assert [g.name for g in fitted.groups] == ["vace"]
    assert required_names(fitted.requests, "required") == {r.name for r in fitted.requests}
    assert required_names(fitted.requests, "none") == frozenset()
    nothing = selection.fit(free_bytes=2 * GB, in_place={})
    assert {r.name: r.required for r in nothing.refused} == {"vace": True, "zimage": False}


# -- the user's own -------------------------------------------------------------------------


def test_users_add_bundles_and_override_files(tmp_path: Path) -> None:
    own = tmp_path / "own.toml"
    own.write_text(
        """
        [bundles.mine]
        title = "Mine"
        files = ["loras/mine.safetensors", "vae/ae.safetensors"]

        [bundles.wan_720p]
        min_vram_gb = 12

        [files."loras/mine.safetensors"]
        url = "https://example.com/mine.safetensors"

        [files."vae/ae.safetensors"]
        huggingface = "me/mirror:ae.safetensors"
        """
    )
    catalog = load_catalog([own])
    assert catalog.bundles["wan_720p"].min_vram_gb == 12
    assert catalog.bundles["wan_720p"].title
    replaced = catalog.files["vae/ae.safetensors"]
    assert replaced.sha256 is None  # the old hash belonged to the old source
    assert replaced.licence
    assert names(chosen(catalog, "mine")) == {"loras/mine.safetensors", "vae/ae.safetensors"}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[files]\n'../x.bin' = {url = 'https://e.com/x'}", ".."),
        ("[files]\n'/abs/x.bin' = {url = 'https://e.com/x'}", "relative"),
        ("[files]\n'x.bin' = {url = 'https://e.com/x'}", "folder"),
        ("[files]\n'loras/x' = {url = 'https://e.com/x', civitai = 3}", "exactly one"),
        ("[files]\n'loras/x' = {url = 'https://e.com/x', sha256 = 'abc'}", "pattern"),
        ("[files]\n'loras/x' = {url = 'https://e.com/x', shasum = 'abc'}", "not permitted"),
        ("[files]\n'loras/x' = {huggingface = 'nonsense'}", "owner/repo"),
        ("[bundles.b]\nfiles = ['vae/ae.safetensor']", "vae/ae.safetensors"),
        ("[bundles.b]\ntogether = {wan_720 = []}", "wan_720p"),
        ("[bundles.b.selectors.S]\ndefault = 'a'\nchoices = {b = {}}", "default"),
        ("[bundels.b]\n", "unknown table"),
        ("files = 3", "table"),
        ("not toml", "="),
    ],
)
def test_a_bad_catalog_is_explained(tmp_path: Path, text: str, reason: str) -> None:
    own = tmp_path / "own.toml"
    own.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_catalog([own, tmp_path / "absent.toml"])
    problems = " ".join(map(str, caught.value.problems))
    assert reason in problems
    assert "absent.toml" in problems


# -- single files ---------------------------------------------------------------------------


def requests_of(**file: object) -> tuple[str, str, str, Path, bool]:
    section = ModelsSection(files=(ModelFile.model_validate(file),))
    (request,) = settings_requests(section, directory=MODELS)
    return request.name, request.source, request.reference, request.destination, request.directory


def test_single_files() -> None:
    assert requests_of(url="https://e.com/a/f.safetensors?x=1", to="loras/") == (
        "loras/f.safetensors",
        "http",
        "https://e.com/a/f.safetensors?x=1",
        MODELS / "loras/f.safetensors",
        False,
    )
    assert requests_of(url="https://huggingface.co/o/r/resolve/main/split_files/vae/a.safetensors")[
        :3
    ] == ("vae/a.safetensors", "huggingface", "o/r:split_files/vae/a.safetensors")
    assert requests_of(huggingface="o/r:unet/m.gguf@v2")[:3] == (
        "diffusion_models/m.gguf",
        "huggingface",
        "o/r:unet/m.gguf@v2",
    )
    assert requests_of(url="https://civitai.com/models/9/x?modelVersionId=7")[:3] == (
        "civitai-7",
        "civitai",
        "7",
    )
    assert requests_of(huggingface="o/r", to="diffusers/r") == (
        "diffusers/r/o--r",
        "huggingface",
        "o/r:",
        MODELS / "diffusers/r",
        True,
    )


@pytest.mark.parametrize("to", ["../x", "/etc/x", "a/../../x", "~/x", "loras/a\x00b", "a\\b"])
def test_destinations_stay_inside(to: str) -> None:
    with pytest.raises(ConfigError) as caught:
        requests_of(url="https://e.com/f.bin", to=to)
    assert caught.value.problems[0].key == "models.files[0]"


def test_a_file_without_a_folder_needs_one() -> None:
    with pytest.raises(ConfigError) as caught:
        requests_of(url="https://user:secret@e.com/f.bin?token=secret")
    problem = caught.value.problems[0]
    assert problem.hint is not None
    assert "secret" not in str(problem)


def test_one_destination_for_two_files_is_an_error() -> None:
    files = tuple(ModelFile(url=f"https://e.com/{i}/f.bin", to="loras/f.bin") for i in (1, 2))
    with pytest.raises(ConfigError, match=r"\[models\]"):
        settings_requests(ModelsSection(files=files), directory=MODELS)
    same = (files[0], files[0].model_copy(update={"required": True}))
    (request,) = settings_requests(ModelsSection(files=same), directory=MODELS)
    assert request.required


# -- all of it ------------------------------------------------------------------------------


def test_plan_of_everything(tmp_path: Path) -> None:
    workflow = tmp_path / "w.json"
    url = "https://huggingface.co/Comfy-Org/Wan_2.2_ComfyUI_Repackaged/resolve/main/split_files"
    entries = [
        {
            "name": "wan_2.1_vae.safetensors",
            "url": f"{url}/vae/wan_2.1_vae.safetensors",
            "directory": "vae",
        },
        {"name": "new.safetensors", "url": f"{url}/loras/new.safetensors", "directory": "loras"},
    ]
    node = {"type": "VAELoader", "mode": 0, "properties": {"models": entries}}
    workflow.write_text(json.dumps({"nodes": [node]}))
    section = ModelsSection(
        bundles=("wan_480p", "vace"),
        workflows=(workflow, tmp_path / "absent.json"),
        civitai_loras=(12, 13),
    )
    plan = plan_models(section, directory=tmp_path, vram_mib=24000, free_bytes=20 * GB)
    got = {r.name: r for r in plan.requests}
    assert {
        "loras/new.safetensors",
        "loras/civitai-12",
        "vae/wan_2.1_vae.safetensors",
    } <= got.keys()
    assert got["vae/wan_2.1_vae.safetensors"].bundle == "wan_480p"
    assert [r.name for r in plan.refused] == ["vace"]
    notes = " ".join(plan.notes)
    assert "absent.json" in notes
    assert "wan_2.1_vae" in notes
    assert plan_models(ModelsSection(bundles=()), directory=tmp_path).requests == ()


def test_choose_files_reports_vram(catalog: Catalog) -> None:
    keys, vram = choose_files(catalog.bundles["vibevoice"], {"VIBEVOICE_MODEL": "1.5B"}, ())
    assert vram == 6
    assert len(keys) == 10


def test_the_examples_of_the_document_work(tmp_path: Path) -> None:
    document = Path(__file__).parents[2].joinpath("docs", "models.md").read_text("utf-8")
    examples = re.findall(r"```toml\n(.*?)```", document, re.DOTALL)
    catalogs = [text for text in examples if "[bundles." in text]
    assert catalogs
    for text in examples:
        path = tmp_path / "example.toml"
        path.write_text(text)
        if text not in catalogs:
            load_settings(config=path, environ={})
            continue
        catalog = load_catalog([path])
        keys, vram_gb = choose_files(catalog.bundles["mine"], {"MY_SIZE": "large"}, ())
        assert set(keys) <= set(catalog.files)
        assert vram_gb == 24
