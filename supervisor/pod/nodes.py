"""Brings custom nodes up to date with git, and back. Never fatal, never over somebody's work.

Custom nodes are untrusted code: their hooks do not run, git asks nobody for a password, and
no secret is in the environment. A node is only ever moved forward along its own branch.
"""

from __future__ import annotations

import json
import os
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from pathlib import Path

import anyio

from supervisor.core.status import NodeStatus
from supervisor.pod.commands import Runner, last_line

_AT_ONCE = 8
_SHORT = 10
_CHECKOUT_S = 30.0
# Hooks and filters are code of the node; a folder of another owner is what images have.
_GIT = (
    "git", "-c", "core.hooksPath=/dev/null", "-c", "core.fsmonitor=false",
    "-c", "safe.directory=*", "-c", "core.fileMode=false", "-c", "protocol.ext.allow=never",
    "-c", "gc.auto=0",
)  # fmt: skip
_PASSED = (
    "PATH", "HOME", "LANG", "http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY",
    "no_proxy", "SSL_CERT_FILE", "GIT_SSL_CAINFO", "PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL",
    "PIP_CERT", "PIP_FIND_LINKS", "PIP_NO_INDEX", "PIP_BREAK_SYSTEM_PACKAGES",
)  # fmt: skip


class Result(StrEnum):
    """How it went with one node."""

    CURRENT = "current"
    UPDATED = "updated"
    KEPT = "kept"  # left as it is, on purpose
    FAILED = "failed"


def environment_for(environ: Mapping[str, str], constraints: Path | None) -> dict[str, str]:
    """What git and pip need and nothing else; they never wait for somebody to type."""
    found = {name: environ[name] for name in _PASSED if name in environ}
    if constraints is not None:
        found["PIP_CONSTRAINT"] = str(constraints)
    return {
        "PATH": os.defpath,
        **found,
        "LC_ALL": "C",
        "GIT_TERMINAL_PROMPT": "0",
        "GIT_ASKPASS": "true",
        "SSH_ASKPASS": "true",
        "GIT_SSH_COMMAND": "ssh -o BatchMode=yes -o ConnectTimeout=10",
        "GIT_HTTP_LOW_SPEED_LIMIT": "1000",
        "GIT_HTTP_LOW_SPEED_TIME": "15",
        "PIP_NO_INPUT": "1",
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
    }


@dataclass(frozen=True, slots=True)
class Moved:
    """A node that was moved. ``done`` is false while its files may be half of each."""

    before: str
    after: str
    done: bool


