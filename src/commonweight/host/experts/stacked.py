"""Weights of a mixture that are no linear layers: all experts of a projection in one tensor, and routers."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ...core import Site
from .. import sites
from ..change import changed
from ..names import named
from ..packs import Pack, flat, is_experts, packed_in, slots
from ..sites import Physical, numbers, role
from ..tenant import Entry
from ..weights import dense, plain

_FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


class Stacked(Physical):
    """One parameter of a module: weight as (E out, inp), expert after expert, or a router's (out, inp).

    Named as the parameter; where that is "weight", as the module.
    kind: "expert" or "router". A parameter of three dimensions is (E, out, inp); `turned`, (E, inp, out).
    """

    pack: Pack | None = None  # of experts that are no plain numbers

    def __init__(
        self, name: str, module: nn.Module, slot: str, turned: bool = False, shape: tuple[int, ...] | None = None
    ):
        shape = shape or tuple(module._parameters[slot].shape)  # type: ignore[union-attr]
        kind, bias = ("expert", f"{slot}_bias") if len(shape) == 3 else ("router", "bias")
        has = isinstance(module._parameters.get(bias), Tensor)
        super().__init__(name, module, kind, False, slot, bias if has else None)
        self.turned = turned
        out, inp = (shape[-1], shape[-2]) if turned else (shape[-2], shape[-1])
        self.count, self.out, self.inp = (shape[0] if len(shape) == 3 else 1), out, inp

    @property
    def parameter(self) -> Tensor:
        return dense(self.module, self.slot, self.name)

    @property
    def key(self) -> str:
        return f"{self.name}.weight" if self.slot == "weight" else self.name

    @property
    def crossed(self) -> bool:
        """Whether the parameter is (E, inp, out) in a module that does not say so (Llama 4): PEFT takes it for
        (E, out, inp)."""
        return self.turned and not getattr(self.module, "is_transposed", False)

    @property
    def home(self) -> str:
        return f"{self.name}." if self.slot == "weight" else f"{self.name.rpartition('.')[0]}."

    @property
    def each(self) -> Any:
        """(E, out, inp), a view of the parameter; of packed ones what gives each expert's weight when it is asked."""
        w = self.parameter
        if self.turned:
            return w.reshape(self.count, self.inp, self.out).transpose(1, 2)
        return w.reshape(self.count, self.out, self.inp)

    @property
    def caller(self) -> nn.Module:
        """The module whose forward takes tokens to the experts."""
        return self.module

    @property
    def weight(self) -> Tensor:
        return self.each.reshape(self.count * self.out, self.inp)

    @property
    def bias(self) -> Tensor | None:
        b = super().bias
        return None if b is None else b.reshape(-1)

    def steady(self, places: Tensor) -> Tensor:
        return numbers(self.weight, places)

    @property
    def exact(self) -> bool:
        return True

    def rows(self, rows: tuple[int, int] | None) -> Physical:
        return self if rows is None else Expert(self, rows[0] // self.out)

    def sites(self) -> list[Site]:
        has = self.bias_slot is not None
        if self.kind == "router":
            return [Site(self.name, self.out, self.inp, "router", "", has)]
        does = role(self.name)
        return [
            Site(f"{self.name}[{e}]", self.out, self.inp, "expert", does, has, (e * self.out, (e + 1) * self.out))
            for e in range(self.count)
        ]

    def by_expert(self, entries: Iterable[Entry]) -> dict[int, list[Entry]]:
        """Uses of the whole by the expert that they are of; there each reads a whole weight."""
        out: dict[int, list[Entry]] = {}
        for e in entries:
            at = 0 if e.rows is None else e.rows[0] // self.out
            out.setdefault(at, []).append(e if e.rows is None else Entry(e.bind, e.reads, None))
        return out

    def changed(self, entries: list[Entry]) -> dict[str, Tensor]:
        """The parameters as a tenant has them, by attribute, in the module's layout and dtype: the weight, and the
        bias where it moves. Cost: a copy of all in float32."""
        ws, b = [w.float() for w in self.each], self.bias
        bs = None if b is None else [v.float() for v in b.view(self.count, self.out)]
        moved = False
        for at, mine in self.by_expert(entries).items():
            ws[at], bias = changed(Expert(self, at), mine)
            if bs is not None and bias is not None and not torch.equal(bias, bs[at]):
                bs[at], moved = bias, True
        w = torch.stack(ws)
        w = w.transpose(1, 2) if self.turned else w
        found = {self.slot: w if self.pack else w.reshape(self.parameter.shape).to(self.parameter.dtype)}
        if moved and bs is not None and self.bias_slot is not None:
            own: Tensor = self.module._parameters[self.bias_slot]  # type: ignore[assignment]
            found[self.bias_slot] = torch.stack(bs).reshape(own.shape).to(own.dtype)
        return found


class Each:
    """Weights of packed experts, one at a time, in float32. Cost: one expert's; what all share is done once."""

    def __init__(self, pack: Pack):
        self.read, self.count = pack.open(), pack.shape[0]

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, e: int) -> Tensor:
        if not 0 <= e < self.count:
            raise IndexError(e)
        with torch.no_grad():
            return self.read(e)


