"""The signature of bodies is the one that botocore would make."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote, urlencode

import pytest
from botocore import auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from supervisor.sync import s3_sign
from supervisor.sync.credentials import Keys
from supervisor.sync.s3_sign import EMPTY, UNSIGNED, Signer

_NOW_S = 1_795_261_715
_SHA256 = "ab" * 32


@pytest.mark.parametrize("host", ["acc.r2.cloudflarestorage.com", "127.0.0.1:9000", "[::1]:9000"])
@pytest.mark.parametrize("key", ["a.png", "outputs/2026-11-21/a b+ü~(1)'&=%.png", "x//y", "ß\n"])
@pytest.mark.parametrize("query", [{}, {"uploadId": "a/b+c=", "partNumber": "12"}])
@pytest.mark.parametrize(
    ("method", "sha256"), [("PUT", _SHA256), ("PUT", UNSIGNED), ("HEAD", EMPTY)]
)
def test_it_is_botocores(
    monkeypatch: pytest.MonkeyPatch,
    *,
    host: str,
    key: str,
    query: Mapping[str, str],
    method: str,
    sha256: str,
) -> None:
    class Known(auth.S3SigV4Auth):
        def payload(self, request: AWSRequest) -> str:
            return sha256

    headers = {"Content-Type": "image/png", "x-amz-meta-note": "two  spaces ", "If-Match": '"e"'}
    now = dt.datetime.fromtimestamp(_NOW_S, dt.UTC)
    monkeypatch.setattr(auth, "get_current_datetime", lambda *_: now)
    monkeypatch.setattr(s3_sign, "wall_time_s", lambda: float(_NOW_S))
    path = "/bucket/" + quote(key, safe="/~")
    sorted_query = urlencode(sorted(query.items()), quote_via=quote)
    url = f"http://{host}{path}" + (f"?{sorted_query}" if query else "")
    request = AWSRequest(method, url, headers=headers)
    signed_by: Any = Known  # botocore has no types
    signed_by(Credentials("id", "secret"), "s3", "auto").add_auth(request)
    signer = Signer(Keys("id", "secret"), "auto")
    for _ in range(2):
        ours = signer.signed(host, path, sorted_query, headers, sha256, method=method)
        assert ours["Authorization"] == request.headers["Authorization"]
        assert ours["X-Amz-Date"] == request.headers["X-Amz-Date"]
