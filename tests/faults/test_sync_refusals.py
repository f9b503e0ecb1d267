"""The target refuses everything: said once and rightly, and over as soon as it is mended."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anyio
import pytest

from supervisor.config.settings import AlertsSection
from supervisor.core.retry import Backoff
from supervisor.monitor.alerts import Alerts
from supervisor.sync import syncer
from tests.support import s3_servers
from tests.support.sync import DEADLINE_S, Pod, png

pytestmark = pytest.mark.anyio

_COUNT = 6


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        ("403 InvalidAccessKeyId", "the key was refused"),
        ("403 SignatureDoesNotMatch", "the key was refused"),
        ("401 Unauthorized", "the key was refused"),
        # HEAD tells 400 or 301 and no code: only a PUT says what is wrong.
        ("400 ExpiredToken", "the key was refused (ExpiredToken)"),
        ("400 InvalidArgument", "the key was refused"),  # R2: a key of the wrong length
        ("404 NoSuchBucket", "there is no such bucket"),
        ("301 PermanentRedirect", "it is in another region"),
        ("400 AuthorizationHeaderMalformed", "it is in another region"),
        ("403 RequestTimeTooSkewed", "clock is wrong"),
        ("200 Hello", "is no S3 server"),
    ],
)
async def test_each_cause_is_told_once_and_is_over_by_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: str, says: str
) -> None:
    monkeypatch.setattr(syncer, "_GATE_BACKOFF", Backoff(0.1, 0.5))
    wrong: str | None = answer

    def fault(_request: Any, _count: int) -> str | None:
        return wrong

    with s3_servers.strict(fault=fault, pace_s=0.0) as server:
        assert server.strict is not None
        pod = Pod(tmp_path, **server.settings)
        for number in range(_COUNT):  # there before: they are looked for with HEAD first
            (pod.source / f"{number}.png").write_bytes(png(str(number)))
        async with pod.running():
            await pod.event("sync.blocked")
            await anyio.sleep(0.3)  # whoever was under way runs into it as well
            status = pod.status
            assert says in str(status.last_error)
            assert status.hint
            assert (status.failed, status.pending) == (0, _COUNT)
            assert pod.kinds().count("sync.blocked") == 1
            alerts = Alerts(settings=AlertsSection(), state=pod.state, bus=pod.bus)
            alerts.check()
            raised = [alert.message for alert in pod.state.snapshot.alerts]
            assert raised == (
                [] if "clock" in says else [f"Outputs are not stored: {status.last_error}"]
            )
            wrong = None
            await pod.uploaded(_COUNT)
            alerts.check()
            assert (pod.state.snapshot.alerts, pod.status.last_error) == ((), None)
        assert len(server.strict.objects) == _COUNT


async def test_what_is_wrong_with_one_file_only_is_not_the_keys_fault(tmp_path: Path) -> None:
    def fault(request: Any, _count: int) -> str | None:
        return "400 InvalidArgument" if request.method == "PUT" and "bad" in request.path else None

    with s3_servers.strict(fault=fault, pace_s=0.0) as server:
        pod = Pod(tmp_path, **server.settings)
        for name in ("bad.png", "good.png"):
            (pod.source / name).write_bytes(png(name))
        async with pod.running():
            await pod.event("sync.failed")
            with anyio.fail_after(DEADLINE_S):
                await pod.state.wait(lambda s: s.sync.uploaded == 1)
            assert (pod.status.failed, pod.status.blocked) == (1, False)
