"""Every plain variable of SCOPE's table does what the table says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from supervisor.config.aliases import ALIASES, PORT_ALIASES, bundle_name
from supervisor.config.load import LoadedSettings, load_settings
from supervisor.models.catalog import load_catalog

R2 = {"R2_ENDPOINT": "https://r2.test", "R2_ACCESS_KEY_ID": "key-id", "R2_SECRET_ACCESS_KEY": "sec"}


@pytest.fixture(autouse=True)
def _no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def load(*overrides: str, **environ: str) -> LoadedSettings:
    return load_settings(config=None, environ=environ, overrides=overrides)


def value(loaded: LoadedSettings, key: str) -> Any:
    found: Any = loaded.settings
    for name in key.split("."):
        found = found[name] if isinstance(found, dict) else getattr(found, name)
    return found.get_secret_value() if isinstance(found, SecretStr) else found


PLAIN = [
    ("VIBEVOICE_MODEL", "1.5B", "models.selectors.VIBEVOICE_MODEL", "1.5B"),
    ("CONTROLNET_MODELS", "canny,depth", "models.selectors.CONTROLNET_MODELS", "canny,depth"),
    ("QWEN_EDIT_MODEL", "Q8_0", "models.selectors.QWEN_EDIT_MODEL", "Q8_0"),
    ("STEADYDANCER_VARIANT", "gguf", "models.selectors.STEADYDANCER_VARIANT", "gguf"),
    *(
        (name, "int8", f"models.selectors.{name}", "int8")
        for name in (
            "FLUX_MODEL",
            "FLUX_TEXT_ENCODER",
            "SCAIL_MODEL",
            "VACE_MODEL",
            "ZIMAGE_MODEL",
            "ZIMAGE_TEXT_ENCODER",
        )
    ),
    ("CIVITAI_API_KEY", "civ-key", "models.civitai_token", "civ-key"),
    ("CIVITAI_LORAS", "12, 34", "models.civitai_loras", (12, 34)),
    ("HF_TOKEN", "hf_x", "models.hf_token", "hf_x"),
    ("HUGGING_FACE_HUB_TOKEN", "hf_old", "models.hf_token", "hf_old"),
    ("HF_ENDPOINT", "https://mirror.test", "models.hf_endpoint", "https://mirror.test"),
    ("UPDATE_NODES_ON_START", "true", "comfyui.update_nodes", True),
    ("STORAGE_MODE", "Persistent", "storage.mode", "persistent"),
    ("COMFYUI_PORT", "3000", "comfyui.port", 3000),
    ("COMFYUI_ARGS", "--fast --cache-lru 5", "comfyui.args", "--fast --cache-lru 5"),
    ("COMFYUI_OUTPUT_DIR", "/out", "comfyui.output_directory", Path("/out")),
    ("GPU_TIER", "PROSUMER", "gpu.tier", "prosumer"),
    ("GPU_MEMORY_MODE", "low", "gpu.memory_mode", "low"),
    ("R2_ENDPOINT", "https://r2.test", "sync.endpoint", "https://r2.test"),
    ("R2_BUCKET", "mine", "sync.bucket", "mine"),
    ("R2_ACCESS_KEY_ID", "id", "sync.access_key_id", "id"),
    ("R2_SECRET_ACCESS_KEY", "secret", "sync.secret_access_key", "secret"),
    ("BUCKET_ENDPOINT_URL", "https://b.test/x", "worker.endpoint", "https://b.test/x"),
    ("BUCKET_ACCESS_KEY_ID", "id", "worker.access_key_id", "id"),
    ("BUCKET_SECRET_ACCESS_KEY", "secret", "worker.secret_access_key", "secret"),
    ("FORCE_S3_VIDEO", "no", "worker.force_s3_video", False),
    ("JUPYTER_PASSWORD", "jp", "jupyter.token", "jp"),
    ("PUBLIC_KEY", "ssh-ed25519 AAAA me", "ssh.public_key", "ssh-ed25519 AAAA me"),
    ("FILEBROWSER", "on", "filebrowser.enabled", True),
    ("FB_USERNAME", "me", "filebrowser.username", "me"),
    ("FB_PASSWORD", "pw", "filebrowser.password", "pw"),
    ("ENABLE_IDLE_SHUTDOWN", "1", "idle.enabled", True),
    ("IDLE_SHUTDOWN_MINUTES", "15", "idle.minutes", 15.0),
    ("RUNPOD_API_KEY", "rp", "idle.api_key", "rp"),
    ("RUNPOD_POD_ID", "pod1", "idle.pod_id", "pod1"),
    ("MAX_CONCURRENT_DOWNLOADS", "3", "models.concurrent_files", 3),
    ("DOWNLOAD_TIMEOUT", "120", "models.stall_timeout_s", 120.0),
    ("RETRY_ATTEMPTS", "5", "models.retry_attempts", 5),
    ("DRY_RUN", "yes", "supervisor.dry_run", True),
    ("WEBSOCKET_RECONNECT_ATTEMPTS", "9", "worker.reconnect_attempts", 9),
    ("WEBSOCKET_RECONNECT_DELAY_S", "1.5", "worker.reconnect_delay_s", 1.5),
    ("REFRESH_WORKER", "true", "worker.refresh", True),
    ("PORT", "80", "health.port", 80),
    ("PORT_HEALTH", "81", "health.port", 81),
]
BUNDLES = [
    "VIBEVOICE", "CONTROLNET", "ZIMAGE", "STEADYDANCER", "SCAIL", "XTTS", "TURBODIFFUSION", "I2V",
    "VACE", "FUN_INP", "ILLUSTRIOUS", "WAN22_DISTILL", "GENFOCUS", "QWEN_EDIT", "MVINVERSE",
    "FLASHPORTRAIT", "STORYMEM", "INFCAM", "DWPOSE", "FLUX",
]  # fmt: skip
SWITCHES = [*(f"ENABLE_{bundle}" for bundle in BUNDLES), "WAN_720P", "WAN_480P"]
OTHERS = [
    "ENABLE_CIVITAI", "ILLUSTRIOUS_LORAS", "ENABLE_R2_SYNC", "ENABLE_ILLUSTRIOUS_EMBEDDINGS",
]  # fmt: skip


def test_the_table_is_complete() -> None:
    tested = {row[0] for row in PLAIN} | set(SWITCHES) | set(OTHERS)
    assert tested == {alias.name for alias in (*ALIASES, *PORT_ALIASES)}


@pytest.mark.parametrize(("name", "text", "key", "expected"), PLAIN)
def test_plain_variable(name: str, text: str, key: str, expected: Any) -> None:
    loaded = load(**{name: text})
    assert value(loaded, key) == expected
    assert loaded.origin(tuple(key.split("."))) == name


@pytest.mark.parametrize(("name", "text", "key", "expected"), PLAIN)
def test_plain_variable_from_a_file(
    name: str, text: str, key: str, expected: Any, tmp_path: Path
) -> None:
    (tmp_path / "value").write_text(f"{text}\n")
    loaded = load(**{f"{name}_FILE": str(tmp_path / "value")})
    assert value(loaded, key) == expected
    assert loaded.origin(tuple(key.split("."))) == f"{name}_FILE"


@pytest.mark.parametrize(("name", "text", "key", "expected"), PLAIN)
def test_set_wins_over_the_plain_name(name: str, text: str, key: str, expected: Any) -> None:
    if isinstance(expected, bool):
        wanted: Any = not expected
        override = str(wanted).lower()
    elif key in ("storage.mode", "gpu.tier", "gpu.memory_mode"):
        wanted = override = "auto"
    elif isinstance(expected, tuple):
        wanted, override = (7,), "7"
    elif isinstance(expected, int | float):
        wanted, override = expected + 1, str(expected + 1)
    elif isinstance(expected, Path):
        wanted, override = Path("/other"), "/other"
    else:
        wanted = override = "https://other"
    assert value(load(f"{key}={override}", **{name: text}), key) == wanted


@pytest.mark.parametrize("name", SWITCHES)
def test_switch_adds_and_removes_its_bundle(name: str) -> None:
    bundle = name.removeprefix("ENABLE_").lower()
    base = {"SUPERVISOR_MODELS__BUNDLES": "mine"}
    assert load(**base, **{name: "true"}).settings.models.bundles == ("mine", bundle)
    base = {"SUPERVISOR_MODELS__BUNDLES": f"mine,{bundle}"}
    assert load(**base, **{name: "TRUE"}).settings.models.bundles == ("mine", bundle)
    assert load(**base, **{name: "off"}).settings.models.bundles == ("mine",)
    assert load(**base, **{name: ""}).settings.models.bundles == ("mine", bundle)


def test_defaults_of_the_switches() -> None:
    assert set(load().settings.models.bundles) == {"vibevoice", "controlnet", "wan_720p"}
    assert load(ENABLE_VIBEVOICE="false", WAN_720P="0").settings.models.bundles == ("controlnet",)


def test_civitai_ids_and_their_switch() -> None:
    assert load(CIVITAI_LORAS="1,2", ENABLE_CIVITAI="true").settings.models.civitai_loras == (1, 2)
    assert load(CIVITAI_LORAS="1,2", ENABLE_CIVITAI="false").settings.models.civitai_loras == ()


def test_illustrious_ids_come_with_their_bundle() -> None:
    assert load(ILLUSTRIOUS_LORAS="5").settings.models.civitai_loras == ()
    both = load(ILLUSTRIOUS_LORAS="5", CIVITAI_LORAS="1", ENABLE_ILLUSTRIOUS="true")
    assert both.settings.models.civitai_loras == (1, 5)
    only = load(
        ILLUSTRIOUS_LORAS="5", ENABLE_ILLUSTRIOUS="1", CIVITAI_LORAS="1", ENABLE_CIVITAI="0"
    )
    assert only.settings.models.civitai_loras == (5,)


@pytest.mark.parametrize(("text", "choice"), [("true", "on"), ("1", "on"), ("FALSE", "off")])
def test_illustrious_embeddings_are_a_choice(text: str, choice: str) -> None:
    selectors = load(ENABLE_ILLUSTRIOUS_EMBEDDINGS=text).settings.models.selectors
    assert selectors == {"ILLUSTRIOUS_EMBEDDINGS": choice}


def test_r2_switch_selects_the_bucket() -> None:
    on = load(ENABLE_R2_SYNC="true", **R2).settings.sync
    assert (on.enabled, on.target, on.bucket) == (True, "s3", "runpod")
    off = load(ENABLE_R2_SYNC="false", SUPERVISOR_SYNC__TARGET="s3").settings.sync
    assert off.enabled is False


def test_r2_switch_off_leaves_a_folder_alone() -> None:
    sync = load(ENABLE_R2_SYNC="false", SUPERVISOR_SYNC__FOLDER="/mnt").settings.sync
    assert (sync.enabled, sync.target) == (None, "folder")


def test_newer_token_name_wins() -> None:
    loaded = load(HF_TOKEN="hf_new", HUGGING_FACE_HUB_TOKEN="hf_old")
    assert value(loaded, "models.hf_token") == "hf_new"


@pytest.mark.parametrize(
    ("environ", "port"),
    [
        ({}, 8000),
        ({"PORT": "80"}, 80),
        ({"PORT": "80", "PORT_HEALTH": "81"}, 81),
        ({"PORT": "80", "PORT_HEALTH": "81", "SUPERVISOR_HEALTH__PORT": "82"}, 82),
    ],
)
def test_health_port(environ: dict[str, str], port: int) -> None:
    assert load(**environ).settings.health.port == port


def test_socket_has_a_short_name() -> None:
    assert load(SUPERVISOR_SOCKET="/tmp/s").settings.supervisor.socket == Path("/tmp/s")


def test_unsubstituted_secret_is_ignored_and_told() -> None:
    loaded = load(HF_TOKEN="{{ RUNPOD_SECRET_hf }}")
    assert loaded.settings.models.hf_token is None
    assert "RUNPOD_SECRET_hf" in loaded.warnings[0]


def test_misspelt_plain_name_is_told_but_no_error() -> None:
    (warning,) = load(ENABLE_ZIMGE="true").warnings
    assert "ENABLE_ZIMAGE" in warning


def test_every_switch_has_a_bundle_in_the_catalog() -> None:
    catalog = load_catalog(())
    for name in SWITCHES:
        assert bundle_name(name) in catalog.bundles


def test_every_choice_of_the_catalog_is_a_variable_with_the_same_default() -> None:
    given = {a.name: a.default for a in ALIASES if a.path[:2] == ("models", "selectors")}
    assert given.pop("ENABLE_ILLUSTRIOUS_EMBEDDINGS") == "false"
    shipped = {
        name: selector.default
        for bundle in load_catalog(()).bundles.values()
        for name, selector in bundle.selectors.items()
    }
    assert shipped.pop("ILLUSTRIOUS_EMBEDDINGS") == "off"
    assert given == shipped
