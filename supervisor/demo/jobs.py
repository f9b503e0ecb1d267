"""The queue of the stand-in ComfyUI: validates graphs and executes them, one at a time."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio

from supervisor.demo.media import GrowingVideo, png

Send = Callable[[str, dict[str, Any], str | None], None]
"""Sends a websocket message: type, data, client id (None = to all)."""

INPUT_NODES = frozenset(
    {
        "CheckpointLoaderSimple",
        "CLIPTextEncode",
        "CreateVideo",
        "EmptyLatentImage",
        "KSampler",
        "LoadImage",
        "LoraLoader",
        "VAEDecode",
    }
)
# Output node → the key that its files stand under in /history, as in ComfyUI and its nodes.
OUTPUT_NODES: Mapping[str, str] = {
    "SaveImage": "images",
    "PreviewImage": "images",
    "SaveVideo": "images",
    "VHS_VideoCombine": "gifs",
}
VIDEO_NODES = frozenset({"SaveVideo", "VHS_VideoCombine"})
DEFAULT_STEPS = 4
VIDEO_FRAMES = 16


class InvalidPromptError(Exception):
    """The body of a 400 answer to ``POST /prompt``."""

    def __init__(
        self, kind: str, message: str, details: str = "", node_errors: dict[str, Any] | None = None
    ) -> None:
        super().__init__(message)
        self.body: dict[str, Any] = {
            "error": {"type": kind, "message": message, "details": details, "extra_info": {}},
            "node_errors": node_errors or {},
        }

    def log_lines(self) -> Iterator[str]:
        """What ComfyUI prints when it refuses a prompt (execution.py, server.py)."""
        nodes = self.body["node_errors"]
        for output in dict.fromkeys(o for n in nodes.values() for o in n["dependent_outputs"]):
            yield f"Failed to validate prompt for output {output}:"
        for node, found in nodes.items():
            yield f"* {found['class_type']} {node}:"
            yield from (f"  - {e['message']}: {e['details']}" for e in found["errors"])
        if nodes:
            yield "Output will be ignored"
        yield f"invalid prompt: {self.body['error']}"


class OutOfMemoryError(Exception):
    """A job needs more VRAM than there is."""


class InterruptedJobError(Exception):
    """Somebody asked for /interrupt."""


@dataclass(slots=True)
class Job:
    """One accepted prompt."""

    number: float
    prompt_id: str
    prompt: dict[str, Any]
    extra: dict[str, Any]
    outputs: list[str]

    def to_json(self) -> list[Any]:
        """Render as an item of ``/queue``."""
        return [self.number, self.prompt_id, self.prompt, self.extra, self.outputs]

    @property
    def client_id(self) -> str | None:
        """Who gets the messages."""
        client = self.extra.get("client_id")
        return client if isinstance(client, str) else None


@dataclass(frozen=True, slots=True)
class Folders:
    """Where files go and come from."""

    output: Path
    temp: Path
    input: Path
    models: Path

    def of(self, kind: str) -> Path | None:
        """The folder of a file's ``type``."""
        return {"output": self.output, "temp": self.temp, "input": self.input}.get(kind)


