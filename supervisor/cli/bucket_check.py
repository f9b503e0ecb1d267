"""``doctor``'s look at the bucket: write one object, read it back, delete it.

It goes the way that uploads go: what works here works there.
"""

from __future__ import annotations

import hashlib
import secrets

import anyio

from supervisor.config.settings import SyncSection
from supervisor.errors import TransferError
from supervisor.sync.credentials import Credentials
from supervisor.sync.s3_errors import translated
from supervisor.sync.s3_link import open_link

_DEADLINE_S = 30.0


def check_bucket_access(section: SyncSection) -> tuple[str | None, str | None]:
    """Return what went wrong and a hint; (None, None) when everything worked."""
    return anyio.run(_check, section)


async def _check(section: SyncSection) -> tuple[str | None, str | None]:
    try:
        with anyio.fail_after(_DEADLINE_S):
            same = await _round_trip(section)
    except TransferError as exc:
        return exc.message, exc.hint
    except TimeoutError:
        return f"no answer within {_DEADLINE_S:.0f} s", "look at R2_ENDPOINT and the network"
    return (None, None) if same else ("it returned other bytes than were written", None)


async def _round_trip(section: SyncSection) -> bool:
    key = f"{section.prefix.strip('/')}/.supervisor-doctor-{secrets.token_hex(6)}".lstrip("/")
    body = secrets.token_bytes(16)
    name = {"Bucket": section.bucket, "Key": key}
    async with open_link(section, await Credentials(section, {}).read()) as link:
        with translated(section.bucket, "write to the bucket"):
            await link.wire.put(key, body, {}, sha256=hashlib.sha256(body).hexdigest())
        try:
            with translated(section.bucket, "read from the bucket"):
                answer = await link.api.get_object(**name)
                return bool(await answer["Body"].read() == body)
        finally:
            with translated(section.bucket, "delete from the bucket"):
                await link.api.delete_object(**name)
