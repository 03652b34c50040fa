"""Tokens that skip a block or a part of one: the others alone go in, and what comes out is put back in its places."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from ..core import CommonweightError
from .apart import Unfit
from .sites import Block

NEIGHBOURS = nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ZeroPad2d  # they lay tokens beside each other: all have to be there
_LEAVE = "leave it out with sites, or take a method that changes weights, such as lora"


def readable(at: Any, x: Tensor) -> None:
    """Raises: CommonweightError where a block is given states of another width than those that its gates read."""
    if at.kind == "block" and x.shape[-1] != at.width:
        raise CommonweightError(
            f"{at.name}: this block is given {tuple(x.shape)}; wanted states with {at.width} features last, by which "
            f"tokens are chosen; {_LEAVE}"
        )


class Draws:
    """Where the random numbers stand. Whether a block is called for others' sake alone differs from pass to pass (the
    first shows whether it must be), and what comes after it, as dropout, is not to differ with it."""

    def __init__(self, device: torch.device):
        self.cpu = torch.get_rng_state()
        self.of: Any = None if device.type in ("cpu", "meta") else torch.get_device_module(device)
        self.at = () if device.type == "mps" else (device,)  # which has one generator
        self.own = None if self.of is None else self.of.get_rng_state(*self.at)

    @classmethod
    def before(cls, module: nn.Module, x: Tensor) -> Draws | None:
        """None where nothing in the module trains: it draws nothing."""
        return cls(x.device) if any(m.training for m in module.modules()) else None

    @torch.compiler.disable(reason="it comes from a function that is not compiled")
    def again(self) -> None:
        torch.set_rng_state(self.cpu)
        if self.of is not None:
            self.of.set_rng_state(self.own, *self.at)


class Skip(NamedTuple):
    """What a site was given, (..., d), the gates of its tokens, (..., 1), and what its module is given in its place.

    places: of a part, which of all tokens, one after another, the module is given; of a block, which of each row,
    (B, K). None: all of them, in their order. out: of a block, all skip it, and its states are x. called: it runs all
    the same, see `bypass`; draws: the random numbers before it, which it is to leave as they were.
    """

    x: Tensor
    gates: Tensor
    given: Tensor
    places: Tensor | None = None
    out: bool = False
    called: bool = True
    draws: Draws | None = None

    def back(self, y: Tensor, name: str, block: bool) -> Tensor:
        """The output for all tokens: gate times y of a part, x + gate (y - x) of a block.

        Raises: CommonweightError where it gives other tokens than it is given."""
        x, g, at = self.x, self.gates.to(y.dtype), self.places
        if y.shape[:-1] != self.given.shape[:-1]:
            raise CommonweightError(
                f"{name}: it gives {tuple(y.shape)} of {tuple(self.given.shape)}, so no token can skip it; {_LEAVE}"
            )
        if self.out:
            return x
        if at is None:
            out = x + g * (y - x) if block else y * g
            return torch.where(g == 0, x, out) if block and not g.requires_grad else out
        if block:
            wide = at[..., None].expand(-1, -1, x.shape[-1])
            kept = g.gather(1, at[..., None])
            return x.scatter_add(1, wide, torch.where(kept == 0, 0, kept * (y - x.gather(1, wide))))
        y, kept = y.reshape(-1, y.shape[-1]), g.reshape(-1, 1)[at]
        out = y.new_zeros(*x.shape[:-1], y.shape[-1])
        out.view(-1, y.shape[-1]).index_copy_(0, at, y if bool((kept == 1).all()) else y * kept)
        return out


def part(x: Tensor, gates: Tensor, whole: bool) -> Skip:
    """Of a part that works token by token. whole: the module is to see all tokens, since a graph is made, a
    convolution lays them out beside each other, or somebody in the batch changes the layers inside, which must find
    their rows."""
    if whole or torch.is_grad_enabled() or torch.compiler.is_compiling():
        return Skip(x, gates, x)
    at = gates.reshape(-1).nonzero().squeeze(-1)
    few = x.reshape(-1, x.shape[-1]).index_select(0, at)
    return Skip(x, gates, few.reshape(*[1] * (x.dim() - 2), *few.shape), at)


@torch.compiler.disable(reason="which tokens a block is given is known only while it runs")
def block(
    at: Block,
    x: Tensor,
    gates: Tensor,
    there: Tensor | None,
    mixed: bool,
    cached: bool,
    spare: bool = False,
    turned: bool = False,
) -> Skip:
    """Of a block, in which tokens see each other: those that skip are not seen either, in training as well.

    spare: where all skip it need not be called. turned: the block itself has tokens before rows, and so may its masks.

    Raises: Unfit in a batch of several readers, unless each row skips as a whole; CommonweightError with a cache, and
    where rows that keep different numbers of tokens have no padding that could stand in for the rest.
    """
    open_ = gates[..., 0] != 0
    rows = bool((open_ == open_[..., :1]).all())
    if rows and not gates.requires_grad and not bool(open_.any()):
        return Skip(x, gates, x, out=True, called=not spare, draws=None if spare else Draws.before(at.module, x))
    if rows and (mixed or cached or turned or gates.requires_grad or x.dim() < 3 or bool(open_.all())):
        return Skip(x, gates, x)
    if cached or x.dim() < 3:
        raise CommonweightError(
            f"{at.name}: some tokens of a row skip this block, which cannot be decided token by token with a cache or "
            "in a packed batch; run whole rows, with use_cache=False"
        )
    if turned:
        raise CommonweightError(
            f"{at.name}: some tokens of a row skip this block, which is given tokens before rows, so that it is not "
            f"known what else it is given goes with them; {_LEAVE}"
        )
    if mixed:
        raise Unfit(f"{at.name}: tokens skip this block, and the others' places change", at.name)
    many = open_.sum(1)
    most = max(1, int(many.max()))
    pads = torch.zeros_like(open_) if there is None else ~there.bool()
    if not rows and bool((many + pads.logical_and(~open_).sum(1) < most).any()):
        raise CommonweightError(
            f"{at.name}: rows keep {many.tolist()} tokens in this block; wanted as many in each, or padding in the rest"
        )
    order = (2 * open_.int() + (-pads.int() if rows else pads.int())).argsort(dim=1, descending=True, stable=True)
    places = order[:, :most].sort(1).values
    return Skip(x, gates, x.gather(1, places[..., None].expand(-1, -1, x.shape[-1])), places)


def shorter(skip: Skip, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
    """A call of a module with the tokens of the skip alone: states, positions, masks and biases of (query, key)."""
    swap = _of_tokens(skip) if skip.places is not None and skip.places.dim() > 1 else lambda v: v

    def put(v: Any) -> Any:
        return skip.given if v is skip.x else swap(v)

    leave = {k: v for k, v in kwargs.items() if k.startswith("encoder_")}
    rest = {k: v for k, v in kwargs.items() if k not in leave}
    args, rest = pytree.tree_map(put, (args, rest))
    return args, {**rest, **leave}


def in_rows(y: Any, at: int | None, x: Tensor) -> tuple[Any, bool]:
    """A module's output with its states in the rows of x, and whether they were one list of tokens, (B T, d), as the
    mixtures of Llama 4 give them."""
    main: Tensor = y if at is None else y[at]
    if x.dim() < 3 or main.dim() != 2 or main.shape[0] != x.shape[:-1].numel():
        return y, False
    return replaced(y, at, main.view(*x.shape[:-1], -1)), True


def replaced(y: Any, at: int | None, new: Tensor) -> Any:
    """A module's output with another tensor in the place `at`; None: it is that tensor."""
    if at is None:
        return new
    parts = *y[:at], new, *y[at + 1 :]
    return type(y)(*parts) if hasattr(y, "_fields") else type(y)(parts)


def _of_tokens(skip: Skip) -> Callable[[Any], Any]:
    at, (b, t) = skip.places, skip.x.shape[:2]
    assert at is not None

    def cut(v: Any) -> Any:
        if not isinstance(v, Tensor) or v.dim() < 2 or v.shape[0] not in (1, b):
            return v
        if v.dim() in (2, 3) and v.shape[1] == t:
            return _along(v.expand(b, *v.shape[1:]), at, 1)
        if v.dim() == 4 and v.shape[-1] == t and v.shape[-2] in (1, t):
            v = _along(v.expand(b, *v.shape[1:]), at, 3)
            return _along(v, at, 2) if v.shape[2] == t else v
        return v

    return cut


def _along(v: Tensor, at: Tensor, dim: int) -> Tensor:
    """v with the places (B, K) of one dimension."""
    shape = [1] * v.dim()
    shape[0], shape[dim] = at.shape
    return v.gather(dim, at.view(shape).expand(*[at.shape[1] if i == dim else n for i, n in enumerate(v.shape)]))
