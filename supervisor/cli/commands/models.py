"""``supervisor models``: model files."""

from __future__ import annotations

import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from supervisor.cli.configuration import load_for
from supervisor.cli.daemon import connect_daemon
from supervisor.cli.environment import color_allowed
from supervisor.cli.model_lines import checked_lines, download_lines, workflow_lines
from supervisor.cli.output import print_json, say
from supervisor.cli.parsing import add_config, add_json
from supervisor.cli.render import Paint, clean
from supervisor.errors import ExitCode

if TYPE_CHECKING:
    from supervisor.models.workflow_plan import Item


def configure(parser: ArgumentParser) -> None:
    """Declare the actions."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    add_json(actions.add_parser("list", help="files that are wanted, and how far they are"))
    add = actions.add_parser("add", help="fetch one more file, until the next boot")
    add.add_argument("source", metavar="URL", help="address, owner/repo:path, or CivitAI id")
    add.add_argument("--to", default="", metavar="PATH", help="below the models folder")
    add.add_argument("--sha256", help="expected hash")
    add.add_argument("--now", action="store_true", help="before everything else")
    add_json(add)
    for name, about in (
        ("cancel", "leave files out until they are asked for again"),
        ("retry", "try failed and cancelled files again, at once"),
    ):
        steer = actions.add_parser(name, help=about)
        steer.add_argument("names", nargs="+", metavar="NAME", help="files or bundles")
        add_json(steer)
    check = actions.add_parser("check", help="can everything be had? no daemon needed")
    check.add_argument("names", nargs="*", metavar="NAME", help="only these")
    add_config(check)
    add_json(check)
    workflow = actions.add_parser(
        "workflow", help="what workflows need; 1 when something is missing"
    )
    workflow.add_argument(
        "files", nargs="+", type=Path, metavar="FILE", help="workflow, or an output that embeds one"
    )
    workflow.add_argument("--pull", action="store_true", help="fetch what is missing")
    add_config(workflow)
    add_json(workflow)
    _configure_local(actions)


def _configure_local(actions: Any) -> None:
    """Declare what works on the files themselves, with or without a daemon."""
    pull = actions.add_parser("pull", help="fetch what is configured; no daemon needed")
    pull.add_argument("names", nargs="*", metavar="NAME", help="only these")
    pull.add_argument(
        "--now", action="store_true", help="a running daemon puts them before all others"
    )
    pull.add_argument("--check", action="store_true", help="ask for size and access, fetch nothing")
    verify = actions.add_parser("verify", help="hash what is there; 1 when something is damaged")
    verify.add_argument("names", nargs="*", metavar="NAME", help="only these")
    verify.add_argument("--repair", action="store_true", help="fetch damaged and missing files")
    organize = actions.add_parser("organize", help="sort the downloads folder by kind of model")
    organize.add_argument("folder", nargs="?", type=Path, metavar="FOLDER", help="another folder")
    organize.add_argument("--copy", action="store_true", help="copy where no link is possible")
    evict = actions.add_parser("evict", help="drop what was not used for longest from the store")
    evict.add_argument("--budget", metavar="SIZE", help='for example "500GB"')
    for parser in (organize, evict):
        parser.add_argument("--dry-run", action="store_true", help="only say what would be done")
    for parser in (pull, verify, organize, evict):
        add_config(parser)
        add_json(parser)


def run(args: Namespace, environ: Mapping[str, str]) -> int:
    """Do what was asked."""
    actions = {
        "list": _list,
        "add": _add,
        "cancel": _steer,
        "retry": _steer,
        "check": _check,
        "workflow": _workflow,
    }
    if args.action == "pull" and args.check:
        return _check(args, environ)
    if args.action in actions:
        return actions[args.action](args, environ)
    from supervisor.cli import model_actions  # noqa: PLC0415 - heavy: sources, engine, bars

    return model_actions.run(args, environ)


def source_fields(text: str) -> dict[str, Any]:
    """Tell from its look which kind of source was given."""
    if text.isdecimal():
        return {"civitai": int(text)}
    if "://" not in text and text.count("/") >= 1 and ":" in text:
        return {"huggingface": text}
    return {"url": text}


def _list(args: Namespace, environ: Mapping[str, str]) -> int:
    downloads = connect_daemon(environ).get("/v1/models")
    if args.json:
        print_json(downloads)
        return ExitCode.DONE
    paint = Paint(enabled=color_allowed(environ, sys.stdout))
    for line in download_lines(downloads, paint):
        say(line, environ)
    if line := _verified(downloads.get("verification") or {}):
        say(line, environ)
    return ExitCode.DONE


def _verified(pass_: Mapping[str, Any]) -> str:
    """One line about the pod's own readings of the files; empty before the first one."""
    if not pass_.get("running") and not pass_.get("finished"):
        return ""
    done = f"{pass_['checked']} of {pass_['files']} files read"
    lately = f", {pass_['skipped']} read before" if pass_["skipped"] else ""
    damaged = f", {pass_['damaged']} damaged and fetched again" if pass_["damaged"] else ""
    when = "now" if pass_["running"] else clean(pass_["finished"])
    return f"verified {when}: {done}{lately}{damaged}"


