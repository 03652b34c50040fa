"""Parameters in the hands of whoever reads them past their module: what is done with them decides what they are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._pytree import tree_map

_LOOKS = {  # that tell of a tensor and do not read its numbers
    "size", "dim", "ndimension", "numel", "nelement", "stride", "storage_offset", "is_floating_point", "is_complex",
    "is_contiguous", "element_size", "get_device", "has_names", "is_inference", "__len__", "__hash__",
}  # fmt: skip
_VIEWS = {"T", "mT", "H", "mH", "data", "real", "imag"}  # the attributes that hand the numbers on


class Door(Protocol):
    """What stands before the parameters of a module: `door.Door`."""

    module: torch.nn.Module
    used: bool  # whether somebody computed with what came out

    def linear(self, x: Tensor, slot: str, bias: Tensor | None) -> Tensor: ...

    def refused(self, slot: str, why: str) -> Exception: ...


def looks(function: Callable, args: Any, kwargs: Any) -> bool:
    """Whether a torch function asks for a shape, a dtype and the like alone. ``w.type()`` names one; with a dtype it
    hands the numbers on."""
    name = getattr(function, "__name__", "")
    if name == "type":
        return len(args) == 1 and not kwargs
    if name == "__get__":
        return getattr(getattr(function, "__self__", None), "__name__", "") not in _VIEWS
    return name in _LOOKS


class Seen(Tensor):
    """A parameter while it is found out whether anybody computes with it past its module."""

    door: Door

    @staticmethod
    def of(value: Tensor, door: Door) -> Tensor:
        if type(value) not in (Tensor, torch.nn.Parameter):
            return value
        seen = value.as_subclass(Seen)
        seen.door = door
        return seen

    @classmethod
    def __torch_function__(cls, func: Callable, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        def bare(x: Any) -> Any:
            if not isinstance(x, Seen):
                return x
            if not looks(func, args, kwargs) and (door := getattr(x, "door", None)) is not None:
                door.used = True
            return x.as_subclass(Tensor)

        with torch._C.DisableTorchFunctionSubclass():
            args, kwargs = tree_map(bare, (tuple(args), kwargs or {}))
        return func(*args, **kwargs)


class Borrowed(Tensor):
    """A weight or bias of which each row has its own, or of a tenant that changes no weight: without numbers, so that
    no kernel reads it.

    `F.linear` is done by the site's own hook. Anything else does not fit a mixed batch, which runs reader by reader.
    """

    door: Door
    slot: str
    trained: bool

    @staticmethod
    def of(value: Tensor, door: Door, slot: str) -> Borrowed:
        made = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            Borrowed, value.shape, strides=value.stride(), dtype=value.dtype, device=value.device
        )
        made.door, made.slot, made.trained = door, slot, torch.is_grad_enabled()
        return made

    @property
    def value(self) -> Tensor:
        return self.door.module._parameters[self.slot]  # type: ignore[return-value]

    @classmethod
    def __torch_function__(cls, func: Callable, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if looks(func, args, kwargs):
            bare = lambda x: x.value if isinstance(x, Borrowed) else x  # noqa: E731
            with torch._C.DisableTorchFunctionSubclass():
                return func(*map(bare, args), **kwargs)
        if func is F.linear and (found := product(*args, **kwargs)) is not None:
            return found
        raise cls.refused(args, kwargs, getattr(func, "__name__", str(func)))

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise cls.refused(args, kwargs or {}, str(func))

    @classmethod
    def refused(cls, args: Any, kwargs: Any, what: str) -> Exception:
        found: list[Borrowed] = []
        tree_map(lambda x: found.append(x) if isinstance(x, Borrowed) else None, (tuple(args), kwargs))
        return found[0].door.refused(found[0].slot, f"{what} cannot be done with another weight for each row")


def product(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor | None:
    """F.linear, by its own names; None where the weight was read in another gradient mode than now, as within a
    function that has a backward of its own: what is differentiated there would be lost."""
    if not isinstance(weight, Borrowed) or isinstance(input, Borrowed) or weight.trained != torch.is_grad_enabled():
        return None
    weight.door.used = True
    return weight.door.linear(input, weight.slot, bias)
