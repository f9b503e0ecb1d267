"""Loading: precedence, search order, and every error path with key, value, reason, hint."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from pydantic import SecretStr

from supervisor.config.load import LoadedSettings, load_settings
from supervisor.config.redaction import Redactor
from supervisor.config.toml_file import key_lines
from supervisor.errors import ConfigError, ConfigProblem


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("supervisor.config.toml_file.SEARCH_PATHS", (Path("supervisor.toml"),))


def write(text: str, name: str = "x.toml") -> Path:
    path = Path.cwd() / name
    path.write_text(text)
    return path


def load(toml: str | None = None, *overrides: str, **environ: str) -> LoadedSettings:
    config = write(toml) if toml is not None else None
    return load_settings(config=config, environ=environ, overrides=overrides)


def problems(toml: str | None = None, *overrides: str, **environ: str) -> list[ConfigProblem]:
    with pytest.raises(ConfigError) as caught:
        load(toml, *overrides, **environ)
    assert caught.value.exit_code == 78
    bare = [str(problem) for problem in caught.value.problems if not problem.hint]
    assert not bare, "every error says what can be done"
    return list(caught.value.problems)


def one(toml: str | None = None, *overrides: str, **environ: str) -> ConfigProblem:
    found = problems(toml, *overrides, **environ)
    assert len(found) == 1, [str(problem) for problem in found]
    return found[0]


def test_no_file_is_fine() -> None:
    loaded = load()
    assert loaded.path is None
    assert loaded.settings.comfyui.port == 8188


def test_each_layer_wins_over_the_one_before() -> None:
    toml = "[comfyui]\nport = 1001\n"
    layers = {"SUPERVISOR_COMFYUI__PORT": "1002"}
    assert load(toml).settings.comfyui.port == 1001
    assert load(toml, **layers).settings.comfyui.port == 1002
    layers["COMFYUI_PORT"] = "1003"
    assert load(toml, **layers).settings.comfyui.port == 1003
    assert load(toml, "comfyui.port=1004", **layers).settings.comfyui.port == 1004


def test_search_order(tmp_path: Path) -> None:
    write("[comfyui]\nport = 1001\n", "supervisor.toml")
    assert load().settings.comfyui.port == 1001
    named = write("[comfyui]\nport = 1002\n", "named.toml")
    assert load(SUPERVISOR_CONFIG=str(named)).settings.comfyui.port == 1002
    assert load("[comfyui]\nport = 1003\n", SUPERVISOR_CONFIG=str(named)).path == (
        tmp_path / "x.toml"
    )


@pytest.mark.parametrize("where", ["option", "variable"])
def test_a_file_that_was_asked_for_must_exist(where: str) -> None:
    environ = {"SUPERVISOR_CONFIG": "/nowhere.toml"} if where == "variable" else {}
    config = Path("/nowhere.toml") if where == "option" else None
    with pytest.raises(ConfigError, match=r"Cannot read /nowhere.toml: it does not exist") as err:
        load_settings(config=config, environ=environ)
    assert err.value.problems[0].hint


def test_toml_syntax_error_has_line_and_column() -> None:
    problem = one("[health]\nport = = 5\n")
    assert re.search(r"x\.toml:2:8$", problem.source or "")
    assert "not valid TOML" in problem.reason


def test_broken_files() -> None:
    assert "at the end" in one('[health]\nhost = "').reason
    path = write("")
    path.write_bytes(b'a = "\xff"')
    with pytest.raises(ConfigError, match="is not UTF-8"):
        load_settings(config=path, environ={})
    with pytest.raises(ConfigError, match="is not a file"):
        load_settings(config=Path.cwd(), environ={})


def test_windows_line_ends_and_byte_order_mark() -> None:
    path = write("")
    path.write_bytes(b"\xef\xbb\xbf[health]\r\nport = 9\r\n")
    assert load_settings(config=path, environ={}).settings.health.port == 9


@pytest.mark.parametrize(
    ("toml", "key", "line", "value", "reason", "hint"),
    [
        ("[healht]\nport=1", "healht", 1, None, "is not a known section", "health?"),
        ("[health]\nprot=1", "health.prot", 2, "1", "is not a known key", "port?"),
        ("x = 1", "x", 1, "1", "is not a known key", "known here"),
        ("health = 5", "health", 1, "5", "must be a table", None),
        ('[comfyui]\nport = "a"', "comfyui.port", 2, '"a"', "must be a whole number", None),
        ("[comfyui]\nport = 0", "comfyui.port", 2, "0", "must be at least 1", None),
        ("[comfyui]\nport = 70000", "comfyui.port", 2, "70000", "must be at most 65535", None),
        ("[idle]\nminutes = inf", "idle.minutes", 2, "inf", "must be a finite number", None),
        ('[ssh]\nenabled = "ja"', "ssh.enabled", 2, '"ja"', "must be true or false", None),
        ('[gpu]\ntier = "datacentre"', "gpu.tier", 2, '"datacentre"', "must be one of auto",
         "datacenter?"),
        ('[supervisor]\nlog_format = "jsn"', "supervisor.log_format", 2, '"jsn"',
         "must be one of console, json", "json?"),
        ('[models]\nbundles = "a"', "models.bundles", 2, '"a"', "must be a list", None),
        ('[models]\nrate_limit = "fast"', "models.rate_limit", 2, '"fast"', "must be a rate",
         None),
        ('[models]\nstore_budget = "-1GB"', "models.store_budget", 2, '"-1GB"', "must be a size",
         None),
        ('[[models.files]]\nurl="u"\n[[models.files]]\nurl="u"\nsha256="x"',
         "models.files[1].sha256", 5, '"x"', "must match", None),
        ('[[models.files]]\nto = "a"', "models.files[0]", 1, None, "give exactly one of url", None),
        ("[services.a]\nrequired = true", "services.a.command", 1, None, "is required", None),
        ("[services.a]\ncommand = []", "services.a.command", 2, "[]", "must not be empty", None),
        ('[services.a]\ncommand = ["x"]\nenvironment = { N = 1 }', "services.a.environment.N", 3,
         "1", "must be text", 'quotes: "1"'),
        ('[services.a]\ncommand = ["x"]\nready = { tcp = "h:1", http = "http://x" }',
         "services.a.ready", 3, None, "give exactly one of", None),
        ('[services.a]\ncommand = ["x"]\nready = { notify = "maybe" }',
         "services.a.ready.notify", 3, '"maybe"', "must be", None),
        ('[services.a]\ncommand = ["x"]\nready = { http = "localhost:80/" }',
         "services.a.ready.http", 3, '"localhost:80/"', "http(s) URL", "like"),
        ('[services.a]\ncommand = ["x"]\nlive = { tcp = "8020" }', "services.a.live.tcp", 3,
         '"8020"', "must be host:port", "like"),
        ('[services.a]\ncommand = ["x"]\nready = { log = "(" }', "services.a.ready.log", 3,
         '"("', "is not a regular expression", None),
        ('[services.a]\ncommand = ["x"]\nstop_signal = "TERM"', "services.a.stop_signal", 3,
         '"TERM"', "is not a signal", "SIGTERM?"),
        ('[services.a]\ncommand = ["x"]\nuser = "rooot"', "services.a.user", 3, '"rooot"',
         "is not a user of this system", "did you mean root?"),
        ('[services.a]\ncommand = ["x"]\nrestart = "never"\non_failure = "restart"',
         "services.a.on_failure", 4, '"restart"', "contradicts", None),
        ('[services.a]\ncommand = ["x"]\nready = { tcp = "a:1", body = "x" }',
         "services.a.ready.body", 3, '"x"', "http checks only", None),
        ('[services.a]\ncommand = ["x"]\nready = { notify = "fd", watchdog_s = 3 }',
         "services.a.ready.watchdog_s", 3, "3.0", "needs notify = true", "NOTIFY_SOCKET"),
        ('[comfyui]\nuser = "no-such-user"', "comfyui.user", 2, '"no-such-user"',
         "is not a user of this system", "Dockerfile"),
        ('[services.comfyui]\ncommand = ["x"]', "services.comfyui", 1, None, "built-in",
         "[comfyui]"),
        ('[services."a b"]\ncommand = ["x"]', "services.a b", 1, None, "letters, digits", None),
        ("[comfyui]\nport = 8888\n[jupyter]\nenabled = true", "jupyter.port", 3, "8888",
         "comfyui.port", "another port"),
        ("[comfyui]\nargs = \"--x 'y\"", "comfyui.args", 2, "\"--x 'y\"", "cannot be split",
         "quotes"),
        ('[idle]\nenabled = true\naction = "command"', "idle.action", 3, '"command"',
         "needs idle.command", "command ="),
        ('[sync]\ntarget = "s3"', "sync.target", 2, '"s3"', "needs sync.endpoint", "R2_ENDPOINT"),
    ],
)  # fmt: skip
def test_faults_of_the_file(  # noqa: PLR0917 - one column each
    toml: str, key: str, line: int, value: str | None, reason: str, hint: str | None
) -> None:
    problem = one(toml)
    assert problem.key == key
    assert problem.value == value
    assert reason in problem.reason
    assert (hint or "") in (problem.hint or "")
    assert (problem.source or "").endswith(f"x.toml:{line}")


@pytest.mark.parametrize(
    ("name", "value", "key", "reason", "hint"),
    [
        ("COMFYUI_PORT", "abc", "comfyui.port", "must be a whole number", None),
        ("PORT", "tcp://1", "health.port", "must be a whole number", None),
        ("GPU_TIER", "huge", "gpu.tier", "must be one of", None),
        ("ENABLE_ZIMAGE", "maybe", "models.bundles", "must be true or false", None),
        ("CIVITAI_LORAS", "1,x", "models.civitai_loras[1]", "must be a whole number", None),
        ("SUPERVISOR_HEALTH__PORT", "x", "health.port", "must be a whole number", None),
        ("SUPERVISOR_MODELS__BUNDLES", "[1", "models.bundles", "is not valid JSON", None),
        ("SUPERVISOR_HEALTH", "5", "health", "must be a table", None),
    ],
)
def test_faults_of_variables(
    name: str, value: str, key: str, reason: str, hint: str | None
) -> None:
    problem = one(**{name: value})
    assert (problem.key, problem.source) == (key, name)
    assert reason in problem.reason


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("SUPERVISOR_HEALTH_PORT", "did you mean SUPERVISOR_HEALTH__PORT?"),
        ("SUPERVISOR_HELTH__PORT", "did you mean SUPERVISOR_HEALTH__PORT?"),
        ("SUPERVISOR_HEALTH__PROT", "did you mean SUPERVISOR_HEALTH__PORT?"),
        ("SUPERVISOR_CONFG", "did you mean SUPERVISOR_CONFIG?"),
        ("SUPERVISOR_XYZ", "names are SUPERVISOR_<SECTION>__<KEY>"),
        ("SUPERVISOR_HEALTH__", "did you mean"),
    ],
)
def test_unknown_variables(name: str, hint: str) -> None:
    problem = one(**{name: "1"})
    assert problem.key == name
    assert "is not a setting" in problem.reason
    assert hint in (problem.hint or "")


def test_variables_that_are_no_settings() -> None:
    load(SUPERVISOR_SERVICE="x/1", SUPERVISOR_NVENC="1", SUPERVISOR_DEBUG="1")


@pytest.mark.parametrize(
    ("override", "key", "reason", "hint"),
    [
        ("health.port=x", "health.port", "must be a whole number", None),
        ("health.prot=1", "health.prot", "is not a known key", "did you mean port?"),
        ("helth.port=1", "helth.port", "is not a known key", "did you mean health?"),
        ("health.port", "health.port", "is not key=value", "for example"),
        ("=1", "", "is not a known key", None),
        ("sync.patterns=[", "sync.patterns", "is not valid JSON", None),
    ],
)
def test_faults_of_set(override: str, key: str, reason: str, hint: str | None) -> None:
    problem = one(None, override)
    assert problem.key == key
    assert reason in problem.reason
    assert (hint or "") in (problem.hint or "")
    assert (problem.source or "").startswith("--set")


def test_every_fault_is_told_at_once() -> None:
    found = problems(
        "[health]\nprot = 1\n[gpu]\nindex = -1\n",
        "idle.minutes=0",
        COMFYUI_PORT="abc",
        SUPERVISOR_FOO="1",
    )
    assert {problem.key for problem in found} == {
        "health.prot", "gpu.index", "idle.minutes", "comfyui.port", "SUPERVISOR_FOO",
    }  # fmt: skip


def test_true_is_no_number() -> None:
    toml = """
        [comfyui]
        port = true
        start_timeout_s = false
        [health]
        dashboard = false
        [services.a]
        command = ["x"]
        nice = true
        ready = { notify = true }
        """
    found = {problem.key: problem.reason for problem in problems(toml)}
    assert found == dict.fromkeys(
        ("comfyui.port", "comfyui.start_timeout_s", "services.a.nice"), "must be a number"
    )


def test_a_file_that_is_nested_without_end() -> None:
    assert "nested too deeply" in one(f"a = {'[' * 100_000}").reason


def test_a_secret_file_that_is_no_text() -> None:
    assert "not a text" in one(HF_TOKEN_FILE="/dev/zero").reason


@pytest.mark.parametrize(
    ("environ", "reason"),
    [
        ({"HF_TOKEN": "hf_\udcff"}, "is not UTF-8"),
        ({"SUPERVISOR_SYNC__BUCKET": "\udcff"}, "is not UTF-8"),
        ({"HF_TOKEN": "hf_a\nhf_b"}, "must be one line of visible characters"),
        ({"SUPERVISOR_HEALTH__TOKEN": "a\u00a0b"}, "must be one line of visible characters"),
    ],
)
def test_values_that_no_header_can_carry(environ: dict[str, str], reason: str) -> None:
    problem = one(**environ)
    assert problem.reason == reason
    str(problem).encode()  # can be shown


def test_other_peoples_variables_may_hold_any_bytes() -> None:
    loaded = load(DB_PASSWORD="\udcff\udcfelong-word", JUNK="\udcff")
    assert "word" not in Redactor(loaded.secrets).redact("x \udcff\udcfelong-word %FF%FElong-word")


def test_secrets_are_never_in_a_problem() -> None:
    secret = "s3cr3t-value"
    toml = f"""
        [jupyter]
        token = ["{secret}"]
        [services.a]
        comand = {{ MY_TOKEN = "{secret}" }}
        environment = {{ MY_TOKEN = ["{secret}"], X_PASSWORD = 5 }}
        """
    found = problems(toml, SUPERVISOR_FOO_TOKEN=secret, SUPERVISOR_JUPYTER__TOKEN_FILE="/nowhere")
    assert len(found) >= 4
    misspelled = f"""
        [models]
        hf_tokn = "{secret}"
        hf_endpoint = ["https://me:{secret}@host"]
        [services.a]
        command = []
        environment = {{ MY_TOKEN = 31415926 }}
        """
    found += problems(misspelled, SUPERVISOR_SYNC__SECRET_ACCES_KEY=secret)
    assert "31415926" not in "".join(str(problem) for problem in found)
    assert secret not in "".join(str(problem) for problem in found)
    assert "***" in "".join(str(problem) for problem in found)


def test_secrets_and_names_are_collected() -> None:
    loaded = load(
        '[services.a]\ncommand = ["x"]\nenvironment = { A_TOKEN = "in-table" }\n'
        '[alerts]\nwebhook = "https://hooks.test/secret"\n',
        HF_TOKEN="hf_1",
        R2_BUCKET="mine",
        MY_API_KEY="key-1",
        ALLOW_EMPTY_PASSWORD="yes",
        DB_PASSWORD_FILE="/run/secrets/db",
        HOME="/root",
    )
    assert set(loaded.secrets) == {"in-table", "https://hooks.test/secret", "hf_1", "key-1"}
    assert loaded.environment_secrets == {
        "HF_TOKEN", "R2_BUCKET", "MY_API_KEY", "ALLOW_EMPTY_PASSWORD", "DB_PASSWORD_FILE",
    }  # fmt: skip
    assert "hf_1" not in repr(loaded)


def test_secret_files(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("from-file\n")
    loaded = load(SUPERVISOR_JUPYTER__TOKEN_FILE=str(tmp_path / "token"))
    assert loaded.settings.jupyter.token is not None
    assert loaded.settings.jupyter.token.get_secret_value() == "from-file"
    assert "from-file" in loaded.secrets
    problem = one(HF_TOKEN="a", HF_TOKEN_FILE=str(tmp_path / "token"))
    assert "both HF_TOKEN and HF_TOKEN_FILE" in problem.reason
    problem = one(HF_TOKEN_FILE="/nowhere")
    assert (problem.key, problem.value) == ("models.hf_token", "/nowhere")
    assert "No such file" in problem.reason


def test_a_setting_whose_name_ends_in_file_is_no_secret_file() -> None:
    toml = '[services.a]\ncommand = ["x"]\n'
    loaded = load(toml, SUPERVISOR_SERVICES__A__LOG_FILE="/var/log/a")
    assert loaded.settings.services["a"].log_file == Path("/var/log/a")


def test_structured_texts() -> None:
    loaded = load(
        '[services.my-svc]\ncommand = ["x"]\n',
        'services.new={"command": ["a", "b c"]}',
        'health={ port = 9, host = "::" }',
        SUPERVISOR_SYNC__PATTERNS="*.png, *.mp4",
        SUPERVISOR_MODELS__BUNDLES='["a","b"]',
        SUPERVISOR_JUPYTER__COMMAND="python -m 'jupyter lab'",
        SUPERVISOR_SERVICES__MY_SVC__ENVIRONMENT__Key="1",
        SUPERVISOR_COMFYUI__ENVIRONMENT='{"A": "b"}',
    )
    settings = loaded.settings
    assert settings.services["new"].command == ("a", "b c")
    assert (settings.health.port, settings.health.host) == (9, "::")
    assert settings.sync.patterns == ("*.png", "*.mp4")
    assert settings.models.bundles == ("a", "b")
    assert settings.jupyter.command == ("python", "-m", "jupyter lab")
    assert settings.services["my-svc"].environment == {"Key": "1"}
    assert settings.comfyui.environment == {"A": "b"}


@pytest.mark.parametrize("word", ["true", "TRUE", "1", "yes", "on", " True "])
def test_words_for_on(word: str) -> None:
    assert load(SUPERVISOR_IDLE__ENABLED=word).settings.idle.enabled is True


@pytest.mark.parametrize("word", ["false", "0", "No", "off"])
def test_words_for_off(word: str) -> None:
    assert load(SUPERVISOR_GPU__LADDER=word).settings.gpu.ladder is False


def test_empty_variables_are_unset() -> None:
    loaded = load(COMFYUI_PORT="", SUPERVISOR_HEALTH__PORT=" ", SUPERVISOR_CONFIG="", PORT="")
    assert (loaded.settings.comfyui.port, loaded.settings.health.port) == (8188, 8000)


def test_same_port_is_fine_when_one_of_the_two_is_off() -> None:
    load("[comfyui]\nport = 8080\n[filebrowser]\nenabled = false\n")


def test_a_mirror_needs_a_whole_address() -> None:
    problem = one(HF_ENDPOINT="hf-mirror.com")
    assert (problem.key, problem.source) == ("models.hf_endpoint", "HF_ENDPOINT")
    assert problem.hint == "like https://hf-mirror.com"
    assert load(HF_ENDPOINT="").settings.models.hf_endpoint == "https://huggingface.co"
    assert load(HF_TOKEN="a", HUGGING_FACE_HUB_TOKEN="b").settings.models.hf_token == SecretStr("a")


def test_lines_of_a_file() -> None:
    text = """\
# comment
a = 1
"b c" = { d = 1,
  e = 2 }
[t.u]
list = [
  "x",   # not a statement
]
text = '''
[not.a.table]
'''
[[t.v]]
k = 1
[[t.v]]
k = 2
[t.v.deep]
z.y = 3
"""
    # Inline tables over several lines are TOML 1.1; tomllib of 3.11 wants one line.
    lines = key_lines(text.replace("1,\n  e", "1, e"))
    assert lines["a",] == 2
    assert lines["b c", "e"] == 3
    assert lines["t", "u", "list"] == 5
    assert lines["t", "u", "text"] == 8
    assert lines["t", "v", 0, "k"] == 12
    assert lines["t", "v", 1] == 13
    assert lines["t", "v", 1, "k"] == 14
    assert lines["t", "v", 1, "deep", "z", "y"] == 16
    assert ("not",) not in lines
