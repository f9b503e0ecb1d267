"""Secrets are taken out of every text that leaves the process.

Services write what they like into their logs, libraries put URLs into exceptions: the
one place that is sure to see a secret is the way out.
"""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Iterable, Iterator
from json import dumps
from typing import Any
from urllib.parse import quote, quote_plus

MASK = "***"
# Below this length a value is as likely to be a part of an ordinary word or number.
SHORTEST_SECRET = 4
# Up to this length a value is only replaced where it stands alone: "1234" in "51234"
# is no leak, and replacing it would make logs unreadable.
_ALONE_UP_TO = 7
# A base64 text of fewer characters than this is too common to be replaced.
_SHORTEST_ENCODED = 8
_SHORTEST_LINE = 16  # of a secret with several lines, like a private key

_CREDENTIALS_IN_URL = re.compile(r"(?<=://)[^\s/@:?#\"']*:[^\s/@\"']+(?=@)")
_SECRET_PARAMETER = re.compile(
    r"(?i)(?<=[?&])((?:[a-z0-9_-]*(?:token|secret|signature|passw(?:or)?d|credential)|"
    r"(?:[a-z0-9_-]*[_-])?(?:api_?|access_?)?key|sig|auth|jwt|policy|verify|hdnts)=)[^&\s\"'#]+"
)


class Redactor:
    """Replaces every known secret, however it is encoded, by ``***``.

    Known are the raw text, its percent-encoded, JSON-escaped and base64 forms (at any
    of base64's three alignments, so also inside a Basic header), and the lines of secrets
    with several lines. Whatever its value, the user part of a URL and query parameters
    such as ``token`` and ``X-Amz-Signature`` are masked too. Values shorter than four
    characters are left alone.
    """

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        self._needles: tuple[str, ...] = ()
        self._alone: re.Pattern[str] | None = None
        self._secrets: set[str] = set()
        for secret in secrets:
            self._secrets.add(secret)
        self._prepare()

    def add(self, secret: str) -> None:
        """Learn a secret that came up later, such as a generated token."""
        if secret not in self._secrets:
            self._secrets.add(secret)
            self._prepare()

    def redact(self, text: str) -> str:
        """Return ``text`` without secrets."""
        for needle in self._needles:
            if needle in text:
                text = text.replace(needle, MASK)
        if self._alone is not None:
            text = self._alone.sub(MASK, text)
        if "://" in text:
            text = _CREDENTIALS_IN_URL.sub(MASK, text)
        if "=" in text and ("?" in text or "&" in text):
            text = _SECRET_PARAMETER.sub(rf"\g<1>{MASK}", text)
        return text

    def redact_values(self, document: Any) -> Any:
        """Return a JSON document with the secrets taken out of its texts.

        Keys stay, and so do names: programs look for them, and a password may be a word.
        """
        if isinstance(document, str):
            return self.redact(document)
        if isinstance(document, dict):
            return {
                key: value if key == "name" else self.redact_values(value)
                for key, value in document.items()
            }
        return [self.redact_values(v) for v in document] if isinstance(document, list) else document

    def _prepare(self) -> None:
        needles: set[str] = set()
        alone: set[str] = set()
        for secret in self._secrets:
            stripped = secret.strip()
            if len(stripped) > _ALONE_UP_TO:
                needles.update(_forms(stripped))
            elif len(stripped) >= SHORTEST_SECRET:
                alone.add(stripped)
                needles.update(f for f in _base64_forms(stripped) if len(f) >= _SHORTEST_ENCODED)
        # The longest first: a form may contain another one.
        self._needles = tuple(sorted(needles, key=len, reverse=True))
        words = "|".join(re.escape(word) for word in sorted(alone, key=len, reverse=True))
        self._alone = re.compile(rf"(?<![A-Za-z0-9])(?:{words})(?![A-Za-z0-9])") if alone else None


def _forms(secret: str) -> Iterator[str]:
    yield secret
    # A variable may hold any bytes; what is no UTF-8 comes as surrogates.
    yield quote(secret, safe="", errors="surrogateescape")
    yield quote(secret, errors="surrogateescape")
    yield quote_plus(secret, errors="surrogateescape")
    yield dumps(secret)[1:-1]
    yield from _base64_forms(secret)
    lines = secret.splitlines()
    if len(lines) > 1:
        yield from (line for line in lines if len(line) >= _SHORTEST_LINE)


def _base64_forms(secret: str) -> Iterator[str]:
    """Yield what of ``secret`` is sure to appear in the base64 of a text that holds it."""
    data = secret.encode("utf-8", "surrogateescape")
    for before in range(3):
        encoded = b64encode(b"\0" * before + data).decode().rstrip("=")
        # Characters that mix in bits of the neighbours are unknown.
        start = (0, 2, 3)[before]
        end = len(encoded) - (1 if (before + len(data)) % 3 else 0)
        text = encoded[start:end]
        if len(text) >= _SHORTEST_ENCODED:
            yield text
            yield text.replace("+", "-").replace("/", "_")
