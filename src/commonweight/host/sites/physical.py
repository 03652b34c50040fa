"""One module as binds see it."""

from __future__ import annotations

import inspect
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..weights import dense, packed, rounds, sample, stored


class Physical:
    """One module as binds see it (`core.Base`): weight as (out, inp), whatever the module's own layout and storage.

    slot, bias_slot: the attributes that hold them; None for a bias that is not the site's own. Cost: `weight` is a view
    where the storage is plain, else see `weights.dense`. `call` runs the module's own mathematics with other numbers,
    hooks left aside.

    What a kind may say otherwise: `seen` and `given` lay a tensor out with its features last, as binds want it, and
    back; `native` lays a weight out as the module does; `rows_of`: whether the first dimension of x is the batch's
    rows, where that can be known. forms: which fast forms of a bind say what its weight form says. "all": the output
    is F.linear of the input; "through": those that read x through `call` and `many`, or not at all; "output": those
    that read y alone; "none".
    """

    forms: Literal["all", "through", "output", "none"] = "all"
    alone = False  # whether it must be called with one tensor and nothing else
    tokens = True  # whether its input has places that are tokens

    def __init__(
        self,
        name: str,
        module: nn.Module,
        kind: str,
        transposed: bool,
        slot: str = "weight",
        bias_slot: str | None = "bias",
    ):
        self.name, self.module, self.kind, self.transposed = name, module, kind, transposed
        self.slot, self.bias_slot = slot, bias_slot

    @property
    def training(self) -> bool:
        return self.flagged.training

    @property
    def flagged(self) -> nn.Module:
        """The module whose training mode is the site's; of attention's own parameters the output projection."""
        return self.module.out_proj if isinstance(self.module, nn.MultiheadAttention) else self.module

    @property
    def key(self) -> str:
        """The weight's name in a state dict."""
        return f"{self.home}{self.slot}"

    @property
    def home(self) -> str:
        """What stands before the names of its parameters."""
        name = self.name if self.slot == "weight" else self.name.rpartition(".")[0]
        return f"{name}." if name else ""

    @property
    def weight(self) -> Tensor:
        w = dense(self.module, self.slot, self.name)
        return w.T if self.transposed else w

    @property
    def bias(self) -> Tensor | None:
        if self.bias_slot is None or not isinstance(stored(self.module, self.bias_slot), Tensor):
            return None
        return dense(self.module, self.bias_slot, self.name)

    def steady(self, places: Tensor) -> Tensor:
        """Numbers of the weight, read row after row, for fingerprints."""
        if not self.transposed:
            return sample(self.module, places, self.slot, self.name)
        return numbers(dense(self.module, self.slot, self.name, steady=True).T, places)

    @property
    def exact(self) -> bool:
        """Whether the layer computes with `weight` itself; a packed one does with codes, and may round its input."""
        return self.kind != "linear" or self.slot != "weight" or not (packed(self.module) or rounds(self.module))

    def call(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if self.kind == "linear" and self.forms == "all":
            return torch.nn.functional.linear(x, weight, bias)
        y = by_module(self.module, x, weight, bias)
        return y[0] if isinstance(y, tuple) else y

    def seen(self, t: Tensor) -> Tensor:
        """An input or output of the module with its features last. Cost: a view."""
        return t

    def given(self, t: Tensor) -> Tensor:
        """What `seen` made of it, as the module has it."""
        return t

    def native(self, weight: Tensor) -> Tensor:
        """A weight (out, inp) in the module's own layout."""
        return weight.T if self.transposed else weight

    def laid(self, weight: Tensor) -> Tensor:
        """A weight in the module's own layout as (out, inp)."""
        return weight.T if self.transposed else weight

    def holds(self, bind: Any) -> bool:
        """Whether the fast forms of a bind hold here. One without a weight form is what its output form says."""
        reads = getattr(bind, "anywhere", "")
        if self.forms == "none":
            return reads == "output" and getattr(bind, "weight", None) is None
        return self.forms == "all" or reads == "output" or (self.forms == "through" and reads == "through")

    def rows_of(self, x: Tensor) -> bool:
        return True

    def scaled(self, t: Tensor) -> Tensor:
        """Entries of a table as its module gives them out."""
        return t

    def many(self, x: Tensor, weight: Tensor) -> Tensor:
        """`call` of n readers at once, without a bias: x (n, ..., inp), weight (n, o, inp) -> (n, T, o)."""
        return torch.bmm(x, weight.mT)

    def rows(self, rows: tuple[int, int] | None) -> Physical:
        return self if rows is None else Rows(self, rows)


class Rows(Physical):
    """A row range of a weight."""

    def __init__(self, whole: Physical, rows: tuple[int, int]):
        super().__init__(whole.name, whole.module, whole.kind, whole.transposed, whole.slot, whole.bias_slot)
        self.range = slice(*rows)

    @property
    def weight(self) -> Tensor:
        return super().weight[self.range]

    @property
    def bias(self) -> Tensor | None:
        b = super().bias
        return None if b is None else b[self.range]

    def steady(self, places: Tensor) -> Tensor:
        w = dense(self.module, self.slot, self.name, steady=True)
        return numbers((w.T if self.transposed else w)[self.range], places)


def plain_class(module: nn.Module) -> type:
    """The module's class without a door before its weight."""
    return getattr(type(module), "commonweight_plain", type(module))


def parameters(module: nn.Module) -> list[str]:
    """What the module's own forward takes, by name; what stands in its place meanwhile often takes anything."""
    return [*inspect.signature(inspect.unwrap(plain_class(module).forward)).parameters][1:]


def by_module(module: nn.Module, x: Tensor, weight: Tensor, bias: Tensor | None) -> Any:
    """What the module makes of x with another weight and bias, without hooks."""
    plain = plain_class(module)
    bare = object.__new__(plain)
    bare.__dict__ = {**module.__dict__, "_forward_hooks": {}, "_forward_pre_hooks": {}}
    bare._parameters = {**module._parameters, "weight": weight, "bias": bias}  # type: ignore[dict-item]
    if "bias" not in module._parameters:
        del bare._parameters["bias"]
    return plain.forward(bare, x)


def numbers(weight: Tensor, places: Tensor) -> Tensor:
    """Those at these places of a vector, or of a matrix row after row."""
    places = places.to(weight.device)
    return weight[places] if weight.dim() == 1 else weight[places // weight.shape[1], places % weight.shape[1]]
