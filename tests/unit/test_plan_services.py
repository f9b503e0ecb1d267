"""Built-in services and those of the user: commands, probes, secrets, what is missing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from supervisor.config.settings import Settings
from supervisor.core.retry import Backoff
from supervisor.errors import ConfigError
from supervisor.hardware.facts import ComfyUIFacts, HardwareFacts
from supervisor.models.folders import CORE_FOLDERS
from supervisor.plan.build import GeneratedSecrets, build_plan
from supervisor.plan.model import Plan
from supervisor.services.spec import (
    Dependency,
    DependencyCondition,
    EnsureDirectory,
    EnsureLines,
    ExecProbe,
    HttpProbe,
    LogProbe,
    NotifyProbe,
    Readiness,
    RestartPolicy,
    RunFirst,
    ServiceSpec,
    StopStep,
    TcpProbe,
)
from tests.unit.plan_machines import CARDS, COMFYUI, POD, machine

GENERATED = GeneratedSecrets("jupyter-generated", "filebrowser-generated", "health-generated")
FACTS = machine(CARDS["l4-23034"], COMFYUI["0.33.0-dynamic-vram"])


def build(
    facts: HardwareFacts = FACTS, environ: dict[str, str] | None = None, **sections: Any
) -> Plan:
    return build_plan(
        settings=Settings.model_validate(sections),
        facts=facts,
        environ=environ or {},
        generated=GENERATED,
    )


def service(name: str, **given: Any) -> ServiceSpec:
    (found,) = [spec for spec in build(**given).services if spec.name == name]
    return found


def test_comfyui_is_run_in_place_with_probes_and_a_marker_for_planned_restarts() -> None:
    spec = service("comfyui", storage={"seed_comfyui": False})
    assert spec.command[:2] == ("/opt/venv/bin/python", "/opt/ComfyUI/main.py")
    assert (spec.cwd, spec.port, spec.required) == (Path("/opt/ComfyUI"), 8188, True)
    assert spec.readiness == Readiness(HttpProbe("http://127.0.0.1:8188/system_stats"), 90.0)
    assert spec.liveness is not None
    assert spec.liveness.probe == HttpProbe("http://127.0.0.1:8188/prompt")
    marker = Path(spec.environment["__COMFY_CLI_SESSION__"])
    constraints = marker.parent / "torch-constraints.txt"
    assert spec.prepare == (
        EnsureDirectory(marker.parent, 0o700),
        EnsureLines(constraints, (), 0o644),  # pip fails when it is told of a missing file
    )
    other = service("comfyui", storage={"seed_comfyui": False}, comfyui={"user": "nobody"})
    assert other.prepare[0] == EnsureDirectory(marker.parent, 0o1777)  # sticky: ours stays ours
    assert spec.environment["PIP_CONSTRAINT"] == spec.environment["UV_CONSTRAINT"]
    assert spec.environment["PIP_CONSTRAINT"] == str(constraints)


@pytest.mark.parametrize("grace_s", [2.0, 9.0, 30.0])
def test_comfyui_stops_within_the_grace_and_leaves_time_for_the_rest(grace_s: float) -> None:
    spec = service("comfyui", supervisor={"shutdown_grace_s": grace_s})
    assert [step.signal for step in spec.stop] == ["SIGINT", "SIGTERM"]
    assert sum(step.grace_s for step in spec.stop) <= 0.75 * grace_s


def test_the_users_port_and_address_are_probed() -> None:
    spec = service("comfyui", comfyui={"args": "--port 9000 --listen 10.0.0.5"})
    assert spec.port == 9000
    assert spec.readiness is not None
    assert spec.readiness.probe == HttpProbe("http://10.0.0.5:9000/system_stats")
    secure = service("comfyui", comfyui={"listen": "::"})
    assert secure.readiness is not None
    assert secure.readiness.probe == HttpProbe("http://[::1]:8188/system_stats")


def test_directories_follow_the_users_arguments() -> None:
    plan = build(storage={"seed_comfyui": False}, comfyui={"args": "--base-directory /data"})
    assert plan.output_directory == Path("/data/output")
    assert plan.models_directory == Path("/data/models")
    plan = build(comfyui={"args": "--output-directory /elsewhere"}, models={"directory": "/m"})
    assert plan.output_directory == Path("/elsewhere")
    assert plan.models_directory == Path("/m")
    assert {Path("/elsewhere"), Path("/m")} <= set(plan.directories)
    assert plan.sync.source == Path("/elsewhere")


def test_a_models_directory_elsewhere_is_made_known_to_comfyui() -> None:
    newest = service("comfyui", models={"directory": "/m"})
    at = newest.command.index("--models-directory")
    assert newest.command[at + 1] == "/m"
    old = machine(CARDS["l4-23034"], COMFYUI["0.3.10-normalvram"])
    spec = service("comfyui", facts=old, models={"directory": "/m"})
    path = Path(spec.command[spec.command.index("--extra-model-paths-config") + 1])
    (lines,) = [s for s in spec.prepare if isinstance(s, EnsureLines) and s.path == path]
    assert lines.lines[:3] == ("supervisor:", '  base_path: "/m"', "  is_default: true")
    assert lines.mode == 0o644
    categories = dict(line.strip().split(": ") for line in lines.lines[3:])
    assert categories.keys() == CORE_FOLDERS
    assert categories["loras"] == "loras"
    # A volume from older days; the last one is where ComfyUI saves to.
    assert categories["diffusion_models"] == '"unet\\ndiffusion_models"'
    assert categories["text_encoders"] == '"clip\\ntext_encoders"'
    assert categories["controlnet"] == '"t2i_adapter\\ncontrolnet"'


def test_models_are_found_though_the_options_of_comfyui_cannot_be_read() -> None:
    unreadable = machine(CARDS["l4-23034"], COMFYUI["unreadable"])
    spec = service("comfyui", facts=unreadable, models={"directory": "/m"})
    path = Path(spec.command[spec.command.index("--extra-model-paths-config") + 1])
    assert path in [step.path for step in spec.prepare if isinstance(step, EnsureLines)]


def test_the_users_own_model_paths_stay_beside_ours() -> None:
    """ComfyUI reads every file that it is given, and extra_model_paths.yaml beside main.py."""
    old = machine(CARDS["l4-23034"], COMFYUI["0.3.10-normalvram"])
    mine = "--extra-model-paths-config /etc/mine.yaml"
    spec = service("comfyui", facts=old, models={"directory": "/m"}, comfyui={"args": mine})
    words = spec.command
    given = [words[i + 1] for i, w in enumerate(words) if w == "--extra-model-paths-config"]
    assert len(given) == 2
    assert given[1] == "/etc/mine.yaml"
    written = [step.path for step in spec.prepare if isinstance(step, EnsureLines)]
    assert Path(given[0]) in written
    assert Path("/etc/mine.yaml") not in written
    assert not [path for path in written if path.name == "extra_model_paths.yaml"]


def test_a_missing_comfyui_is_shown_and_the_rest_still_runs() -> None:
    missing = ComfyUIFacts(Path("/opt/ComfyUI"), installed=False, python="python3")
    plan = build(machine(None, missing), jupyter={"enabled": True})
    comfyui, jupyter = plan.services
    assert comfyui.unavailable == "Cannot start ComfyUI: there is no main.py in /opt/ComfyUI"
    assert comfyui.hint
    assert jupyter.unavailable is None


def test_comfyui_is_seeded_onto_a_persistent_volume_once() -> None:
    spec = service("comfyui")
    (seed,) = [step for step in spec.prepare if isinstance(step, RunFirst)]
    assert seed.creates == Path("/workspace/ComfyUI/main.py")
    assert spec.cwd == Path("/workspace/ComfyUI")
    assert spec.command[1] == "/workspace/ComfyUI/main.py"
    # The next boot finds it there and reads the facts from there.
    there = replace(COMFYUI["0.33.0-dynamic-vram"], root=Path("/workspace/ComfyUI"))
    again = service("comfyui", facts=machine(CARDS["l4-23034"], there))
    assert not [step for step in again.prepare if isinstance(step, RunFirst)]
    assert again.cwd == Path("/workspace/ComfyUI")


def test_nothing_is_seeded_onto_a_disk_that_does_not_last() -> None:
    facts = replace(FACTS, host=replace(POD, mounts={}))
    assert service("comfyui", facts=facts).cwd == Path("/opt/ComfyUI")
    assert service("comfyui", storage={"mode": "ephemeral"}).cwd == Path("/opt/ComfyUI")


def test_jupyter_never_runs_without_a_token() -> None:
    assert [spec.name for spec in build().services] == ["comfyui"]
    given = service("jupyter", jupyter={"token": "chosen"})
    assert given.environment == {"JUPYTER_TOKEN": "chosen"}
    generated = service("jupyter", jupyter={"enabled": True})
    assert generated.environment == {"JUPYTER_TOKEN": "jupyter-generated"}
    for spec in (given, generated):
        assert spec.secret_names == {"JUPYTER_TOKEN"}
        assert not any("token" in word.lower() for word in spec.command)
        assert "--ServerApp.port_retries=0" in spec.command


@pytest.mark.parametrize(
    ("listen", "reached"), [("0.0.0.0", "127.0.0.1"), ("127.0.0.2", "127.0.0.2"), ("::1", "[::1]")]
)
def test_jupyter_is_probed_where_it_listens(listen: str, reached: str) -> None:
    spec = service("jupyter", jupyter={"enabled": True, "listen": listen})
    assert f"--ip={listen}" in spec.command
    assert spec.readiness is not None
    assert isinstance(spec.readiness.probe, HttpProbe)
    assert spec.readiness.probe.url == f"http://{reached}:8888/api"


def test_jupyter_that_is_not_installed() -> None:
    facts = replace(FACTS, programs={"jupyter": None})
    plan = build(facts, jupyter={"token": "chosen"})
    assert [(s.name, s.reason) for s in plan.skipped] == [("jupyter", "jupyter is not installed")]
    asked = service("jupyter", facts=facts, jupyter={"enabled": True})
    assert asked.unavailable == "Cannot start JupyterLab: jupyter is not installed"


def test_filebrowser_gets_its_password_before_it_listens() -> None:
    spec = service("filebrowser", filebrowser={"enabled": True})
    first = [step for step in spec.prepare if isinstance(step, RunFirst)]
    assert first[0].command[1:3] == ("config", "init")
    assert first[1].secret == "filebrowser-generated"
    assert "filebrowser-generated" not in repr(spec)
    assert "{secret}" in first[1].command
    assert spec.unavailable is None


def test_filebrowser_with_a_password_that_it_would_refuse() -> None:
    spec = service("filebrowser", filebrowser={"enabled": True, "password": "short"})
    assert "at least 12 characters" in (spec.unavailable or "")
    assert "short" not in (spec.unavailable or "")


def test_sshd_with_keys_only() -> None:
    facts = replace(FACTS, programs={"/usr/sbin/sshd": "/usr/sbin/sshd"})
    keys = "ssh-ed25519 AAAA one\n\nssh-rsa BBBB two\n"
    spec = service("ssh", facts=facts, environ={"HOME": "/home/me"}, ssh={"public_key": keys})
    assert spec.command[:5] == ("/usr/sbin/sshd", "-D", "-e", "-p", "22")
    assert "PasswordAuthentication=no" in spec.command
    (lines,) = [step for step in spec.prepare if isinstance(step, EnsureLines)]
    assert lines == EnsureLines(
        Path("/home/me/.ssh/authorized_keys"),
        ("ssh-ed25519 AAAA one", "ssh-rsa BBBB two"),
        0o600,
    )
    assert [s.name for s in build(facts).services] == ["comfyui"]


def test_a_service_of_the_user_with_everything() -> None:
    spec = service(
        "xtts",
        environ={"HF_TOKEN": "hf"},
        services={
            "xtts": {
                "command": ["python", "-m", "xtts"],
                "after": ["comfyui", "redis:started"],
                "required": True,
                "restart": "on-failure",
                "backoff_initial_s": 2,
                "backoff_max_s": 30,
                "stop_signal": "int",
                "stop_grace_s": 7,
                "ready": {"http": "http://127.0.0.1:8020/languages", "timeout_s": 33},
                "live": {"tcp": "[::1]:8020", "interval_s": 5, "failures": 2},
                "environment": {"A": "1", "MY_API_KEY": "k"},
                "env_pass": ["HF_TOKEN"],
                "user": "nobody",
                "umask": "027",
                "limits": {"nofile": 4096},
            },
            "redis": {"command": ["redis-server"], "ready": {"exec": ["redis-cli", "ping"]}},
        },
    )
    assert spec.after == (
        Dependency("comfyui"),
        Dependency("redis", DependencyCondition.STARTED),
    )
    assert spec.restart is RestartPolicy.ON_FAILURE
    assert spec.backoff == Backoff(2, 30)
    assert spec.stop == (StopStep("SIGINT", 7),)
    assert spec.readiness == Readiness(HttpProbe("http://127.0.0.1:8020/languages"), 33)
    assert spec.liveness is not None
    assert (spec.liveness.probe, spec.liveness.failures) == (TcpProbe("::1", 8020), 2)
    assert spec.environment == {"A": "1", "MY_API_KEY": "k", "HF_TOKEN": "hf"}
    assert spec.secret_names == {"MY_API_KEY", "HF_TOKEN"}
    assert (spec.umask, spec.limit_nofile, spec.user) == (0o027, 4096, "nobody")


@pytest.mark.parametrize(
    ("ready", "probe"),
    [
        ({"exec": ["true"]}, ExecProbe(("true",))),
        ({"log": "listening"}, LogProbe("listening")),
        ({"notify": True}, NotifyProbe(descriptor=False)),
        ({"notify": "fd"}, NotifyProbe(descriptor=True)),
        ({"tcp": "localhost:1"}, TcpProbe("localhost", 1)),
    ],
)
def test_kinds_of_readiness(ready: dict[str, Any], probe: object) -> None:
    spec = service("a", services={"a": {"command": ["a"], "ready": ready}})
    assert spec.readiness is not None
    assert spec.readiness.probe == probe


def test_every_fault_of_the_tables_is_reported_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        build(
            services={
                "a": {"command": ["a"], "stop_signal": "SIGNOPE", "after": ["comfyui:sometime"]},
                "b": {"command": ["b"], "ready": {"tcp": "no-port"}},
                "c": {"command": ["c"], "live": {"http": "127.0.0.1/x"}},
                "ssh": {"command": ["sshd"]},
            }
        )
    assert {problem.key for problem in caught.value.problems} == {
        "services.a.stop_signal",
        "services.a.after",
        "services.b.ready.tcp",
        "services.c.live.http",
        "services.ssh",
    }
    assert all(problem.hint for problem in caught.value.problems)


def test_the_order_puts_dependencies_first() -> None:
    plan = build(
        services={
            "last": {"command": ["x"], "after": ["middle"]},
            "middle": {"command": ["x"], "after": ["comfyui", "first"]},
            "first": {"command": ["x"]},
        }
    )
    order = [spec.name for spec in plan.services]
    assert order.index("first") < order.index("middle") < order.index("last")
    assert order.index("comfyui") < order.index("middle")


def test_env_pass_that_names_nothing_is_noted() -> None:
    plan = build(services={"a": {"command": ["a"], "env_pass": ["NOT_THERE"]}})
    assert "a: env_pass names NOT_THERE, which is not set" in plan.notes
