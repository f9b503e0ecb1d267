"""Generated documents are complete, loadable and up to date."""

from __future__ import annotations

import re
import tomllib
from importlib import import_module
from pathlib import Path

import pytest

from supervisor.cli.docs import generated, main, replace_part
from supervisor.config.keys import dotted, walk
from supervisor.config.load import load_settings
from supervisor.config.schema import (
    effective,
    environment_table,
    json_schema,
    reference,
    render_effective,
)
from supervisor.config.settings import (
    LiveCheck,
    MemoryMode,
    ReadyCheck,
    ServiceSection,
    Settings,
    StorageMode,
    Tier,
)
from supervisor.config.template import commented_default

jsonschema = import_module("jsonschema")  # comes with JupyterLab, without type stubs
ROOT = Path(__file__).parents[2]


def uncommented() -> str:
    return re.sub(r"^#(?=\S)", "", commented_default(), flags=re.MULTILINE)


def test_template_as_it_is_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "supervisor.toml"
    path.write_text(commented_default())
    assert load_settings(config=path, environ={}).settings == Settings()


def test_template_is_valid_when_everything_is_uncommented(tmp_path: Path) -> None:
    path = tmp_path / "supervisor.toml"
    path.write_text(uncommented())
    loaded = load_settings(config=path, environ={})
    assert set(loaded.settings.services) == {"xtts", "chatterbox"}
    assert len(loaded.settings.models.files) == 3


def test_template_has_every_key() -> None:
    tables = tomllib.loads(uncommented())
    for path, _ in walk():
        if path == ("services",):
            continue
        found = tables
        for name in path:
            assert name in found, dotted(path)
            found = found[name]
    assert set(tables["services"]["xtts"]) == set(ServiceSection.model_fields)


def test_template_tells_the_words_that_a_key_takes() -> None:
    text = commented_default()
    assert " One of debug, info, warning, error." in text
    for words in (Tier, MemoryMode, StorageMode):
        assert f" One of {', '.join(words)}." in text
    assert " Any of workflows, input, settings." in text


def test_reference_names_every_key_and_variable() -> None:
    text = reference()
    for path, _ in walk():
        if path != ("services",):  # has headings of its own
            assert f"| `{dotted(path[1:])}` |" in text
    for section in (ServiceSection, ReadyCheck, LiveCheck):
        for path, _ in walk(section):
            assert f"| `{dotted(path)}` |" in text
    assert environment_table() in text
    assert "typing." not in text
    assert " object at 0x" not in text


def test_schema_accepts_what_loads_and_refuses_typos() -> None:
    schema = json_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    assert not list(validator.iter_errors(tomllib.loads(uncommented())))
    assert list(validator.iter_errors({"health": {"prot": 1}}))


def test_documents_in_the_tree_are_up_to_date() -> None:
    for path, text in generated(ROOT).items():
        assert path.read_text(encoding="utf-8") == text, f"{path}: run `make docs`"


def test_check_shows_drift_and_write_repairs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    readme = "# x\n<!-- help:begin -->\nold\n<!-- help:end -->\ntext\n"
    readme += "<!-- environment:begin -->\n<!-- environment:end -->\n"
    (tmp_path / "README.md").write_text(readme)
    assert main(["--check"]) == 1
    assert "-old" in capsys.readouterr().err
    assert main(["--write"]) == 0
    assert main(["--check"]) == 0
    written = (tmp_path / "README.md").read_text()
    assert "usage: supervisor COMMAND" in written
    assert "| `COMFYUI_PORT` |" in written
    assert written.startswith("# x\n")


def test_a_file_without_its_markers_is_an_error() -> None:
    with pytest.raises(ValueError, match="help:begin"):
        replace_part("no markers", "help", "x")


def test_effective_settings_show_sources_and_no_secret(tmp_path: Path) -> None:
    path = tmp_path / "supervisor.toml"
    path.write_text(
        '[health]\nport = 9\n[services.a]\ncommand = ["x"]\n'
        'environment = { A_TOKEN = "sec-1", B = "é\\"" }\n'
    )
    loaded = load_settings(config=path, environ={"HF_TOKEN": "sec-2", "JUPYTER_PASSWORD": "sec-3"})
    document = effective(loaded)
    assert document["settings"]["models"]["hf_token"] == "***"
    assert document["sources"]["models.hf_token"] == "HF_TOKEN"
    assert document["sources"]["health.port"] == f"{path}:2"
    text = render_effective(loaded)
    assert f"port = 9  # {path}:2" in text
    assert 'hf_token = "***"  # HF_TOKEN' in text
    shown = text + str(document) + render_effective(loaded, everything=True)
    assert "sec-" not in shown
    again = tomllib.loads(render_effective(loaded, everything=True))
    assert again["services"]["a"]["environment"] == {"A_TOKEN": "***", "B": 'é"'}
    assert again["comfyui"]["port"] == 8188


def test_effective_settings_show_no_address_with_a_secret_and_no_default(tmp_path: Path) -> None:
    path = tmp_path / "supervisor.toml"
    path.write_text(
        '[sync]\nendpoint = "https://me:sec-1@host"\n'
        '[[models.files]]\nurl = "https://host/a.safetensors?sig=sec-2"\nto = "loras/"\n'
        '[services.a]\ncommand = ["x", "--api-key", "sec-3-longer"]\nenv_pass = ["HF_TOKEN"]\n'
    )
    loaded = load_settings(config=path, environ={})
    text = render_effective(loaded)
    assert "sec-" not in text + str(effective(loaded))
    assert 'env_pass = ["HF_TOKEN"]' in text
    assert "restart" not in text  # a default, although its table is in the file


def test_nothing_set_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("supervisor.config.toml_file.SEARCH_PATHS", ())
    loaded = load_settings(config=None, environ={})
    assert render_effective(loaded) == "# all settings have their default"
