"""`[models]` and `[[models.files]]`: model files and how they arrive."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, SecretStr, model_validator

from supervisor.config.settings.section import Rate, Seconds, Section, Size


class ModelFile(Section):
    """One model file: exactly one source, and where it goes."""

    url: str | None = Field(None, description="http(s) address.")
    huggingface: str | None = Field(None, description='"owner/repo:path/in/repo[@revision]".')
    civitai: int | None = Field(None, description="CivitAI model version id.")
    to: str = Field("", description="Path below the models folder; ending in / keeps the name.")
    sha256: str | None = Field(None, pattern="^[0-9a-fA-F]{64}$", description="Expected hash.")
    size_bytes: int | None = Field(None, ge=0, description="Expected size.")
    required: bool = Field(False, description="Readiness waits for it.")
    mirrors: tuple[str, ...] = Field((), description="Other addresses of the same bytes.")

    @model_validator(mode="after")
    def _one_source(self) -> ModelFile:
        given = [k for k in ("url", "huggingface", "civitai") if getattr(self, k) is not None]
        if len(given) != 1:
            found = ", ".join(given) or "none"
            raise ValueError(f"give exactly one of url, huggingface, civitai (found {found})")
        return self


class ModelsSection(Section):
    """Model files and how they arrive."""

    directory: Path | None = Field(None, description="Models folder; default ComfyUI's models.")
    downloads_directory: Path | None = Field(
        None, description="Folder whose files are sorted into the models folder."
    )
    bundles: tuple[str, ...] = Field(
        ("vibevoice", "controlnet", "wan_720p"),
        description="Bundles to fetch (docs/models.md lists all, with sizes); one that does not "
        "fit is skipped, [] fetches none.",
    )
    selectors: dict[str, str] = Field(
        default_factory=dict, description="Choices of bundles, like QWEN_EDIT_MODEL."
    )
    catalog: tuple[Path, ...] = Field((), description="Further catalog files.")
    files: tuple[ModelFile, ...] = Field((), description="Single files.")
    workflows: tuple[Path, ...] = Field((), description="Workflow files whose models to fetch.")
    civitai: tuple[int, ...] = Field(
        (), description="CivitAI version ids to fetch: numbers, as behind modelVersionId=."
    )
    civitai_loras: tuple[int, ...] = Field(
        (),
        description="CivitAI version ids to fetch into loras/: numbers, as behind modelVersionId=.",
    )
    connections: int = Field(16, ge=1, le=64, description="Connections per file, at most.")
    concurrent_files: int = Field(8, ge=1, le=64, description="Files at once, at most.")
    per_host: int = Field(32, ge=1, le=256, description="Connections per host, at most.")
    rate_limit: Rate | None = Field(None, description='Cap of all downloads, like "100MB/s".')
    require: Literal["none", "required", "all"] = Field(
        "required", description="Which models readiness waits for."
    )
    stall_timeout_s: Seconds = Field(
        300.0, description="Seconds without a byte until a new connection is made."
    )
    retry_attempts: int = Field(
        0, ge=0, description="Tries before the pace slows down; 0 = built-in. Never gives up."
    )
    hf_endpoint: str = Field("https://huggingface.co", description="Hugging Face mirror.")
    hf_token: SecretStr | None = Field(None, description="Hugging Face token.")
    civitai_endpoint: str = Field("https://civitai.com", description="CivitAI address.")
    civitai_token: SecretStr | None = Field(None, description="CivitAI API key.")
    fsync: bool = Field(True, description="Flush a file to the disk before it is published.")
    drop_cache: bool = Field(
        False, description="Drop downloaded bytes from the page cache, for tight memory limits."
    )
    verify_interval_h: float = Field(
        24.0, ge=0, description="Hours between readings of all models that repair them; 0 never."
    )
    organize: bool = Field(True, description="Sort files of downloads_directory by kind.")
    store: Path | None = Field(None, description="Content-addressed store shared by pods.")
    store_staging: Path | None = Field(
        None, description="Fast local disk for files on their way into a slow store."
    )
    store_budget: Size | None = Field(None, description='Evict beyond this, like "500GB".')
