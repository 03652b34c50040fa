"""Tokens that carry their readers with them, whatever a model does to arrange them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

_ARRANGE = {  # that put numbers elsewhere and make none
    "__getitem__", "view", "reshape", "flatten", "unflatten", "index_select", "repeat", "repeat_interleave", "expand",
    "contiguous", "clone", "detach", "unsqueeze", "squeeze", "permute", "transpose", "split", "chunk", "narrow",
    "unbind", "cat", "concat", "stack", "take_along_dim", "gather", "view_as", "reshape_as", "tensor_split", "select",
    "movedim", "swapaxes", "expand_as",
}  # fmt: skip
_EACH = {  # that make each row of that row alone
    "to", "type", "type_as", "float", "half", "bfloat16", "double", "cpu", "cuda", "mul", "mul_", "div", "div_", "add",
    "add_", "sub", "sub_", "__mul__", "__imul__", "__rmul__", "__truediv__", "__itruediv__", "__add__", "__iadd__",
    "__sub__", "__isub__", "dropout", "layer_norm", "rms_norm", "requires_grad_",
}  # fmt: skip


class Carried(Tensor):
    """Tokens with the number of their reader, `readers`, in each of their places: a tensor of the same shape."""

    readers: Tensor

    @staticmethod
    def of(x: Tensor, readers: Tensor) -> Carried:
        out = x.as_subclass(Carried)
        out.readers = readers
        return out

    @classmethod
    def __torch_function__(cls, func: Callable, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, kwargs = getattr(func, "__name__", ""), kwargs or {}
        with torch._C.DisableTorchFunctionSubclass():
            found = func(*tree_map(bare, tuple(args)), **tree_map(bare, kwargs))
            if name in _ARRANGE:
                others = [t for t in _tensors(args[:1]) if t.is_floating_point()]
                if not others or not all(isinstance(t, Carried) for t in others):
                    return found
                arrange = Tensor.reshape if name == "view" else func  # they lie in memory in another way
                mine = arrange(*tree_map(_readers, tuple(args)), **tree_map(_readers, kwargs))
                return _both(found, mine)
            first = args[0] if args else None
            if name in _EACH and isinstance(first, Carried) and isinstance(found, Tensor):
                return Carried.of(found, first.readers) if found.shape == first.shape else found
        return found


def bare(x: Any) -> Any:
    """A tensor without its readers; anything else as it is."""
    return x.as_subclass(Tensor) if isinstance(x, Carried) else x


def _readers(x: Any) -> Any:
    return x.readers if isinstance(x, Carried) else x


def _tensors(given: Any) -> list[Tensor]:
    out: list[Tensor] = []
    tree_map(lambda t: out.append(t) if isinstance(t, Tensor) else None, given)
    return out


def _both(found: Any, readers: Any) -> Any:
    if isinstance(found, Tensor):
        return Carried.of(found, readers)
    return type(found)(_both(f, r) for f, r in zip(found, readers))
