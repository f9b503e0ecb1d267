"""``supervisor models`` on real files, a real engine and a stand-in hub, without a daemon."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import anyio.abc
import anyio.from_thread
import pytest

from supervisor.cli.main import main
from tests.support.hub import HF_TOKEN, Hub, serve
from tests.support.model_files import safetensors, safetensors_bytes

DATA = {
    name: safetensors_bytes({"x.lora_up.weight": (50, 50)}, fill=fill)
    for fill, name in enumerate(("a", "b", "c"))
}
SIZE = len(DATA["a"])


class Bench:
    """A configuration, a hub in a thread, and the command."""

    def __init__(self, root: Path, hub: Hub, capsys: pytest.CaptureFixture[str]) -> None:
        self.root, self.hub, self._capsys = root, hub, capsys
        self.models = root / "models"
        (root / "downloads").mkdir()
        self.lines = [f'directory = "{self.models}"', "bundles = []"]
        self.files: list[str] = []
        self.told = ""
        self.environ = {"HF_ENDPOINT": hub.hub_url, "PATH": "/usr/bin:/bin", "HOME": str(root)}

    def want(self, repo: str, path: str, to: str, more: str = "") -> None:
        self.files.append(f'[[models.files]]\nhuggingface = "{repo}:{path}"\nto = "{to}"\n{more}\n')

    def run(self, *words: str, expect: int = 0) -> Any:
        config = self.root / "supervisor.toml"
        text = "\n".join(
            [
                f'[supervisor]\nstate_dir = "{self.root}/state"',
                f'[comfyui]\nroot = "{self.root}/none"\n[models]',
                *self.lines,
                *self.files,
            ]
        )
        config.write_text(text)
        self._capsys.readouterr()
        code = main(["models", *words, "--config", str(config), "--json"], self.environ)
        captured = self._capsys.readouterr()
        self.told = captured.err
        assert code == expect, captured.err
        return json.loads(captured.out or "null")


@pytest.fixture
def bench(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Iterator[Bench]:
    with (
        anyio.from_thread.start_blocking_portal() as portal,
        portal.wrap_async_context_manager(serve(Hub())) as hub,
    ):
        for name, data in DATA.items():
            hub.add("o/r", f"{name}.safetensors", data)
        yield Bench(tmp_path, hub, capsys)


def states(answer: Any) -> dict[str, str]:
    return {f["name"]: f["state"] for f in answer["files"]}


def test_pull_check_then_pull_then_pull_again(bench: Bench) -> None:
    bench.want("o/r", "a.safetensors", "loras/")
    bench.want("o/r", "b.safetensors", "vae/renamed.safetensors")
    checked = bench.run("pull", "--check")
    assert [c["size_bytes"] for c in checked] == [SIZE, SIZE]
    assert not bench.hub.payload_requests()
    assert set(states(bench.run("pull")).values()) == {"done"}
    assert (bench.models / "loras/a.safetensors").read_bytes() == DATA["a"]
    assert (bench.models / "vae/renamed.safetensors").read_bytes() == DATA["b"]
    before = len(bench.hub.payload_requests())
    bench.run("pull")
    assert len(bench.hub.payload_requests()) == before


def test_a_gated_file_fails_alone_and_says_why(bench: Bench) -> None:
    bench.hub.add("closed/r", "g.safetensors", DATA["c"])
    bench.hub.gated = {"closed/r"}
    bench.want("closed/r", "g.safetensors", "vae/")
    bench.want("o/r", "a.safetensors", "loras/")
    answer = bench.run("pull", expect=1)
    assert states(answer) == {"vae/g.safetensors": "failed", "loras/a.safetensors": "done"}
    (gated,) = [f for f in answer["files"] if f["state"] == "failed"]
    assert "HF_TOKEN" in gated["hint"]
    bench.environ["HF_TOKEN"] = HF_TOKEN
    assert set(states(bench.run("pull")).values()) == {"done"}


def test_corrupted_bytes_are_never_visible(bench: Bench) -> None:
    bench.want("o/r", "a.safetensors", "loras/")
    bench.hub.corrupt = {hashlib.sha256(DATA["a"]).hexdigest()}
    answer = bench.run("pull", expect=1)
    assert states(answer) == {"loras/a.safetensors": "failed"}
    assert not (bench.models / "loras/a.safetensors").exists()
    bench.hub.corrupt = set()
    assert set(states(bench.run("pull")).values()) == {"done"}


def test_verify_reads_what_stands_for_several_files_or_has_no_name_yet(bench: Bench) -> None:
    bench.hub.add_version(77, "seven.safetensors", DATA["b"])
    bench.lines += ["civitai = [77]", f'civitai_endpoint = "{bench.hub.hub_url}"']
    bench.files.append('[[models.files]]\nhuggingface = "o/r"\nto = "x/all/"\n')
    bench.files.append('[[models.files]]\nhuggingface = "o/gone"\nto = "x/gone/"\n')
    bench.run("pull", expect=1)
    (bench.models / "x/all/c.safetensors").write_bytes(DATA["a"])
    verdicts = {v["name"]: v["verdict"] for v in bench.run("verify", expect=1)}
    assert verdicts == {
        "x/all/a.safetensors": "ok",
        "x/all/b.safetensors": "ok",
        "x/all/c.safetensors": "damaged",
        "x/gone/o--gone": "unknown",
        "loras/seven.safetensors": "ok",
    }


def test_a_refusal_names_both_hashes_and_what_to_check(bench: Bench) -> None:
    bench.want("o/r", "a.safetensors", "loras/", more=f'sha256 = "{"0" * 64}"')
    bench.files.append(f'[[models.files]]\nurl = "{bench.hub.hub_url}/files/no"\nto = "vae/no"\n')
    hashed, lost = bench.run("pull", expect=1)["files"]
    assert hashlib.sha256(DATA["a"]).hexdigest() in hashed["error"]
    assert "0" * 64 in hashed["error"]
    assert "(404)" in lost["error"]
    assert lost["hint"] == "check the address"


def test_truncated_and_changed_files_are_found_and_repaired(bench: Bench) -> None:
    for name in DATA:
        bench.want("o/r", f"{name}.safetensors", "loras/")
    bench.run("pull")
    loras = bench.models / "loras"
    (loras / "a.safetensors").write_bytes(DATA["a"][:100])
    (loras / "b.safetensors").write_bytes(DATA["b"][:-1] + b"?")
    verdicts = {v["name"]: v["verdict"] for v in bench.run("verify", expect=1)}
    assert verdicts == {
        "loras/a.safetensors": "damaged",
        "loras/b.safetensors": "damaged",
        "loras/c.safetensors": "ok",
    }
    repaired = {v["name"]: v.get("repaired") for v in bench.run("verify", "--repair")}
    assert repaired == {"loras/a.safetensors": True, "loras/b.safetensors": True,
                        "loras/c.safetensors": None}  # fmt: skip
    assert {v["verdict"] for v in bench.run("verify", "--repair")} == {"ok"}
    (loras / "a.safetensors").write_bytes(DATA["a"][:100])
    bench.run("pull")  # as at every boot
    assert (loras / "a.safetensors").read_bytes() == DATA["a"]


def test_a_store_links_and_evicts(bench: Bench) -> None:
    bench.lines.append(f'store = "{bench.root}/store"')
    bench.want("o/r", "a.safetensors", "loras/", "required = true")
    bench.want("o/r", "b.safetensors", "loras/")
    bench.want("o/r", "b.safetensors", "vae/same.safetensors")
    bench.run("pull")
    same = bench.models / "vae/same.safetensors"
    assert same.samefile(bench.models / "loras/b.safetensors")
    assert [o["size_bytes"] for o in bench.run("evict", "--budget", "1KB", "--dry-run")] == [SIZE]
    (gone,) = bench.run("evict", "--budget", "1KB")
    assert len(gone["places"]) == 2
    assert not same.exists()
    assert (bench.models / "loras/a.safetensors").exists()


@pytest.mark.parametrize("known", [True, False], ids=["noted", "note lost"])
def test_a_required_folder_is_not_evicted(bench: Bench, *, known: bool) -> None:
    bench.lines.append(f'store = "{bench.root}/store"')
    bench.want("o/r", "", "vibevoice/X/", more="required = true")
    bench.hub.add("o/spare", "t.safetensors", safetensors_bytes(["t.weight"]))
    bench.want("o/spare", "t.safetensors", "loras/")
    bench.run("pull")
    if not known:
        for note in (bench.root / "store/folders").iterdir():
            note.unlink()
    removed = bench.run("evict", "--budget", "1KB")
    assert [place for o in removed for place in o["places"]] == [
        str(bench.models / "loras/t.safetensors")
    ]
    assert all((bench.models / "vibevoice/X" / f"{n}.safetensors").is_file() for n in DATA)


def test_a_folder_is_verified_though_its_hub_is_silent(bench: Bench) -> None:
    bench.want("o/r", "", "vibevoice/X/")
    bench.run("pull")
    bench.hub.silent = True
    (bench.models / "vibevoice/X/b.safetensors").write_bytes(DATA["b"][:-1] + b"?")
    verdicts = {v["name"]: v["verdict"] for v in bench.run("verify", expect=1)}
    assert verdicts == {
        "vibevoice/X/a.safetensors": "ok",
        "vibevoice/X/b.safetensors": "damaged",
        "vibevoice/X/c.safetensors": "ok",
    }


def test_a_workflow_is_judged_and_fetched(bench: Bench) -> None:
    names = ("a", "b")
    entries = [
        {
            "name": f"{n}.safetensors",
            "url": f"{bench.hub.hub_url}/o/r/resolve/main/{n}.safetensors?download=true",
            "directory": "loras",
        }
        for n in names
    ]
    node = {"type": "LoraLoader", "mode": 0, "properties": {"models": entries}}
    unknown = {"type": "VAELoader", "mode": 0, "widgets_values": ["nobody-knows.safetensors"]}
    path = bench.root / "flow.json"
    path.write_text(json.dumps({"nodes": [node]}))
    found = bench.run("workflow", str(path), expect=1)
    assert [f["state"] for f in found] == ["missing", "missing"]
    assert set(states(bench.run("workflow", str(path), "--pull")).values()) == {"done"}
    assert [f["state"] for f in bench.run("workflow", str(path))] == ["there", "there"]
    path.write_text(json.dumps({"nodes": [node, unknown]}))
    assert bench.run("workflow", str(path), expect=1)[2]["state"] == "unknown"


def test_workflows_of_the_configuration_are_pulled(bench: Bench) -> None:
    path = bench.root / "flow.json"
    url = f"{bench.hub.hub_url}/o/r/resolve/main/c.safetensors"
    entry = {"name": "c.safetensors", "url": url, "directory": "vae"}
    path.write_text(json.dumps({"nodes": [{"type": "X", "properties": {"models": [entry]}}]}))
    bench.lines.append(f'workflows = ["{path}"]')
    assert states(bench.run("pull")) == {"vae/c.safetensors": "done"}


def test_organize(bench: Bench) -> None:
    folder = bench.root / "downloads"
    safetensors(folder / "x.safetensors", ["lora_unet_x.lora_up.weight"])
    bench.lines.append(f'downloads_directory = "{folder}"')
    dry = bench.run("organize", "--dry-run")
    assert dry["counts"] == {"linked": 1}
    assert not bench.models.exists()
    assert bench.run("organize")["counts"] == {"linked": 1}
    assert (bench.models / "loras/x.safetensors").exists()
    assert bench.run("organize", str(folder))["counts"] == {"present": 1}


def test_names_are_files_and_bundles_and_others_are_told(bench: Bench) -> None:
    own = bench.root / "own.toml"
    lines = ['[bundles.mine]\nfiles = ["loras/a.safetensors", "vae/b.safetensors"]']
    lines += ['[bundles.big]\nfiles = ["vae/b.safetensors"]\nmin_vram_gb = 24']
    for place in ("loras/a.safetensors", "vae/b.safetensors"):
        name = place.rpartition("/")[2]
        lines.append(f'[files."{place}"]\nhuggingface = "o/r:{name}"')
    own.write_text("\n".join(lines))
    bench.lines[1:] = ['bundles = ["mine", "big", "mien"]', f'catalog = ["{own}"]']
    bench.want("o/r", "c.safetensors", "loras/")
    answer = bench.run("pull", "mine")
    assert set(states(answer)) == {"loras/a.safetensors", "vae/b.safetensors"}
    assert bench.run("pull", "mein", expect=1) is None
    assert "did you mean mine?" in bench.told
    assert bench.run("pull", "big", expect=1) is None
    assert "24 GB of VRAM" in bench.told
    for words in (["pull"], ["check"], ["verify"]):
        bench.run(*words, expect=78)
        assert "there is no such bundle\n    hint: did you mean mine?" in bench.told
    bench.lines[1] = 'bundles = ["mine", "big"]'
    bench.run("pull")
    assert "big skipped: needs 24 GB" in bench.told
