"""Requests that each file needs: signed and sent with little CPU.

A call of the client costs a millisecond of CPU (endpoint rules, hooks, validation), which
for 2 000 small files is more than sending them. Everything seldom goes through it.
"""

from __future__ import annotations

import re
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import SplitResult, quote, urlencode, urlsplit

import aiohttp
from botocore.exceptions import ClientError
from botocore.utils import get_environ_proxies
from yarl import URL

from supervisor import __version__
from supervisor.sync.credentials import Keys
from supervisor.sync.s3_sign import EMPTY, UNSIGNED, Signer

CONNECT_S = 10
READ_S = 60
_ERROR_BYTES = 64 * 1024


class Wire:
    """PUTs to one bucket and HEADs of it, with one pair of keys."""

    def __init__(self, session: aiohttp.ClientSession, signer: Signer, base_url: str) -> None:
        """Ask below ``base_url``, which ends in "/"."""
        self._session = session
        self._signer = signer
        parts = urlsplit(base_url)
        self._origin, self._host = f"{parts.scheme}://{parts.netloc}", _host_of(parts)
        self._base_path = parts.path
        # Not aiohttp's trust_env: that looks for a .netrc, in a thread, at every request.
        self._proxy = get_environ_proxies(base_url).get(parts.scheme)

    async def head(self, key: str) -> Mapping[str, str]:
        """Return the headers of an object.

        Raises:
            ClientError: it is not there, or may not be seen; the code is the status.
            aiohttp.ClientError, TimeoutError: the connection fails.
        """
        path = self._base_path + quote(key, safe="/~")
        signed = self._signer.signed(self._host, path, "", {}, EMPTY, method="HEAD")
        async with self._session.head(
            URL(f"{self._origin}{path}", encoded=True),
            headers={**signed, "Host": self._host},
            allow_redirects=False,
            proxy=self._proxy,
        ) as answer:
            if answer.status >= 300:
                raise await _refusal(answer)
            return answer.headers

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
        path = self._base_path + quote(key, safe="/~")
        sorted_query = urlencode(sorted((query or {}).items()), quote_via=quote)
        signed = self._signer.signed(self._host, path, sorted_query, headers, sha256 or UNSIGNED)
        url = f"{self._origin}{path}" + (f"?{sorted_query}" if query else "")
        async with self._session.put(
            URL(url, encoded=True),
            data=body,
            headers={**signed, "Host": self._host},
            expect100=ask,
            allow_redirects=False,
            proxy=self._proxy,
        ) as answer:
            if answer.status >= 300:
                raise await _refusal(answer)
            await answer.read()
            return answer.headers


def _host_of(parts: SplitResult) -> str:
    """Return what goes into the Host header: without the port that the scheme implies."""
    usual = {"http": 80, "https": 443}[parts.scheme]
    host = parts.netloc.rpartition("@")[2]
    return host.removesuffix(f":{usual}") if parts.port == usual else host


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
    parsed: Any = {"Error": error, "ResponseMetadata": meta}  # as botocore parses it
    return ClientError(parsed, answer.method)


@asynccontextmanager
async def open_wire(
    api: Any, keys: Keys, *, bucket: str, trust: ssl.SSLContext, connections: int
) -> AsyncIterator[Wire]:
    """Open a wire beside a client, to the address that this client would use."""
    url = await api.generate_presigned_url("put_object", Params={"Bucket": bucket, "Key": "x"})
    signer = Signer(keys, api.meta.region_name)
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=connections, ssl=trust),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S, sock_read=READ_S),
        headers={"User-Agent": f"comfypod-supervisor/{__version__}", "Accept-Encoding": "identity"},
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
    ) as session:
        base_url = url.partition("?")[0].removesuffix("x")
        yield Wire(session, signer, base_url)
