"""The options of a ComfyUI: read from its source, and from --help, with the same result."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from supervisor.hardware.cli_args import options_from_source
from supervisor.hardware.comfyui import (
    UnreadableParserError,
    find_python,
    options_from_help,
    read_comfyui,
)
from supervisor.hardware.facts import ComfyUIFacts

# Shaped like comfy/cli_args.py: every way in which it declares an option.
PARSER = """
import argparse
import enum

class EnumAction(argparse.Action):
    def __init__(self, **kwargs):
        kind = kwargs.pop("type")
        choices = tuple(e.value for e in kind)
        kwargs.setdefault("choices", choices)
        kwargs.setdefault("metavar", f"[{','.join(choices)}]")
        super().__init__(**kwargs)

    def __call__(self, parser, namespace, values, option_string=None):
        setattr(namespace, self.dest, values)

LEVELS = ("DEBUG", "INFO")

parser = argparse.ArgumentParser()
parser.add_argument("--listen", type=str, default="127.0.0.1", metavar="IP", nargs="?")
parser.add_argument("--port", type=int, default=8188)
parser.add_argument("--extra-model-paths-config", nargs="+", action="append", metavar="PATH")

class Preview(enum.Enum):
    NoPreviews = "none"
    Auto = "auto"

parser.add_argument("--preview-method", type=Preview, default=Preview.Auto, action=EnumAction)
parser.add_argument("--verbose", default="INFO", const="DEBUG", nargs="?", choices=LEVELS)
parser.add_argument("--hashing", type=str, choices=["md5", "sha256"], default="sha256")

cache = parser.add_mutually_exclusive_group()
cache.add_argument("--cache-ram", nargs="*", type=float, default=[], metavar="GB")
cache.add_argument("--cache-lru", type=int, default=0)
vram = parser.add_mutually_exclusive_group()
vram.add_argument("--highvram", action="store_true")
vram.add_argument("--lowvram", action="store_true", help="It is 100%% [slow | steady].")
vram.add_argument("--cpu", action="store_true")
if True:
    parser.add_argument("--log-stdout", action="store_true")
