"""Amounts of bytes, and of other things, as people write them."""

from __future__ import annotations

import re

from .errors import CommonweightError

UNITS = {"": 1, "B": 1, "K": 1 << 10, "KB": 1 << 10, "KIB": 1 << 10, "M": 1 << 20, "MB": 1 << 20, "MIB": 1 << 20,
         "G": 1 << 30, "GB": 1 << 30, "GIB": 1 << 30}  # fmt: skip


def parse_bytes(text: str, what: str) -> int:
    """Bytes of "4KB", "1.5 MB" or "4096"; a KB has 1,024 bytes. Raises: CommonweightError for anything else."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", text)
    if found is None or found[2].upper() not in UNITS or not float(found[1]) > 0:
        raise CommonweightError(f"{what} {text!r}: wanted a size above zero, such as 4KB, 1.5MB or 4096")
    return max(1, int(float(found[1]) * UNITS[found[2].upper()]))


def parse_count(text: str, what: str) -> int:
    """2000000 of "2M", 500000 of "500k"; here a k is 1,000. Raises: CommonweightError for anything else."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)([kKmMgGbB]?)\s*", text)
    if found is None or not float(found[1]) > 0:
        raise CommonweightError(f"{what} {text!r}: wanted a number above zero, such as 500k, 2M or 2000000")
    return max(1, round(float(found[1]) * {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "b": 10**9}[found[2].lower()]))
