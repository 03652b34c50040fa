"""Parameters in the hands of whoever reads them past their module: what is done with them decides what they are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._pytree import tree_leaves, tree_map

_LOOKS = {  # that tell of a tensor and do not read its numbers
    "size", "dim", "ndimension", "numel", "nelement", "stride", "storage_offset", "is_floating_point", "is_complex",
    "is_contiguous", "element_size", "get_device", "has_names", "is_inference", "__len__", "__hash__",
}  # fmt: skip
_LAID = {  # that lay a weight out otherwise, cast it, or change each of its numbers by itself
    "squeeze", "unsqueeze", "view", "reshape", "flatten", "unflatten", "contiguous", "to", "type", "float", "half",
    "bfloat16", "double", "t", "transpose", "permute", "__getitem__",
    "expand", "exp", "neg", "__neg__", "softplus", "sigmoid",
}  # fmt: skip
_TURNED = {"T", "mT"}  # those of them that are attributes
_SWAPS = {"t", "transpose", "permute"}
_PRODUCT = {"matmul", "__matmul__", "__rmatmul__"}  # of two, of which one begins with rows
_EACH = {"mul", "__mul__", "__rmul__", "add", "__add__", "__radd__", "sub", "__sub__", "__rsub__"}  # number by number
_PRODUCTS = {F.linear, F.conv1d, F.conv2d, F.conv3d}  # of (input, weight, bias, ...), row by row of the input
_VIEWS = {"T", "mT", "H", "mH", "data", "real", "imag"}  # the attributes that hand the numbers on


class Door(Protocol):
    """What stands before the parameters of a module: `door.Door`."""

    module: torch.nn.Module
    used: bool  # whether somebody computed with what came out

    def linear(self, x: Tensor, slot: str, bias: Tensor | None) -> Tensor: ...

    def by_row(self, x: Tensor, slot: str) -> Tensor | None: ...

    def groups(self, x: Tensor, slot: str) -> list[tuple[Any, list[int]]] | None: ...

    def changed(self, slot: str, tenant: Any) -> Tensor: ...

    def keeps_bias(self, slot: str) -> bool: ...

    def alone(self) -> Any: ...

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

    `F.linear` is done by the site's own hook; convolutions, and products with what was laid out otherwise or cast,
    reader by reader there. Anything else does not fit a mixed batch, which runs reader by reader as a whole.
    way: what was done with the weight since it was read. turned: whether its last step laid rows as columns.
    """

    door: Door
    slot: str
    trained: bool
    turned: bool
    way: tuple[Callable[[Tensor], Tensor], ...]

    @staticmethod
    def of(value: Tensor, door: Door, slot: str, way: tuple[Callable[[Tensor], Tensor], ...] = ()) -> Borrowed:
        made = Tensor._make_wrapper_subclass(
            Borrowed, value.shape, strides=value.stride(), dtype=value.dtype, device=value.device
        )
        made.door, made.slot, made.trained, made.way = door, slot, torch.is_grad_enabled(), way
        made.turned = False
        return made

    @property
    def value(self) -> Tensor:
        return self.along(self.door.module._parameters[self.slot])  # type: ignore[arg-type]

    def along(self, value: Tensor) -> Tensor:
        for step in self.way:
            value = step(value)
        return value

    def laid(self, step: Callable[[Tensor], Tensor]) -> Borrowed:
        made = Borrowed.of(step(self.value.detach()), self.door, self.slot, (*self.way, step))
        made.trained = self.trained
        return made

    @classmethod
    def __torch_function__(cls, func: Callable, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if looks(func, args, kwargs):
            bare = lambda x: x.value if isinstance(x, Borrowed) else x  # noqa: E731
            with torch._C.DisableTorchFunctionSubclass():
                return func(*map(bare, args), **kwargs)
        if func in _PRODUCTS and (found := product(func, *args, **kwargs)) is not None:
            return found
        name = getattr(func, "__name__", "")
        if name in _PRODUCT and len(args) == 2 and not kwargs:
            if (found := of_linear(*(args[::-1] if name == "__rmatmul__" else args))) is not None:
                return found
        if name in _PRODUCT | _EACH and len(args) == 2 and not kwargs:
            if (found := paired(func, *args, each=name in _EACH)) is not None:
                return found
        first, *others = args or (None,)
        turned = name == "__get__" and getattr(getattr(func, "__self__", None), "__name__", "") in _TURNED
        if (name in _LAID or turned) and isinstance(first, Borrowed):
            if not any(isinstance(o, Tensor) for o in tree_leaves((others, kwargs))):
                made = first.laid(lambda w: func(w, *others, **kwargs))
                made.turned = (turned or name in _SWAPS) and made.stride() == first.stride()[::-1]
                return made
        raise cls.refused(args, kwargs, getattr(func, "__name__", str(func)))

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        raise cls.refused(args, kwargs or {}, str(func))

    @classmethod
    def refused(cls, args: Any, kwargs: Any, what: str) -> Exception:
        found: list[Borrowed] = []
        tree_map(lambda x: found.append(x) if isinstance(x, Borrowed) else None, (tuple(args), kwargs))
        door, slot = found[0].door, found[0].slot
        one = door.alone()
        why = "another weight for each row" if one is None else f"what {one.method.name} does, which changes no weight"
        return door.refused(slot, f"{what} cannot be done with {why}")


def product(
    func: Callable, input: Tensor, weight: Tensor, bias: Tensor | None = None, *args: Any, **kwargs: Any
) -> Tensor | None:
    """A product of the rows of the input with a weight or bias of which each has its own; None where one was read in
    another gradient mode than now, as within a function that has a backward of its own: what is differentiated there
    would be lost."""
    own = [t for t in (weight, bias) if isinstance(t, Borrowed)]
    if not own or isinstance(input, Borrowed) or any(t.trained != torch.is_grad_enabled() for t in own):
        return None
    whole = own[0] is weight and (isinstance(bias, Borrowed) or own[0].door.keeps_bias(own[0].slot))
    if func is F.linear and whole and not any(t.way for t in own):
        own[0].door.used = True
        return own[0].door.linear(input, own[0].slot, bias)
    return by_reader(own, input, lambda x, read: func(x, read(weight), read(bias), *args, **kwargs))


def of_linear(a: Any, b: Any) -> Tensor | None:
    """x @ w.T, and w @ x of columns, (B, inp, T), by the site's own hook, so that a tenant that changes no weight reads
    it too; None of anything else, and where a reader moves the bias, which the model adds by itself."""
    weight, x = (a, b) if isinstance(a, Borrowed) else (b, a)
    if isinstance(x, Borrowed) or not isinstance(x, Tensor) or weight.trained != torch.is_grad_enabled():
        return None
    door, slot = weight.door, weight.slot
    stored = door.module._parameters[slot]
    if weight.dim() != 2 or weight.dtype != stored.dtype or stored.dim() != 2:  # type: ignore[union-attr]
        return None
    columns = weight is a
    if (weight.way or x.dim() < 3) if columns else not (len(weight.way) == 1 and weight.turned):
        return None
    if not door.keeps_bias(slot):
        return None
    door.used = True
    return door.linear(x.mT, slot, None).mT if columns else door.linear(x, slot, None)


def paired(func: Callable, a: Any, b: Any, each: bool) -> Tensor | None:
    """A product of matrices, or number by number something of two, of which one side begins with the batch's rows."""
    weight, x = (a, b) if isinstance(a, Borrowed) else (b, a)
    if isinstance(x, Borrowed) or not isinstance(x, Tensor) or x.dim() < (2 if each else 3):
        return None
    if weight.dim() >= x.dim() and not (each and weight.dim() == x.dim() and weight.shape[0] == 1):
        return None
    if weight.trained != torch.is_grad_enabled():
        return None
    run = lambda x, read: func(read(a), x) if weight is a else func(x, read(b))  # noqa: E731
    if each and (spread := weight.door.by_row(x, weight.slot)) is not None:
        found = by_reader([weight], spread, run)
        return None if found is None else found.flatten(0, 1)
    return by_reader([weight], x, run)


def by_reader(own: list[Borrowed], x: Tensor, run: Callable[[Tensor, Callable], Tensor]) -> Tensor | None:
    """`run(rows of x, what a weight is to their reader)` for each, in the order of the batch; None without rows."""
    if (groups := own[0].door.groups(x, own[0].slot)) is None:
        return None
    for t in own:
        t.door.used = True

    def part(tenant: Any, places: list[int]) -> Tensor:
        return run(x[places], lambda t: t.along(t.door.changed(t.slot, tenant)) if isinstance(t, Borrowed) else t)

    order = torch.tensor([p for _, places in groups for p in places], device=x.device).argsort()
    return torch.cat([part(*g) for g in groups]).index_select(0, order)
