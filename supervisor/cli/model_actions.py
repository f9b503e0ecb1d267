"""The actions of ``supervisor models`` that work on the files themselves."""

from __future__ import annotations

import logging
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING

import anyio

from supervisor.cli.configuration import load_for, refuse_misspellings
from supervisor.cli.daemon import connect_daemon
from supervisor.cli.environment import color_allowed
from supervisor.cli.local_models import wanted_requests
from supervisor.cli.model_lines import download_lines
from supervisor.cli.output import print_json, say
from supervisor.cli.planning import make_plan, read_facts
from supervisor.cli.render import Paint, clean, size
from supervisor.config.load import LoadedSettings
from supervisor.config.settings import ModelsSection
from supervisor.core.status import DownloadsStatus, DownloadState
from supervisor.download.request import DownloadRequest
from supervisor.errors import ControlError, DaemonUnreachableError, ExitCode
from supervisor.models.operations import StatusCallback, evict, pull, verify
from supervisor.models.organizer import organize
from supervisor.models.verifier import Verdict, Verified, discard_damaged
from supervisor.models.workflow_plan import Finding, Item

if TYPE_CHECKING:
    from rich.progress import ProgressColumn

_NAME_WIDTH = 36
_FIGURES_WIDTH = 52  # a bar of ten, "157.3/157.3 GB", "999.9 MB/s", "0:00:00" and what is between
_ANSWER_S = 5.0


def run(args: Namespace, environ: Mapping[str, str]) -> int:
    """Do what was asked."""
    actions = {"pull": _pull, "verify": _verify, "organize": _organize, "evict": _evict}
    return actions[args.action](args, load_for(args, environ), environ)


def pull_items(
    args: Namespace, loaded: LoadedSettings, environ: Mapping[str, str], items: Sequence[Item]
) -> int:
    """Fetch what workflows need; 1 when something is unknown or failed."""
    lost = [i for i in items if i.request is None and i.finding is not Finding.THERE]
    for item in items:
        if item.reason:
            print(f"supervisor: {clean(item.key)}: {clean(item.reason)}", file=sys.stderr)
    requests = [item.request for item in items if item.request is not None]
    _hasten(requests, environ)
    code = _fetch(args, loaded.settings.models, environ, requests)
    return ExitCode.NO if lost else code


# -- pull ---------------------------------------------------------------------------------


def _pull(args: Namespace, loaded: LoadedSettings, environ: Mapping[str, str]) -> int:
    requests = wanted_requests(loaded, environ, args.names)
    if args.now:
        _hasten(requests, environ)
    return _fetch(args, loaded.settings.models, environ, requests)


def _hasten(requests: Sequence[DownloadRequest], environ: Mapping[str, str]) -> None:
    """Have a running daemon put files first, so that two do not share the line with others.

    It may not run, or not want them: then they are fetched here alone.
    """
    client = connect_daemon(environ)
    for request in requests:
        try:
            client.post("/v1/models/first", {"names": [request.name]}, timeout_s=_ANSWER_S)
        except DaemonUnreachableError:
            return
        except ControlError as error:
            if error.status != HTTPStatus.NOT_FOUND:
                return


def _fetch(
    args: Namespace,
    section: ModelsSection,
    environ: Mapping[str, str],
    requests: Sequence[DownloadRequest],
) -> int:
    status = _pulled(args, section, environ, requests)
    if args.json:
        print_json(status.to_json())
    else:
        _say_downloads(status, environ)
    done = all(f.state is DownloadState.DONE for f in status.files)
    return ExitCode.DONE if done else ExitCode.NO


def _pulled(
    args: Namespace,
    section: ModelsSection,
    environ: Mapping[str, str],
    requests: Sequence[DownloadRequest],
) -> DownloadsStatus:
    with _retries_told(), _bars(quiet=args.json) as on_status:
        fetch = partial(pull, requests, section=section, environ=environ, on_status=on_status)
        return anyio.run(fetch)


def _say_downloads(status: DownloadsStatus, environ: Mapping[str, str]) -> None:
    paint = Paint(enabled=color_allowed(environ, sys.stdout))
    for line in download_lines(status.to_json(), paint):
        say(line, environ)


def _shortened(name: str, columns: int) -> str:
    """The end of a long name: it leaves room for a bar, two sizes, the rate and the time."""
    shown, width = clean(name), max(12, min(_NAME_WIDTH, columns - _FIGURES_WIDTH))
    return shown if len(shown) <= width else f"…{shown[1 - width :]}"


@contextmanager
def _retries_told() -> Iterator[None]:
    """Say why nothing moves; how files end stands in the result."""
    teller = _Teller(logging.WARNING)
    log = logging.getLogger("supervisor")
    log.addHandler(teller)
    try:
        yield
    finally:
        log.removeHandler(teller)


