"""The command line of the stand-in ComfyUI: the flags that ComfyUI takes, nothing else.

Also copied into a demo root as ``comfy/cli_args.py``, where the planner reads it: so it
imports the standard library only and adds every option by a literal ``add_argument``.
Flags: Comfy-Org/ComfyUI, comfy/cli_args.py, autumn 2026.
"""

from __future__ import annotations

import argparse

parser = argparse.ArgumentParser(prog="main.py")

parser.add_argument("--listen", type=str, default="127.0.0.1", nargs="?", const="0.0.0.0")  # noqa: S104
parser.add_argument("--port", type=int, default=8188)
parser.add_argument("--tls-keyfile", type=str)
parser.add_argument("--tls-certfile", type=str)
parser.add_argument("--enable-cors-header", type=str, default=None, nargs="?", const="*")
parser.add_argument("--max-upload-size", type=float, default=100)
parser.add_argument("--base-directory", type=str, default=None)
parser.add_argument("--extra-model-paths-config", type=str, nargs="+", action="append", default=[])
parser.add_argument("--output-directory", type=str, default=None)
parser.add_argument("--temp-directory", type=str, default=None)
parser.add_argument("--input-directory", type=str, default=None)
parser.add_argument("--user-directory", type=str, default=None)
parser.add_argument("--database-url", type=str, default=None)
parser.add_argument("--auto-launch", action="store_true")
parser.add_argument("--disable-auto-launch", action="store_true")
parser.add_argument("--cuda-device", type=str, default=None)
parser.add_argument("--default-device", type=int, default=None)

cuda_malloc = parser.add_mutually_exclusive_group()
cuda_malloc.add_argument("--cuda-malloc", action="store_true")
cuda_malloc.add_argument("--disable-cuda-malloc", action="store_true")

precision = parser.add_mutually_exclusive_group()
precision.add_argument("--force-fp32", action="store_true")
precision.add_argument("--force-fp16", action="store_true")

unet_precision = parser.add_mutually_exclusive_group()
unet_precision.add_argument("--bf16-unet", action="store_true")
unet_precision.add_argument("--fp16-unet", action="store_true")
unet_precision.add_argument("--fp8_e4m3fn-unet", action="store_true")

vae_precision = parser.add_mutually_exclusive_group()
vae_precision.add_argument("--fp16-vae", action="store_true")
vae_precision.add_argument("--fp32-vae", action="store_true")
vae_precision.add_argument("--bf16-vae", action="store_true")
parser.add_argument("--cpu-vae", action="store_true")

preview_methods = ["none", "auto", "latent2rgb", "taesd"]
parser.add_argument("--preview-method", choices=preview_methods, default="none")
parser.add_argument("--preview-size", type=int, default=512)

cache = parser.add_mutually_exclusive_group()
cache.add_argument("--cache-ram", nargs="*", type=float, default=[])
cache.add_argument("--cache-classic", action="store_true")
cache.add_argument("--cache-lru", type=int, default=0)
cache.add_argument("--cache-none", action="store_true")

attention = parser.add_mutually_exclusive_group()
attention.add_argument("--use-split-cross-attention", action="store_true")
attention.add_argument("--use-quad-cross-attention", action="store_true")
attention.add_argument("--use-pytorch-cross-attention", action="store_true")
attention.add_argument("--use-sage-attention", action="store_true")
attention.add_argument("--use-flash-attention", action="store_true")

vram = parser.add_mutually_exclusive_group()
vram.add_argument("--gpu-only", action="store_true")
vram.add_argument("--highvram", action="store_true")
vram.add_argument("--lowvram", action="store_true")
vram.add_argument("--novram", action="store_true")
vram.add_argument("--cpu", action="store_true")

parser.add_argument("--reserve-vram", type=float, default=None)
parser.add_argument("--vram-headroom", type=float, default=None)
parser.add_argument("--async-offload", nargs="?", const=2, type=int, default=None)
parser.add_argument("--disable-async-offload", action="store_true")
dynamic_vram = parser.add_mutually_exclusive_group()
dynamic_vram.add_argument("--enable-dynamic-vram", action="store_true")
dynamic_vram.add_argument("--disable-dynamic-vram", action="store_true")
parser.add_argument("--disable-smart-memory", action="store_true")
parser.add_argument("--disable-pinned-memory", action="store_true")
parser.add_argument("--force-non-blocking", action="store_true")
parser.add_argument("--deterministic", action="store_true")
parser.add_argument("--fast", nargs="*")
parser.add_argument("--mmap-torch-files", action="store_true")
parser.add_argument("--disable-mmap", action="store_true")
parser.add_argument("--dont-print-server", action="store_true")
parser.add_argument("--disable-metadata", action="store_true")
parser.add_argument("--disable-all-custom-nodes", action="store_true")
parser.add_argument("--whitelist-custom-nodes", type=str, nargs="+", default=[])
parser.add_argument("--disable-api-nodes", action="store_true")
parser.add_argument("--enable-manager", action="store_true")
parser.add_argument("--disable-manager-ui", action="store_true")
parser.add_argument("--multi-user", action="store_true")
levels = ["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"]
parser.add_argument("--verbose", default="INFO", const="DEBUG", nargs="?", choices=levels)
parser.add_argument("--log-stdout", action="store_true")
parser.add_argument("--front-end-version", type=str, default=None)
parser.add_argument("--front-end-root", type=str, default=None)
parser.add_argument("--enable-compress-response-body", action="store_true")