class Record:
    """Which nodes were moved from where to where: for the rollback, and after a crash."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.moved: dict[str, Moved] = {}
        with suppress(OSError, ValueError, TypeError):
            kept = json.loads(path.read_text(encoding="utf-8"))
            self.moved = {name: Moved(**values) for name, values in kept.items()}

    def note(self, name: str, moved: Moved | None) -> None:
        """Write it down before, or after, the files change; None forgets it.

        Raises:
            OSError: it cannot be written, so nothing must be moved.
        """
        if moved is None:
            self.moved.pop(name, None)
        else:
            # The first move of several is where the way back leads to.
            first = self.moved.get(name)
            before = first.before if first is not None else moved.before
            self.moved[name] = Moved(before, moved.after, moved.done)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self._path.with_suffix(f".{os.getpid()}")
        text = json.dumps({name: asdict(moved) for name, moved in self.moved.items()}, indent=1)
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(self._path)


class Nodes:
    """The custom nodes of one ComfyUI."""

    def __init__(self, folder: Path, *, python: Path, runner: Runner, record: Record) -> None:
        self._folder = folder
        self._python = python
        # A damaged repository must not be taken for the one around it: ComfyUI's own.
        ceiling = {"GIT_CEILING_DIRECTORIES": str(folder.resolve())}
        self._runner = replace(runner, environment={**runner.environment, **ceiling})
        self._record = record
        # pip is not made for two at once.
        self._pip = anyio.Lock()

    def names(self) -> list[str]:
        """Nodes that are git repositories of their own."""
        try:
            return sorted(entry.parent.name for entry in self._folder.glob("*/.git"))
        except OSError:
            return []

    async def update(
        self, *, timeout_s: float, told: Callable[[NodeStatus], None]
    ) -> list[NodeStatus]:
        """Move all nodes forward, several at once, within ``timeout_s`` seconds for all.

        ``told`` hears of each as soon as it is known.
        """
        names = self.names()
        found: dict[str, NodeStatus] = {}
        limiter = anyio.Semaphore(_AT_ONCE)

        async def one(name: str) -> None:
            async with limiter:
                found[name] = await self._update(name)
            told(found[name])

        with anyio.move_on_after(timeout_s):
            async with anyio.create_task_group() as tasks:
                for name in names:
                    tasks.start_soon(one, name)
        late = f"not done within {timeout_s:g} s"
        for name in names:
            if name not in found:
                found[name] = NodeStatus(name, Result.FAILED, message=late)
                told(found[name])
        return [found[name] for name in names]

    async def roll_back(self) -> list[NodeStatus]:
        """Take every node that was moved back to where it was; also without a network."""
        found = []
        for name, moved in sorted(self._record.moved.items()):
            # --keep refuses to overwrite what somebody has changed since.
            how = "--keep" if moved.done else "--hard"
            code, text = await self._git(name, "reset", how, "--quiet", moved.before)
            if code:
                found.append(NodeStatus(name, Result.FAILED, message=last_line(text)))
                continue
            await self._submodules(name)
            self._record.note(name, None)
            found.append(
                NodeStatus(
                    name, Result.UPDATED, before=_short(moved.after), after=_short(moved.before)
                )
            )
        return found

    # -- one node -------------------------------------------------------------------------

    async def _update(self, name: str) -> NodeStatus:
        try:
            return await self._move(name)
        except _Stay as stay:
            return NodeStatus(name, stay.result, message=stay.reason)
        except OSError as error:
            return NodeStatus(name, Result.FAILED, message=error.strerror or str(error))

    async def _move(self, name: str) -> NodeStatus:
        await self._finish(name)
        before = await self._demand(name, "rev-parse", "HEAD")
        if (await self._git(name, "symbolic-ref", "--quiet", "HEAD"))[0]:
            raise _Stay(Result.KEPT, f"pinned to {_short(before)}")
        if (await self._git(name, "rev-parse", "--quiet", "--verify", "@{upstream}"))[0]:
            raise _Stay(Result.KEPT, "its branch follows no other")
        if await self._demand(name, "status", "--porcelain", "--untracked-files=no"):
            raise _Stay(Result.KEPT, "has local changes")
        await self._demand(name, "fetch", "--quiet", "--no-tags", "--no-recurse-submodules")
        after = await self._demand(name, "rev-parse", "@{upstream}")
        if before == after:
            return NodeStatus(name, Result.CURRENT, before=_short(before), after=_short(before))
        if (await self._git(name, "merge-base", "--is-ancestor", before, after))[0]:
            raise _Stay(Result.KEPT, f"has diverged from its upstream at {_short(after)}")
        self._record.note(name, Moved(before, after, done=False))
        # Half a tree is worse than a late one: the deadline does not cut this off.
        with anyio.move_on_after(_CHECKOUT_S, shield=True):
            await self._demand(name, "merge", "--quiet", "--ff-only", after)
        try:
            await self._submodules(name)
            await self._requirements(name, before, after)
        except anyio.get_cancelled_exc_class():
            with anyio.move_on_after(_CHECKOUT_S, shield=True):  # no code without what it needs
                await self._git(name, "reset", "--hard", "--quiet", before)
            raise
        self._record.note(name, Moved(before, after, done=True))
        return NodeStatus(name, Result.UPDATED, before=_short(before), after=_short(after))

    async def _finish(self, name: str) -> None:
        """Clean up after a move that was cut off: nobody else works here before ComfyUI runs."""
        moved = self._record.moved.get(name)
        if moved is None or moved.done:
            return
        with suppress(FileNotFoundError):
            (self._folder / name / ".git" / "index.lock").unlink()
        # New files that git had written already are nobody's: forward first makes them git's.
        await self._demand(name, "reset", "--hard", "--quiet", moved.after)
        await self._demand(name, "reset", "--hard", "--quiet", moved.before)
        self._record.note(name, None)

    async def _submodules(self, name: str) -> None:
        if (self._folder / name / ".gitmodules").exists():
            await self._demand(name, "submodule", "--quiet", "update", "--init", "--recursive")

    async def _requirements(self, name: str, before: str, after: str) -> None:
        """Install what the new version wants; without it the old version stays."""
        file = self._folder / name / "requirements.txt"
        same = await self._git(name, "diff", "--quiet", before, after, "--", "requirements.txt")
        if same[0] == 0 or not file.exists():
            return
        async with self._pip:
            code, text = await self._runner.run(
                [str(self._python), "-m", "pip", "install", "--quiet", "-r", str(file)],
                self._folder / name,
            )
        if code:
            await self._demand(name, "reset", "--hard", "--quiet", before)
            await self._submodules(name)
            self._record.note(name, None)
            cause = last_line(text)
            raise _Stay(Result.KEPT, f"the new version's requirements cannot be had: {cause}")

    async def _demand(self, name: str, *arguments: str) -> str:
        code, text = await self._git(name, *arguments)
        if code:
            raise _Stay(Result.FAILED, f"git {arguments[0]}: {last_line(text) or code}")
        return text

    def _git(self, name: str, *arguments: str) -> Awaitable[tuple[int, str]]:
        return self._runner.run([*_GIT, *arguments], self._folder / name)


class _Stay(Exception):  # noqa: N818 - it ends the work on one node, it is no error of ours
    """The node stays where it is."""

    def __init__(self, result: Result, reason: str) -> None:
        self.result = result
        self.reason = reason


def _short(commit: str) -> str:
    return commit[:_SHORT]
