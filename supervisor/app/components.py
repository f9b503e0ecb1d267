"""The parts that are loaded after the launch, because their libraries take time to import."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from importlib import import_module
from typing import TYPE_CHECKING, Any

import anyio
import anyio.to_thread

from supervisor.app.facts import probe_nvenc_now
from supervisor.app.links import access
from supervisor.plan.model import Plan

if TYPE_CHECKING:
    from pydantic import SecretStr

    from supervisor.api.context import ApiContext
    from supervisor.app.pod import Pod
    from supervisor.models.manager import ModelManager
    from supervisor.sync.syncer import Syncer


class Components:
    """Builds and runs API, downloads and sync; each is None until it runs."""

    def __init__(self, pod: Pod) -> None:
        self._pod = pod
        self.models: ModelManager | None = None
        self.syncer: Syncer | None = None
        self.context: ApiContext | None = None

    async def serve(self) -> None:
        """Serve the control socket and the health port."""
        context_module = await _load("supervisor.api.context")
        server = await _load("supervisor.api.server")
        pod, settings = self._pod, self._pod.boot.settings
        context: ApiContext = context_module.ApiContext(
            state=pod.state,
            bus=pod.bus,
            token=pod.boot.health_token,
            logs=pod.logs,
            services=pod.manager,
            shutdown=pod.shutdown,
            reload=pod.reloader.reload,
            redact=pod.boot.redactor.redact,
            dashboard=settings.health.dashboard,
            access=access(pod.boot),
        )
        context.models, context.syncer = self.models, self.syncer
        self.context = context
        await server.serve_api(
            context,
            socket_path=settings.supervisor.socket,
            host=settings.health.host,
            port=settings.health.port,
        )

    async def download(self, plan: Plan) -> None:
        """Fetch the models of the plan, and those that are asked for later."""
        aiohttp = await _load("aiohttp")
        engine = await _load("supervisor.download.engine")
        manager = await _load("supervisor.models.manager")
        sources = await _load("supervisor.models.sources")
        section = self._pod.boot.settings.models
        downloader = engine.SegmentedDownloader(
            connections=section.connections,
            per_host=section.per_host,
            stall_timeout_s=section.stall_timeout_s,
            fsync=section.fsync,
            rate_limit_bytes_per_s=_rate(section.rate_limit),
        )
        async with aiohttp.ClientSession() as session, downloader:
            context = sources.SourceContext(
                session=session,
                hf_endpoint=section.hf_endpoint,
                hf_token=_plain(section.hf_token),
                hf_offline=_on(self._pod.boot.source.environ, "HF_HUB_OFFLINE"),
                civitai_endpoint=section.civitai_endpoint,
                civitai_token=_plain(section.civitai_token),
            )
            self.models = manager.ModelManager(
                settings=section,
                state=self._pod.state,
                bus=self._pod.bus,
                downloader=downloader,
                resolvers=sources.open_sources(context),
            )
            self._pod.reloader.models = self.models
            if self.context is not None:
                self.context.models = self.models
            await self.models.run(plan.downloads)

    async def sync(self) -> None:
        """Store finished outputs."""
        boot = self._pod.boot
        if not boot.plan.sync.enabled or boot.plan.sync.source is None:
            return
        module = await _load("supervisor.sync.syncer")
        section = boot.settings.sync.model_copy(update={"folder": boot.plan.sync.folder})
        comfyui = boot.facts.comfyui
        self.syncer = module.Syncer(
            settings=section,
            source=boot.plan.sync.source,
            state_directory=boot.settings.supervisor.state_dir,
            state=self._pod.state,
            bus=self._pod.bus,
            comfyui_root=comfyui.root if comfyui else None,
            logs_directory=boot.settings.supervisor.state_dir / "logs",
        )
        if self.context is not None:
            self.context.syncer = self.syncer
        await self.syncer.run()

    async def late_facts(self) -> None:
        """Finish the probes that ComfyUI did not wait for."""
        boot = self._pod.boot
        if not boot.settings.gpu.nvenc or boot.facts.nvenc is not None:
            return
        if boot.facts.gpu.devices and boot.facts.programs.get("ffmpeg"):
            found = await anyio.to_thread.run_sync(
                probe_nvenc_now, boot.facts, boot.source.environ, abandon_on_cancel=True
            )
            gpu = replace(self._pod.state.snapshot.gpu, nvenc=dict(found.codecs))
            self._pod.state.update(gpu=gpu)
            # Those who start from now on are told.
            environment = {"SUPERVISOR_NVENC": "1" if found.available else "0"}
            self._pod.manager.base_environment = {
                **self._pod.manager.base_environment,
                **environment,
            }


async def _load(name: str) -> Any:
    """Import in a thread: hundreds of milliseconds that must not stop the event loop."""
    return await anyio.to_thread.run_sync(import_module, name)


def _plain(secret: SecretStr | None) -> str | None:
    return secret.get_secret_value() if secret else None


def _on(environ: Mapping[str, str], name: str) -> bool:
    return environ.get(name, "").lower() in ("1", "true", "yes", "on")


def _rate(text: str | None) -> float | None:
    from supervisor.config.units import parse_rate_bytes_per_s  # noqa: PLC0415 - rarely set

    return parse_rate_bytes_per_s(text) if text else None
