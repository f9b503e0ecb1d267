"""Requests that carry a body: signed by botocore, sent by aiohttp.

A call of the client costs a millisecond of CPU (endpoint rules, hooks, validation), which
for 2 000 small files is more than sending them. Everything without a body goes through it.
"""

from __future__ import annotations

import re
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

import aiohttp
from botocore.auth import UNSIGNED_PAYLOAD, S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from botocore.exceptions import ClientError
from botocore.utils import get_environ_proxies
from yarl import URL

from supervisor import __version__
from supervisor.sync.credentials import Keys

CONNECT_S = 10
READ_S = 60
_ERROR_BYTES = 64 * 1024


class _Signer(S3SigV4Auth):
    """Signs the checksum that is known instead of hashing the body once more."""

    def payload(self, request: AWSRequest) -> str:
        return str(request.context["sha256"])


class Wire:
    """PUTs to one bucket, with one pair of keys."""

    def __init__(self, session: aiohttp.ClientSession, signer: S3SigV4Auth, base_url: str) -> None:
        """Put below ``base_url``, which ends in "/"."""
        self._session = session
        self._signer = signer
        self._base_url = base_url
        # Not aiohttp's trust_env: that looks for a .netrc, in a thread, at every request.
        self._proxy = get_environ_proxies(base_url).get(urlsplit(base_url).scheme)

    async def put(
        self,
        key: str,
        body: bytes | aiohttp.Payload,
        headers: Mapping[str, str],
        *,
        query: Mapping[str, str] | None = None,
        sha256: str | None = None,
        ask: bool = False,
    ) -> Mapping[str, str]:
        """Send one request; returns the answer's headers.

        Signs ``sha256`` when it is known, so that the server refuses other bytes, and fewer.
        ``ask``: send the body when the server says "100 Continue".

        Raises:
            ClientError: the server refuses, as from the client.
            aiohttp.ClientError, TimeoutError: the connection fails.
        """
        url = self._base_url + quote(key, safe="/~")
        if query:
            url += "?" + urlencode(query, quote_via=quote)
        request = AWSRequest("PUT", url, headers=headers)
        request.context["sha256"] = sha256 or UNSIGNED_PAYLOAD
        self._signer.add_auth(request)
        async with self._session.put(
            URL(url, encoded=True),
            data=body,
            headers=request.headers.items(),
            expect100=ask,
            allow_redirects=False,
            proxy=self._proxy,
        ) as answer:
            if answer.status >= 300:
                raise await _refusal(answer)
            await answer.read()
            return answer.headers


async def _refusal(answer: aiohttp.ClientResponse) -> ClientError:
    body = await answer.content.read(_ERROR_BYTES)
    found = {
        name: match[1].decode(errors="replace")
        for name in ("Code", "Message")
        if (match := re.search(rb"<%b>([^<]*)</" % name.encode(), body))
    }
    error = {"Code": str(answer.status), "Message": "", **found}
    meta = {
        "HTTPStatusCode": answer.status,
        "HTTPHeaders": {name.lower(): value for name, value in answer.headers.items()},
    }
    return ClientError({"Error": error, "ResponseMetadata": meta}, "PUT")  # type: ignore[typeddict-item]


@asynccontextmanager
async def open_wire(
    api: Any, keys: Keys, *, bucket: str, trust: ssl.SSLContext, connections: int
) -> AsyncIterator[Wire]:
    """Open a wire beside a client, to the address that this client would use."""
    url = await api.generate_presigned_url("put_object", Params={"Bucket": bucket, "Key": "x"})
    credentials = Credentials(keys.access_key_id or "none", keys.secret_access_key or "none")
    signer = _Signer(credentials, "s3", api.meta.region_name)
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=connections, ssl=trust),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S, sock_read=READ_S),
        headers={"User-Agent": f"comfypod-supervisor/{__version__}", "Accept-Encoding": "identity"},
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
    ) as session:
        base_url = url.partition("?")[0].removesuffix("x")
        yield Wire(session, signer, base_url)
