"""Where people find the services. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from supervisor.plan.model import Plan
from supervisor.services.spec import ServiceKind

if TYPE_CHECKING:
    from supervisor.app.boot import Boot


def links(plan: Plan, environ: Mapping[str, str]) -> dict[str, str]:
    """Address of each service that has one: through RunPod's proxy when this is a pod.

    The proxy's names: CONTRACTS, RunPod, pods.
    """
    found = {spec.name: spec.url for spec in plan.services if spec.url}
    ports = {
        spec.name: spec.port
        for spec in plan.services
        if spec.port and spec.kind is not ServiceKind.SSH
    }
    return {**{name: address(port, environ) for name, port in ports.items()}, **found}


def address(port: int, environ: Mapping[str, str]) -> str:
    """Address of a port for a browser."""
    pod = environ.get("RUNPOD_POD_ID")
    return f"https://{pod}-{port}.proxy.runpod.net" if pod else f"http://127.0.0.1:{port}"


def access(boot: Boot) -> dict[str, str]:
    """Addresses with their secrets, for the owner only: served over the socket, never else."""
    environ, settings = boot.source.environ, boot.settings
    page = address(boot.plan.health.port, environ)
    found = {"page": f"{page}/?token={boot.health_token}"}
    running = {spec.kind for spec in boot.plan.services if not spec.unavailable}
    if ServiceKind.JUPYTER in running:
        given = settings.jupyter.token
        token = given.get_secret_value() if given else boot.generated.jupyter_token
        found["jupyter"] = f"{address(settings.jupyter.port, environ)}/lab?token={token}"
    if ServiceKind.FILEBROWSER in running and settings.filebrowser.password is None:
        user, password = settings.filebrowser.username, boot.generated.filebrowser_password
        found["filebrowser"] = (
            f"{address(settings.filebrowser.port, environ)} ({user} / {password})"
        )
    return found
