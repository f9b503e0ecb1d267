"""Which environment variables and settings hold secrets, judged by their names."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import zip_longest

# The bucket's variables are withheld from services as a whole (S6), keys or not.
_WITHHELD_PREFIXES = ("R2_", "BUCKET_")
# Names that hold secrets on the pods of many images, not only this program's own: a custom
# node needs no key that nobody meant for it. PUBLIC_KEY is none, MAX_TOKENS is a number.
_SECRET_NAME = re.compile(
    r"(^|_)((?<!MAX_)TOKENS?|SECRETS?|PASSWORDS?|PASSWD|PASS|PASSPHRASE|PAT|JWT|DSN|WEBHOOKS?|"
    r"CREDENTIALS?|CREDS?|(API|ACCESS|PRIVATE|SECRET|AUTH)_?KEYS?|AUTH_?TOKENS?)(_|$)"
    r"|PASSWORD(_|$)|_AUTH$|(?<!_PUBLIC)(?<!^PUBLIC)_KEYS?$",
    re.IGNORECASE,
)
_WORDS = frozenset({"true", "false", "yes", "no", "on", "off", "none", "null", "auto"})
_LONGEST_NUMBER = 6


def is_secret_name(name: str) -> bool:
    """Whether a variable, or an option of a program, of this name holds a secret."""
    return _SECRET_NAME.search(name.lstrip("-").replace("-", "_")) is not None


def secret_arguments(command: Sequence[str]) -> Iterator[str]:
    """Yield what follows options like ``--api-key`` on a command line."""
    for option, value in zip_longest(command, command[1:], fillvalue=""):
        name, joined, given = option.partition("=")
        if not name.startswith("--") or not is_secret_name(name):
            continue
        secret = given if joined else value
        if secret and not secret.startswith("-"):
            yield secret


def secret_variables(environ: Iterable[str]) -> frozenset[str]:
    """Return the variables that services get only when they name them.

    ``X_FILE`` is among them when ``X`` is: the path leads to the secret.
    """
    return frozenset(
        name
        for name in environ
        if name.startswith(_WITHHELD_PREFIXES) or is_secret_name(name.removesuffix("_FILE"))
    )


def secret_values(environ: Mapping[str, str]) -> Iterator[str]:
    """Yield the values that must never be shown."""
    for name, value in environ.items():
        # ALLOW_EMPTY_PASSWORD=yes is a switch, and "yes" is in every other log line; so are
        # the numbers of TOKEN_LIMIT=2048.
        number = value.isdecimal() and len(value) <= _LONGEST_NUMBER
        plain = not value or number or value.lower() in _WORDS or name.endswith("_FILE")
        if not plain and is_secret_name(name):
            yield value
