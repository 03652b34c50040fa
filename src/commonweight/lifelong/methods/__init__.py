"""A file for each method: a frozen config and one stage, as a generator; none knows the loop that trains.

Adding one: the file, its name here, its test.
"""

from ..registry import available, get, resolve
from . import (
    coda_prompt,
    conpet,
    coso,
    dualprompt,
    ewc,
    inflora,
    joint,
    k_fpf,
    l2p,
    lwf,
    mocl_p,
    mos,
    o_lora,
    par,
    replay,
    separate,
    sequential,
    share,
    spu,
)

__all__ = [
    "available", "coda_prompt", "conpet", "coso", "dualprompt", "ewc", "get", "inflora", "joint", "k_fpf", "l2p", "lwf",
    "mocl_p", "mos", "o_lora", "par", "replay", "resolve", "separate", "sequential", "share", "spu",
]  # fmt: skip