def _add(args: Namespace, environ: Mapping[str, str]) -> int:
    body = {**source_fields(args.source), "to": args.to, "now": args.now}
    if args.sha256:
        body["sha256"] = args.sha256
    answer = connect_daemon(environ).post("/v1/models", body)
    if args.json:
        print_json(answer)
    else:
        from supervisor.config.redaction import Redactor  # noqa: PLC0415 - not for --help

        source = clean(Redactor().redact(args.source))
        print(f"queued; `supervisor models list` shows it ({source})")
    return ExitCode.DONE


def _steer(args: Namespace, environ: Mapping[str, str]) -> int:
    answer = connect_daemon(environ).post(f"/v1/models/{args.action}", {"names": args.names})
    if args.json:
        print_json(answer)
    else:
        done = {"cancel": "left out", "retry": "tried again"}[args.action]
        print(f"{done}: {', '.join(map(clean, answer['names']))}")
    return ExitCode.DONE


def _check(args: Namespace, environ: Mapping[str, str]) -> int:
    from supervisor.cli.local_models import check_requests, wanted_requests  # noqa: PLC0415

    loaded = load_for(args, environ)
    requests = wanted_requests(loaded, environ, args.names)
    answers = check_requests(loaded.settings.models, environ, requests)
    if args.json:
        print_json(
            [
                {
                    "name": answer.request.name,
                    "ok": answer.ok,
                    "in_place": answer.in_place,
                    "size_bytes": answer.size_bytes,
                    "error": answer.error.message if answer.error else None,
                    "hint": answer.error.hint if answer.error else None,
                }
                for answer in answers
            ]
        )
    else:
        for line in checked_lines(answers, Paint(enabled=color_allowed(environ, sys.stdout))):
            say(line, environ)
    return ExitCode.DONE if all(answer.ok for answer in answers) else ExitCode.NO


def _workflow(args: Namespace, environ: Mapping[str, str]) -> int:
    from supervisor.cli.local_models import workflow_items  # noqa: PLC0415 - see _check
    from supervisor.cli.main import report  # noqa: PLC0415 - which imports this one

    loaded = load_for(args, environ)
    items, errors = workflow_items(loaded, environ, args.files)
    for error in errors:
        report(error)
    if len(errors) == len(args.files):
        return ExitCode.NO
    if args.pull:
        from supervisor.cli import model_actions  # noqa: PLC0415 - see run

        code = model_actions.pull_items(args, loaded, environ, items)
        return ExitCode.NO if errors else code
    found = [
        {
            "name": item.key,
            "state": _state(item),
            "url": item.request.url if item.request else item.reference.url,
            "size_bytes": item.request.size_bytes if item.request else None,
            "reason": item.reason,
        }
        for item in items
    ]
    if args.json:
        print_json(found)
    else:
        for line in workflow_lines(found, Paint(enabled=color_allowed(environ, sys.stdout))):
            say(line, environ)
    complete = not errors and all(row["state"] == "there" for row in found)
    return ExitCode.DONE if complete else ExitCode.NO


def _state(item: Item) -> str:
    if item.request is None:
        return str(item.finding)
    return "there" if item.request.destination.is_file() else "missing"
