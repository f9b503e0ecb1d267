"""JupyterLab, FileBrowser and sshd: what they need so that they are safe and reachable."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from supervisor.config.settings import JupyterSection
from supervisor.plan.context import PlanContext, reachable
from supervisor.plan.env_policy import plain
from supervisor.plan.model import Skipped
from supervisor.services.spec import (
    EnsureDirectory,
    EnsureLines,
    HttpProbe,
    Liveness,
    PrepareStep,
    Readiness,
    RunFirst,
    ServiceKind,
    ServiceSpec,
    StopStep,
    TcpProbe,
)

# FileBrowser refuses shorter ones since 2.33 (its default minimumPasswordLength).
FILEBROWSER_PASSWORD_LENGTH = 12

# Creates the user, or gives the existing one this password.
_FILEBROWSER_USER = (
    '"$1" users add "$2" "$3" --perm.admin --database "$4" >/dev/null 2>&1 || '
    '"$1" users update "$2" --password "$3" --database "$4" >/dev/null'
)


@dataclass(frozen=True, slots=True)
class ServicePlan:
    """A service, or why there is none; both None when it was not asked for."""

    service: ServiceSpec | None = None
    skipped: Skipped | None = None
    notes: tuple[str, ...] = ()


def plan_jupyter(context: PlanContext) -> ServicePlan:
    """JupyterLab, never without a token."""
    section = context.settings.jupyter
    token = plain(section.token)
    if section.enabled is False or (section.enabled is None and token is None):
        return ServicePlan()
    program = context.program(section.command[0])
    if program is None and section.enabled is None:
        return ServicePlan(skipped=Skipped("jupyter", f"{section.command[0]} is not installed"))
    reasons = ["the token is passed in the environment, where no process list shows it"]
    if token is None:
        token = context.generated.jupyter_token
        reasons.append("no token was given: one was generated")
    root = section.root or context.workspace
    address = f"http://{reachable(section.listen)}:{section.port}"
    service = ServiceSpec(
        name="jupyter",
        kind=ServiceKind.JUPYTER,
        command=_jupyter_command(program or section.command[0], section, root),
        environment={"JUPYTER_TOKEN": token},
        secret_names=frozenset({"JUPYTER_TOKEN"}),
        required=section.required,
        readiness=Readiness(HttpProbe(f"{address}/api"), timeout_s=60.0),
        liveness=Liveness(HttpProbe(f"{address}/api"), interval_s=30.0, timeout_s=10.0),
        stop=(StopStep("SIGTERM", 3.0),),
        cwd=root,
        port=section.port,
        url=f"{address}/lab",
        reasons=tuple(reasons),
        unavailable=None if program else _not_installed("JupyterLab", section.command[0]),
        hint=None if program else "pip install jupyterlab, or jupyter.enabled = false",
    )
    return ServicePlan(service)


def _jupyter_command(program: str, section: JupyterSection, root: Path) -> tuple[str, ...]:
    return (
        program,
        *section.command[1:],
        f"--ip={section.listen}",
        f"--port={section.port}",
        "--no-browser",
        "--allow-root",
        f"--ServerApp.root_dir={root}",
        # Otherwise it moves to the next port in silence when this one is taken.
        "--ServerApp.port_retries=0",
        "--ServerApp.allow_remote_access=True",
        "--ServerApp.trust_xheaders=True",
        "--ServerApp.allow_origin=*",
    )


def plan_filebrowser(context: PlanContext) -> ServicePlan:
    """FileBrowser, never with a default password."""
    section = context.settings.filebrowser
    if not section.enabled:
        return ServicePlan()
    program = context.program(section.command)
    given = plain(section.password)
    password = given or context.generated.filebrowser_password
    root = section.root or context.workspace
    database = context.settings.supervisor.state_dir / "filebrowser" / "filebrowser.db"
    executable = program or section.command
    address = f"http://{reachable(section.listen)}:{section.port}"
    unavailable, hint = _filebrowser_fault(program, section.command, password)
    service = ServiceSpec(
        name="filebrowser",
        kind=ServiceKind.FILEBROWSER,
        command=(
            executable,
            f"--address={section.listen}",
            f"--port={section.port}",
            f"--root={root}",
            f"--database={database}",
        ),
        readiness=Readiness(HttpProbe(f"{address}/health"), timeout_s=30.0),
        liveness=Liveness(HttpProbe(f"{address}/health"), interval_s=30.0, timeout_s=10.0),
        stop=(StopStep("SIGTERM", 3.0),),
        cwd=root,
        port=section.port,
        url=f"{address}/",
        reasons=("the password was given" if given else "no password was given: one is generated",),
        prepare=_filebrowser_steps(executable, section.username, password, database),
        unavailable=unavailable,
        hint=hint,
    )
    return ServicePlan(service)


def _filebrowser_steps(
    executable: str, username: str, password: str, database: Path
) -> tuple[PrepareStep, ...]:
    """Make the database and set the password before anything listens.

    FileBrowser takes a password only as an argument: it is on the command line of this
    short step, and never of the service.
    """
    user = ("sh", "-c", _FILEBROWSER_USER, "sh", executable, username, "{secret}", str(database))
    return (
        EnsureDirectory(database.parent, 0o700),
        RunFirst((executable, "config", "init", f"--database={database}"), creates=database),
        RunFirst(user, secret=password),
    )


def _filebrowser_fault(
    program: str | None, command: str, password: str
) -> tuple[str | None, str | None]:
    """Why it cannot be started, and the hint."""
    if program is None:
        hint = "install filebrowser, or filebrowser.enabled = false"
        return _not_installed("FileBrowser", command), hint
    if len(password) < FILEBROWSER_PASSWORD_LENGTH:
        least = f"at least {FILEBROWSER_PASSWORD_LENGTH} characters"
        return (
            f"Cannot start FileBrowser: its password must have {least}",
            "set a longer FB_PASSWORD, or none to have one generated",
        )
    return None, None


def plan_ssh(context: PlanContext) -> ServicePlan:
    """sshd with keys only."""
    section = context.settings.ssh
    keys = tuple(line.strip() for line in section.public_key.splitlines() if line.strip())
    if section.enabled is False or (section.enabled is None and not keys):
        return ServicePlan()
    program = context.program(section.command)
    if program is None and section.enabled is None:
        return ServicePlan(skipped=Skipped("ssh", f"{section.command} is not installed"))
    home = Path(context.environ.get("HOME") or "/root")
    service = ServiceSpec(
        name="ssh",
        kind=ServiceKind.SSH,
        command=(
            program or section.command,
            "-D",
            "-e",
            "-p",
            str(section.port),
            "-o",
            "PasswordAuthentication=no",
            "-o",
            "KbdInteractiveAuthentication=no",
        ),
        readiness=Readiness(TcpProbe("127.0.0.1", section.port), timeout_s=15.0),
        stop=(StopStep("SIGTERM", 2.0),),
        port=section.port,
        reasons=("keys only, no passwords",),
        prepare=(
            RunFirst(("ssh-keygen", "-A")),  # makes only the host keys that are missing
            EnsureDirectory(Path("/run/sshd"), 0o755),
            EnsureDirectory(home / ".ssh", 0o700),
            EnsureLines(home / ".ssh" / "authorized_keys", keys, 0o600),
        ),
        unavailable=None if program else _not_installed("sshd", section.command),
        hint=None if program else "apt-get install openssh-server, or ssh.enabled = false",
    )
    notes = () if keys else ("ssh: no public key is set: only keys of the image can log in",)
    return ServicePlan(service, notes=notes)


def _not_installed(what: str, program: str) -> str:
    return f"Cannot start {what}: {program} is not installed"
