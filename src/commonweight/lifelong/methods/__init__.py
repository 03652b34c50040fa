"""A file for each method: a frozen config and one stage, as a generator; none knows the loop that trains.

Adding one: the file, its name here, its test.
"""

from ..registry import available, get, resolve
from . import ewc, inflora, joint, lwf, o_lora, replay, separate, sequential

__all__ = [
    "available", "ewc", "get", "inflora", "joint", "lwf", "o_lora", "replay", "resolve", "separate", "sequential",
]  # fmt: skip
