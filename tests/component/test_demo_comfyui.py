"""The stand-in ComfyUI speaks, writes and dies as CONTRACTS say ComfyUI does."""

from __future__ import annotations

import json
import os
import signal
import socket
import struct
import subprocess
import sys
import time
import urllib.error
import urllib.request
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from supervisor.demo.comfyui import SESSION_VARIABLE, example_prompt
from supervisor.demo.media import PNG_SIGNATURE

DEADLINE_S = 30.0


@dataclass
class Instance:
    """A running stand-in."""

    process: subprocess.Popen[bytes]
    port: int
    root: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def get(self, path: str) -> Any:
        with urllib.request.urlopen(self.url + path, timeout=DEADLINE_S) as answer:  # noqa: S310
            return json.load(answer)

    def post(self, path: str, body: object = None) -> tuple[int, Any]:
        data = json.dumps(body or {}).encode()
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(self.url + path, data, headers)  # noqa: S310
        try:
            with urllib.request.urlopen(request, timeout=DEADLINE_S) as answer:  # noqa: S310
                return answer.status, json.loads(answer.read() or b"null")
        except urllib.error.HTTPError as error:
            return error.code, json.loads(error.read() or b"null")

    def listening(self) -> bool:
        try:
            self.get("/system_stats")
        except (OSError, urllib.error.URLError):
            return False
        return True

    def run_prompt(self, prompt: dict[str, object], **more: object) -> dict[str, Any]:
        """Submit and wait for the end; the entry of the history."""
        status, answer = self.post("/prompt", {"prompt": prompt, **more})
        assert status == 200, answer
        prompt_id = answer["prompt_id"]
        wait_until(lambda: bool(self.get(f"/history/{prompt_id}")), "the job is done")
        entry: dict[str, Any] = self.get(f"/history/{prompt_id}")[prompt_id]
        return entry


def wait_until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, f"not in time: {what}"
        time.sleep(0.01)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def start(root: Path, *flags: str, port: int | None = None, **switches: str) -> Iterator[Instance]:
    port = port or free_port()
    environment = {key: value for key, value in switches.items() if key == SESSION_VARIABLE}
    environment |= {
        f"DEMO_COMFYUI_{key.upper()}": value
        for key, value in {"start_s": "0", "step_s": "0.01", "video_s": "0.5", **switches}.items()
        if key != SESSION_VARIABLE
    }
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "supervisor.demo.comfyui", "--port", str(port)),
            *("--base-directory", str(root), *flags),
        ],
        env={**os.environ, **environment},
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        yield Instance(process, port, root)
    finally:
        process.kill()
        process.communicate()


@contextmanager
def started(root: Path, *flags: str, **switches: str) -> Iterator[Instance]:
    with start(root, *flags, port=None, **switches) as instance:
        wait_until(
            lambda: instance.listening() or instance.process.poll() is not None, "it listens"
        )
        yield instance


def chunks_of(picture: bytes) -> dict[bytes, bytes]:
    """The chunks of a PNG, their checksums verified."""
    assert picture.startswith(PNG_SIGNATURE)
    found: dict[bytes, bytes] = {}
    at = len(PNG_SIGNATURE)
    while at < len(picture):
        (length,) = struct.unpack_from(">I", picture, at)
        kind, data = picture[at + 4 : at + 8], picture[at + 8 : at + 8 + length]
        (crc,) = struct.unpack_from(">I", picture, at + 8 + length)
        assert crc == zlib.crc32(kind + data)
        found[data.partition(b"\0")[0] if kind == b"tEXt" else kind] = data
        at += length + 12
    return found


def test_answers_have_the_shapes_of_comfyui(tmp_path: Path) -> None:
    with started(tmp_path) as comfyui:
        for prefix in ("", "/api"):
            stats = comfyui.get(f"{prefix}/system_stats")
            assert {"os", "ram_total", "comfyui_version", "argv"} <= stats["system"].keys()
            assert {"name", "type", "vram_total", "vram_free"} <= stats["devices"][0].keys()
            assert comfyui.get(f"{prefix}/prompt") == {"exec_info": {"queue_remaining": 0}}
            assert comfyui.get(f"{prefix}/queue") == {"queue_running": [], "queue_pending": []}
            assert comfyui.get(f"{prefix}/history") == {}
        with pytest.raises(urllib.error.HTTPError, match="404"):
            comfyui.get("/health")
        assert comfyui.post("/free", {"unload_models": True})[0] == 200


