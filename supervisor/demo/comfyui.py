"""A stand-in for ComfyUI's ``main.py``: same flags, same interface, same ways to die.

``python -m supervisor.demo.comfyui [ComfyUI's flags]``. It needs no GPU and no models, but
what it answers, writes, prints and exits with is what ComfyUI does (observed on 0.33).
``DEMO_COMFYUI_*`` in the environment makes it misbehave, see ``Switches``.
"""

from __future__ import annotations

import argparse
import errno
import os
import shutil
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NoReturn

import anyio
from pydantic_settings import BaseSettings, SettingsConfigDict

from supervisor.demo import cli_args
from supervisor.demo.jobs import Folders

if TYPE_CHECKING:  # aiohttp loads during the start, as ComfyUI's imports do
    from aiohttp.web import AppRunner
    from anyio.streams.memory import MemoryObjectSendStream

    from supervisor.demo.routes import ComfyUIServer

SESSION_VARIABLE = "__COMFY_CLI_SESSION__"
GREEN, YELLOW, RED, RESET = "\x1b[92m", "\x1b[33m", "\x1b[31m", "\x1b[0m"

OUT_OF_MEMORY = """!!! Exception during processing !!! Allocation on device
Traceback (most recent call last):
  File "/opt/ComfyUI/execution.py", line 515, in execute
    output_data, output_ui, has_subgraph = await get_output_data(prompt_id, unique_id, obj)
  File "/opt/ComfyUI/comfy/model_management.py", line 900, in load_models_gpu
    loaded_model.model_load(lowvram_model_memory, force_patch_weights=force_patch_weights)
torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 1.50 GiB. GPU 0 has a total \
capacity of 22.49 GiB of which 812.00 MiB is free. Including non-PyTorch memory, this process \
has 21.69 GiB memory in use.
"""
JOB_OUT_OF_MEMORY = f"""{OUT_OF_MEMORY}
Got an OOM, unloading all loaded models.
Prompt executed in 0.31 seconds"""
CUDA_ERROR = """Traceback (most recent call last):
  File "/opt/ComfyUI/comfy/samplers.py", line 323, in calc_cond_batch
RuntimeError: CUDA error: an illegal memory access was encountered
CUDA kernel errors might be asynchronously reported at some other API call, so the stacktrace \
below might be incorrect.
"""
DATABASE_LOCKED = """Failed to initialize the assets database: another ComfyUI uses it.
ASSETS_STARTUP_FAILED: in_use
"""


class Switches(BaseSettings):
    """How to misbehave; each is ``DEMO_COMFYUI_<NAME>``. Times count from listening."""

    model_config = SettingsConfigDict(env_prefix="DEMO_COMFYUI_", frozen=True)

    start_s: float = 0.2  # the imports of ComfyUI and of its nodes
    step_s: float = 0.05  # one sampling step
    video_s: float = 1.0  # one video
    prompt_every_s: float = 0.0  # submit a prompt of its own so often; 0 never
    crash_after_s: float = 0.0  # print what ``crash`` says, and die of it
    crash: Literal["oom", "cuda", "segfault"] = "oom"
    jobs_out_of_memory: bool = False  # jobs fail for lack of VRAM, ComfyUI goes on
    enough_with: str = ""  # an option with which there is VRAM enough: no crash, no failing job
    once: str = ""  # a path: created at the first crash, hang or lost port, which is the last
    hang_after_s: float = 0.0  # the port stays open, nothing answers
    lose_port_after_s: float = 0.0  # the port closes, the process stays
    refuse_flag: str = ""  # a flag that this version does not know
    database_locked: bool = False
    pending_install: str = ""  # a path: while it exists, it is removed and the start begins anew
    abort_on_interrupt: bool = False  # SIGINT ends in SIGABRT, as it may during an encode

    def armed(self, arguments: Sequence[str] = ()) -> bool:
        """Whether misfortunes still happen."""
        if self.enough_with and self.enough_with in arguments:
            return False
        return not self.once or not Path(self.once).exists()

    def disarm(self) -> None:
        """One has happened."""
        if self.once:
            Path(self.once).touch()


