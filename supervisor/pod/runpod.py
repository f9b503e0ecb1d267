"""Stopping this pod through RunPod's API.

Source: RunPod's API reference (2026-08). The ways are tried in turn until one is accepted:
REST v2, ``runpodctl``, GraphQL, and REST v1, which is retired and so comes last.
"""

from __future__ import annotations

import json
import logging
import shutil
import subprocess
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import quote

import anyio

from supervisor.errors import SupervisorError

log = logging.getLogger("supervisor.pod")

StopAction = Literal["stop", "terminate"]
ANSWER_LIMIT_BYTES = 65_536
API_URL = "https://api.runpod.io"
REST_V1_URL = "https://rest.runpod.io/v1"
# Where it finds its configuration, a proxy and the certificates.
_FOR_RUNPODCTL = (
    *("PATH", "HOME", "LANG", "TMPDIR", "RUNPOD_API_URL", "SSL_CERT_FILE", "SSL_CERT_DIR"),
    *("HTTPS_PROXY", "HTTP_PROXY", "NO_PROXY", "https_proxy", "http_proxy", "no_proxy"),
)


class PodStopError(SupervisorError):
    """No way of stopping the pod was accepted."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one way answered; ``detail`` never holds the key."""

    way: str
    accepted: bool
    detail: str


class RunPod:
    """Stops or terminates one pod. Each way has ``timeout_s`` seconds of its own."""

    def __init__(
        self,
        *,
        pod_id: str,
        api_key: str,
        environ: Mapping[str, str],
        api_url: str = API_URL,
        timeout_s: float = 10.0,
    ) -> None:
        self._pod_id = pod_id
        self._key = api_key
        self._api_url = api_url.rstrip("/")
        # Who names another API must not have the key sent to RunPod's own hosts.
        official = self._api_url == API_URL
        self._rest_v1_url = REST_V1_URL if official else f"{self._api_url}/v1"
        self._environ = environ
        self._timeout_s = timeout_s

    async def end(self, action: StopAction = "stop") -> list[Outcome]:
        """Stop or terminate the pod; the last outcome is the one that was accepted.

        Raises:
            PodStopError: every way was refused; the pod runs on and costs money.
        """
        ways: tuple[tuple[str, Callable[[StopAction], Awaitable[Outcome]]], ...] = (
            ("REST v2", self._rest_v2),
            ("runpodctl", self._runpodctl),
            ("GraphQL", self._graphql),
            ("REST v1", self._rest_v1),
        )
        outcomes = []
        for name, way in ways:
            outcome = await self._attempt(name, way, action)
            log.log(
                logging.INFO if outcome.accepted else logging.WARNING,
                "pod %s through %s: %s",
                action,
                name,
                outcome.detail,
            )
            outcomes.append(outcome)
            if outcome.accepted:
                return outcomes
        causes = "; ".join(f"{outcome.way}: {outcome.detail}" for outcome in outcomes)
        raise PodStopError(
            f"Cannot {action} the pod: {causes}",
            hint=f"{action} pod {self._pod_id} in RunPod's console; check idle.api_key",
        )

    async def _attempt(
        self, name: str, way: Callable[[StopAction], Awaitable[Outcome]], action: StopAction
    ) -> Outcome:
        try:
            with anyio.fail_after(self._timeout_s):
                return await way(action)
        except TimeoutError:
            return Outcome(name, accepted=False, detail=f"no answer in {self._timeout_s:g} s")
        except Exception as error:  # noqa: BLE001 - whatever one way does, the next is tried
            # The text of a client error may hold the address, and GraphQL's holds the key.
            return Outcome(name, accepted=False, detail=type(error).__name__)

    async def _rest_v2(self, action: StopAction) -> Outcome:
        url = f"{self._api_url}/v2/pods/{quote(self._pod_id, safe='')}/action"
        status, _ = await self._request("POST", url, body={"action": action})
        return _http_outcome("REST v2", status)

    async def _runpodctl(self, action: StopAction) -> Outcome:
        program = shutil.which("runpodctl", path=self._environ.get("PATH", ""))
        if program is None:
            return Outcome("runpodctl", accepted=False, detail="not installed")
        if action != "stop":  # its word for it differs between versions
            return Outcome("runpodctl", accepted=False, detail="used for stopping only")
        # The key travels in the environment: everybody can read an argument list. The
        # secrets of others stay here.
        kept = {name: self._environ[name] for name in _FOR_RUNPODCTL if name in self._environ}
        done = await anyio.run_process(
            [program, "pod", "stop", self._pod_id],
            check=False,
            stdin=subprocess.DEVNULL,
            env={**kept, "RUNPOD_API_KEY": self._key},
        )
        return Outcome(
            "runpodctl", accepted=done.returncode == 0, detail=f"exit status {done.returncode}"
        )

    async def _graphql(self, action: StopAction) -> Outcome:
        call = "podStop" if action == "stop" else "podTerminate"
        fields = "{id desiredStatus}" if action == "stop" else ""
        pod = json.dumps(self._pod_id)
        query = f"mutation{{{call}(input:{{podId:{pod}}}){fields}}}"
        status, answer = await self._request(
            "POST", f"{self._api_url}/graphql", body={"query": query}, query={"api_key": self._key}
        )
        # GraphQL says 200 to a refusal, too.
        if status == 200 and (not isinstance(answer, dict) or answer.get("errors")):
            return Outcome("GraphQL", accepted=False, detail="HTTP 200 with errors")
        return _http_outcome("GraphQL", status)

    async def _rest_v1(self, action: StopAction) -> Outcome:
        url = f"{self._rest_v1_url}/pods/{quote(self._pod_id, safe='')}"
        if action == "stop":
            status, _ = await self._request("POST", f"{url}/stop")
        else:
            status, _ = await self._request("DELETE", url)
        return _http_outcome("REST v1", status)

    async def _request(
        self,
        method: str,
        url: str,
        *,
        body: Mapping[str, str] | None = None,
        query: Mapping[str, str] | None = None,
    ) -> tuple[int, Any]:
        import aiohttp  # noqa: PLC0415 - needed once in a pod's life, and slow to import

        headers = {} if query else {"Authorization": f"Bearer {self._key}"}
        async with (
            aiohttp.ClientSession(headers=headers) as session,
            # A redirect would carry the key to a host that nobody named.
            session.request(
                method, url, json=body, params=query, allow_redirects=False
            ) as response,
        ):
            content = await response.content.read(ANSWER_LIMIT_BYTES)
        try:
            return response.status, json.loads(content)
        except ValueError:
            return response.status, None


def _http_outcome(way: str, status: int) -> Outcome:
    known = {401: " (the key is not accepted)", 409: " (not in a state for it)"}
    return Outcome(
        way, accepted=200 <= status < 300, detail=f"HTTP {status}{known.get(status, '')}"
    )
