"""``doctor``'s look at the bucket: write one object, read it back, delete it."""

from __future__ import annotations

import secrets

import aioboto3
import anyio
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from supervisor.config.settings import SyncSection

# The newer checksum defaults break S3-compatible stores (CONTRACTS: R2 through aioboto3).
_CONFIG = Config(
    connect_timeout=5,
    read_timeout=10,
    retries={"max_attempts": 1},
    request_checksum_calculation="when_required",
    response_checksum_validation="when_required",
)
_HINTS = {
    "InvalidAccessKeyId": "look at R2_ACCESS_KEY_ID",
    "SignatureDoesNotMatch": "look at R2_SECRET_ACCESS_KEY",
    "AccessDenied": "give the token read and write access to this bucket",
    "NoSuchBucket": "create the bucket, or look at R2_BUCKET",
}


def check_bucket_access(section: SyncSection) -> tuple[str | None, str | None]:
    """Return what went wrong and a hint; (None, None) when everything worked."""
    return anyio.run(_check, section)


async def _check(section: SyncSection) -> tuple[str | None, str | None]:
    key = f"{section.prefix.strip('/')}/.supervisor-doctor-{secrets.token_hex(6)}".lstrip("/")
    body = secrets.token_bytes(16)
    access, secret = section.access_key_id, section.secret_access_key
    session = aioboto3.Session(  # type: ignore[no-untyped-call,attr-defined]
        aws_access_key_id=access.get_secret_value() if access else None,
        aws_secret_access_key=secret.get_secret_value() if secret else None,
    )
    try:
        async with session.client(  # type: ignore[no-untyped-call]
            "s3", endpoint_url=section.endpoint, region_name=section.region, config=_CONFIG
        ) as client:
            await client.put_object(Bucket=section.bucket, Key=key, Body=body)
            try:
                answer = await client.get_object(Bucket=section.bucket, Key=key)
                same = await answer["Body"].read() == body
            finally:
                await client.delete_object(Bucket=section.bucket, Key=key)
    except ClientError as error:
        code = str(error.response.get("Error", {}).get("Code", "unknown"))
        return f"{error.operation_name} is refused: {code}", _HINTS.get(code)
    except (BotoCoreError, OSError, ValueError) as error:
        return f"no answer: {error}", "look at R2_ENDPOINT and the network"
    return (None, None) if same else ("it returned other bytes than were written", None)
