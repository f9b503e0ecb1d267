"""The parts that are loaded after the launch, because their libraries take time to import."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import anyio.to_thread

from supervisor.app.downloads import Downloads, load
from supervisor.app.facts import probe_nvenc_now
from supervisor.app.ladder_control import LadderControl
from supervisor.app.links import access

if TYPE_CHECKING:
    from supervisor.app.essentials import Essentials
    from supervisor.config.settings import ModelFile
    from supervisor.download.request import DownloadRequest
    from supervisor.models.manager import ModelManager
    from supervisor.monitor.diagnosis import Sighting
    from supervisor.sync.syncer import Syncer


class Components:
    """Builds and runs API, downloads and sync."""

    def __init__(self, base: Essentials) -> None:
        from supervisor.api.context import ApiContext  # noqa: PLC0415 - after the launch

        self._base = base
        self.downloads = base.reloader.downloads = Downloads(base, self._take_models)
        self.syncer: Syncer | None = None
        self.ladder = LadderControl(base)
        self.context = ApiContext(
            state=base.state,
            bus=base.bus,
            token=base.boot.health_token,
            logs=base.logs,
            services=base.manager,
            ladder=self.ladder,
            request_for=self._request_for,
            shutdown=base.shutdown,
            reload=base.reloader.reload,
            redact=base.boot.redactor.redact,
            dashboard=base.boot.settings.health.dashboard,
            access=access(base.boot),
            session_key=base.boot.generated.session_key,
        )

    async def serve(self) -> None:
        """Serve the control socket and the health port."""
        server = await load("supervisor.api.server")
        settings = self._base.boot.settings
        await server.serve_api(
            self.context,
            socket_path=settings.supervisor.socket,
            host=settings.health.host,
            port=settings.health.port,
        )

    def _take_models(self, manager: ModelManager) -> None:
        self.context.models = manager

    def _request_for(self, file: ModelFile) -> DownloadRequest:
        from supervisor.models.requests import file_request  # noqa: PLC0415

        directory = self._base.reloader.plan.models_directory
        if directory is None:
            raise ValueError("there is no models folder without ComfyUI; set models.directory")
        section = self._base.reloader.boot.settings.models
        return file_request(file, section=section, directory=directory)

    def make_syncer(self) -> Syncer | None:
        """Describe the sync; None when it is off. Nothing is touched before it runs."""
        boot = self._base.boot
        if self.syncer is None and boot.plan.sync.enabled and boot.plan.sync.source is not None:
            from supervisor.sync.credentials import credential_files  # noqa: PLC0415 - seldom early
            from supervisor.sync.syncer import Syncer  # noqa: PLC0415

            comfyui = boot.facts.comfyui
            self.syncer = self.context.syncer = Syncer(
                settings=boot.settings.sync.model_copy(update={"folder": boot.plan.sync.folder}),
                source=boot.plan.sync.source,
                state_directory=boot.settings.supervisor.state_dir,
                state=self._base.state,
                bus=self._base.bus,
                comfyui_root=comfyui.root if comfyui else None,
                logs_directory=boot.settings.supervisor.state_dir / "logs",
                credential_files=credential_files(boot.source.environ),
                metrics=self.context.recorder,
            )
        return self.syncer

    async def sync(self) -> None:
        """Store finished outputs."""
        if self._base.boot.plan.sync.enabled:
            await load("supervisor.sync.syncer")
        syncer = self.make_syncer()
        if syncer is not None:
            await syncer.run()

    async def diagnose(self) -> None:
        """Read the logs for known troubles."""
        diagnosis = await load("supervisor.app.diagnosis")
        await diagnosis.diagnose(self._base, seen=self._seen)

    def _seen(self, sighting: Sighting) -> None:
        self.context.recorder.advised(sighting.rule.code)
        if sighting.rule.code == "cuda-oom":
            self.ladder.job_failed()

    async def monitor(self) -> None:
        """Watch what the pod uses."""
        monitoring = await load("supervisor.app.monitoring")
        await monitoring.monitor(self._base)

    async def watch_idle(self) -> None:
        """Stop the pod when nobody uses it."""
        idling = await load("supervisor.app.idling")
        watcher = self.context.idle = idling.make_idle(self._base, lambda: self.syncer)
        await watcher.run()

    async def late_facts(self) -> None:
        """Finish the probes that ComfyUI did not wait for."""
        boot = self._base.boot
        if not boot.settings.gpu.nvenc or boot.facts.nvenc is not None:
            return
        if boot.facts.gpu.devices and boot.facts.programs.get("ffmpeg"):
            found = await anyio.to_thread.run_sync(
                probe_nvenc_now, boot.facts, boot.source.environ, abandon_on_cancel=True
            )
            gpu = replace(self._base.state.snapshot.gpu, nvenc=dict(found.codecs))
            self._base.state.update(gpu=gpu)
            # Those who start from now on are told.
            environment = {"SUPERVISOR_NVENC": "1" if found.available else "0"}
            self._base.manager.base_environment = {
                **self._base.manager.base_environment,
                **environment,
            }
