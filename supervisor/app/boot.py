"""From the configuration to a plan that can be carried out."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from supervisor.app.facts import gather_facts
from supervisor.app.ladder_memory import Descent, recall_descent
from supervisor.app.timeline import Timeline
from supervisor.config.load import LoadedSettings, load_settings
from supervisor.config.logging import setup_logging
from supervisor.config.redaction import Redactor
from supervisor.config.settings import Settings, StorageMode
from supervisor.hardware.facts import HardwareFacts
from supervisor.hardware.gpu import GpuProbe
from supervisor.plan.build import build_plan
from supervisor.plan.model import Plan, Skipped
from supervisor.plan.secrets import GeneratedSecrets

_TOKEN_BYTES = 24


@dataclass(frozen=True, slots=True)
class Source:
    """Where the configuration comes from; read again by every reload."""

    config: Path | None
    overrides: tuple[str, ...]
    environ: Mapping[str, str]

    @property
    def wants_dry_run(self) -> bool:
        """Whether a dry run is asked for, as far as can be told without a configuration."""
        text = self.environ.get("DRY_RUN", "").lower()
        return text in ("1", "true", "yes", "on") or "supervisor.dry_run=true" in self.overrides

    def load(self) -> LoadedSettings:
        """Read and validate it.

        Raises:
            ConfigError: with every problem.
        """
        return load_settings(config=self.config, environ=self.environ, overrides=self.overrides)


@dataclass(frozen=True, slots=True)
class Boot:
    """Everything the pod is made from."""

    source: Source
    loaded: LoadedSettings
    facts: HardwareFacts
    generated: GeneratedSecrets
    plan: Plan
    redactor: Redactor
    timeline: Timeline
    descent: Descent = Descent()  # where the VRAM ladder starts

    @property
    def settings(self) -> Settings:
        """The settings in force."""
        return self.loaded.settings

    @property
    def health_token(self) -> str:
        """The token of page and API."""
        given = self.settings.health.token
        return given.get_secret_value() if given else self.generated.health_token


def prepare(source: Source, probe: GpuProbe, timeline: Timeline) -> Boot:
    """Load, look and decide; nothing is started and nothing but caches is written.

    Raises:
        ConfigError: with every problem.
    """
    loaded = source.load()
    timeline.mark("configuration")
    redactor = Redactor(loaded.secrets)
    section = loaded.settings.supervisor
    color = False if "NO_COLOR" in source.environ else None
    setup_logging(
        level=section.log_level, log_format=section.log_format, redactor=redactor, color=color
    )
    state_dir = None if section.dry_run else section.state_dir
    facts = gather_facts(
        loaded.settings, source.environ, probe, cache_directory=state_dir, nvenc=not section.dry_run
    )
    timeline.mark("hardware")
    generated = generated_secrets(state_dir)
    for secret in (generated.jupyter_token, generated.filebrowser_password, generated.health_token):
        redactor.add(secret)
    plan, descent = decide_resumed(loaded, facts, source.environ, generated)
    timeline.mark("plan")
    return Boot(source, loaded, facts, generated, plan, redactor, timeline, descent)


def decide(
    loaded: LoadedSettings,
    facts: HardwareFacts,
    environ: Mapping[str, str],
    generated: GeneratedSecrets,
    *,
    ladder_step: int = 0,
) -> Plan:
    """Make the plan, still without downloads: those need the catalog (see ``with_models``).

    Raises:
        ConfigError: services that make no sense.
    """
    return build_plan(
        settings=loaded.settings,
        facts=facts,
        environ=environ,
        generated=generated,
        secret_names=loaded.environment_secrets,
        ladder_step=ladder_step,
    )


def decide_resumed(
    loaded: LoadedSettings,
    facts: HardwareFacts,
    environ: Mapping[str, str],
    generated: GeneratedSecrets,
) -> tuple[Plan, Descent]:
    """Make the plan at the step of the VRAM ladder that this volume remembers.

    Raises:
        ConfigError: services that make no sense.
    """
    plan = decide(loaded, facts, environ, generated)
    if plan.storage.mode != StorageMode.PERSISTENT or not loaded.settings.gpu.ladder:
        return plan, Descent()
    descent = recall_descent(loaded.settings, facts)
    if not descent.step:
        return plan, descent
    lower = decide(loaded, facts, environ, generated, ladder_step=descent.step)
    if lower.gpu.ladder_step != descent.step:
        return plan, Descent()
    note = (
        f"the VRAM ladder starts at step {descent.step}, where it was on {descent.at}; "
        "supervisor ladder reset takes it back"
    )
    gpu = replace(lower.gpu, ladder_reasons=descent.reasons)
    return replace(lower, gpu=gpu, notes=(*lower.notes, note)), descent


def with_models(plan: Plan, settings: Settings, facts: HardwareFacts) -> Plan:
    """Add the downloads; reads the catalog and workflow files, so it comes after the launch.

    Raises:
        ConfigError: an entry of ``[models]`` or a catalog file is unusable.
    """
    from supervisor.models.planning import plan_models  # noqa: PLC0415 - after the launch
    from supervisor.models.preflight import free_bytes  # noqa: PLC0415

    if plan.models_directory is None:
        return plan
    models = plan_models(
        settings.models,
        directory=plan.models_directory,
        vram_mib=_vram_mib(facts, settings.gpu.index),
        free_bytes=free_bytes(settings.models.store or plan.models_directory),
    )
    return replace(
        plan,
        downloads=models.requests,
        skipped=(
            *plan.skipped,
            *(Skipped(r.name, r.reason, required=r.required) for r in models.refused),
        ),
        notes=(*plan.notes, *models.notes),
    )


def _vram_mib(facts: HardwareFacts, index: int) -> int | None:
    """Memory of ComfyUI's card; 0 without one, None when NVML could not tell."""
    if facts.gpu.uncertain:
        return None
    device = next((d for d in facts.gpu.devices if d.index == index), None)
    return device.memory_total_mib if device else 0


def generated_secrets(state_dir: Path | None) -> GeneratedSecrets:
    """Random values, kept in the state directory so that a restart does not change them.

    Without a directory, or when it cannot be written, they last for this run.
    """
    names = ("jupyter_token", "filebrowser_password", "health_token", "session_key")
    path = state_dir / "generated-secrets.json" if state_dir else None
    kept: dict[str, str] = {}
    if path is not None:
        try:
            kept = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            kept = {}
    values = {name: kept.get(name) or os.urandom(_TOKEN_BYTES).hex() for name in names}
    if path is not None and values != kept:
        _keep(path, values)
    return GeneratedSecrets(**values)


def _keep(path: Path, values: Mapping[str, str]) -> None:
    temporary = path.with_suffix(f".{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.touch(mode=0o600)
        temporary.write_text(json.dumps(values), encoding="utf-8")
        temporary.replace(path)
    except OSError:
        with suppress(OSError):  # a read-only file system refuses this too
            temporary.unlink(missing_ok=True)
