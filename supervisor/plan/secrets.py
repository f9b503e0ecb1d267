"""Secrets that the supervisor makes up when the user gave none."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class GeneratedSecrets:
    """Fresh random values of at least 16 characters, made once per boot by the caller."""

    jupyter_token: str = field(repr=False)
    filebrowser_password: str = field(repr=False)
    health_token: str = field(repr=False)
    session_key: str = field(default="", repr=False)  # of the page's cookies
