"""Custom nodes and torch: updated before ComfyUI starts, watched while it runs."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import anyio.to_thread

from supervisor.core.events import EventBus, Severity
from supervisor.core.state import StateStore
from supervisor.core.status import NodeStatus, ServiceState
from supervisor.pod.torch_stack import Baseline, changes, constraints, stack_of
from supervisor.services.process import find_account
from supervisor.services.spec import ServiceKind, ServiceSpec

if TYPE_CHECKING:
    from supervisor.app.boot import Boot
    from supervisor.plan.model import Plan
    from supervisor.pod.commands import Runner
    from supervisor.pod.nodes import Nodes

log = logging.getLogger("supervisor.nodes")

CONSTRAINTS = "UV_CONSTRAINT"


class NodeKeeper:
    """Holds ComfyUI back for node updates, once, and keeps an eye on its torch."""

    def __init__(self, boot: Boot, state: StateStore, bus: EventBus) -> None:
        self._boot = boot
        self._state_dir = boot.settings.supervisor.state_dir
        self._state = state
        self._bus = bus
        self._updated = False
        self._told: tuple[str, ...] = ()

    async def hold(self, spec: ServiceSpec) -> None:
        """Return when ComfyUI may start; nothing that goes wrong here keeps it from that."""
        if spec.kind is not ServiceKind.COMFYUI:
            return
        section = self._boot.settings.comfyui
        if section.torch_guard:
            await self._look_at_torch(spec)
        if section.update_nodes and not self._updated:
            self._updated = True
            await self._update(spec, section.update_nodes_timeout_s)
            if section.torch_guard:
                await self._look_at_torch(spec)

    async def watch(self) -> None:
        """Look at torch whenever ComfyUI has come up: its manager installs before that."""
        spec = comfyui_of(self._boot.plan)
        if spec is None or not self._boot.settings.comfyui.torch_guard:
            return
        while True:
            await self._state.wait(lambda s: _is(s.services, spec.name, ready=True))
            await self._look_at_torch(spec)
            await self._state.wait(lambda s: _is(s.services, spec.name, ready=False))

    async def _update(self, spec: ServiceSpec, timeout_s: float) -> None:
        nodes = await anyio.to_thread.run_sync(
            partial(make_nodes, spec, state_dir=self._state_dir, environ=self._boot.source.environ)
        )
        names = await anyio.to_thread.run_sync(nodes.names)
        if not names:
            return
        log.info("updating %d custom nodes, for at most %g s", len(names), timeout_s)
        self._show(updating=True)
        try:
            found = await nodes.update(timeout_s=timeout_s, told=self._tell)
        finally:
            self._show(updating=False)
        count = sum(node.state == "updated" for node in found)
        self._bus.publish("nodes.updated", f"{count} of {len(found)} custom nodes were updated")
        log.info("%d of %d custom nodes were updated", count, len(found))

    def _tell(self, node: NodeStatus) -> None:
        others = [n for n in self._state.snapshot.nodes.nodes if n.name != node.name]
        self._show(nodes=tuple(sorted((*others, node), key=lambda n: n.name)))
        if node.state == "updated":
            log.info("node %s: %s → %s", node.name, node.before, node.after)
        elif node.state != "current":
            log.warning("node %s stays as it is: %s", node.name, node.message)

    async def _look_at_torch(self, spec: ServiceSpec) -> None:
        try:
            found = await anyio.to_thread.run_sync(check_torch, self._state_dir, spec)
        except OSError as error:
            log.warning("cannot guard torch: %s", error)
            return
        self._show(torch_changes=found)
        if found and found != self._told:
            message = f"ComfyUI's torch is not the image's any more: {', '.join(found)}"
            hint = "`supervisor nodes rollback` brings it back, `supervisor nodes accept` keeps it"
            log.error("%s (hint: %s)", message, hint)
            self._bus.publish(
                "nodes.torch", message, severity=Severity.ERROR, subject=spec.name, hint=hint
            )
        self._told = found

    def _show(self, **parts: object) -> None:
        nodes = replace(self._state.snapshot.nodes, **parts)  # type: ignore[arg-type]  # its fields
        self._state.update(nodes=nodes)


def comfyui_of(plan: Plan) -> ServiceSpec | None:
    """The pod's ComfyUI."""
    return next((s for s in plan.services if s.kind is ServiceKind.COMFYUI), None)


def python_of(spec: ServiceSpec) -> Path:
    """ComfyUI's interpreter, by the path that tells its environment."""
    return Path(shutil.which(spec.command[0]) or spec.command[0])


def check_torch(state_dir: Path, spec: ServiceSpec) -> tuple[str, ...]:
    """Compare with the image's stack, which the first look takes down. Blocking.

    Also writes the constraints that keep pip and uv from replacing it.

    Raises:
        OSError: something cannot be written.
    """
    python = python_of(spec)
    now = stack_of(python)
    baseline = Baseline(python, state_dir)
    known = baseline.load()
    if known is None:
        if not now:
            return ()
        baseline.save(now)
        known = now
    write_constraints(spec, known)
    return changes(known, now)


def constraints_file(spec: ServiceSpec) -> Path | None:
    """Where the plan told ComfyUI's installers to look; after the user's own, if any."""
    named = spec.environment.get(CONSTRAINTS, "").split()
    return Path(named[-1]) if named else None


def write_constraints(spec: ServiceSpec, stack: Mapping[str, str]) -> None:
    """Put the stack where the plan told ComfyUI's installers to look.

    Raises:
        OSError: it cannot be written.
    """
    path, text = constraints_file(spec), constraints(stack)
    if path is None:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".new")
    # ComfyUI's user may write here: what lies there is removed and never written through.
    temporary.unlink(missing_ok=True)
    with temporary.open("x", encoding="utf-8") as file:
        file.write(text)
        os.fchmod(file.fileno(), 0o644)
    temporary.replace(path)


def make_nodes(spec: ServiceSpec, *, state_dir: Path, environ: Mapping[str, str]) -> Nodes:
    """The nodes of this ComfyUI, worked on as its user. Blocking."""
    from supervisor.pod.nodes import Nodes, Record  # noqa: PLC0415 - seldom needed

    return Nodes(
        (spec.cwd or Path()) / "custom_nodes",
        python=python_of(spec),
        runner=make_runner(spec, environ),
        record=Record(state_dir / "nodes.json"),
    )


def make_runner(spec: ServiceSpec, environ: Mapping[str, str]) -> Runner:
    """Runs git and pip as ComfyUI's user. Blocking."""
    from supervisor.pod.commands import Runner  # noqa: PLC0415 - seldom needed
    from supervisor.pod.nodes import environment_for  # noqa: PLC0415

    environment = environment_for(environ, constraints_file(spec))
    if spec.user is None:
        return Runner(environment)
    account = find_account(spec.user)
    return Runner({**environment, "HOME": account.home}, account.uid, account.gid)


def _is(services: Mapping[str, object], name: str, *, ready: bool) -> bool:
    service = services.get(name)
    return (getattr(service, "state", None) is ServiceState.READY) is ready
