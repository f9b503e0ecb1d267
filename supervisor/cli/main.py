"""The ``supervisor`` command: finds the one module of a command and runs it.

A client command is often typed and sits in health checks, so nothing is imported that
the command does not need: no argparse for the table, no settings, no event loop.
"""

from __future__ import annotations

import sys
from errno import EDQUOT, EFBIG, ENOSPC
from types import SimpleNamespace

from supervisor.cli.environment import (
    open_standard_streams,
    read_environment,
    silence_stdout,
)
from supervisor.errors import ConfigError, ExitCode, SupervisorError

TYPE_CHECKING = False  # spares the import of typing; type checkers know the name
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from types import ModuleType

COMMANDS: dict[str, dict[str, str]] = {
    "Boot": {
        "run": "boot the pod, or run one program under the init",
        "plan": "show what run would do, with reasons; touches nothing",
        "check": "validate the configuration",
        "demo": "boot a whole pod of stand-ins on this machine",
    },
    "Look": {
        "status": "the pod at a glance",
        "logs": "output of the services",
        "events": "what happened",
        "gpu": "the GPU as the supervisor sees it",
        "doctor": "check GPU, encoder, disk, ports, network, tokens and bucket",
    },
    "Act": {
        "start": "start a service",
        "stop": "stop a service",
        "restart": "restart a service",
        "signal": "send a signal to a service",
        "reload": "apply a changed configuration",
        "shutdown": "stop the pod in order",
        "idle": "look at or postpone the idle shutdown",
        "nodes": "custom nodes: what was updated, and the way back",
        "ladder": "look at or reset the steps that ComfyUI was taken down for lack of VRAM",
    },
    "Files": {
        "models": "list, fetch, verify and sort model files",
        "sync": "outputs on their way to the bucket",
    },
    "About": {
        "config": "schema, documentation and effective configuration",
        "completion": "completion script for a shell",
        "version": "the version",
    },
}
_INTERRUPTED = 130  # 128 + SIGINT
# Of what prints go to: a full disk or quota, a file at its limit.
_CANNOT_WRITE = (ENOSPC, EDQUOT, EFBIG)
_BROKEN_PIPE = 141  # 128 + SIGPIPE


def entrypoint() -> None:
    """Run the process's command line and exit."""
    open_standard_streams()
    sys.exit(main(sys.argv[1:]))


def main(argv: Sequence[str], environ: Mapping[str, str] | None = None) -> int:
    """Run one command line and return its exit code."""
    surroundings = read_environment() if environ is None else environ
    return guard(lambda: _dispatch(argv, surroundings), surroundings)


def guard(function: Callable[[], int], environ: Mapping[str, str]) -> int:
    """Call ``function`` and turn whatever it raises into a message and an exit code."""
    try:
        code = function()
        sys.stdout.flush()
    except SystemExit as request:
        return _code_of(request)
    except KeyboardInterrupt:
        return _INTERRUPTED
    except BrokenPipeError:
        silence_stdout()
        return _BROKEN_PIPE
    except SupervisorError as error:
        return report(error)
    except OSError as error:
        if error.errno not in _CANNOT_WRITE or error.filename is not None:
            return _report_bug(error, environ)
        silence_stdout()
        print(f"supervisor: Cannot write the output: {error.strerror}", file=sys.stderr)
        return ExitCode.NO
    except Exception as error:  # noqa: BLE001 - the last place that can say something
        return _report_bug(error, environ)
    return code


def report(error: SupervisorError) -> int:
    """Write an error for people and return the exit code that it asks for."""
    print(f"supervisor: {error.message}", file=sys.stderr)
    problems = error.problems if isinstance(error, ConfigError) else ()
    for problem in problems:
        print(f"  {str(problem).replace(chr(10), chr(10) + '  ')}", file=sys.stderr)
    if error.hint and not problems:
        print(f"  hint: {error.hint}", file=sys.stderr)
    return int(error.exit_code)


def load_command(name: str) -> ModuleType:
    """Import the module of a command."""
    # importlib brings warnings along: 2 ms, a tenth of what `status` takes in all.
    return __import__(f"supervisor.cli.commands.{name}", fromlist=[name])


def command_names() -> list[str]:
    """Return every command in the order of the help."""
    return [name for group in COMMANDS.values() for name in group]


def help_text() -> str:
    """Return the top-level help."""
    lines = ["usage: supervisor COMMAND [OPTION]…", "", "Container supervisor for ComfyUI pods."]
    for group, commands in COMMANDS.items():
        lines += ["", f"{group}:"]
        lines += [f"  {name:<11} {text}" for name, text in commands.items()]
    lines += [
        "",
        "`supervisor COMMAND --help` tells the options of a command.",
        "Exit codes: 0 done, 1 the answer is no, 2 usage, 69 no daemon answers, 70 bug,",
        "78 configuration, 128+n ended by signal n.",
    ]
    return "\n".join(lines)


def _dispatch(argv: Sequence[str], environ: Mapping[str, str]) -> int:
    name, *rest = argv or ("",)
    if name in ("-h", "--help", "help"):
        print(help_text())
        return ExitCode.DONE
    if name in ("-V", "--version"):
        name = "version"
    if name not in command_names():
        return _unknown_command(name)
    module = load_command(name)
    execute = getattr(module, "execute", None)
    if execute is not None:
        return int(execute(rest, environ))
    switches = getattr(module, "SWITCHES", None)
    if switches is not None and set(rest) <= set(switches):
        return int(module.run(_plain_arguments(switches, rest), environ))
    from supervisor.cli.parsing import Parser  # noqa: PLC0415 - `run` does without

    parser = Parser(prog=f"supervisor {name}")
    module.configure(parser)
    return int(module.run(parser.parse_args(rest), environ))


def _plain_arguments(switches: Sequence[str], given: Sequence[str]) -> SimpleNamespace:
    """Parse switches alone, without argparse, which takes as long as the rest of `status`."""
    return SimpleNamespace(**{s.removeprefix("--").replace("-", "_"): s in given for s in switches})


def _unknown_command(name: str) -> int:
    if not name:
        print(help_text(), file=sys.stderr)
        return ExitCode.USAGE
    from difflib import get_close_matches  # noqa: PLC0415 - for typos only

    near = get_close_matches(name, command_names(), n=1)
    hint = f"did you mean `supervisor {near[0]}`?" if near else "see `supervisor --help`"
    print(f"supervisor: there is no command {name}\n  hint: {hint}", file=sys.stderr)
    return ExitCode.USAGE


def _code_of(request: SystemExit) -> int:
    if request.code is None or isinstance(request.code, int):
        return request.code or ExitCode.DONE
    print(request.code, file=sys.stderr)
    return ExitCode.NO


def _report_bug(error: Exception, environ: Mapping[str, str]) -> int:
    hint = "set SUPERVISOR_DEBUG=1 for the traceback, and please report it"
    if environ.get("SUPERVISOR_DEBUG"):
        import traceback  # noqa: PLC0415 - rarely needed

        traceback.print_exception(error)
        hint = "please report it with the traceback above"
    first = (str(error).splitlines() or [""])[0]
    print(f"supervisor: bug: {type(error).__name__}: {first}\n  hint: {hint}", file=sys.stderr)
    return ExitCode.BUG