class _Teller(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno == logging.WARNING:
            print(f"supervisor: {clean(record.getMessage())}", file=sys.stderr)


def _columns() -> list[ProgressColumn]:
    """What a line of the bars shows; figures are never broken, the bar gives way."""
    from rich.progress import (  # noqa: PLC0415 - only where bars are drawn
        BarColumn,
        DownloadColumn,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )
    from rich.table import Column  # noqa: PLC0415

    whole = Column(no_wrap=True)
    return [
        TextColumn("{task.description}", markup=False, table_column=whole),
        BarColumn(),
        DownloadColumn(table_column=whole),
        TransferSpeedColumn(table_column=whole),
        TimeRemainingColumn(table_column=whole),
    ]


@contextmanager
def _bars(*, quiet: bool) -> Iterator[StatusCallback]:
    """Show a bar for all bytes and one for each file under way, on a terminal only."""
    if quiet or not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich.console import Console  # noqa: PLC0415 - only where bars are drawn
    from rich.progress import Progress, TaskID  # noqa: PLC0415

    console = Console(stderr=True)
    with Progress(*_columns(), console=console, transient=True) as progress:
        total = progress.add_task("all files", total=None)
        shown: dict[str, TaskID] = {}

        def update(status: DownloadsStatus) -> None:
            progress.update(total, completed=status.bytes_done, total=status.bytes_total or None)
            for file in status.files:
                moving = file.state in (DownloadState.ACTIVE, DownloadState.VERIFYING)
                if moving and file.name not in shown:
                    shown[file.name] = progress.add_task(
                        _shortened(file.name, console.width), total=None
                    )
                if file.name in shown:
                    task = shown[file.name]
                    progress.update(task, completed=file.bytes_done, total=file.bytes_total)
                    progress.update(task, visible=moving)

        yield update


# -- verify -------------------------------------------------------------------------------


def _verify(args: Namespace, loaded: LoadedSettings, environ: Mapping[str, str]) -> int:
    requests = wanted_requests(loaded, environ, args.names)
    section = loaded.settings.models
    tell: Callable[[Verified], None] = (
        (lambda _: None) if args.json else partial(_say_verdict, environ)
    )
    verdicts = anyio.run(
        partial(verify, requests, section=section, environ=environ, on_verdict=tell)
    )
    if not verdicts and not args.json:
        print("there is nothing to verify: no model files are configured")
    bad = [v for v in verdicts if v.verdict in (Verdict.DAMAGED, Verdict.MISSING)]
    repaired: Mapping[str, bool] = {}
    if args.repair and bad:
        status = _pulled(args, section, environ, discard_damaged(verdicts, section))
        repaired = {f.name: f.state is DownloadState.DONE for f in status.files}
        if not args.json:
            _say_downloads(status, environ)
    if args.json:
        print_json([{**v.to_json(), **_repaired(v, bad, repaired)} for v in verdicts])
    return ExitCode.DONE if all(repaired.get(v.request.name) for v in bad) else ExitCode.NO


def _repaired(
    verified: Verified, bad: Sequence[Verified], repaired: Mapping[str, bool]
) -> dict[str, bool]:
    """What became of a file that was to be repaired; nothing for the others."""
    if not repaired or verified not in bad:
        return {}
    return {"repaired": repaired.get(verified.request.name, False)}


def _say_verdict(environ: Mapping[str, str], verified: Verified) -> None:
    paint = Paint(enabled=color_allowed(environ, sys.stdout))
    style = {Verdict.OK: "green", Verdict.DAMAGED: "red", Verdict.MISSING: "red"}
    reason = f"  ({clean(verified.reason)})" if verified.reason else ""
    verdict = paint(f"{verified.verdict:<9}", style.get(verified.verdict, "yellow"))
    say(f"{verdict}  {clean(verified.request.name)}{reason}", environ)


# -- organize and evict -------------------------------------------------------------------


def _organize(args: Namespace, loaded: LoadedSettings, environ: Mapping[str, str]) -> int:
    section = loaded.settings.models
    downloads: Path | None = args.folder or section.downloads_directory
    models = make_plan(loaded, read_facts(loaded, environ), environ).models_directory
    if downloads is None or not downloads.is_dir():
        where = f"{downloads} is no folder" if downloads else "no downloads folder is configured"
        raise ControlError(
            f"Cannot sort downloads: {where}",
            hint="name a folder, or set [models] downloads_directory",
        )
    summary = organize(downloads, models or Path("models"), dry_run=args.dry_run, copy=args.copy)
    if args.json:
        print_json({"files": [f.to_json() for f in summary.files], "counts": summary.counts})
    else:
        for file in summary.files:
            target = f" -> {clean(file.target)}" if file.target else ""
            warning = "  [pickle]" if file.pickle else ""
            about = f"{target}  ({clean(file.reason)}){warning}"
            say(f"{file.action:<10} {clean(file.source)}{about}", environ)
        say(summary.line(), environ)
        if args.dry_run:
            print("nothing was changed: this is what would be done")
    return ExitCode.DONE


def _evict(args: Namespace, loaded: LoadedSettings, environ: Mapping[str, str]) -> int:
    refuse_misspellings(loaded)  # what a bundle requires has to stay
    requests = make_plan(loaded, read_facts(loaded, environ), environ).downloads
    done = evict(loaded.settings.models, budget=args.budget, wanted=requests, dry_run=args.dry_run)
    if args.json:
        print_json(
            [
                {"sha256": o.sha256, "size_bytes": o.size_bytes, "places": list(o.places)}
                for o in done.removed
            ]
        )
        return ExitCode.DONE
    for stored in done.removed:
        places = ", ".join(stored.places) or "linked nowhere"
        say(f"{size(stored.size_bytes):>9}  {stored.sha256[:12]}  {clean(places)}", environ)
    verb = "would be freed" if args.dry_run else "freed"
    freed = size(sum(o.size_bytes for o in done.removed)) if done.removed else "nothing"
    why = ": required, in use, or wanted by a running pod" if done.over else ""
    say(f"{freed} {verb}, {size(done.kept_bytes)} stay{why}", environ)
    return ExitCode.DONE
