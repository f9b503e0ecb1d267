"""A running pod as ``supervisor`` and the health port show it, and what can be asked of it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

from tests.e2e.conftest import SECRETS
from tests.e2e.pod import DEADLINE_S, Pod, edit, environment_of, pod_processes, wait_for

STATUS = {
    "phase": str, "ready": bool, "missing": list, "gpu": dict, "services": dict,
    "downloads": dict, "sync": dict, "alerts": list, "advice": list, "boot": dict,
}  # fmt: skip
PLAN = {
    "gpu": dict, "services": list, "downloads": list, "skipped": list, "sync": dict,
    "health": dict, "notes": list,
}  # fmt: skip


def test_status_has_the_promised_shape(pod: Pod) -> None:
    status = pod.json("status")
    assert {key: type(status[key]) for key in STATUS} == STATUS
    assert status["phase"] == "ready"
    assert status["missing"] == []
    assert set(status["services"]) == {"comfyui", "jupyter", "plain", "trusted"}
    for service in status["services"].values():
        assert {"state", "ready", "pid", "generation", "restarts", "last_exit"} <= set(service)
        assert service["state"] == "ready"
    downloads = status["downloads"]
    assert {"total", "done", "failed", "bytes_total", "bytes_done", "files"} <= set(downloads)
    assert downloads["bytes_done"] == downloads["bytes_total"]
    for file in downloads["files"]:
        assert {"name", "state", "bytes_total", "bytes_done", "error"} <= set(file)
        assert file["state"] == "done"
    assert {"enabled", "pending", "uploaded", "failed", "last_error"} <= set(status["sync"])


def test_status_for_people_names_what_runs(pod: Pod) -> None:
    done = pod.cli("status")
    assert done.returncode == 0
    for part in ("ready", "comfyui", "jupyter", "plain", "stored", pod.world.page):
        assert part in done.stdout
    assert "\x1b" not in done.stdout  # not a terminal


def test_health_port(pod: Pod) -> None:
    assert pod.get("/ping")[0] == 200
    assert pod.get("/healthz")[0] == 200
    assert pod.get("/readyz")[0] == 200
    code, metrics = pod.get("/metrics")
    assert code == 200
    assert 'supervisor_service_up{service="comfyui"} 1.0' in metrics
    assert pod.get("/v1/status")[0] == 401
    assert pod.get("/v1/status", token=True)[0] == 200
    assert "<html" in pod.get("/", token=True)[1]


def test_plan_has_the_promised_shape(pod: Pod) -> None:
    plan = pod.json("plan", "--config", str(pod.world.config))
    assert {key: type(plan[key]) for key in PLAN} == PLAN
    for service in plan["services"]:
        assert {"name", "command", "environment", "after", "required"} <= set(service)
    for file in plan["downloads"]:
        assert {
            *("name", "url", "destination", "size_bytes", "sha256", "bundle", "required"),
        } <= set(file)
    services = {service["name"]: service for service in plan["services"]}
    assert services["jupyter"]["environment"]["JUPYTER_TOKEN"] == "***"
    assert services["trusted"]["environment"]["HF_TOKEN"] == "***"
    assert services["trusted"]["after"] == ["comfyui"]


def test_secrets_reach_only_who_is_named(pod: Pod) -> None:
    for name in ("comfyui", "jupyter", "plain", "trusted"):
        pid = pod.service(name)["pid"]
        environment = environment_of(pid)
        allowed = {"HF_TOKEN"} if name == "trusted" else set()
        assert not (set(SECRETS) - allowed) & set(environment), name
        handed = {secret for key, secret in SECRETS.items() if key not in allowed}
        text = "\n".join(environment.values())
        assert not [secret for secret in handed if secret in text], name
    assert environment_of(pod.service("trusted")["pid"])["HF_TOKEN"] == SECRETS["HF_TOKEN"]


def test_secrets_are_never_shown(pod: Pod) -> None:
    arguments = "\n".join(pod_processes(*pod.marks()).values())
    config = str(pod.world.config)
    shown = {
        "arguments": arguments,
        "status": pod.cli("status").stdout,
        "status --json": pod.cli("status", "--json").stdout,
        "logs": pod.cli("logs", "-n", "1000").stdout,
        "events": pod.cli("events", "--json").stdout,
        "plan": pod.cli("plan", "--config", config).stdout,
        "plan --json": pod.cli("plan", "--json", "--config", config).stdout,
        "config show": pod.cli("config", "show", "--config", config).stdout,
        "metrics": pod.get("/metrics")[1],
        "page": pod.get("/", token=True)[1],
        "v1": pod.get("/v1/status", token=True)[1] + pod.get("/v1/services", token=True)[1],
        "container log": pod.text(),
        "log files": "".join(
            path.read_text(errors="replace")
            for path in (pod.world.folder / "state").rglob("*")
            if path.is_file() and path.name != "generated-secrets.json"
        ),
    }
    for where, text in shown.items():
        assert text, where
        assert not [name for name, secret in SECRETS.items() if secret in text], where
    token = environment_of(pod.service("jupyter")["pid"])["JUPYTER_TOKEN"]
    for where in ("arguments", "logs", "events", "metrics", "container log", "log files"):
        assert token not in shown[where], where
        assert pod.world.token not in shown[where], where


def follow(pod: Pod, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "supervisor", *arguments],
        env=pod.environment,
        stdout=subprocess.PIPE,
        text=True,
    )


def test_logs_and_events_are_followed(pod: Pod) -> None:
    assert pod.cli("logs", "plain").stdout == "up\n"
    assert "comfyui" in pod.cli("logs").stdout
    logs, events = follow(pod, "logs", "plain", "-f"), follow(pod, "events", "-f", "--json")
    try:
        assert logs.stdout is not None
        assert events.stdout is not None
        assert "up" in logs.stdout.readline()
        assert pod.cli("restart", "plain").returncode == 0
        assert "up" in logs.stdout.readline()
        kinds = iter(json.loads(line) for line in events.stdout)
        restarted = next(e for e in kinds if e["data"].get("generation") == 2)
        assert restarted["subject"] == "plain"
    finally:
        for process in (logs, events):
            process.kill()
            process.communicate()


def test_services_are_controlled(pod: Pod) -> None:
    before = pod.service("plain")
    assert pod.cli("stop", "plain").returncode == 0
    assert pod.service("plain")["state"] == "stopped"
    assert pod.service("plain")["pid"] is None
    assert pod.cli("start", "plain").returncode == 0
    started = pod.wait(lambda s: s["services"]["plain"]["ready"], "plain is up")["services"][
        "plain"
    ]
    assert started["generation"] == before["generation"] + 1
    assert pod.cli("signal", "plain", "KILL").returncode == 0
    killed = pod.wait(
        lambda s: s["services"]["plain"]["generation"] > started["generation"], "it came back"
    )["services"]["plain"]
    assert killed["last_exit"]["signal"] == "SIGKILL"
    assert {"code", "signal", "reason", "at"} <= set(killed["last_exit"])
    assert pod.status()["phase"] in ("ready", "degraded")


def test_what_does_not_exist_is_told_apart(pod: Pod) -> None:
    done = pod.cli("restart", "comfy")
    assert done.returncode == 1
    assert "comfyui" in done.stderr  # what was meant
    done = pod.cli("signal", "plain", "FOO")
    assert done.returncode in (1, 2)
    assert "FOO" in done.stderr


def test_reload_touches_only_what_changed(pod: Pod) -> None:
    before = {name: s["pid"] for name, s in pod.status()["services"].items()}
    edit(pod.world, "services.extra", command=["sleep", "3600"])
    done = pod.cli("reload", "--dry-run")
    assert done.returncode == 0, done.stderr
    assert "extra" in done.stdout
    assert "extra" not in pod.status()["services"]
    assert pod.cli("reload").returncode == 0
    status = pod.wait(
        lambda s: s["services"].get("extra", {}).get("ready"), "the new service is up"
    )
    after = {name: s["pid"] for name, s in status["services"].items()}
    assert {name: after[name] for name in before} == before

    pod.world.config.write_text(pod.world.config.read_text() + "\n[comfy]\nport = 1\n")
    done = pod.cli("reload")
    assert done.returncode != 0
    assert "comfyui" in done.stderr  # the nearest name
    assert pod.status()["phase"] == "ready"
    text = pod.world.config.read_text().removesuffix("\n[comfy]\nport = 1\n")
    pod.world.config.write_text(text.replace('[services.extra]\ncommand = ["sleep", "3600"]', ""))
    os.kill(pod.init, signal.SIGHUP)
    pod.wait(lambda s: "extra" not in s["services"], "a service taken out is gone")


def test_jupyterlab_is_restarted_and_leaves_no_kernel(pod: Pod) -> None:
    first = pod.service("jupyter")
    token = environment_of(first["pid"])["JUPYTER_TOKEN"]
    address = first["url"].removesuffix("/lab")

    def start_kernel() -> None:
        request = urllib.request.Request(  # noqa: S310 - our own Jupyter
            f"{address}/api/kernels",
            data=b'{"name": "python3"}',
            headers={"Authorization": f"token {token}", "Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=DEADLINE_S) as answer:  # noqa: S310
            assert answer.status == 201

    def kernels() -> dict[int, str]:
        found = pod_processes(*pod.marks())
        return {pid: text for pid, text in found.items() if "ipykernel" in text}

    start_kernel()
    (kernel,) = wait_for(kernels, "the kernel runs")
    os.kill(first["pid"], signal.SIGKILL)
    pod.wait(
        lambda s: s["services"]["jupyter"]["ready"] and s["services"]["jupyter"]["generation"] == 2,
        "jupyter is ready again",
    )
    assert not Path(f"/proc/{kernel}").exists()
    assert pod.service("jupyter")["restart_reasons"] == {"killed": 1}
    start_kernel()
    wait_for(kernels, "a new kernel runs")
    assert pod.cli("stop", "jupyter").returncode == 0
    assert kernels() == {}


def test_shutdown_ends_it_with_code_0_and_nothing_left(pod: Pod) -> None:
    marks = pod.marks()
    done = pod.cli("shutdown")
    assert done.returncode == 0, done.stderr
    assert pod.process.wait(DEADLINE_S) == 0
    assert pod_processes(*marks) == {}
    assert not pod.world.socket.exists()
    assert pod.cli("status").returncode == 69