def test_picture_is_valid_and_carries_its_workflow(tmp_path: Path) -> None:
    prompt = example_prompt(7)
    extra: dict[str, object] = {"extra_pnginfo": {"workflow": {"nodes": []}}}
    with started(tmp_path) as comfyui:
        entry = comfyui.run_prompt(prompt, extra_data=extra)
        assert entry["status"]["status_str"] == "success"
        (image,) = entry["outputs"]["4"]["images"]
        assert image == {"filename": "image_00001_.png", "subfolder": "demo", "type": "output"}
        content = (tmp_path / "output/demo/image_00001_.png").read_bytes()
        query = "filename=image_00001_.png&subfolder=demo&type=output"
        with urllib.request.urlopen(f"{comfyui.url}/view?{query}", timeout=9) as answer:  # noqa: S310
            assert answer.read() == content
        chunks = chunks_of(content)
        assert json.loads(chunks[b"prompt"].partition(b"\0")[2]) == prompt
        assert json.loads(chunks[b"workflow"].partition(b"\0")[2]) == {"nodes": []}
        width, height = struct.unpack(">II", chunks[b"IHDR"][:8])
        assert len(zlib.decompress(chunks[b"IDAT"])) == height * (1 + 3 * width)


def test_same_graph_again_is_cached_and_writes_nothing(tmp_path: Path) -> None:
    with started(tmp_path) as comfyui:
        first = comfyui.run_prompt(example_prompt(1))
        again = comfyui.run_prompt(example_prompt(1))
        assert again["outputs"] == first["outputs"]
        assert len(list((tmp_path / "output").rglob("*.png"))) == 1
        comfyui.run_prompt(example_prompt(2))
        assert len(list((tmp_path / "output").rglob("*.png"))) == 2


def test_video_stays_at_48_bytes_and_then_is_rewritten(tmp_path: Path) -> None:
    video = tmp_path / "output/demo/video_00001_.mp4"
    sizes = []
    with started(tmp_path, video_s="1") as comfyui:
        comfyui.post("/prompt", {"prompt": example_prompt(1, video=True)})
        wait_until(video.exists, "the video is begun")
        while not comfyui.get("/history"):
            sizes.append(video.stat().st_size)
        assert sizes.count(48) > len(sizes) / 3
        (entry,) = comfyui.get("/history").values()
        assert entry["outputs"]["4"]["gifs"][0]["filename"] == video.name
    content = video.read_bytes()
    assert content[4:8] == b"ftyp"
    assert content.index(b"moov") < content.index(b"mdat")


@pytest.mark.parametrize(
    ("prompt", "kind"),
    [
        (None, "no_prompt"),
        ({"1": {"class_type": "NoSuchNode", "inputs": {}}}, "missing_node_type"),
        ({"1": {"inputs": {}}}, "invalid_prompt"),
        ({"1": {"class_type": "EmptyLatentImage", "inputs": {}}}, "prompt_no_outputs"),
        (
            {
                "1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "x"}},
                "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0]}},
            },
            "prompt_outputs_failed_validation",
        ),
    ],
)
def test_prompt_that_cannot_run_is_refused(tmp_path: Path, prompt: object, kind: str) -> None:
    with started(tmp_path) as comfyui:
        status, answer = comfyui.post("/prompt", {"prompt": prompt})
        assert status == 400
        assert answer["error"]["type"] == kind
        assert ("1" in answer["node_errors"]) == (kind == "prompt_outputs_failed_validation")


