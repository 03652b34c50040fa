"""Whether a machine can hold a tenant's numbers: said before they are made, and where making them fails."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

from ..core import CommonweightError, Plan, Site, counted, fits, globs
from ..methods import Method
from . import cgroup

_NO_ROOM = "allocate", "out of memory", "too big", "Maximum allowed dimension"  # how numpy and torch say it

_PAIRS = "ranks", "ks"  # options with sizes of single sites


@cache
def memory() -> int:
    """Bytes that the machine has in all, or the container where that is less; 0 where the system does not say. Looked
    up once in a process."""
    try:
        whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        whole = 0
    most = cgroup.limit()
    return whole if most is None else min(most, whole or most)


def asked(method: Method, config: Any, sites: Sequence[Site]) -> None:
    """Refuses a size of which one float32 for each already fills the machine, before a plan is made of it.

    Raises: CommonweightError that names the option, what it wants and what is there.
    """
    for name in dict.fromkeys((*method.sizes, "rank")):
        value = getattr(config, name, None)  # an option that makes it smaller begins with "-"
        if isinstance(value, int) and memory() and 4 * value > memory():
            raise CommonweightError(
                f"{method.name}: {name}={value} wants {_bytes(4 * value)} and more for a single column of numbers"
                f"{f' at {sites[0].name}' if sites else ''}, and this machine has {_bytes(memory())}; lower {name}"
            )


def check(plan: Plan, method: Method, config: Any) -> None:
    """Raises: CommonweightError for a plan that is larger than the machine, with the largest pool, its bytes, those of
    the machine, and what to lower."""
    if memory() and sum(p.nbytes for p in plan.pools.values()) > memory():
        raise _too_large(plan, method, config, f"this machine has {_bytes(memory())}")


@contextmanager
def held(plan: Plan, method: Method, config: Any) -> Iterator[None]:
    """Within it the pools of a plan are made, which `check` let pass. Raises: CommonweightError as it does."""
    check(plan, method, config)
    try:
        yield
    except (MemoryError, RuntimeError, ValueError) as e:
        if not isinstance(e, MemoryError) and not any(part in str(e) for part in _NO_ROOM):
            raise
        raise _too_large(plan, method, config, "there is no room for them") from e


def _too_large(plan: Plan, method: Method, config: Any, why: str) -> CommonweightError:
    name, pool = max(plan.pools.items(), key=lambda p: p[1].nbytes)
    read = next((u.site for u in plan.uses for r in u.reads.values() if name in r.pools), name)
    sizes = [f"{n}={getattr(config, n)}" for n in method.sizes if isinstance(getattr(config, n, None), int)]
    if own := next((n for n, glob in globs(config) if n in _PAIRS and fits(read, glob)), None):
        sizes = [f"{own}, which gives {read} its own"]
    less = f"lower {' or '.join(sizes)}, or choose fewer sites" if sizes else "choose fewer sites"
    return CommonweightError(
        f"{read}: {method.name} wants {_bytes(pool.nbytes)} there, {counted(pool.numel, 'number')} of shape "
        f"{pool.shape}, and {_bytes(sum(p.nbytes for p in plan.pools.values()))} in all; {why}: {less}"
    )


def _bytes(n: int) -> str:
    size = max(0, min(6, (len(str(n)) - 1) // 3))
    return f"{n / 1000**size:.3g} {('B', 'kB', 'MB', 'GB', 'TB', 'PB', 'EB')[size]}"