"""

EXPECTED_ARITY = {
    "--listen": "?",
    "--port": "1",
    "--extra-model-paths-config": "+",
    "--preview-method": "1",
    "--verbose": "?",
    "--hashing": "1",
    "--cache-ram": "*",
    "--cache-lru": "1",
    "--highvram": "0",
    "--lowvram": "0",
    "--cpu": "0",
    "--log-stdout": "0",
}
EXPECTED_GROUPS = {
    frozenset({"--cache-ram", "--cache-lru"}),
    frozenset({"--highvram", "--lowvram", "--cpu"}),
}


def install(root: Path, parser: str = PARSER, *, main: str = "") -> Path:
    (root / "comfy").mkdir(parents=True)
    (root / "comfy" / "__init__.py").touch()
    (root / "comfy" / "cli_args.py").write_text(parser, encoding="utf-8")
    code = main or "from comfy.cli_args import parser\nparser.parse_args()\n"
    (root / "main.py").write_text(code, encoding="utf-8")
    (root / "comfyui_version.py").write_text('__version__ = "0.33.1"\n', encoding="utf-8")
    return root


def read(root: Path, cache: Path | None = None, **environ: str) -> ComfyUIFacts:
    return read_comfyui(
        root,
        python=Path(sys.executable),
        cache_directory=cache,
        environ={"PATH": os.environ.get("PATH", ""), **environ},
    )


def test_options_from_the_source(tmp_path: Path) -> None:
    facts = read(install(tmp_path / "ComfyUI"))
    assert (facts.installed, facts.version, facts.flags_source) == (True, "0.33.1", "cli_args.py")
    assert facts.arity == EXPECTED_ARITY
    assert set(facts.exclusive) == EXPECTED_GROUPS
    assert facts.flags is not None
    assert facts.flags["--preview-method"] == ("none", "auto")
    assert facts.flags["--verbose"] == ("DEBUG", "INFO")
    assert facts.flags["--hashing"] == ("md5", "sha256")
    assert facts.flags["--port"] == ()
    assert facts.accepts("--lowvram")
    assert not facts.accepts("--normalvram")


def test_help_says_the_same_as_the_source(tmp_path: Path) -> None:
    computed = PARSER + '\nfor name in ("computed",):\n    parser.add_argument(f"--{name}")\n'
    facts = read(install(tmp_path / "ComfyUI", computed))
    assert facts.flags_source == "--help"
    assert facts.arity == {**EXPECTED_ARITY, "--computed": "1"}
    assert set(facts.exclusive) == EXPECTED_GROUPS
    assert facts.flags is not None
    assert facts.flags["--preview-method"] == ("none", "auto")
    assert facts.flags["--verbose"] == ("DEBUG", "INFO")
    assert facts.flags["--hashing"] == ("md5", "sha256")


def test_the_answer_is_kept_until_the_file_changes(tmp_path: Path) -> None:
    root, cache = install(tmp_path / "ComfyUI"), tmp_path / "state"
    source = root / "comfy" / "cli_args.py"
    first = read(root, cache)
    stat = source.stat()
    # The same identity with another content: only the cache can still know --lowvram.
    source.write_text(PARSER.replace("--lowvram", "--slowram"), encoding="utf-8")
    os.utime(source, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert read(root, cache) == first
    os.utime(source, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    assert read(root, cache).accepts("--slowram")
    (cache / "comfyui-options.json").write_text("not json", encoding="utf-8")
    assert read(root, cache).accepts("--slowram")


def test_a_program_that_tells_nothing_leaves_the_options_unknown(tmp_path: Path) -> None:
    facts = read(install(tmp_path / "ComfyUI", "syntax error(", main="raise SystemExit(1)\n"))
    assert facts.installed
    assert facts.flags is None
    assert facts.error


def test_a_missing_comfyui(tmp_path: Path) -> None:
    facts = read(tmp_path / "nowhere")
    assert not facts.installed
    assert "there is no main.py in" in (facts.error or "")


def test_torch_and_cgroup_support_are_seen_in_the_files(tmp_path: Path) -> None:
    root = install(tmp_path / "ComfyUI")
    python = tmp_path / "ComfyUI" / "venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.symlink_to(sys.executable)
    torch = tmp_path / "ComfyUI" / "venv" / "lib" / "python3.12" / "site-packages" / "torch"
    torch.mkdir(parents=True)
    (torch / "version.py").write_text("__version__ = '2.9.1+cu130'\n", encoding="utf-8")
    (root / "comfy" / "system_memory.py").touch()
    facts = read_comfyui(root, python=None, cache_directory=None, environ={"PATH": ""})
    assert (facts.python, facts.torch, facts.cgroup_aware) == (str(python), "2.9.1+cu130", True)


def test_the_supervisors_own_interpreter_is_not_comfyuis(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, system = tmp_path / "own", tmp_path / "system"
    for prefix in (own, system):
        (prefix / "bin").mkdir(parents=True)
        (prefix / "bin" / "python3").symlink_to(sys.executable)
    monkeypatch.setattr(sys, "prefix", str(own))
    monkeypatch.setattr(sys, "base_prefix", "/usr")
    environ = {"PATH": f"{own}/bin:{system}/bin"}
    assert find_python(tmp_path / "ComfyUI", environ) == f"{system}/bin/python3"


def test_text_that_is_no_help_is_refused() -> None:
    with pytest.raises(UnreadableParserError):
        options_from_help("Traceback (most recent call last):\n")
    with pytest.raises(UnreadableParserError):
        options_from_help("usage: main.py\n\n")


def test_functions_are_not_taken_for_the_parser() -> None:
    source = "def later(p):\n    p.add_argument('--never')\nq.add_argument('--now')\n"
    assert set(options_from_source(source)[0]) == {"--now"}
