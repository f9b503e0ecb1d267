"""What goes over the wire: rendering of answers, parsing of request bodies."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from typing import Any, TypeVar, get_args
from urllib.parse import quote, urlsplit

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails

from supervisor.api.context import ApiContext, LogRecord, RestoreKind
from supervisor.config.keys import dotted
from supervisor.config.problems import nearest, reason_of
from supervisor.config.settings import ModelFile
from supervisor.core.clock import iso_utc
from supervisor.errors import (
    ConfigError,
    ControlError,
    ServiceError,
    SupervisorError,
    TransferError,
)

B = TypeVar("B", bound=BaseModel)


def access_document(context: ApiContext) -> dict[str, str]:
    """Render the addresses with their secrets, for the owner's socket only.

    The page's address is the local one where nobody worked out another (rescue mode), or
    where that was done before the kernel had chosen the port.
    """
    health, given = context.state.snapshot.health, context.access.get("page")
    if not health.get("port") or (given and urlsplit(given).port != 0):
        return dict(context.access)
    host = str(health.get("host") or "")
    host = "127.0.0.1" if host in ("", "0.0.0.0", "::") else host  # noqa: S104 - shown
    host = f"[{host}]" if ":" in host else host
    page = f"http://{host}:{health['port']}/?token={quote(context.token, safe='')}"
    return {**context.access, "page": page}


def log_document(record: LogRecord) -> dict[str, Any]:
    """Render one log line."""
    return {
        "service": record.service,
        "at": iso_utc(record.at_s),
        "stream": str(record.stream),
        "text": record.text,
        "seq": record.seq,
    }


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class EmptyBody(_Body):
    """No parameters."""


class RestartBody(_Body):
    """``now`` skips waiting for ComfyUI's queue."""

    now: bool = False


class SignalBody(_Body):
    """``signal`` with or without the leading SIG."""

    signal: str = Field(pattern=r"^(SIG)?[A-Z0-9+]{2,12}$")

    @property
    def name(self) -> str:
        """The full name, like SIGUSR1."""
        return self.signal if self.signal.startswith("SIG") else f"SIG{self.signal}"


class AddModelBody(ModelFile):
    """A model file as in ``[[models.files]]``; ``now`` goes before the queue."""

    now: bool = False

    def file(self) -> ModelFile:
        """The file without the request's own fields."""
        return ModelFile.model_validate(self.model_dump(exclude={"now"}))


class NamesBody(_Body):
    """Files, or bundles and folders as a whole, as ``GET /v1/models`` names them."""

    names: tuple[str, ...] = Field(min_length=1)


class FlushBody(_Body):
    """How long to wait for the uploads."""

    timeout_s: float = Field(60.0, ge=0, le=86400)


class RestoreBody(_Body):
    """What to bring back; without ``kinds`` everything."""

    kinds: tuple[RestoreKind, ...] = ()

    @property
    def wanted(self) -> tuple[RestoreKind, ...]:
        """The kinds to bring back."""
        return self.kinds or get_args(RestoreKind)


class ReloadBody(_Body):
    """``dry_run`` only tells what would change."""

    dry_run: bool = False


class KeepBody(_Body):
    """How long the pod must not count as idle; 0 takes it back."""

    seconds: float = Field(ge=0, le=30 * 86400)


def parse_body(model: type[B], raw: bytes) -> B:
    """Validate a request body; an empty one counts as ``{}``.

    Raises:
        ControlError: not JSON, or not of this shape; names the field.
    """
    try:
        return model.model_validate_json(raw or b"{}")
    except ValidationError as exc:
        errors = exc.errors()
        raise ControlError(
            f"Cannot read the request: {'; '.join(map(_problem, errors))}",
            hint=_hint(model, errors[0]),
            status=422,
            code="invalid-body",
        ) from exc


def _problem(error: ErrorDetails) -> str:
    where = dotted(error["loc"])
    if error["type"].startswith("json"):
        return "it is no JSON"
    if where == "" and error["type"] == "model_type":
        return "it is no JSON object"
    return f"{where} {reason_of(error)}" if where else reason_of(error)


def _hint(model: type[BaseModel], error: ErrorDetails) -> str | None:
    names, where = model.model_fields, error["loc"]
    known = f"known here: {', '.join(names) or 'nothing'}"
    if error["type"] == "extra_forbidden":
        return nearest(str(where[-1]), names) or known
    return None if where else known


def unknown(kind: str, name: str, known: Iterable[str]) -> ControlError:
    """Say that a name does not exist, and which one may have been meant."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1)
    hint = f"did you mean {close[0]}?" if close else f"known: {', '.join(names) or 'none'}"
    return ControlError(f"Cannot find {kind} {name}", hint=hint, status=404, code="not-found")


def error_document(code: str, message: str, hint: str | None = None) -> dict[str, Any]:
    """Render an error."""
    return {"error": {"code": code, "message": message, "hint": hint}}


def error_status(error: SupervisorError) -> tuple[int, str]:
    """Choose HTTP status and code for an error of ours."""
    if isinstance(error, ControlError):
        return error.status, error.code
    if isinstance(error, ConfigError):
        return 422, "config"
    if isinstance(error, ServiceError):
        return 409, "service"
    if isinstance(error, TransferError):
        return 502, "transfer"
    return 500, _kebab(type(error).__name__.removesuffix("Error"))


def _kebab(name: str) -> str:
    return re.sub(r"(?<!^)(?=[A-Z])", "-", name).lower()
