"""``supervisor nodes``: ComfyUI's custom nodes and the torch that they must not replace."""

from __future__ import annotations

import sys
from pathlib import Path

from supervisor.cli.output import print_json
from supervisor.errors import ExitCode, SupervisorError

TYPE_CHECKING = False  # spares the import of typing; type checkers know the name
if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace
    from collections.abc import Mapping

    from supervisor.services.spec import ServiceSpec


def configure(parser: ArgumentParser) -> None:
    """Declare the actions."""
    from supervisor.cli.parsing import add_config  # noqa: PLC0415 - see the module

    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    status = actions.add_parser("status", help="what was updated, and whether torch is the image's")
    status.add_argument("--json", action="store_true", help="write JSON")
    rollback = actions.add_parser(
        "rollback", help="take updated nodes back and reinstall the image's torch"
    )
    accept = actions.add_parser("accept", help="take today's torch as the one to keep")
    for action in (rollback, accept):
        add_config(action)


def run(args: Namespace, environ: Mapping[str, str]) -> int:
    """Do what was asked."""
    if args.action == "status":
        return _status(environ, as_json=args.json)
    return _local(args, environ)


def _local(args: Namespace, environ: Mapping[str, str]) -> int:
    """What works without the daemon, too: it may not run because of its nodes."""
    from supervisor.app.nodes import comfyui_of  # noqa: PLC0415 - heavy, and not for status
    from supervisor.cli.configuration import load_for  # noqa: PLC0415
    from supervisor.cli.planning import make_plan, read_facts  # noqa: PLC0415

    args.config = args.config or _daemons_config(environ)
    loaded = load_for(args, environ)
    spec = comfyui_of(make_plan(loaded, read_facts(loaded, environ), environ))
    if spec is None:
        raise SupervisorError("There is no ComfyUI in this pod", hint="comfyui.enabled = true")
    state_dir = loaded.settings.supervisor.state_dir
    if args.action == "accept":
        return _accept(spec, state_dir)
    return _roll_back(spec, state_dir, environ)


def _daemons_config(environ: Mapping[str, str]) -> Path | None:
    """The file that the running daemon uses; None when none answers."""
    from supervisor.cli.daemon import connect_daemon  # noqa: PLC0415

    try:
        found = connect_daemon(environ).get("/v1/status")["config_file"]
    except SupervisorError:
        return None
    return Path(found) if found else None


def _status(environ: Mapping[str, str], *, as_json: bool) -> int:
    from supervisor.cli.daemon import connect_daemon  # noqa: PLC0415

    nodes = connect_daemon(environ).get("/v1/status")["nodes"]
    if as_json:
        print_json(nodes)
        return ExitCode.DONE
    from supervisor.cli.render import clean  # noqa: PLC0415 - not for --json

    for node in nodes["nodes"]:
        told = node["message"] or (
            f"{node['before']} → {node['after']}" if node["state"] == "updated" else node["after"]
        )
        print(f"{clean(node['name'])}  {node['state']}  {clean(told or '')}")
    if nodes["updating"]:
        print("the update is still going on")
    elif not nodes["nodes"]:
        print("no node was looked at (UPDATE_NODES_ON_START=true does it at boot)")
    for change in nodes["torch_changes"]:
        print(f"torch: {clean(change)}")
    return ExitCode.NO if nodes["torch_changes"] else ExitCode.DONE


def _accept(spec: ServiceSpec, state_dir: Path) -> int:
    from supervisor.app.nodes import python_of, write_constraints  # noqa: PLC0415
    from supervisor.pod.torch_stack import Baseline, stack_of  # noqa: PLC0415

    python = python_of(spec)
    stack = stack_of(python)
    if "torch" not in stack:
        raise SupervisorError(f"There is no torch beside {python}", hint="see comfyui.python")
    try:
        Baseline(python, state_dir).save(stack)
        write_constraints(spec, stack)
    except OSError as error:
        raise SupervisorError(f"Cannot keep the torch stack: {error}") from error
    print(f"kept: torch {stack.get('torch', 'none')} and {max(len(stack) - 1, 0)} packages with it")
    return ExitCode.DONE


def _roll_back(spec: ServiceSpec, state_dir: Path, environ: Mapping[str, str]) -> int:
    import anyio  # noqa: PLC0415 - not for status

    from supervisor.app.nodes import make_nodes  # noqa: PLC0415

    found = anyio.run(make_nodes(spec, state_dir=state_dir, environ=environ).roll_back)
    for node in found:
        print(f"{node.name}: {node.message or f'{node.before} → {node.after}'}")
    failed = any(node.state == "failed" for node in found)
    mended = _mend_torch(spec, state_dir, environ)
    if not found and mended is None:
        print("nothing to take back: no node was updated, torch is the image's")
        return ExitCode.DONE
    print("`supervisor restart comfyui` makes ComfyUI use it")
    return ExitCode.NO if failed or mended is False else ExitCode.DONE


def _mend_torch(spec: ServiceSpec, state_dir: Path, environ: Mapping[str, str]) -> bool | None:
    """Reinstall what changed; None when there is nothing to mend."""
    import subprocess  # noqa: PLC0415 - not for status

    from supervisor.app.nodes import make_runner, python_of  # noqa: PLC0415
    from supervisor.pod.torch_stack import Baseline, changes, reinstall, stack_of  # noqa: PLC0415

    python: Path = python_of(spec)
    known, now = Baseline(python, state_dir).load(), stack_of(python)
    if known is None or not changes(known, now):
        return None
    wanted = {name: version for name, version in known.items() if now.get(name) != version}
    command = reinstall(python, wanted)
    print(f"+ {' '.join(command)}", flush=True)
    runner = make_runner(spec, environ)
    environment = {k: v for k, v in runner.environment.items() if k != "PIP_CONSTRAINT"}
    done = subprocess.run(
        command, env=environment, user=runner.uid, group=runner.gid, check=False
    )  # fmt: skip
    left = changes(known, stack_of(python))
    for change in left:
        print(f"still changed: {change}", file=sys.stderr)
    return done.returncode == 0 and not left
