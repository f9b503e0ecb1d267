"""What a boot decided and how long it took, as a file beside the logs, for the bucket."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from supervisor.app.boot import Boot
    from supervisor.plan.model import Plan

_KEPT = 10


def boot_report(boot: Boot, plan: Plan) -> dict[str, Any]:
    """Render times and plan, without secrets."""
    from supervisor.core.status import to_jsonable  # noqa: PLC0415 - after the launch
    from supervisor.plan.render import plan_to_json  # noqa: PLC0415

    document: dict[str, Any] = boot.redactor.redact_values(plan_to_json(plan))
    return {"boot": to_jsonable(boot.timeline.status), "plan": document}


def write_report(directory: Path, document: dict[str, Any]) -> Path:
    """Write ``boot-<start>.json``, once, and remove all but the newest ones. Blocking.

    Raises:
        OSError: the folder cannot be written.
    """
    stamp = str(document["boot"]["started_at"]).replace(":", "-")
    path = directory / f"boot-{stamp}.json"
    if path.exists():
        return path
    directory.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(document, indent=2), encoding="utf-8")
    temporary.replace(path)
    for old in sorted(directory.glob("boot-*.json"))[:-_KEPT]:
        with suppress(OSError):
            old.unlink()
    return path
