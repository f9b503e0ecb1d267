"""The real command, in a process of its own, against a stand-in daemon on a real socket."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from socketserver import ThreadingMixIn, UnixStreamServer
from typing import Any

import pytest

from supervisor.core.status import Phase, ServiceState, ServiceStatus, Snapshot

ROOT = Path(__file__).parents[2]
STATUS = Snapshot(
    phase=Phase.READY, services={"a": ServiceStatus("a", ServiceState.READY, ready=True, pid=1)}
).to_json()
LINES = [
    {"service": "a", "at": "2026-01-01T00:00:00Z", "stream": "stdout", "text": "one", "seq": 1},
    {"service": "b", "at": "2026-01-01T00:00:00Z", "stream": "stdout", "text": "two", "seq": 2},
]
EVENT = {
    "seq": 1, "at": "2026-01-01T10:11:12.000Z", "kind": "service.state", "severity": "warning",
    "subject": "a", "message": "a is down", "data": {},
}  # fmt: skip


class Daemon(ThreadingMixIn, UnixStreamServer):
    """Answers like the daemon and remembers what it was asked."""

    daemon_threads = True

    def __init__(self, path: str) -> None:
        self.requests: list[tuple[str, str, Any]] = []
        self.answers: dict[str, Any] = {
            "GET /v1/status": STATUS,
            "GET /v1/sync": STATUS["sync"],
            "GET /v1/models": STATUS["downloads"],
        }
        self.hold = threading.Event()
        super().__init__(path, Handler)


class Handler(BaseHTTPRequestHandler):
    server: Daemon
    protocol_version = "HTTP/1.1"

    def address_string(self) -> str:
        return "unix"

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its name there
        pass

    def do_GET(self) -> None:
        self._answer(None)

    def do_POST(self) -> None:
        raw = self.rfile.read(int(self.headers["Content-Length"]))
        self._answer(json.loads(raw) if raw else None)

    def _answer(self, body: Any) -> None:
        path = self.path.partition("?")[0]
        self.server.requests.append((self.command, self.path, body))
        if path in ("/v1/logs", "/v1/events"):
            self._stream(LINES if path == "/v1/logs" else [EVENT])
            return
        answer = self.server.answers.get(f"{self.command} {path}", {})
        status, document = answer if isinstance(answer, tuple) else (200, answer)
        raw = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)

    def _stream(self, records: list[dict[str, Any]]) -> None:
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for record in records:
            raw = json.dumps(record).encode() + b"\n"
            self.wfile.write(f"{len(raw):x}\r\n".encode() + raw + b"\r\n")
        self.wfile.flush()
        if "follow=1" in self.path:
            self.server.hold.wait(60)
        self.wfile.write(b"0\r\n\r\n")


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    with Daemon(str(tmp_path / "s.sock")) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield server
        server.hold.set()
        server.shutdown()
        thread.join()


Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    def run_command(*argv: str, **environ: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "supervisor", *argv],
            env=environment(tmp_path, **environ),
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    return run_command


def environment(tmp_path: Path, **environ: str) -> dict[str, str]:
    base = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "HOME": str(tmp_path)}
    return {**base, "SUPERVISOR_SOCKET": str(tmp_path / "s.sock"), **environ}


def test_status(run: Run, daemon: Daemon) -> None:
    done = run("status")
    assert (done.returncode, done.stderr) == (0, "")
    assert "ready" in done.stdout
    assert "\x1b" not in done.stdout
    done = run("status", "--json")
    assert json.loads(done.stdout) == STATUS


@pytest.mark.parametrize(
    ("phase", "code"), [("ready", 0), ("booting", 0), ("degraded", 1), ("rescue", 1)]
)
def test_status_check_is_for_health_checks(run: Run, daemon: Daemon, phase: str, code: int) -> None:
    daemon.answers["GET /v1/status"] = {**STATUS, "phase": phase}
    assert run("status", "--check", "--json").returncode == code
    assert run("status").returncode == 0


def test_no_daemon(run: Run, tmp_path: Path) -> None:
    done = run("status")
    assert (done.returncode, done.stdout) == (69, "")
    assert str(tmp_path / "s.sock") in done.stderr
    assert "hint:" in done.stderr


def test_a_dead_socket_is_no_daemon(run: Run, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "s.sock"))
    assert run("status").returncode == 69


def test_socket_of_the_configuration_file_is_found(
    run: Run, daemon: Daemon, tmp_path: Path
) -> None:
    config = tmp_path / "c.toml"
    config.write_text(f'[supervisor]\nsocket = "{tmp_path / "s.sock"}"\n')
    done = run("status", SUPERVISOR_SOCKET="", SUPERVISOR_CONFIG=str(config))
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("argv", "path", "body"),
    [
        (["start", "a"], "/v1/services/a/start", None),
        (["stop", "a"], "/v1/services/a/stop", None),
        (["restart", "a"], "/v1/services/a/restart", {"now": False}),
        (["restart", "a", "--now"], "/v1/services/a/restart", {"now": True}),
        (["signal", "a", "usr1"], "/v1/services/a/signal", {"signal": "USR1"}),
        (["stop", "a/b c"], "/v1/services/a%2Fb%20c/stop", None),
        (["reload"], "/v1/reload", {"dry_run": False}),
        (["reload", "--dry-run"], "/v1/reload", {"dry_run": True}),
        (["shutdown"], "/v1/shutdown", None),
        (["ladder", "reset", "--now"], "/v1/ladder/reset", {"now": True}),
        (["idle", "keep", "90m"], "/v1/idle/keep", {"seconds": 5400.0}),
        (["idle", "release"], "/v1/idle/keep", {"seconds": 0.0}),
        (["sync", "flush", "--timeout", "5"], "/v1/sync/flush", {"timeout_s": 5.0}),
        (["sync", "retry"], "/v1/sync/retry", None),
        (["sync", "restore", "input"], "/v1/sync/restore", {"kinds": ["input"]}),
        (
            ["models", "add", "https://h/x", "--to", "loras/", "--now"],
            "/v1/models",
            {"url": "https://h/x", "to": "loras/", "now": True},
        ),
        (["models", "add", "o/r:p/x"], "/v1/models",
         {"huggingface": "o/r:p/x", "to": "", "now": False}),
        (["models", "add", "77"], "/v1/models", {"civitai": 77, "to": "", "now": False}),
    ],
)  # fmt: skip
def test_actions(run: Run, daemon: Daemon, argv: list[str], path: str, body: Any) -> None:
    done = run(*argv)
    assert done.returncode == 0, done.stderr
    assert daemon.requests[-1] == ("POST", path, body)
    assert done.stdout.strip()


def test_a_refusal_is_told_with_its_hint(run: Run, daemon: Daemon) -> None:
    error = {"code": "not-found", "message": "Cannot find service b", "hint": "did you mean a?"}
    daemon.answers["POST /v1/services/b/stop"] = (404, {"error": error})
    done = run("stop", "b")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "supervisor: Cannot find service b\n  hint: did you mean a?\n"


def test_logs(run: Run, daemon: Daemon) -> None:
    assert run("logs").stdout == "a | one\nb | two\n"
    assert daemon.requests[-1][1] == "/v1/logs?limit=100"
    assert run("logs", "a", "-n", "5").stdout == "one\ntwo\n"
    assert daemon.requests[-1][1] == "/v1/logs?service=a&limit=5"
    lines = run("logs", "--json").stdout.splitlines()
    assert [json.loads(line) for line in lines] == LINES


def test_events(run: Run, daemon: Daemon) -> None:
    assert "10:11:12 warning service.state" in run("events").stdout
    assert json.loads(run("events", "--json").stdout) == EVENT


def test_following_ends_quietly_on_ctrl_c(daemon: Daemon, tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "supervisor", "logs", "-f"],
        env=environment(tmp_path),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == "a | one\n"
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (130, "")


def test_a_closed_pipe_is_quiet(daemon: Daemon, tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "supervisor", "logs"],
        env=environment(tmp_path),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdout is not None
        process.stdout.close()
        assert process.stderr is not None
        assert process.stderr.read() == ""
        assert process.wait(30) == 141


def test_sync_and_models_for_people(run: Run, daemon: Daemon) -> None:
    assert "sync is off" in run("sync", "status").stdout
    assert "no model files" in run("models", "list").stdout
    sync = {**STATUS["sync"], "enabled": True, "pending": 2, "unflushed": 1}
    daemon.answers["POST /v1/sync/flush"] = sync
    done = run("sync", "flush")
    assert done.returncode == 1
    assert "2 pending" in done.stdout
    # What came after the question is not what was asked for.
    daemon.answers["POST /v1/sync/flush"] = {**sync, "unflushed": 0}
    assert run("sync", "flush").returncode == 0
    waiting = ["a.mp4 is still being written", "2 files (b.png, \x1b[31mc.png) are next"]
    daemon.answers["GET /v1/sync"] = {**sync, "waiting": waiting}
    shown = run("sync", "status").stdout
    assert "  a.mp4 is still being written\n" in shown
    assert "\x1b" not in shown
    assert max(map(len, shown.splitlines())) <= 80


def test_the_ladder_for_people(run: Run, daemon: Daemon) -> None:
    assert run("ladder", "status").stdout == "ComfyUI runs as planned\n"
    gpu = {**STATUS["gpu"], "ladder_step": 1, "ladder_reasons": ["step 1 because it ran out"]}
    daemon.answers["GET /v1/status"] = {**STATUS, "gpu": gpu}
    assert run("ladder", "status").stdout == "step 1 because it ran out\n"
    done = run("ladder", "status", "--json")
    assert json.loads(done.stdout) == {"step": 1, "reasons": ["step 1 because it ran out"]}
    daemon.answers["POST /v1/ladder/reset"] = {"pending": False, "steps": 1}
    assert "reset from step 1" in run("ladder", "reset").stdout
    daemon.answers["POST /v1/ladder/reset"] = {"pending": False, "steps": 0}
    assert "nothing to reset" in run("ladder", "reset").stdout


def test_models_of_a_workflow(run: Run, tmp_path: Path) -> None:
    (tmp_path / "models" / "vae").mkdir(parents=True)
    (tmp_path / "models" / "vae" / "here.safetensors").touch()
    url = "https://huggingface.co/o/r/resolve/main"
    models = [
        {"name": f"{name}.safetensors", "url": f"{url}/{name}.safetensors", "directory": "vae"}
        for name in ("here", "away")
    ]
    node = {"id": 1, "type": "VAELoader", "mode": 0, "properties": {"models": models}}
    (tmp_path / "w.json").write_text(json.dumps({"version": 0.4, "nodes": [node], "links": []}))
    options = ["--set", f"models.directory={tmp_path / 'models'}"]
    done = run("models", "workflow", "w.json", *options, "--json")
    assert done.returncode == 1, done.stderr
    states = {row["name"]: row["state"] for row in json.loads(done.stdout)}
    assert states == {"vae/here.safetensors": "there", "vae/away.safetensors": "missing"}
    shown = run("models", "workflow", "w.json", *options).stdout
    assert "missing    vae/away.safetensors\n" in shown
    assert f"{url}/away.safetensors\n" in shown
    assert run("models", "workflow", "nowhere.json").returncode == 1
    (tmp_path / "empty.json").touch()
    (tmp_path / "cut.json").write_text('{"nodes": [')
    some = run("models", "workflow", "empty.json", "cut.json", "w.json", *options, "--json")
    assert some.returncode == 1
    assert [row["name"] for row in json.loads(some.stdout)] == list(states)
    assert "empty.json: it is empty" in some.stderr
    assert "cut.json: it is not JSON: " in some.stderr


@pytest.mark.parametrize(
    ("argv", "hint"),
    [
        (["stauts"], "did you mean `supervisor status`?"),
        (["status", "--jsn"], "did you mean --json?"),
        (["stop"], "usage: supervisor stop"),
        (["logs", "-n", "x"], "usage: supervisor logs"),
        (["sync"], "usage: supervisor sync"),
        (["run", "--"], "supervisor run -- COMMAND"),
        (["run", "--no-grup", "--", "true"], "did you mean --no-group?"),
        (["run", "--cfg", "x"], "did you mean --config?"),
        (["idle", "keep", "soon"], "usage: supervisor idle keep"),
        (["logs", "-n", "-3"], "hint:"),
        (["demo", "--port", "99999"], "usage: supervisor demo"),
        (["demo", "--seconds", "nan"], "usage: supervisor demo"),
    ],
)
def test_usage_errors(run: Run, argv: list[str], hint: str) -> None:
    done = run(*argv)
    assert (done.returncode, done.stdout) == (2, "")
    assert hint in done.stderr


def test_help_and_version(run: Run) -> None:
    done = run("--help")
    assert done.returncode == 0
    assert "usage: supervisor" in done.stdout
    assert run().returncode == 2
    assert run("version").stdout.startswith("supervisor 0.")
    assert "version" in json.loads(run("version", "--json").stdout)
    assert run("run", "--help").returncode == 0


def test_init_mode_needs_no_configuration(run: Run, tmp_path: Path) -> None:
    (tmp_path / "supervisor.toml").write_text("broken")
    done = run("run", "--", "sh", "-c", "echo out; exit 7", SUPERVISOR_TYPO="1")
    assert (done.returncode, done.stdout, done.stderr) == (7, "out\n", "")
    assert run("run", "--no-group", "--no-setsid", "--", "true").returncode == 0
    assert run("run", "--", "/nowhere/x").returncode == 127


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("sync", "restore", "outputs"), "only workflows, input, settings"),
        (("sync", "flush", "--timeout", "nan"), "number of seconds"),
        (("sync", "flush", "--timeout", "-1"), "number of seconds"),
        (("models", "cancel"), "NAME"),
    ],
)
def test_what_cannot_be_meant_is_a_usage_error(
    run: Run, daemon: Daemon, words: tuple[str, ...], told: str
) -> None:
    done = run(*words)
    assert (done.returncode, done.stdout) == (2, "")
    assert told in done.stderr
    assert not daemon.requests


def test_models_under_way_are_steered(run: Run, daemon: Daemon) -> None:
    daemon.answers["POST /v1/models/cancel"] = {"names": ["loras/a"]}
    done = run("models", "cancel", "loras/a")
    assert (done.returncode, done.stdout) == (0, "left out: loras/a\n")
    daemon.answers["POST /v1/models/retry"] = {"names": ["b"]}
    assert json.loads(run("models", "retry", "b", "--json").stdout) == {"names": ["b"]}
    assert daemon.requests == [
        ("POST", "/v1/models/cancel", {"names": ["loras/a"]}),
        ("POST", "/v1/models/retry", {"names": ["b"]}),
    ]


def test_a_running_daemon_is_told_what_is_pulled_now(
    run: Run, daemon: Daemon, tmp_path: Path
) -> None:
    (tmp_path / "there.bin").write_bytes(b"model")
    config = tmp_path / "supervisor.toml"
    config.write_text(
        f'[comfyui]\nroot = "{tmp_path}/none"\n[models]\nbundles = []\n'
        f'directory = "{tmp_path}/models"\n[[models.files]]\n'
        f'url = "file://{tmp_path}/there.bin"\nto = "vae/there.bin"\n'
    )
    unknown = {"error": {"code": "not-found", "message": "Cannot find it", "hint": None}}
    daemon.answers["POST /v1/models/first"] = (404, unknown)
    done = run("models", "pull", "--now", "--config", str(config), "vae/there.bin")
    assert done.returncode == 0, done.stderr
    assert daemon.requests == [("POST", "/v1/models/first", {"names": ["vae/there.bin"]})]
    assert (tmp_path / "models/vae/there.bin").read_bytes() == b"model"
    daemon.requests.clear()
    assert run("models", "pull", "--config", str(config)).returncode == 0
    assert not daemon.requests


def test_check(run: Run, tmp_path: Path) -> None:
    good, bad = tmp_path / "good.toml", tmp_path / "bad.toml"
    good.write_text("[health]\nport = 9000\n")
    bad.write_text('[health]\nprot = 1\n[services.a]\ncommand = ["x"]\nafter = ["b"]\n')
    assert run("check", "--config", str(good)).returncode == 0
    done = run("check", "--config", str(bad), COMFYUI_PORT="abc")
    assert (done.returncode, done.stdout) == (78, "")
    for text in ("health.prot = 1", "bad.toml:2", "did you mean port?", "COMFYUI_PORT"):
        assert text in done.stderr
    done = run("check", "--config", str(bad), "--json")
    document = json.loads(done.stdout)
    assert done.returncode == 78
    assert document["problems"][0]["key"] == "health.prot"


def test_check_knows_the_dependencies(run: Run, tmp_path: Path) -> None:
    (tmp_path / "supervisor.toml").write_text(
        '[services.a]\ncommand = ["x"]\nafter = ["b"]\n[services.b]\ncommand = ["x"]\n'
        'after = ["a"]\n[services.c]\ncommand = ["x"]\nafter = ["comfyu"]\n'
    )
    done = run("check")
    assert done.returncode == 78
    assert "wait for each other" in done.stderr
    assert "did you mean comfyui?" in done.stderr


def test_plan_and_gpu_and_doctor_without_a_daemon(run: Run, tmp_path: Path) -> None:
    options = ["--set", f"comfyui.root={tmp_path}", "--set", f"supervisor.state_dir={tmp_path}"]
    before = sorted(tmp_path.iterdir())
    done = run("plan", *options, "--json", JUPYTER_PASSWORD="hush-hush-token")
    assert done.returncode == 0, done.stderr
    assert {"gpu", "services", "downloads", "skipped", "sync", "health", "notes"} <= set(
        json.loads(done.stdout)
    )
    command = '["x", "https://me:hush-hush@host", "--token", "hush-hush-2"]'
    options += ["--set", f"services.a.command={command}"]
    done = run("plan", *options, "--json", JUPYTER_PASSWORD="hush-hush-token")
    assert json.loads(done.stdout)["services"][-1]["command"][1:] == [
        "https://***@host", "--token", "***",
    ]  # fmt: skip
    text = run("plan", *options, JUPYTER_PASSWORD="hush-hush-token").stdout
    assert "comfyui" in text
    assert "hush-hush" not in done.stdout + text
    gpu = json.loads(run("gpu", *options, "--no-encode", "--json").stdout)
    assert {"devices", "tier", "mode", "reasons"} <= set(gpu)
    doctor = json.loads(run("doctor", *options, "--offline", "--json").stdout)
    assert {check["name"] for check in doctor["checks"]} >= {"gpu", "nvenc", "state", "ports"}
    assert sorted(tmp_path.iterdir()) == before


def test_config_commands(run: Run) -> None:
    assert json.loads(run("config", "schema").stdout)["title"] == "supervisor.toml"
    assert run("config", "docs").stdout.startswith("# Configuration reference")
    done = run("config", "show", "--set", "health.port=9000", HF_TOKEN="hf_secret")
    assert "port = 9000  # --set health.port" in done.stdout
    assert "hf_secret" not in done.stdout
    document = json.loads(run("config", "show", "--json", HF_TOKEN="hf_secret").stdout)
    assert document["settings"]["models"]["hf_token"] == "***"


def test_a_full_disk_behind_the_output_is_no_bug(tmp_path: Path) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "supervisor", "config", "docs"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            env=environment(tmp_path),
            check=False,
        )
    assert done.returncode == 1
    assert done.stderr == "supervisor: Cannot write the output: No space left on device\n"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts_are_complete(run: Run, shell: str) -> None:
    script = run("completion", shell).stdout
    for word in ("status", "watch", "restore", "dry-run", "config", "no-group"):
        assert word in script


def test_bash_completes(run: Run, tmp_path: Path) -> None:
    script = tmp_path / "c.bash"
    script.write_text(run("completion", "bash").stdout)
    for words, expected in (
        ("supervisor st", {"status", "start", "stop"}),
        ("supervisor models w", {"workflow"}),
        ("supervisor config show --a", {"--all"}),
        ("supervisor completion f", {"fish"}),
    ):
        count = len(words.split(" ")) - 1
        quoted = " ".join(f"'{word}'" for word in words.split(" "))
        code = f"source {script}; COMP_WORDS=({quoted}); COMP_CWORD={count}; _supervisor"
        code += '; printf "%s\\n" "${COMPREPLY[@]}"'
        done = subprocess.run(["bash", "-c", code], capture_output=True, text=True, check=True)
        assert set(done.stdout.split()) == expected


@pytest.mark.parametrize("command", ["status", "logs", "events", "stop x", "version"])
def test_client_commands_import_nothing_heavy(daemon: Daemon, tmp_path: Path, command: str) -> None:
    code = (
        "import sys; from supervisor.cli.main import main; main(sys.argv[1:]);"
        "heavy = {'anyio', 'asyncio', 'aiohttp', 'pydantic', 'rich', 'dataclasses', 'inspect',"
        " 'http.client', 'email', 'pathlib', 'typing', 'shutil'} & set(sys.modules);"
        "print(sorted(heavy), file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-S", "-c", code, *command.split()],
        env=environment(tmp_path),
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr == "[]\n"


def test_a_bug_is_one_line_unless_asked(tmp_path: Path) -> None:
    code = (
        "from supervisor.cli import main as m; import sys\n"
        "def broken(argv, environ): raise RuntimeError('boom\\nmore')\n"
        "m._dispatch = broken\nsys.exit(m.main([]))"
    )
    for debug, lines in (("", 2), ("1", 6)):
        done = subprocess.run(
            [sys.executable, "-c", code],
            env=environment(tmp_path, SUPERVISOR_DEBUG=debug),
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 70
        assert "supervisor: bug: RuntimeError: boom\n" in done.stderr
        assert len(done.stderr.splitlines()) >= lines
        assert ("Traceback" in done.stderr) is bool(debug)
