"""The way to a bucket: botocore's client for calls, and a wire for what has a body."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aioboto3
from aiobotocore.config import AioConfig
from anyio import to_thread
from botocore.httpsession import get_cert_path

from supervisor import __version__
from supervisor.config.settings import SyncSection
from supervisor.sync.backlog import SMALL_LANES
from supervisor.sync.credentials import Keys
from supervisor.sync.s3_bucket import Link
from supervisor.sync.s3_multipart import PARTS_AT_ONCE
from supervisor.sync.s3_wire import CONNECT_S, READ_S, open_wire


@asynccontextmanager
async def open_link(settings: SyncSection, keys: Keys) -> AsyncIterator[Link]:
    """Open both; nothing is sent yet."""
    session, trust = await to_thread.run_sync(_prepare, keys)
    async with session.client(
        "s3",
        region_name=settings.region,
        endpoint_url=settings.endpoint,
        config=_client_config(settings),
    ) as api:
        connections = settings.concurrency * SMALL_LANES + PARTS_AT_ONCE * 2
        async with open_wire(
            api, keys, bucket=settings.bucket, trust=trust, connections=connections
        ) as wire:
            yield Link(api, wire)


def _prepare(keys: Keys) -> tuple[Any, ssl.SSLContext]:
    """Build a session and read botocore's large tables here, in a thread."""
    session: Any = aioboto3.Session(  # type: ignore[attr-defined,no-untyped-call]
        aws_access_key_id=keys.access_key_id or "none",
        aws_secret_access_key=keys.secret_access_key or "none",
    )
    loader = session._session.get_component("data_loader")
    for table in ("service-2", "endpoint-rule-set-1"):
        loader.load_service_model("s3", table)
    loader.load_data("partitions")
    # AWS_CA_BUNDLE, else what botocore trusts: slim images have no certificates of their own.
    bundle = session._session.get_config_variable("ca_bundle") or get_cert_path(True)
    return session, ssl.create_default_context(cafile=bundle)


def _client_config(settings: SyncSection) -> AioConfig:
    return AioConfig(
        signature_version="s3v4",
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        retries={"total_max_attempts": 1},  # the caller knows when to try again
        connect_timeout=CONNECT_S,
        read_timeout=READ_S,
        max_pool_connections=settings.concurrency + PARTS_AT_ONCE * 2,
        user_agent=f"comfypod-supervisor/{__version__}",
        s3={"addressing_style": "path" if settings.endpoint else "auto"},
    )
