"""What ``benchmarks.downloads`` downloads: files, and an nginx on loopback that serves them."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

LIMIT_BYTES_PER_S = 20_000_000


@dataclass(frozen=True)
class Case:
    """One load: files of equal size under one address."""

    name: str
    url: str
    files: tuple[str, ...]
    size: int
    ca: Path
    throttled: bool = False


def make_case(name: str, base: Path, ports: dict[str, int], size: int) -> Case:
    """Write the files of a case; the number of files follows ``size``."""
    ca = base / "ca.pem"
    scheme, port = ("https", "tls") if name == "tls" else ("http", name)
    url = f"{scheme}://localhost:{ports.get(port, ports['plain'])}"
    if name == "medium":  # 40 x 100 MB at the default scale
        names, each = tuple(f"m{i}.bin" for i in range(40)), size // 40
    elif name == "small":  # 2 000 x 1 MB
        names, each = tuple(f"s{i}.bin" for i in range(max(50, size // 1_000_000))), 1_000_000
    else:
        names, each = ("big.bin",), size
    for old in (base / "www").glob("*"):
        if old.name not in names:
            old.unlink()
    block = os.urandom(1_000_000)
    for index, file_name in enumerate(names):
        path = base / "www" / file_name
        if path.exists() and path.stat().st_size == each:
            continue
        with path.open("wb") as file:
            left = each
            while left > 0:
                # Every block differs, so that a misplaced one breaks the hash.
                file.write((index * 1_000_003 + left).to_bytes(8, "little"))
                file.write(block[: min(len(block), left) - 8])
                left -= min(len(block), left)
    return Case(name, url, names, each, ca, throttled=name == "throttled")


@contextlib.contextmanager
def nginx(base: Path, nice: int = 0) -> Iterator[dict[str, int]]:
    """Serve ``base/www`` plain, with TLS, and throttled."""
    (base / "www").mkdir()
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"),
            *("-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"),
            *("-keyout", "key.pem", "-out", "ca.pem"),
        ],
        cwd=base,
        check=True,
        capture_output=True,
    )
    ports = {"plain": _port(), "tls": _port(), "throttled": _port()}
    config = base / "nginx.conf"
    common = f"root {base}/www; access_log off;"
    config.write_text(
        f"daemon off; worker_processes auto; pid {base}/pid; error_log {base}/error.log;\n"
        f"user root; events {{ worker_connections 1024; }} http {{ sendfile on; "
        f"sendfile_max_chunk 2m; tcp_nopush on; keepalive_requests 100000;\n"
        f"server {{ listen 127.0.0.1:{ports['plain']}; {common} }}\n"
        f"server {{ listen 127.0.0.1:{ports['throttled']}; limit_rate {LIMIT_BYTES_PER_S}; "
        f"{common} }}\n"
        f"server {{ listen 127.0.0.1:{ports['tls']} ssl; ssl_certificate {base}/ca.pem; "
        f"ssl_certificate_key {base}/key.pem; {common} }} }}\n"
    )
    program = shutil.which("nginx", path=os.environ["PATH"] + ":/usr/sbin")
    if program is None:
        raise SystemExit("nginx is not installed")
    server = subprocess.Popen(
        ["nice", f"-n{nice}", program, "-c", str(config), "-e", str(base / "error.log")]
    )
    # A terminated benchmark must not leave its server behind.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        for port in ports.values():
            _wait(port)
        yield ports
    finally:
        server.terminate()
        server.wait()


def _port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait(port: int) -> None:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.05)
    raise SystemExit("nginx does not answer")
