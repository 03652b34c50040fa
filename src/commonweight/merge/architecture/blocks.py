"""What a block is beside its tensors: classes and plain attributes of its modules, which a config may set by number."""

from __future__ import annotations

import re
from typing import Any

from torch import nn

_OF_PLACE = re.compile(r"(^|_)(idx|index|indices|id|number|num|pos)$|drop|^_|training|survival|init_std|std$")

Features = dict[str, Any]


def features(model: nn.Module, stack: str, length: int) -> list[Features]:
    """One for each block of a list of modules: "module.attribute" -> value, "module" -> class; without what only says
    where the block stands, or acts in training alone."""
    out: list[Features] = [{} for _ in range(length)]
    start = f"{stack}."
    for name, module in model.named_modules():
        number, _, rest = name.removeprefix(start).partition(".")
        if not name.startswith(start) or not number.isdigit() or int(number) >= length:
            continue
        one = out[int(number)]
        one[rest] = type(module).__name__
        for key, value in vars(module).items():
            if isinstance(value, bool | int | float | str) and not _OF_PLACE.search(key):
                one[f"{rest}.{key}".lstrip(".")] = value
    return out


def differ(a: Features, b: Features) -> list[str]:
    """What the two have otherwise, as "name: a's, b's"."""
    return [f"{k}: {a.get(k)!r}, {b.get(k)!r}" for k in sorted(a.keys() | b.keys()) if a.get(k) != b.get(k)]
