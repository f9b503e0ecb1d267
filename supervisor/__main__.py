"""``python -m supervisor``."""

from supervisor.cli.main import entrypoint

entrypoint()
