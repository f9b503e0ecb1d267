"""What went wrong at the bucket, by class and never by text.

Codes: https://docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html and
https://developers.cloudflare.com/r2/api/error-codes/
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import aiohttp
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    EndpointConnectionError,
    HTTPClientError,
    NoCredentialsError,
    ParamValidationError,
)
from botocore.exceptions import (
    ConnectionError as BotoConnectionError,
)

from supervisor.errors import PermanentTransferError, TransferError, TransientTransferError
from supervisor.sync.target import TargetRefusedError

_WRONG_KEY = frozenset(
    {
        "AccessDenied", "AllAccessDisabled", "AccountProblem", "ExpiredToken", "Forbidden",
        "InvalidAccessKeyId", "InvalidToken", "NotSignedUp", "SignatureDoesNotMatch",
        "TokenRefreshRequired", "Unauthorized", "401", "403",
    }
)  # fmt: skip
_WRONG_BUCKET = frozenset({"NoSuchBucket", "InvalidBucketName"})
_WRONG_REGION = frozenset(
    {"AuthorizationHeaderMalformed", "IllegalLocationConstraintException", "InvalidRegionName",
     "PermanentRedirect"}
)  # fmt: skip
_SLOW_DOWN = frozenset(
    {"SlowDown", "Throttling", "ThrottlingException", "TooManyRequests", "RequestLimitExceeded",
     "ServiceUnavailable", "429", "503"}
)  # fmt: skip
_HOPELESS = frozenset(
    {"EntityTooLarge", "EntityTooSmall", "InvalidRequest", "KeyTooLongError", "MetadataTooLarge",
     "InvalidPartOrder", "MalformedXML", "InvalidArgument"}
)  # fmt: skip


def code_of(exc: ClientError) -> str:
    """Return the error code, or the HTTP status when there is no body (HEAD)."""
    return str(exc.response.get("Error", {}).get("Code", ""))


def status_of(exc: ClientError) -> int:
    """Return the HTTP status, 0 when it is unknown."""
    return int(exc.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def is_precondition(exc: ClientError) -> bool:
    """Whether If-None-Match or If-Match did not hold."""
    return status_of(exc) == 412 or code_of(exc) == "PreconditionFailed"


def is_forbidden(exc: ClientError) -> bool:
    """Whether this operation is not allowed with this token."""
    return status_of(exc) in (401, 403)


def tells_nothing(exc: ClientError) -> bool:
    """Whether HEAD was refused for a reason that only an answer with a body would tell.

    An expired token and a wrong region are 400 and 301: a PUT then says which.
    """
    return is_forbidden(exc) or is_unknown(exc) or status_of(exc) in (301, 307, 400)


def is_missing(exc: ClientError) -> bool:
    """Whether the object (not the bucket) does not exist."""
    return status_of(exc) == 404 and code_of(exc) != "NoSuchBucket"


def is_unknown(exc: ClientError) -> bool:
    """Whether the server does not have this operation."""
    return status_of(exc) in (405, 501)


def is_malformed(exc: ClientError) -> bool:
    """Whether the server says that something in this request cannot be right."""
    return status_of(exc) == 400 and code_of(exc) in ("400", "InvalidArgument", "InvalidRequest")


@contextmanager
def translated(bucket: str, doing: str) -> Iterator[None]:
    """Turn what botocore and aiohttp raise into the package's errors; secrets never get through."""
    try:
        yield
    except ClientError as exc:
        raise _client_error(exc, bucket, doing) from exc
    except (EndpointConnectionError, NoCredentialsError, aiohttp.ClientConnectorError) as exc:
        # The whole endpoint is out of reach, not one connection of many.
        raise TargetRefusedError(
            f"Cannot {doing}: the bucket's endpoint cannot be reached ({type(exc).__name__})",
            reason="unreachable",
            hint="check [sync] endpoint and the network; files wait",
        ) from exc
    except RecursionError as exc:  # botocore follows a redirect that names no region in circles
        raise _elsewhere(bucket) from exc
    except ParamValidationError as exc:
        raise PermanentTransferError(f"Cannot {doing}: {exc}") from exc
    except (
        HTTPClientError,
        BotoConnectionError,
        BotoCoreError,
        aiohttp.ClientError,
        OSError,
    ) as exc:
        raise TransientTransferError(f"Cannot {doing}: {type(exc).__name__}") from exc


def _client_error(exc: ClientError, bucket: str, doing: str) -> TransferError:
    code, status = code_of(exc), status_of(exc)
    what = f"Cannot {doing}: the server answered {status} {code.removeprefix(str(status))}".rstrip()
    if code in _WRONG_REGION:
        return _elsewhere(bucket)
    if code in _WRONG_BUCKET:
        return _to_mend(
            bucket,
            f"there is no such bucket ({code})",
            reason="no-bucket",
            hint="check [sync] bucket (R2_BUCKET), endpoint (R2_ENDPOINT) and region",
        )
    if code == "RequestTimeTooSkewed":
        return TargetRefusedError(
            f"Cannot upload to the bucket {bucket}: this machine's clock is wrong",
            reason="clock",
            hint="files wait until the clock agrees with the server's",
        )
    if code in _WRONG_KEY or status in (401, 403):
        return key_refused(bucket, code)
    if code in _SLOW_DOWN or status in (429, 503):
        return TargetRefusedError(what, reason="slow-down", retry_after_s=_retry_after_s(exc))
    if status == 413 or (code in _HOPELESS and status == 400):
        return PermanentTransferError(what, hint="the server will never take this file as it is")
    return TransientTransferError(what)


def key_refused(bucket: str, code: str) -> TargetRefusedError:
    """Say that nothing is taken with this key."""
    return _to_mend(
        bucket,
        f"the key was refused ({code})",
        reason="auth",
        hint="check R2_ACCESS_KEY_ID and R2_SECRET_ACCESS_KEY and that they may write",
    )


def no_s3(bucket: str) -> TargetRefusedError:
    """Say that the answers are not those of an S3 server: it tells an ETag of what it has."""
    return _to_mend(
        bucket,
        "what answers at the endpoint is no S3 server",
        reason="endpoint",
        hint="check [sync] endpoint (R2_ENDPOINT: https://ACCOUNT.r2.cloudflarestorage.com)",
    )


def _elsewhere(bucket: str) -> TargetRefusedError:
    return _to_mend(
        bucket,
        "it is in another region",
        reason="region",
        hint="check [sync] region (R2: auto) and endpoint (R2_ENDPOINT)",
    )


def _to_mend(bucket: str, cause: str, *, reason: str, hint: str) -> TargetRefusedError:
    """Refuse everything until a person has done what ``hint`` says."""
    message = f"Cannot upload to the bucket {bucket}: {cause}"
    return TargetRefusedError(message, reason=reason, hint=hint, act=True)


def _retry_after_s(exc: ClientError) -> float | None:
    headers = exc.response.get("ResponseMetadata", {}).get("HTTPHeaders", {})
    try:
        return min(300.0, float(headers["retry-after"]))
    except (KeyError, ValueError):
        return None