def test_interrupt_and_queue(tmp_path: Path) -> None:
    with started(tmp_path, step_s="30") as comfyui:
        ids = [
            comfyui.post("/prompt", {"prompt": example_prompt(n)})[1]["prompt_id"] for n in (1, 2)
        ]
        wait_until(lambda: bool(comfyui.get("/queue")["queue_running"]), "it runs")
        queue = comfyui.get("/queue")
        assert [each[1] for each in queue["queue_running"] + queue["queue_pending"]] == ids
        assert comfyui.get("/prompt")["exec_info"]["queue_remaining"] == 2
        comfyui.post("/queue", {"delete": [ids[1]]})
        assert comfyui.get("/prompt")["exec_info"]["queue_remaining"] == 1


@pytest.mark.anyio
async def test_websocket_tells_the_whole_story(tmp_path: Path) -> None:
    with started(tmp_path) as comfyui:
        kinds, previews = [], 0
        async with (
            aiohttp.ClientSession(comfyui.url) as session,
            session.ws_connect("/ws?clientId=me") as socket,
        ):
            body = {"prompt": example_prompt(1), "client_id": "me"}
            async with session.post("/prompt", json=body) as answer:
                prompt_id = (await answer.json())["prompt_id"]
            async for message in socket:
                if message.type == aiohttp.WSMsgType.BINARY:
                    assert message.data[8:].startswith(PNG_SIGNATURE)
                    previews += 1
                    continue
                event = message.json()
                kinds.append(event["type"])
                if event["type"] == "executing" and event["data"]["node"] is None:
                    assert event["data"]["prompt_id"] == prompt_id
                    break
        assert kinds[0] == "status"
        story = [kind for kind in kinds if kind not in ("status", "progress", "progress_state")]
        assert story[:2] == ["execution_start", "execution_cached"]
        assert story[-3:] == ["executed", "execution_success", "executing"]
        assert previews == kinds.count("progress") == 4


@pytest.mark.anyio
async def test_foreign_pages_are_refused_and_pictures_taken(tmp_path: Path) -> None:
    with started(tmp_path) as comfyui:
        async with aiohttp.ClientSession(comfyui.url) as session:
            for headers in ({"Origin": "http://evil.example"}, {"Sec-Fetch-Site": "cross-site"}):
                async with session.get("/queue", headers=headers) as answer:
                    assert answer.status == 403
            for expected in ("a.png", "a (1).png"):
                form = aiohttp.FormData()
                form.add_field("image", b"picture", filename="a.png")
                async with session.post("/upload/image", data=form) as answer:
                    assert (await answer.json())["name"] == expected
            async with session.get("/view?filename=../x&type=input") as answer:
                assert answer.status == 400
        assert (tmp_path / "input/a (1).png").read_bytes() == b"picture"


def test_interrupt_signal_ends_cleanly_and_terminate_does_not(tmp_path: Path) -> None:
    preview = example_prompt(1)
    preview["4"] = {"class_type": "PreviewImage", "inputs": {"images": ["3", 0]}}
    with started(tmp_path) as comfyui:
        entry = comfyui.run_prompt(preview)
        assert entry["outputs"]["4"]["images"][0]["type"] == "temp"
        comfyui.process.send_signal(signal.SIGINT)
        assert comfyui.process.wait(DEADLINE_S) == 0
        assert not (tmp_path / "temp").exists()
    with started(tmp_path) as comfyui:
        comfyui.run_prompt(preview)
        comfyui.process.terminate()
        assert comfyui.process.wait(DEADLINE_S) == -signal.SIGTERM
        assert (tmp_path / "temp").exists()


def test_taken_port_unknown_flag_and_locked_database(tmp_path: Path) -> None:
    with started(tmp_path) as first, start(tmp_path, port=first.port) as second:
        assert second.process.wait(DEADLINE_S) == 1
        assert second.process.stderr is not None
        assert f"Port {first.port} is already in use".encode() in second.process.stderr.read()
    with start(tmp_path, "--medvram") as refused:
        assert refused.process.wait(DEADLINE_S) == 2
    with start(tmp_path, "--highvram", refuse_flag="--highvram") as refused:
        assert refused.process.wait(DEADLINE_S) == 2
        assert refused.process.stderr is not None
        assert b"unrecognized arguments: --highvram" in refused.process.stderr.read()
    with start(tmp_path, database_locked="1") as locked:
        assert locked.process.wait(DEADLINE_S) == 1
        assert locked.process.stderr is not None
        assert b"ASSETS_STARTUP_FAILED: in_use" in locked.process.stderr.read()