@dataclass(slots=True)
class Program:
    """One run."""

    options: argparse.Namespace
    switches: Switches
    environ: Mapping[str, str]
    root: Path
    folders: Folders = field(init=False)

    def __post_init__(self) -> None:
        base = Path(self.options.base_directory or self.root)
        temp = Path(self.options.temp_directory or base) / "temp"
        self.folders = Folders(
            output=Path(self.options.output_directory or base / "output"),
            temp=temp,
            input=Path(self.options.input_directory or base / "input"),
            models=base / "models",
        )

    def log(self, text: str, color: str = "") -> None:
        """A line as ComfyUI prints it: with ANSI colours even into a pipe."""
        stream = sys.stdout if self.options.log_stdout else sys.stderr
        stream.write(f"{color}{text}{RESET if color else ''}\n")
        stream.flush()

    def run(self) -> int:
        """Start, serve until SIGINT, clean up; the exit code."""
        self.log(f"{GREEN}[START]{RESET} ComfyUI stand-in")
        self.log(f"Adding extra search path checkpoints {self.folders.models / 'checkpoints'}")
        if self.switches.database_locked:
            self.log(DATABASE_LOCKED, RED)
            return 1
        for folder in (self.folders.output, self.folders.input, self.folders.models):
            folder.mkdir(parents=True, exist_ok=True)
        # A second instance in the same folder deletes the first one's temp, as ComfyUI does.
        shutil.rmtree(self.folders.temp, ignore_errors=True)
        try:
            return anyio.run(self.serve)
        except KeyboardInterrupt:
            if self.switches.abort_on_interrupt:
                os.abort()
            self.log("\nStopped server")
            shutil.rmtree(self.folders.temp, ignore_errors=True)
            return 0

    async def serve(self) -> int:
        """Listen and work until something ends it."""
        from aiohttp import web  # noqa: PLC0415

        from supervisor.demo.routes import ComfyUIServer  # noqa: PLC0415

        await anyio.sleep(self.switches.start_s)
        self._install_pending()
        server = ComfyUIServer(
            folders=self.folders,
            step_s=self.switches.step_s,
            video_s=self.switches.video_s,
            cors=self.options.enable_cors_header,
            max_upload_bytes=int(self.options.max_upload_size * 1024 * 1024),
        )
        server.reboot, server.log = self.reboot, self.log
        if self.switches.jobs_out_of_memory and self.switches.armed(sys.argv):
            server.queue.out_of_memory = lambda: self.log(JOB_OUT_OF_MEMORY, RED)
        runner = web.AppRunner(server.application(), handle_signals=False, access_log=None)
        await runner.setup()
        host, port = self.options.listen or "127.0.0.1", self.options.port
        try:
            await web.TCPSite(runner, host, port, reuse_address=True).start()
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            self.log(f"Port {port} is already in use on address {host}", RED)
            return 1
        self.log("Starting server\n")
        self.log(f"To see the GUI go to: http://{host}:{port}")
        wake, listen = anyio.create_memory_object_stream[None](1)
        server.notify = lambda: _nudge(wake)
        async with anyio.create_task_group() as tasks, wake, listen:
            tasks.start_soon(server.queue.run)
            tasks.start_soon(self._misfortunes, runner)
            tasks.start_soon(self._own_prompts, server)
            async for _ in listen:
                await server.flush()
        return 0

    def _install_pending(self) -> None:
        """What the prestartup script of ComfyUI-Manager does: install, then start anew."""
        pending = Path(self.switches.pending_install)
        if pending.is_file():
            pending.unlink()
            self.reboot()

    async def _own_prompts(self, server: ComfyUIServer) -> None:
        if self.switches.prompt_every_s <= 0:
            return
        number = 0
        while True:
            number += 1
            self.log("got prompt")
            server.queue.submit({"prompt": example_prompt(number, video=number % 4 == 0)})
            await anyio.sleep(self.switches.prompt_every_s)

    async def _misfortunes(self, runner: AppRunner) -> None:
        switches = self.switches
        if not switches.armed(sys.argv):
            return
        if switches.lose_port_after_s:
            await anyio.sleep(switches.lose_port_after_s)
            switches.disarm()
            await runner.cleanup()
        if switches.hang_after_s:
            await anyio.sleep(switches.hang_after_s)
            switches.disarm()
            while True:  # nothing of the event loop runs any more: that is the point
                time.sleep(60)  # noqa: ASYNC251, TID251
        if switches.crash_after_s:
            await anyio.sleep(switches.crash_after_s)
            switches.disarm()
            self._crash()

    def _crash(self) -> NoReturn:
        if self.switches.crash == "segfault":
            self.log("Fatal Python error: Segmentation fault")
            os.kill(os.getpid(), signal.SIGSEGV)
        self.log(CUDA_ERROR if self.switches.crash == "cuda" else OUT_OF_MEMORY, RED)
        os._exit(1)

    def reboot(self) -> None:
        """ComfyUI-Manager's way: leave a marker and exit 0, or replace the process in place."""
        self.log("\nRestarting...", YELLOW)
        session = self.environ.get(SESSION_VARIABLE)
        if session:
            Path(f"{session}.reboot").touch()
            os._exit(0)
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])  # noqa: S606


def _nudge(stream: MemoryObjectSendStream[None]) -> None:
    try:
        stream.send_nowait(None)
    except anyio.WouldBlock:
        return  # it is awake already


def example_prompt(seed: int, *, video: bool = False) -> dict[str, object]:
    """A small graph: a picture, or a video."""
    save: dict[str, object] = {
        "class_type": "VHS_VideoCombine" if video else "SaveImage",
        "inputs": {"images": ["3", 0], "filename_prefix": "demo/video" if video else "demo/image"},
    }
    return {
        "1": {"class_type": "EmptyLatentImage", "inputs": {"width": 512, "height": 512}},
        "2": {"class_type": "KSampler", "inputs": {"seed": seed, "steps": 4, "latent": ["1", 0]}},
        "3": {"class_type": "VAEDecode", "inputs": {"samples": ["2", 0]}},
        "4": save,
    }


def refuse(parser: argparse.ArgumentParser, flag: str) -> None:
    """Make the parser unaware of ``flag``, as an older ComfyUI is."""
    action = parser._option_string_actions.pop(flag, None)
    if action is not None:
        parser._remove_action(action)


def main(root: Path | None = None) -> int:
    """Run with the arguments and the environment of the process."""
    environ = dict(os.environ)  # noqa: TID251 - a program of its own
    switches = Switches()
    if switches.refuse_flag:
        refuse(cli_args.parser, switches.refuse_flag)
    options = cli_args.parser.parse_args()
    return Program(options, switches, environ, root or Path.cwd()).run()


if __name__ == "__main__":
    sys.exit(main())