class Packed(Stacked):
    """Experts in codes and scales of a library: see `packs`. `weight` is a copy of all of them in float32."""

    def __init__(self, name: str, module: nn.Module, slot: str, pack: Pack):
        E, out, inp = pack.shape
        super().__init__(name, module, slot, pack.turned, (E, inp, out) if pack.turned else (E, out, inp))
        self.pack: Pack = pack

    @property
    def each(self) -> Any:
        return Each(self.pack)

    @property
    def weight(self) -> Tensor:
        return torch.cat([*self.each])

    @property
    def exact(self) -> bool:
        return False


class Flat(Stacked):
    """DBRX's: one expert above the other in a matrix (E ffn, d). Those of `w2` are (ffn, d), and take ffn to d.

    Another module, which holds this one, gives each expert its tokens and its part of the matrix.
    """

    ROLES: ClassVar = {"w1": "gate", "v1": "up", "w2": "down"}

    def __init__(self, name: str, slot: str, caller: nn.Module):
        self._caller: nn.Module = caller
        mlp: Any = caller.mlp
        shape = (caller.num_experts, mlp.ffn_hidden_size, mlp.hidden_size)
        super().__init__(name, mlp, slot, slot == "w2", shape)  # type: ignore[arg-type]

    @property
    def caller(self) -> nn.Module:
        return self._caller

    def sites(self) -> list[Site]:
        return [s._replace(role=self.ROLES[self.slot]) for s in super().sites()]


class Expert(Physical):
    """One expert's weight and bias. Cost: views; of a packed one a copy."""

    def __init__(self, whole: Stacked, at: int):
        super().__init__(f"{whole.name}[{at}]", whole.module, "linear", False, whole.slot, whole.bias_slot)
        self.whole, self.at = whole, at

    @property
    def weight(self) -> Tensor:
        return self.whole.each[self.at]

    @property
    def bias(self) -> Tensor | None:
        b = self.whole.bias
        return None if b is None else b.view(self.whole.count, self.whole.out)[self.at]

    def steady(self, places: Tensor) -> Tensor:
        return numbers(self.weight, places)

    @property
    def exact(self) -> bool:
        return self.whole.exact

    def rows(self, rows: tuple[int, int] | None) -> Physical:
        return self

    def call(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return nn.functional.linear(x, weight, bias)


def discover(
    model: nn.Module, fused: Mapping[str, int] | None = None
) -> tuple[dict[str, Physical], list[Site], list[Site]]:
    """`sites.discover`, with the experts and routers that are no linear layers."""
    modules, every, default = sites.discover(model, fused)
    for name, at in modules.items():
        own = type(at.module).forward is not nn.Linear.forward
        if own and isinstance(at.module, nn.Linear) and _routes(at.module):  # it gives more than a product: Llama 4
            modules[name] = Stacked(name, at.module, "weight")
    for at in _stacked(model, modules):
        modules[at.name] = at
        every += at.sites()
        default += at.sites()
    return modules, every, default


def _stacked(model: nn.Module, names: Mapping[str, Any]) -> Iterator[Stacked]:
    """Experts that lie in one tensor, and routers. names: the modules that are sites already."""
    for name, module in named(model):
        if name in names:
            continue
        own = module._parameters
        if flat(module):
            yield from (Flat(f"{name}.mlp.{slot}", slot, module) for slot in Flat.ROLES)
        elif is_experts(name, module):
            if sites.packed_fused(name, module):
                continue
            for slot in slots(module):
                p = own.get(slot)
                if p is not None and (plain(p) or p.device.type == "meta") and p.dtype in _FLOATS:
                    yield Stacked(name if slot == "weight" else f"{name}.{slot}", module, slot, _turned(module))
                elif (pack := packed_in(module, slot)) is not None:
                    yield Packed(f"{name}.{slot}", module, slot, pack)
        elif _routes(module):
            yield Stacked(name, module, "weight")


def _routes(module: nn.Module) -> bool:
    """Whether its class is a router's, with a weight (out, inp)."""
    w = module._parameters.get("weight")
    named = re.search(r"Router|Gate$", type(module).__name__)
    return named is not None and w is not None and w.dim() == 2 and w.dtype in _FLOATS


def _turned(module: nn.Module) -> bool:
    """Whether its parameters are (E, inp, out): as the module says, else as their widths show."""
    said = getattr(module, "is_transposed", None)
    if said is not None:
        return bool(said)
    hidden = next((v for n in ("hidden_size", "hidden_dim") if isinstance(v := getattr(module, n, None), int)), None)
    for slot, p in module._parameters.items():
        if hidden is not None and p is not None and p.dim() == 3 and p.shape[1] != p.shape[2]:
            return p.shape[2 if slot.startswith("down") else 1] == hidden
    return False
