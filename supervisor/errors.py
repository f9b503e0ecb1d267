"""The error hierarchy and the exit codes.

Every error that a person may read carries a message of the form "Cannot X: cause"
and, where something can be done about it, a hint.
"""

from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    """Exit codes of the ``supervisor`` command (69, 70 and 78 are from sysexits.h)."""

    DONE = 0
    NO = 1
    USAGE = 2
    NO_DAEMON = 69
    BUG = 70
    CONFIG = 78


class SupervisorError(Exception):
    """Base of all errors that this package raises on purpose."""

    exit_code: ExitCode = ExitCode.NO

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class ConfigProblem:
    """One thing that is wrong with the configuration."""

    __slots__ = ("hint", "key", "reason", "source", "value")

    def __init__(
        self,
        *,
        key: str,
        reason: str,
        value: str | None = None,
        hint: str | None = None,
        source: str | None = None,
    ) -> None:
        self.key = key
        self.reason = reason
        self.value = value  # as the user wrote it, "***" when the key holds a secret
        self.hint = hint
        self.source = source  # file, environment variable or "--set"

    def __str__(self) -> str:
        shown = f" = {self.value}" if self.value is not None else ""
        where = f" ({self.source})" if self.source else ""
        hint = f"\n  hint: {self.hint}" if self.hint else ""
        return f"{self.key}{shown}{where}: {self.reason}{hint}"


class ConfigError(SupervisorError):
    """The configuration is unusable; ``problems`` lists every fault found."""

    exit_code = ExitCode.CONFIG

    def __init__(
        self,
        message: str,
        *,
        hint: str | None = None,
        problems: tuple[ConfigProblem, ...] = (),
    ) -> None:
        super().__init__(message, hint=hint)
        self.problems = problems


class HardwareError(SupervisorError):
    """A probe of the machine failed."""


class JournalError(SupervisorError):
    """A journal cannot be opened, read or written."""


class ServiceError(SupervisorError):
    """A service cannot do what was asked."""


class SpawnError(ServiceError):
    """The command of a service cannot be executed."""


class TransferError(SupervisorError):
    """A download or an upload failed."""


class TransientTransferError(TransferError):
    """Worth another try; ``retry_after_s`` when the server named a delay."""

    def __init__(
        self, message: str, *, hint: str | None = None, retry_after_s: float | None = None
    ) -> None:
        super().__init__(message, hint=hint)
        self.retry_after_s = retry_after_s


class PermanentTransferError(TransferError):
    """Trying again cannot help."""


class AuthRequiredError(PermanentTransferError):
    """A token is missing, wrong, or the licence was not accepted."""


class NotFoundError(PermanentTransferError):
    """The remote file does not exist."""


class ChecksumMismatchError(PermanentTransferError):
    """The bytes are not the ones that were announced."""


class UnreachableError(PermanentTransferError):
    """The source may not be asked: the configuration says so."""


class DiskFullError(PermanentTransferError):
    """There is no room for the file."""


class ControlError(SupervisorError):
    """A request over the socket or the health port cannot be served."""

    def __init__(
        self, message: str, *, hint: str | None = None, status: int = 400, code: str = "bad-request"
    ) -> None:
        super().__init__(message, hint=hint)
        self.status = status
        self.code = code


class DaemonUnreachableError(SupervisorError):
    """No daemon answers on the control socket."""

    exit_code = ExitCode.NO_DAEMON
