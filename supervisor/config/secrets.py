"""Which environment variables and settings hold secrets, judged by their names."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping

# The bucket's variables are withheld from services as a whole (S6), keys or not.
_WITHHELD_PREFIXES = ("R2_", "BUCKET_")
_SECRET_NAME = re.compile(
    r"(_TOKEN|_API_?KEY|_PRIVATE_KEY|_PASSPHRASE|^TOKEN|^API_?KEY)$"
    r"|_?SECRET|PASSWORD|PASSWD|_ACCESS_KEY|CREDENTIAL",
    re.IGNORECASE,
)
_WORDS = frozenset({"true", "false", "yes", "no", "on", "off", "none", "null", "auto", "0", "1"})


def is_secret_name(name: str) -> bool:
    """Whether a variable or key of this name holds a secret."""
    return _SECRET_NAME.search(name) is not None


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
        # ALLOW_EMPTY_PASSWORD=yes is a switch, and "yes" is in every other log line.
        shown_anyway = not value or value.lower() in _WORDS or name.endswith("_FILE")
        if not shown_anyway and is_secret_name(name):
            yield value
