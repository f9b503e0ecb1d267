"""The bucket's keys, read again when the files that hold them change."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import aiofiles

from supervisor.config.settings import SyncSection

_NAMES = {
    "access_key_id": ("SUPERVISOR_SYNC__ACCESS_KEY_ID_FILE", "R2_ACCESS_KEY_ID_FILE"),
    "secret_access_key": ("SUPERVISOR_SYNC__SECRET_ACCESS_KEY_FILE", "R2_SECRET_ACCESS_KEY_FILE"),
}


def credential_files(environ: Mapping[str, str]) -> dict[str, Path]:
    """Find the ``*_FILE`` variables that name the bucket's keys."""
    found: dict[str, Path] = {}
    for setting, names in _NAMES.items():
        path = next((environ[name] for name in names if environ.get(name)), None)
        if path is not None:
            found[setting] = Path(path)
    return found


@dataclass(frozen=True, slots=True)
class Keys:
    """One pair of keys; never shown."""

    access_key_id: str = field(repr=False)
    secret_access_key: str = field(repr=False)


class Credentials:
    """Yields the keys of now: those in the files, so that they can be rotated."""

    def __init__(self, settings: SyncSection, files: Mapping[str, Path]) -> None:
        self._settings = settings
        self._files = files

    async def read(self) -> Keys:
        """Return the keys; a file that cannot be read leaves what was configured."""
        return Keys(await self._one("access_key_id"), await self._one("secret_access_key"))

    async def _one(self, name: str) -> str:
        path = self._files.get(name)
        if path is not None:
            with suppress(OSError, UnicodeDecodeError):
                async with aiofiles.open(path, encoding="utf-8") as file:
                    return (await file.read()).strip()
        secret = getattr(self._settings, name)
        return secret.get_secret_value() if secret is not None else ""