@dataclass(slots=True)
class JobQueue:
    """Prompts waiting, the one that runs, and what became of the others."""

    folders: Folders
    send: Send
    step_s: float
    video_s: float
    pending: list[Job] = field(default_factory=list)
    running: Job | None = None
    history: dict[str, Any] = field(default_factory=dict)
    interrupted: bool = False
    out_of_memory: Callable[[], None] | None = None  # prints what ComfyUI does; jobs then fail
    _count: int = 0
    _cache: dict[str, list[dict[str, str]]] = field(default_factory=dict)
    _wake: anyio.Event = field(default_factory=anyio.Event)

    @property
    def remaining(self) -> int:
        """Jobs not finished."""
        return len(self.pending) + (self.running is not None)

    def status(self) -> dict[str, Any]:
        """The data of a "status" message."""
        return {"status": {"exec_info": {"queue_remaining": self.remaining}}}

    def submit(self, body: Mapping[str, Any]) -> Job:
        """Accept the body of ``POST /prompt``.

        Raises:
            InvalidPromptError: with the answer.
        """
        prompt = body.get("prompt")
        if not isinstance(prompt, dict):
            raise InvalidPromptError("no_prompt", "No prompt provided", "No prompt provided")
        outputs = validate(prompt, self.folders)
        self._count += 1
        extra = dict(body.get("extra_data") or {})
        if "client_id" in body:
            extra["client_id"] = body["client_id"]
        number = float(body.get("number", -self._count if body.get("front") else self._count))
        job = Job(number, str(body.get("prompt_id") or uuid.uuid4()), prompt, extra, outputs)
        self.pending.append(job)
        self.pending.sort(key=lambda each: each.number)
        self._wake.set()
        self.send("status", self.status(), None)
        return job

    def delete(self, prompt_ids: list[str] | None) -> None:
        """Drop waiting jobs, all of them when ``prompt_ids`` is None."""
        self.pending = [
            job
            for job in self.pending
            if prompt_ids is not None and job.prompt_id not in prompt_ids
        ]
        self.send("status", self.status(), None)

    async def run(self) -> None:
        """Execute jobs until cancelled."""
        while True:
            while self.pending:
                self.running = self.pending.pop(0)
                self.interrupted = False
                await self._execute(self.running)
                self.running = None
                self.send("status", self.status(), None)
            self._wake = anyio.Event()
            await self._wake.wait()

    async def _execute(self, job: Job) -> None:
        told: list[Any] = []

        def tell(kind: str, **data: Any) -> None:
            data = {**data, "prompt_id": job.prompt_id, "timestamp": time.time_ns() // 1_000_000}
            told.append([kind, data])
            self.send(kind, data, job.client_id)

        outputs: dict[str, Any] = {}
        tell("execution_start")
        cached = [node for node in job.outputs if signature(job.prompt, node) in self._cache]
        tell("execution_cached", nodes=cached)
        status = "success"
        try:
            for node in job.outputs:
                outputs[node] = await self._output(job, node, fresh=node not in cached)
            tell("execution_success")
        except InterruptedJobError:
            status = "error"
            tell("execution_interrupted", node_id="", node_type="", executed=list(outputs))
        except (OSError, ValueError, OutOfMemoryError) as error:
            status = "error"
            tell(
                "execution_error",
                exception_type=type(error).__name__,
                exception_message=str(error),
                executed=list(outputs),
            )
        self._say(job, "executing", node=None)
        self.history[job.prompt_id] = {
            "prompt": job.to_json(),
            "outputs": outputs,
            "status": {
                "status_str": status,
                "completed": status == "success",
                "messages": told,
            },
            "meta": {},
        }

    def _say(self, job: Job, kind: str, **data: Any) -> None:
        self.send(kind, {**data, "prompt_id": job.prompt_id}, job.client_id)

    async def _output(self, job: Job, node: str, *, fresh: bool) -> dict[str, Any]:
        kind = str(job.prompt[node]["class_type"])
        key = signature(job.prompt, node)
        if fresh:
            await self._sample(job)
            self._say(job, "executing", node=node, display_node=node)
            self._cache[key] = [await self._save(job, node, kind)]
        output: dict[str, Any] = {OUTPUT_NODES[kind]: self._cache[key]}
        if kind == "SaveVideo":
            output["animated"] = [True]
        self._say(job, "executed", node=node, display_node=node, output=output)
        return output

    async def _sample(self, job: Job) -> None:
        for node, spec in job.prompt.items():
            if spec["class_type"] != "KSampler":
                continue
            self._say(job, "executing", node=node, display_node=node)
            steps = _whole((spec.get("inputs") or {}).get("steps"), DEFAULT_STEPS)
            for step in range(1, steps + 1):
                await anyio.sleep(self.step_s)
                if self.interrupted:
                    raise InterruptedJobError
                if self.out_of_memory is not None:
                    self.out_of_memory()
                    raise OutOfMemoryError("Allocation on device")
                self._say(job, "progress", node=node, value=step, max=steps)
                nodes = {node: {"node_id": node, "state": "running", "value": step, "max": steps}}
                self._say(job, "progress_state", nodes=nodes)

    async def _save(self, job: Job, node: str, kind: str) -> dict[str, str]:
        temporary = kind == "PreviewImage"
        video = kind in VIDEO_NODES
        prefix = str(job.prompt[node].get("inputs", {}).get("filename_prefix", "ComfyUI"))
        root = self.folders.temp if temporary else self.folders.output
        path = next_file(root, prefix, ".mp4" if video else ".png")
        if video:
            await self._encode(path)
        else:
            text = {"prompt": json.dumps(job.prompt)}
            workflow = (job.extra.get("extra_pnginfo") or {}).get("workflow")
            if workflow is not None:
                text["workflow"] = json.dumps(workflow)
            path.write_bytes(png(width=96, height=96, seed=_seed(job.prompt), text=text))
        return {
            "filename": path.name,
            "subfolder": path.parent.relative_to(root).as_posix().removeprefix("."),
            "type": "temp" if temporary else "output",
        }

    async def _encode(self, path: Path) -> None:
        video = GrowingVideo(path, VIDEO_FRAMES)
        try:
            video.begin()
            await anyio.sleep(self.video_s * 0.7)
            for frame in range(VIDEO_FRAMES):
                await anyio.sleep(self.video_s * 0.3 / VIDEO_FRAMES)
                if self.interrupted:
                    raise InterruptedJobError
                video.add(frame)
            video.finish()
        finally:
            video.close()


def validate(prompt: Mapping[str, Any], folders: Folders) -> list[str]:
    """The output nodes of a graph that can run.

    Raises:
        InvalidPromptError: with what ComfyUI would answer.
    """
    for node, spec in prompt.items():
        kind = spec.get("class_type") if isinstance(spec, dict) else None
        if kind is None:
            message = "Cannot execute because a node is missing the class_type property."
            raise InvalidPromptError("invalid_prompt", message, f"Node ID '#{node}'")
        if kind not in INPUT_NODES and kind not in OUTPUT_NODES:
            message = f"Cannot execute because node {kind} does not exist."
            raise InvalidPromptError("missing_node_type", message, f"Node ID '#{node}'")
    outputs = [node for node, spec in prompt.items() if spec["class_type"] in OUTPUT_NODES]
    if not outputs:
        raise InvalidPromptError("prompt_no_outputs", "Prompt has no outputs")
    errors = {
        node: {"errors": found, "dependent_outputs": outputs, "class_type": spec["class_type"]}
        for node, spec in prompt.items()
        if (found := list(_input_errors(prompt, spec, folders)))
    }
    if errors:
        message = "Prompt outputs failed validation"
        raise InvalidPromptError("prompt_outputs_failed_validation", message, "", errors)
    return outputs


MODEL_INPUTS = {"ckpt_name": "checkpoints", "lora_name": "loras"}


def _input_errors(
    prompt: Mapping[str, Any], spec: Mapping[str, Any], folders: Folders
) -> Iterator[dict[str, Any]]:
    for name, value in dict(spec.get("inputs") or {}).items():
        if isinstance(value, list) and len(value) == 2 and str(value[0]) not in prompt:
            yield _input_error("required_input_missing", "Required input is missing", name)
        elif name in MODEL_INPUTS:
            folder = folders.models / MODEL_INPUTS[name]
            present = sorted(
                p.relative_to(folder).as_posix() for p in folder.rglob("*.safetensors")
            )
            if value not in present:
                details = f"{name}: '{value}' not in {present}"
                yield _input_error("value_not_in_list", "Value not in list", name, details)


def _input_error(kind: str, message: str, name: str, details: str = "") -> dict[str, Any]:
    return {
        "type": kind,
        "message": message,
        "details": details or name,
        "extra_info": {"input_name": name},
    }


def signature(prompt: Mapping[str, Any], node: str) -> str:
    """Equal for equal sub-graphs: what ComfyUI's cache goes by."""
    spec = prompt[node]
    inputs = {
        name: signature(prompt, str(value[0]))
        if isinstance(value, list) and len(value) == 2 and str(value[0]) in prompt
        else value
        for name, value in sorted(dict(spec.get("inputs") or {}).items())
    }
    return json.dumps([spec["class_type"], inputs], sort_keys=True)


def next_file(root: Path, prefix: str, suffix: str) -> Path:
    """The next free name "PREFIX_00001_.png"; a prefix may name sub-folders.

    Raises:
        ValueError: the prefix leads out of ``root``.
    """
    stem = root / prefix
    if not stem.resolve().is_relative_to(root.resolve()):
        raise ValueError(f"{prefix!r} leads out of the output folder")
    stem.parent.mkdir(parents=True, exist_ok=True)
    used = [0]
    for path in stem.parent.glob(f"{stem.name}_*_{suffix}"):
        with suppress(ValueError):
            used.append(int(path.name[len(stem.name) + 1 : -len(suffix) - 1]))
    return stem.parent / f"{stem.name}_{max(used) + 1:05}_{suffix}"


def _seed(prompt: Mapping[str, Any]) -> int:
    for spec in prompt.values():
        if "seed" in (spec.get("inputs") or {}):
            return _whole(spec["inputs"]["seed"], 0)
    return 0


def _whole(value: object, default: int) -> int:
    return value if isinstance(value, int) and value >= 0 else default
