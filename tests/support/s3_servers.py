"""Real S3 servers over HTTP: moto, s3rver (npm), and the strict stand-in."""

from __future__ import annotations

import os
import shutil
import subprocess
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
from botocore.config import Config

from tests.conftest import require
from tests.support.s3_strict import StrictS3


@dataclass(frozen=True)
class Server:
    """Where a server is and how to get in."""

    endpoint: str
    access_key: str
    secret_key: str
    bucket: str = "bucket"
    strict: StrictS3 | None = None

    @property
    def settings(self) -> dict[str, Any]:
        """The [sync] keys for it."""
        return {
            "target": "s3",
            "endpoint": self.endpoint,
            "bucket": self.bucket,
            "access_key_id": self.access_key,
            "secret_access_key": self.secret_key,
            "region": "us-east-1",
        }

    def client(self) -> Any:
        """A plain boto3 client, independent of the code under test."""
        return boto3.client(  # type: ignore[no-untyped-call]
            "s3",
            endpoint_url=self.endpoint,
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            region_name="us-east-1",
            config=Config(request_checksum_calculation="when_required",
                          response_checksum_validation="when_required",
                          s3={"addressing_style": "path"}),
        )  # fmt: skip

    def objects(self) -> dict[str, bytes]:
        """Everything in the bucket."""
        client = self.client()
        # The older listing: s3rver's newer one makes its tokens with a cipher that OpenSSL 3
        # does not have, and answers 500 above 1 000 objects.
        pages = client.get_paginator("list_objects").paginate(Bucket=self.bucket)
        keys = [found["Key"] for page in pages for found in page.get("Contents", ())]
        found = {k: client.get_object(Bucket=self.bucket, Key=k)["Body"].read() for k in keys}
        client.close()
        return found

    def uploads(self) -> list[str]:
        """Multipart uploads that were neither completed nor aborted."""
        client = self.client()
        found = client.list_multipart_uploads(Bucket=self.bucket).get("Uploads", [])
        client.close()
        return [upload["Key"] for upload in found]


@contextmanager
def moto() -> Iterator[Server]:
    """Run moto in server mode."""
    from moto.server import ThreadedMotoServer

    running = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    running.start()
    try:
        server = Server(
            "http://{}:{}".format(*running.get_host_and_port()),
            "key",
            "secret",
            # moto keeps its state for the life of the process.
            bucket=f"bucket-{uuid.uuid4()}",
        )
        client = server.client()
        client.create_bucket(Bucket=server.bucket)
        client.close()
        yield server
    finally:
        running.stop()


@contextmanager
def s3rver(folder: Path) -> Iterator[Server]:
    """Run s3rver of the npm registry (``npm install -g s3rver``)."""
    program = os.environ.get("S3RVER") or shutil.which("s3rver")
    if program is None:
        require(available=False, what="s3rver (npm install -g s3rver)")
        raise AssertionError("require does not return")
    command = [program, "-d", str(folder), "-a", "127.0.0.1", "-p", "0",
               "--configure-bucket", "bucket", "--no-vhost-buckets"]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        assert process.stdout is not None
        line = next(line for line in process.stdout if "listening" in line)
        port = line.rsplit(":", 1)[1].strip().rstrip("/")
        yield Server(f"http://127.0.0.1:{port}", "S3RVER", "S3RVER")
    finally:
        process.kill()
        process.communicate()


@contextmanager
def strict(**options: Any) -> Iterator[Server]:
    """Run the strict stand-in."""
    with StrictS3(**options) as running:
        yield Server(running.endpoint, "key", "secret", strict=running)
