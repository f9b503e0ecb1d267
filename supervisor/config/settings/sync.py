"""`[sync]`: finished outputs go to a bucket or a folder."""

from __future__ import annotations

from pathlib import Path
from string import Formatter
from typing import Annotated, Literal

from pydantic import Field, SecretStr, field_validator

from supervisor.config.settings.section import Rate, Seconds, Section


class SyncSection(Section):
    """Finished outputs go to a bucket or a folder."""

    enabled: bool | None = Field(
        None, description="Sync outputs; default: when a target is configured."
    )
    source: Path | None = Field(None, description="Folder to watch; default ComfyUI's output.")
    target: Literal["s3", "folder"] = Field("folder", description="Kind of target.")
    folder: Path | None = Field(None, description="The target when it is a folder.")
    endpoint: str | None = Field(None, description="S3 endpoint URL.")
    bucket: str = Field("runpod", description="Bucket name.")
    region: str = Field("auto", description="S3 region; R2 wants auto.")
    access_key_id: SecretStr | None = Field(None, description="S3 access key.")
    secret_access_key: SecretStr | None = Field(None, description="S3 secret key.")
    prefix: str = Field("outputs", description="First part of every key.")
    key_template: str = Field(
        "{prefix}/{date}/{path}",
        description="Key of an output, from prefix, date, year, month, day, path, folder, name, "
        "stem, suffix and host; it must keep names apart.",
    )
    timezone: str = Field("UTC", description="Time zone of the day in keys, like Europe/Paris.")
    cache_control: str | None = Field(None, description="Cache-Control of the objects.")
    patterns: tuple[str, ...] = Field(
        (
            "*.png", "*.jpg", "*.jpeg", "*.webp", "*.gif", "*.avif", "*.mp4", "*.webm", "*.mov",
            "*.mkv", "*.wav", "*.mp3", "*.flac", "*.ogg", "*.opus", "*.m4a", "*.glb", "*.obj",
            "*.ply", "*.json", "*.txt", "*.latent", "*.safetensors", "*.exr", "*.tiff", "*.svg",
        ),
        description="File names that are outputs (case does not matter).",
    )  # fmt: skip
    ignore: tuple[str, ...] = Field(
        ("*.tmp", "*.part", "*.partial", "*.temp", "*.swp", ".*", "*~"),
        description="File names that never are.",
    )
    concurrency: int = Field(8, ge=1, le=64, description="Uploads at once.")
    on_conflict: Literal["keep-both", "overwrite"] = Field(
        "keep-both", description="Other bytes under a key that exists: a new key, or overwrite."
    )
    delete_after_upload: bool = Field(False, description="Delete once the copy is verified.")
    delete_after_s: Seconds = Field(
        0.0, description="Seconds that the local file stays after that."
    )
    rescan_interval_s: Annotated[float, Field(ge=1)] = Field(
        30.0, description="Full look at the folder, in case an event was lost."
    )
    rate_limit: Rate | None = Field(None, description='Cap of all uploads, like "50MB/s".')
    restore: tuple[Literal["workflows", "input", "settings"], ...] = Field(
        (), description="What comes back from the bucket at boot."
    )
    logs: bool = Field(False, description="Upload rotated logs and the boot report too.")

    @field_validator("key_template")
    @classmethod
    def _usable_template(cls, value: str) -> str:
        known = ("prefix", "date", "year", "month", "day", "path", "folder", "name", "stem",
                 "suffix", "host")  # fmt: skip
        fields = {name for _, name, _, _ in Formatter().parse(value) if name is not None}
        if unknown := sorted(fields.difference(known)):
            raise ValueError(f"unknown field {unknown[0]!r} (there are {', '.join(known)})")
        if not fields & {"path", "name", "stem"}:
            raise ValueError("needs {path}, {name} or {stem}, or all files get one key")
        return value

    @field_validator("timezone")
    @classmethod
    def _known_timezone(cls, value: str) -> str:
        from zoneinfo import ZoneInfo  # noqa: PLC0415 (7 ms that a boot need not spend)

        try:
            ZoneInfo(value)
        except (OSError, ValueError, KeyError):
            raise ValueError("is not a time zone of the tz database, like UTC") from None
        return value
