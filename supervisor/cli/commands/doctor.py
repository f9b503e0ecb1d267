"""``supervisor doctor``: is everything there that a pod needs?"""

from __future__ import annotations

import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Mapping

from supervisor.cli.configuration import load_for
from supervisor.cli.environment import color_allowed
from supervisor.cli.output import print_json
from supervisor.cli.parsing import add_config, add_json
from supervisor.errors import ExitCode

_STYLES = {"ok": "green", "warning": "yellow", "wrong": "red", "skipped": "dim"}


def configure(parser: ArgumentParser) -> None:
    """Declare the options."""
    add_config(parser)
    add_json(parser)
    parser.add_argument(
        "--offline", action="store_true", help="leave out whatever needs the network"
    )


def run(args: Namespace, environ: Mapping[str, str]) -> int:
    """Check everything side by side; exit 1 when something is wrong."""
    from supervisor.cli.doctor import Verdict, examine  # noqa: PLC0415 - not for --help
    from supervisor.cli.render import Paint, clean  # noqa: PLC0415
    from supervisor.config.redaction import Redactor  # noqa: PLC0415

    loaded = load_for(args, environ)
    findings = examine(loaded, environ, offline=args.offline)
    redact = Redactor(loaded.secrets).redact
    wrong = any(finding.verdict is Verdict.WRONG for finding in findings)
    if args.json:
        checks = [
            {
                "name": finding.name,
                "verdict": str(finding.verdict),
                "message": redact(finding.message),
                "hint": finding.hint,
            }
            for finding in findings
        ]
        print_json({"ok": not wrong, "checks": checks})
        return ExitCode.NO if wrong else ExitCode.DONE
    paint = Paint(enabled=color_allowed(environ, sys.stdout))
    for finding in findings:
        word = paint(f"{finding.verdict:<8}", _STYLES[finding.verdict])
        print(f"{word} {finding.name:<10} {clean(redact(finding.message))}")
        if finding.hint:
            print(f"{'':<19} hint: {finding.hint}")
    return ExitCode.NO if wrong else ExitCode.DONE
