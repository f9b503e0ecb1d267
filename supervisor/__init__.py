"""Async container supervisor and init daemon for ComfyUI pods."""

__version__ = "0.1.0"
