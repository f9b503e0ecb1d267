"""TLS, on both event loops: receivers and lanes take encrypted answers as well."""

from __future__ import annotations

import importlib.util
import ssl
import subprocess
import threading
from pathlib import Path
from typing import Any

import pytest

from supervisor.download.engine import SegmentedDownloader
from supervisor.errors import PermanentTransferError
from tests.conftest import require
from tests.support.bad_origin import Ask, Fault, serve
from tests.support.downloads import QUICK, Direct, Log, only, random_bytes, wanted

pytestmark = [pytest.mark.anyio, pytest.mark.needs("openssl")]

MIB = 1024 * 1024
DATA = random_bytes(40 * MIB + 99)
LOOPS: list[Any] = [("asyncio", {}), ("asyncio", {"use_uvloop": True})]


@pytest.fixture(params=LOOPS, ids=["asyncio", "uvloop"])
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    if request.param[1]:
        require(available=importlib.util.find_spec("uvloop") is not None, what="uvloop")
    return request.param


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A self-signed certificate for 127.0.0.1, with its key in the same file."""
    folder = tmp_path_factory.mktemp("tls")
    key, pem = folder / "key.pem", folder / "cert.pem"
    command = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=origin"
    command += " -addext subjectAltName=IP:127.0.0.1 -keyout {} -out {}"
    subprocess.run(command.format(key, pem).split(), check=True, capture_output=True)
    pem.write_text(pem.read_text() + key.read_text())
    return pem


def _server(certificate: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    return context


def _make(ca_file: Path | None) -> SegmentedDownloader:
    return SegmentedDownloader(
        stall_timeout_s=2.0, attempts=5, backoff=QUICK, fsync=False, ca_file=ca_file
    )


# Slow enough that one connection never has it all before others are tried.
PACE = 15e6


def _smooth(_: Ask) -> Fault:
    return Fault(bytes_per_s=PACE)


def _rough(ask: Ask) -> Fault:
    if ask.number % 4 == 1:
        return Fault(cut_after=2 * MIB + 1, bytes_per_s=PACE)
    return Fault(close=ask.number % 4 == 2, bytes_per_s=PACE)


@pytest.mark.parametrize("behave", [_smooth, _rough], ids=["smooth", "rough"])
async def test_many_encrypted_connections(tmp_path: Path, certificate: Path, behave: Any) -> None:
    folder = tmp_path / "models"
    async with serve(DATA, behave, tls=_server(certificate)) as origin:
        async with _make(certificate) as engine:
            request = wanted(folder, origin.url, sha256=origin.sha256)
            result = await engine.fetch(request, Direct(), Log())
            assert any(t.name.startswith("download-lane") for t in threading.enumerate())
        assert result.sha256 == origin.sha256
        assert len(origin.asks) > 2
        assert request.destination.read_bytes() == DATA
    only(folder, "model.bin")


async def test_an_unknown_authority_is_refused_with_a_hint(
    tmp_path: Path, certificate: Path
) -> None:
    async with serve(DATA, tls=_server(certificate)) as origin, _make(None) as engine:
        with pytest.raises(PermanentTransferError, match="not trusted") as caught:
            await engine.fetch(wanted(tmp_path, origin.url), Direct(), Log())
    assert "SSL_CERT_FILE" in (caught.value.hint or "")
    only(tmp_path)


async def test_an_own_bundle_comes_from_the_environment(
    tmp_path: Path, certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    async with serve(DATA, tls=_server(certificate)) as origin, _make(None) as engine:
        await engine.fetch(wanted(tmp_path, origin.url), Direct(), Log())
    only(tmp_path, "model.bin")
