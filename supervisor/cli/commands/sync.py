"""``supervisor sync``: outputs on their way to the bucket."""

from __future__ import annotations

from supervisor.cli.daemon import connect_daemon
from supervisor.cli.output import print_json
from supervisor.errors import ExitCode

TYPE_CHECKING = False  # spares the import of typing; type checkers know the name
if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace
    from collections.abc import Iterator, Mapping
    from typing import Any

_LONGEST_FLUSH_S = 86400.0
_KINDS = ("workflows", "input", "settings")


def configure(parser: ArgumentParser) -> None:
    """Declare the actions."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    flush = actions.add_parser("flush", help="upload all that is finished; 1 when some is left")
    flush.add_argument(
        "--timeout", type=_seconds, default=60.0, metavar="S", help="seconds to wait (60)"
    )
    restore = actions.add_parser("restore", help="bring files back from the bucket")
    restore.add_argument("kinds", nargs="*", type=_kind, metavar="KIND", help=" | ".join(_KINDS))
    others = (
        actions.add_parser("status", help="what is stored and what waits"),
        actions.add_parser("retry", help="try failed uploads now"),
    )
    for action in (flush, restore, *others):
        action.add_argument("--json", action="store_true", help="write JSON")


def _kind(text: str) -> str:
    """One kind; argparse's own choices refuse an empty list of them."""
    if text not in _KINDS:
        from argparse import ArgumentTypeError  # noqa: PLC0415 - for typos only

        raise ArgumentTypeError(f"there is no {text}, only {', '.join(_KINDS)}")
    return text


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0 <= seconds <= _LONGEST_FLUSH_S:
        raise ValueError(text)
    return seconds


_seconds.__name__ = "number of seconds"  # argparse says "invalid … value"


def run(args: Namespace, environ: Mapping[str, str]) -> int:
    """Do what was asked and show the result."""
    client = connect_daemon(environ)
    match args.action:
        case "status":
            answer = client.get("/v1/sync")
        case "flush":
            answer = client.post("/v1/sync/flush", {"timeout_s": args.timeout})
        case "restore":
            answer = client.post("/v1/sync/restore", {"kinds": args.kinds})
        case _:
            answer = client.post("/v1/sync/retry")
    if args.json:
        print_json(answer)
    else:
        from supervisor.cli.environment import terminal_width  # noqa: PLC0415 - not for --json
        from supervisor.cli.render import fold  # noqa: PLC0415

        width = terminal_width(environ)
        print("\n".join(fold(line, width) for line in _lines(answer, args.action)))
    left = args.action == "flush" and isinstance(answer, dict) and answer.get("unflushed")
    return ExitCode.NO if left else ExitCode.DONE


def _lines(answer: Any, action: str) -> Iterator[str]:
    from supervisor.cli.render import clean, size  # noqa: PLC0415

    if not isinstance(answer, dict) or "enabled" not in answer:
        yield _done(answer or {}, action)
        return
    if not answer["enabled"]:
        yield "sync is off (set ENABLE_R2_SYNC=true, or [sync] in supervisor.toml)"
        return
    yield f"to {clean(answer.get('target') or 'the target')}"
    yield f"{answer['uploaded']} stored ({size(answer.get('uploaded_bytes'))})"
    if answer.get("incomplete"):
        yield f"{answer['incomplete']} of them broken, under incomplete/"
    yield f"{answer['pending']} pending, {answer['failed']} failed"
    yield from (f"  {clean(sentence)}" for sentence in answer.get("waiting", ()))
    for name in ("last_error", "hint"):
        if answer.get(name):
            yield f"{name.replace('_', ' ')}: {clean(answer[name])}"
    if action == "flush" and answer.get("unflushed"):
        yield f"{answer['unflushed']} of the finished files are not stored"


def _done(answer: Mapping[str, Any], action: str) -> str:
    if action == "retry":
        count = answer.get("trying", 0)
        return f"trying {count} files again" if count else "nothing waits for another try"
    files, kept = answer.get("files", 0), answer.get("kept", 0)
    skipped = f", {answer['skipped']} left out" if answer.get("skipped") else ""
    return f"restored {files} files, kept {kept} that are as new here{skipped}"
