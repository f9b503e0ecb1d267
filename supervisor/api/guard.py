"""Who may do what on the health port, which is public behind RunPod's proxy.

The page's cookie is made with a secret key of its own: who sees it (browsers send cookies to
every port of a host, ComfyUI's included) can test no guess of the token with it, and who
guesses a token cannot compute it.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import os
from urllib.parse import urlsplit

import anyio
from aiohttp import web

from supervisor.errors import ControlError

log = logging.getLogger("supervisor.api")

COOKIE = "supervisor_session"
_COOKIE_AGE_S = 7 * 86400
_FIRST_PAUSE_S = 0.2
_LONGEST_PAUSE_S = 5.0
_FORGIVEN_AFTER_S = 60.0
_MOST_WAITING = 16

# Scripts and styles from here only; nothing may frame the page or be loaded by it.
SECURITY_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
        "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}


class Guard:
    """Checks tokens; wrong ones are answered ever more slowly, right ones at once."""

    def __init__(self, token: str, session_key: str) -> None:
        if not token:
            raise ValueError("the health port needs a token")
        self._token = token.encode()
        key = session_key.encode() or os.urandom(32)
        self._cookie = hmac.new(key, self._token, hashlib.sha256).hexdigest().encode()
        self._failures = 0
        self._failed_at_s = float("-inf")
        self._waiting = 0

    def is_token(self, given: str) -> bool:
        """Whether this is the token, in a time that does not depend on how alike they are."""
        return hmac.compare_digest(_bytes(given), self._token)

    async def admits(self, request: web.Request) -> bool:
        """Whether the request carries the token or the session; a wrong one costs time.

        Raises:
            ControlError: too many wrong ones are waiting already.
        """
        scheme, _, given = request.headers.get("Authorization", "").partition(" ")
        if scheme.lower() == "bearer":
            return await self.accepts(given.strip())
        cookie = request.cookies.get(COOKIE)
        return cookie is not None and hmac.compare_digest(_bytes(cookie), self._cookie)

    async def accepts(self, given: str) -> bool:
        """Check a token that somebody typed or sent; a wrong one costs time.

        Raises:
            ControlError: too many wrong ones are waiting already.
        """
        if self.is_token(given):
            return True
        now_s = anyio.current_time()
        if now_s - self._failed_at_s > _FORGIVEN_AFTER_S:
            self._failures = 0
        pause_s = min(_FIRST_PAUSE_S * 2 ** min(self._failures, 10), _LONGEST_PAUSE_S)
        self._failures, self._failed_at_s = self._failures + 1, now_s
        if self._failures in (1, 10, 100, 1000):
            log.warning("%d wrong token(s) sent to the health port", self._failures)
        if self._waiting >= _MOST_WAITING:
            raise ControlError(
                "Cannot check the token: too many wrong ones", status=429, code="slow-down"
            )
        self._waiting += 1
        try:
            await anyio.sleep(pause_s)
        finally:
            self._waiting -= 1
        return False

    def open_session(self, request: web.Request, response: web.StreamResponse) -> None:
        """Give the browser its cookie.

        Lax and not Strict: a link from RunPod's console must not ask for the token again.
        Requests that change something are checked by origin besides.
        """
        forwarded = request.headers.get("X-Forwarded-Proto", "").split(",")[0].strip()
        response.set_cookie(
            COOKIE,
            self._cookie.decode(),
            max_age=_COOKIE_AGE_S,
            path="/",
            httponly=True,
            samesite="Lax",
            secure=(forwarded or request.scheme) == "https",
        )


def _bytes(header: str) -> bytes:
    """A header's bytes as they came; aiohttp keeps what is not UTF-8 as surrogates."""
    return header.encode("utf-8", "surrogateescape")


def check_same_origin(request: web.Request) -> None:
    """Refuse a state-changing request that another site's page made.

    Browsers say where a request comes from, in one header or the other; programs with a
    bearer token say nothing. A page cannot set these headers, nor X-Forwarded-Host without
    a preflight, which nobody answers here.

    Raises:
        ControlError: it comes from elsewhere, or from a browser that does not say.
    """
    site = request.headers.get("Sec-Fetch-Site")
    origin = request.headers.get("Origin")
    if site is not None:
        allowed = site == "same-origin"
    elif origin is not None:
        hosts = {request.headers.get(name) for name in ("Host", "X-Forwarded-Host")}
        allowed = urlsplit(origin).netloc in hosts - {None}
    else:
        allowed = "Authorization" in request.headers
    if not allowed:
        raise ControlError(
            "Cannot do this for a page of another site",
            hint="open the supervisor's own page, or send the token as `Authorization: Bearer`",
            status=403,
            code="cross-origin",
        )
