"""``supervisor gpu``: facts and decisions about the GPU, without a daemon."""

from __future__ import annotations

import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Mapping

from supervisor.cli.configuration import load_for
from supervisor.cli.environment import color_allowed
from supervisor.cli.output import print_json
from supervisor.cli.parsing import add_config, add_json
from supervisor.errors import ExitCode


def configure(parser: ArgumentParser) -> None:
    """Declare the options."""
    add_config(parser)
    add_json(parser)
    parser.add_argument(
        "--no-encode", dest="encode", action="store_false", help="leave the NVENC encoders alone"
    )


def run(args: Namespace, environ: Mapping[str, str]) -> int:
    """Ask NVML, try the encoders, and show tier and mode; exit 1 without a GPU."""
    from supervisor.cli.planning import make_plan, read_facts  # noqa: PLC0415 - not for --help
    from supervisor.cli.render import Paint, clean, render_gpu  # noqa: PLC0415
    from supervisor.core.status import to_jsonable  # noqa: PLC0415

    loaded = load_for(args, environ)
    facts = read_facts(loaded, environ, nvenc=args.encode)
    status = to_jsonable(make_plan(loaded, facts, environ).gpu)
    encoder = facts.nvenc.error if facts.nvenc else None
    if args.json:
        print_json({**status, "nvenc_error": encoder})
    else:
        paint = Paint(enabled=color_allowed(environ, sys.stdout))
        lines = [*render_gpu({"gpu": status}, paint)]
        if status["driver"]:
            lines.append(f"driver {clean(status['driver'])}, CUDA {clean(status['cuda'])}")
        lines += [clean(reason) for reason in status["reasons"]]
        lines += [clean(encoder)] if encoder else []
        print("\n".join(lines))
    return ExitCode.DONE if facts.gpu.devices else ExitCode.NO