def test_crashes(tmp_path: Path) -> None:
    with start(tmp_path, crash_after_s="0.01", once=str(tmp_path / "once")) as crashed:
        assert crashed.process.wait(DEADLINE_S) == 1
        assert crashed.process.stderr is not None
        assert b"torch.OutOfMemoryError: CUDA out of memory" in crashed.process.stderr.read()
    with started(tmp_path, crash_after_s="0.01", once=str(tmp_path / "once")) as comfyui:
        assert comfyui.run_prompt(example_prompt(1))["status"]["completed"]  # once is enough
    with start(tmp_path, crash_after_s="0.01", crash="segfault") as crashed:
        assert crashed.process.wait(DEADLINE_S) == -signal.SIGSEGV


def test_hang_keeps_the_port_open_and_answers_nothing(tmp_path: Path) -> None:
    with start(tmp_path, hang_after_s="0.01") as hung:
        wait_until(lambda: _connects(hung.port), "the port is open")
        wait_until(lambda: _silent(hung.port), "nothing is answered")
        assert _connects(hung.port)
        assert hung.process.poll() is None


def test_lost_port_leaves_the_process(tmp_path: Path) -> None:
    with start(tmp_path, lose_port_after_s="0.2") as lost:
        assert lost.process.stderr is not None
        while b"To see the GUI" not in lost.process.stderr.readline():
            assert lost.process.poll() is None
        wait_until(lambda: not _connects(lost.port), "the port is closed")
        assert lost.process.poll() is None


def _silent(port: int) -> bool:
    with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
        connection.settimeout(0.5)
        connection.sendall(b"GET /prompt HTTP/1.1\r\nHost: x\r\n\r\n")
        try:
            connection.recv(1)
        except TimeoutError:
            return True
        return False


def _connects(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=5).close()
    except OSError:
        return False
    return True


def test_manager_reboot_by_marker(tmp_path: Path) -> None:
    session = str(tmp_path / "session")
    with started(tmp_path, **{SESSION_VARIABLE: session}) as comfyui:
        with pytest.raises((OSError, urllib.error.URLError)):
            comfyui.post("/v2/manager/reboot")
        assert comfyui.process.wait(DEADLINE_S) == 0
        assert Path(f"{session}.reboot").exists()


@pytest.mark.parametrize("method", ["get", "post"])
def test_manager_reboot_in_place(tmp_path: Path, method: str) -> None:
    with started(tmp_path) as comfyui:
        comfyui.run_prompt(example_prompt(1))
        with pytest.raises((OSError, urllib.error.URLError)):
            getattr(comfyui, method)("/manager/reboot")
        wait_until(comfyui.listening, "it is back")
        assert comfyui.get("/history") == {}  # lost with the old program
        assert comfyui.process.poll() is None  # the same process


def test_pending_install_restarts_before_listening(tmp_path: Path) -> None:
    pending = tmp_path / "install-scripts.txt"
    pending.touch()
    with started(tmp_path, pending_install=str(pending)) as comfyui:
        assert not pending.exists()
        assert comfyui.process.poll() is None
        comfyui.process.kill()
        assert comfyui.process.stderr is not None
        output = comfyui.process.stderr.read()
    assert output.count(b"ComfyUI stand-in") == 2
    assert output.count(b"Starting server") == 1


def test_interrupt_may_abort(tmp_path: Path) -> None:
    with started(tmp_path, abort_on_interrupt="1") as comfyui:
        comfyui.process.send_signal(signal.SIGINT)
        assert comfyui.process.wait(DEADLINE_S) == -signal.SIGABRT


def test_prompts_of_its_own_make_pictures(tmp_path: Path) -> None:
    with started(tmp_path, prompt_every_s="0.05", video_s="0.05") as comfyui:
        wait_until(lambda: len(list(tmp_path.rglob("*.png"))) >= 4, "pictures appear")
        wait_until(lambda: len(list(tmp_path.rglob("*.mp4"))) >= 1, "a video appears")
        assert comfyui.process.poll() is None
