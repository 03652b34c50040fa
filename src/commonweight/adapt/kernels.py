"""How many kernels oneDNN keeps: it makes one for every size of a product, and batches differ in theirs."""

from __future__ import annotations

import os

_CACHES = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY")  # oneDNN's own, and torch's in front of it
_KEPT = 128  # ours: more than the products of a step differ in size


def few() -> None:
    """From now on this process keeps 128 of them in each of two caches, where both keep 1,024 else: half a gigabyte.

    Only before the first product, when both are read, and not where the environment has a number of its own.
    """
    for name in _CACHES:
        os.environ.setdefault(name, str(_KEPT))
