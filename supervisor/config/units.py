"""Sizes and rates as people write them: ``500GB``, ``100MB/s``, ``1.5GiB``."""

from __future__ import annotations

import re

_FACTORS = {
    "": 1,
    "k": 1000,
    "m": 1000**2,
    "g": 1000**3,
    "t": 1000**4,
    "ki": 1024,
    "mi": 1024**2,
    "gi": 1024**3,
    "ti": 1024**4,
}
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]i?)?b?\s*", re.IGNORECASE)
_RATE = re.compile(r"(.*?)(?:/s|ps)\s*", re.IGNORECASE)


def parse_size_bytes(text: str) -> int:
    """Read a size: decimal units (``GB`` is 10^9) or binary ones (``GiB`` is 2^30).

    Raises:
        ValueError: not a size, or not above zero.
    """
    match = _SIZE.fullmatch(text)
    size = 0 if match is None else int(float(match[1]) * _FACTORS[(match[2] or "").lower()])
    if size <= 0:
        raise ValueError('must be a size above zero, like "500GB" or "64GiB"')
    return size


def parse_rate_bytes_per_s(text: str) -> int:
    """Read a rate: a size, with or without ``/s`` at the end.

    Bytes, not bits: ``100MB/s`` is 10^8 bytes a second.

    Raises:
        ValueError: not a rate, or not above zero.
    """
    match = _RATE.fullmatch(text)
    try:
        return parse_size_bytes(match[1] if match else text)
    except ValueError:
        raise ValueError('must be a rate above zero, like "100MB/s"') from None
