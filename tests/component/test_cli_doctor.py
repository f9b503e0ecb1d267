"""Each check of the doctor against the real thing it looks at."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from moto.server import ThreadedMotoServer

from supervisor.cli.doctor import (
    Verdict,
    check_bucket,
    check_disk,
    check_dns,
    check_ports,
    check_tokens,
)
from supervisor.config.load import LoadedSettings, load_settings
from supervisor.plan.model import Plan


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def load(tmp_path: Path, *overrides: str, **environ: str) -> LoadedSettings:
    paths = (f"supervisor.state_dir={tmp_path}", f"supervisor.socket={tmp_path / 'none.sock'}")
    return load_settings(config=None, environ=environ, overrides=(*paths, *overrides))


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


def bucket_settings(tmp_path: Path, endpoint: str, bucket: str) -> LoadedSettings:
    return load(
        tmp_path,
        ENABLE_R2_SYNC="true",
        R2_ENDPOINT=endpoint,
        R2_BUCKET=bucket,
        R2_ACCESS_KEY_ID="id",
        R2_SECRET_ACCESS_KEY="hush-hush",
        SUPERVISOR_SYNC__REGION="us-east-1",
    )


def test_bucket(s3: str, tmp_path: Path) -> None:
    import boto3

    client = boto3.client(  # type: ignore[no-untyped-call]
        "s3",
        endpoint_url=s3,
        region_name="us-east-1",
        aws_access_key_id="id",
        aws_secret_access_key="x",
    )
    client.create_bucket(Bucket="mine")
    (finding,) = check_bucket(bucket_settings(tmp_path, s3, "mine"))
    assert finding.verdict is Verdict.OK, finding.message
    assert "Contents" not in client.list_objects_v2(Bucket="mine")
    (finding,) = check_bucket(bucket_settings(tmp_path, s3, "other"))
    assert finding.verdict is Verdict.WRONG
    assert "NoSuchBucket" in finding.message
    assert "R2_BUCKET" in (finding.hint or "")


def test_bucket_that_does_not_answer(tmp_path: Path, free_tcp_port: int) -> None:
    loaded = bucket_settings(tmp_path, f"http://127.0.0.1:{free_tcp_port}", "mine")
    (finding,) = check_bucket(loaded)
    assert finding.verdict is Verdict.WRONG
    assert "hush" not in finding.message
    (finding,) = check_bucket(load(tmp_path))
    assert finding.verdict is Verdict.SKIPPED


class Hub(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        known = {"Bearer good": 200, "Bearer odd": 500}
        status = known.get(self.headers["Authorization"], 401)
        self.send_response(status if self.path == "/api/whoami-v2" else 404)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its name there
        pass


@pytest.mark.parametrize(
    ("token", "verdict"),
    [
        ("good", Verdict.OK),
        ("bad", Verdict.WRONG),
        ("odd", Verdict.WARNING),
        ("", Verdict.SKIPPED),
    ],
)
def test_tokens(token: str, verdict: Verdict, tmp_path: Path) -> None:
    with HTTPServer(("127.0.0.1", 0), Hub) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        endpoint = f"http://127.0.0.1:{server.server_port}"
        (finding,) = check_tokens(load(tmp_path, HF_TOKEN=token, HF_ENDPOINT=endpoint))
        server.shutdown()
        thread.join()
    assert finding.verdict is verdict


def test_hub_that_does_not_answer(tmp_path: Path, free_tcp_port: int) -> None:
    endpoint = f"http://127.0.0.1:{free_tcp_port}"
    (finding,) = check_tokens(load(tmp_path, HF_TOKEN="t", HF_ENDPOINT=endpoint))
    assert finding.verdict is Verdict.WARNING


def test_ports(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("0.0.0.0", 0))
        taken.listen()
        port = taken.getsockname()[1]
        findings = list(check_ports(load(tmp_path, f"health.port={port}", "comfyui.enabled=false")))
    assert [finding.verdict for finding in findings] == [Verdict.WRONG]
    assert str(port) in findings[0].message
    (tmp_path / "none.sock").touch()
    (finding,) = check_ports(load(tmp_path))
    assert finding.verdict is Verdict.SKIPPED


def test_disk(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    plan = Plan(output_directory=tmp_path / "new" / "output", models_directory=tmp_path / "file")
    findings = {f.name: f for f in check_disk(load(tmp_path), plan)}
    assert findings["output"].verdict in (Verdict.OK, Verdict.WARNING)
    assert findings["models"].verdict is Verdict.WRONG
    assert not (tmp_path / "new").exists()


def test_dns(tmp_path: Path) -> None:
    loaded = load(
        tmp_path, "models.hf_endpoint=http://localhost", "idle.api_url=http://nowhere.invalid"
    )
    findings = {f.message.split()[0].rstrip(":"): f.verdict for f in check_dns(loaded)}
    assert findings == {"localhost": Verdict.OK, "nowhere.invalid": Verdict.WRONG}
