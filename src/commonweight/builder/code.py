"""The file of Python that a folder of remote code carries: short, readable, without commonweight."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable
from types import FunctionType
from typing import Any

from ..core.serial import registered
from ..core.version import library
from . import shared
from .kinds import KINDS

_HEAD = '''"""{kind} whose depths share parameters: {told}.

Written by commonweight {by}. Needs torch and transformers. config.json says under "sharing" which depth owns each
parameter; the file of weights holds it once.
"""

from __future__ import annotations

{plain}

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import {imports}

Record = dict[str, Any]
'''


def of(model: Any, config_class: str, base: str, head: str | None, prefix: str) -> str:
    """The source. base, head: classes of transformers; the head's is None where the model has none."""
    sharing = model.config.sharing
    used = sorted({f["form"] for f in (*sharing["forms"], *sharing.get("outside", ()))})
    parts = [_source(kind) for kind in _needed(KINDS[name] for name in used)]
    parts += _addresses(sharing["forms"])
    parts += [
        _source(f)
        for f in (
            shared.stack_of,
            shared.form,
            shared.here,
            shared.homes,
            shared.arrange,
            shared.ties,
            shared.freeze,
            shared.Shared,
        )
    ]
    parts.append(f'class {prefix}{config_class}({config_class}):\n    model_type = "{shared_type(model)}"\n')
    kinds = ", ".join(f'"{n}": {n}' for n in used)
    for kind in (base, head):
        if kind is not None:
            parts.append(
                f"class {prefix}{kind}(Shared, {kind}):\n    config_class = {prefix}{config_class}\n"
                f"    kinds = {{{kinds}}}  # noqa: RUF012\n"
            )
    text = "\n\n".join(parts)
    start = _HEAD.format(
        kind=head or base, told=told(sharing), by=library(), plain=_imports(text),
        imports=", ".join(sorted({config_class, base, *([head] if head else [])})),
    )  # fmt: skip
    return f"{start}\n\n{text}"


def told(sharing: dict[str, Any]) -> str:
    """``recursive, loops=2``: the method and its options."""
    options = [f"{k}={v}" for k, v in sharing.get("options", {}).items()]
    return ", ".join([sharing.get("method", "a layout of its own"), *options])


def shared_type(model: Any) -> str:
    """A name of its own, so that nothing loads the folder as an ordinary model and fills what lacks at random."""
    return f"shared_{model.config.model_type.removeprefix('shared_')}"


_PLAIN = {  # what of the standard library the classes may need: a word by which to see it, and the line
    "deepcopy(": "from copy import deepcopy", "inspect.": "import inspect", "math.": "import math",
    "Sequence": "from collections.abc import Sequence", "@dataclass": "from dataclasses import dataclass",
    "NamedTuple": "from typing import NamedTuple",
}  # fmt: skip


def _imports(text: str) -> str:
    lines = [line for word, line in _PLAIN.items() if word in text]
    return "\n".join([*lines, "from typing import Any"])


def _needed(kinds: Iterable[type]) -> list[type]:
    """Forms with what they stand on, each once, what is needed first."""
    out: list[type] = []
    for kind in kinds:
        for one in reversed(kind.__mro__[:-1]):
            out += [k for k in (*getattr(one, "needs", ()), one) if k not in out]
    return out


def _source(thing: Any) -> str:
    return re.sub(r"  # type: ignore[^\n]*", "", inspect.getsource(thing))


def _addresses(forms: Iterable[dict[str, Any]]) -> list[str]:
    """The addresses that layers read by, and the functions that those call."""
    names = sorted({n for f in forms for n in _named(f.get("options", {}).get("address"))})
    if not names:
        return []
    functions: dict[str, FunctionType] = {}
    for name in names:
        for method in vars(registered()[name]).values():
            if isinstance(method, FunctionType):
                _called(method, functions)
    parts = [_source(f) for f in functions.values()]
    parts += [_source(registered()[n]).replace("@serial\n", "") for n in names]
    told = ", ".join(f'"{n}": {n}' for n in names)
    return [*parts, f"Addressed.addresses = {{{told}}}\n"]


def _named(address: Any) -> list[str]:
    """The class of an address, and those of others within it."""
    if isinstance(address, dict):
        return [address["is"], *(n for v in address.values() for n in _named(v))]
    return [n for v in address for n in _named(v)] if isinstance(address, list | tuple) else []


def _called(method: FunctionType, found: dict[str, FunctionType]) -> None:
    """Functions of commonweight that a method calls, those that they call before them."""
    for name in method.__code__.co_names:
        other = method.__globals__.get(name)
        if isinstance(other, FunctionType) and other.__module__.startswith("commonweight.") and name not in found:
            _called(other, found)
            found[name] = other
