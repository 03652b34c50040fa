"""Blocks that answer to queries: each runs once more, on the queries alone, with the keys and values of its tokens.

Nothing reads the queries, so that they may run when all else has. A block's own code runs, whatever it is made of; its
attention is given the keys and values that it made for the row (`ahead`). For gradients nothing is kept but what the
queries need, those keys and values among it.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..core import CommonweightError, counted
from .apart import Unfit
from .carried import bare
from .current import Current
from .front import kept_whole
from .route import Route
from .sites import Physical, Queried, Trunk, parameters
from .states import States, recomputing, whole_rows
from .tenant import Tenant
from .tokens_first import Turned, straight

if TYPE_CHECKING:
    from torch.utils.hooks import RemovableHandle

STATES = object()  # stands in a call for what a block is given


def beside(at: Physical, current: Current, turned: Turned = straight) -> States | Asked | None:
    """What is kept while the blocks of a list run, for a network or for queries beside them. turned: to rows first."""
    if isinstance(at, Queried):
        return Asked(at, current)
    return States(at, current, turned) if isinstance(at, Trunk) else None


class Asked:
    """Of one list of blocks. Base only: one attribute read and a comparison for each block."""

    def __init__(self, at: Queried, current: Current):
        self.at, self.current = at, current

    def install(self) -> list[RemovableHandle]:
        called = [partial(self.called, i) for i in range(len(self.at.blocks))]
        return [b.register_forward_pre_hook(f, with_kwargs=True) for b, f in zip(self.at.blocks, called)]

    def called(self, place: int, module: nn.Module, args: tuple, kwargs: dict | None = None) -> None:
        """A block is called: it will be called so for the queries, which stand where a row's last token does."""
        route, at = self.current.route, self.at
        if route is None or not route.touches(at.name) or recomputing():
            return
        given = {**dict(zip(parameters(module), args)), **(kwargs or {})}
        x = next((bare(v) for v in given.values() if isinstance(v, Tensor)), None)
        if x is None or x.dim() != 3 or x.shape[-1] != at.width:
            raise CommonweightError(
                f"{at.name}: block {place} is given {'no tensor' if x is None else tuple(x.shape)}; wanted (rows, "
                f"tokens, {at.width}). It cannot be asked anything; take a method that changes weights, such as lora"
            )
        self.current.thread.run.calls[at.name, place] = standing(given, x, self.current.there(at.name, x))

    def collected(self, route: Route, y: Any) -> Tensor:
        """(B, T, n d): what each block answers to the queries of each row, zeros in place of queries that a row lacks.

        Raises: CommonweightError with a cache, and where an attention did not say its keys; Unfit for a route that
        names readers of tokens."""
        thread, run, at = self.current.thread, self.current.thread.run, self.at
        if torch.compiler.is_compiling():
            raise CommonweightError(
                f"{at.name}: blocks answer to queries behind the pass that is compiled; call the model without "
                "torch.compile"
            )
        whole_rows(at.name, route, run.past)
        if silent := next((n for n in at.ahead if n not in run.made), None):
            raise CommonweightError(
                f"{silent}: this attention ran without asking transformers' attention interface for its function, so "
                "that no query can read its keys; load the model with attn_implementation='sdpa'"
            )
        calls = [run.calls[at.name, i] for i in range(len(at.blocks))]
        made = {n: run.made[n] for n in at.ahead}
        if not torch.is_grad_enabled():  # else a checkpoint may run this once more
            run.calls, run.made = {}, {}
        asked = self.asked(route, y if isinstance(y, Tensor) else y[0])
        thread.answering = made
        try:
            follow, out = self.following(route, asked), []
            with self.current.within(None):
                for block, queries, call in zip(at.blocks, asked.unbind(1), calls):
                    if out and follow is not None:
                        queries = torch.where(follow, out[-1], queries)
                    out.append(self.answer(block, queries, call))
            return torch.cat(out, -1)
        finally:
            thread.answering = None

    def answer(self, block: nn.Module, asked: Tensor, call: dict[str, Any]) -> Tensor:
        """Its hooks left aside; those inside run as they do for the plain base. So few tokens are not recomputed."""
        with kept_whole(block):
            y = block.forward(**{k: asked if v is STATES else v for k, v in call.items()})
        which = self.at.main(asked, y)
        return y if which is None else y[which]

    def asked(self, route: Route, y: Tensor) -> Tensor:
        """The queries of each row, (B, n, T, d)."""
        rows = y.shape[0]
        if route.single is not None:
            own = self.of(route.single, y)
            return own.repeat_interleave(rows // len(own), 0) if own.dim() == 4 else own.expand(rows, -1, -1, -1)
        if route.length != rows or (route.shape is not None and len(route.shape) > 1):
            raise Unfit(
                f"{self.at.name}: queries read a row, and the route names {counted(route.length, 'reader')} for "
                f"{counted(rows, 'row')}; give one reader per row",
                self.at.name,
            )
        each = [self.of(t, y) for t, _ in route.groups]
        most = max(p.shape[1] for p in each)
        place = {p: i for i, (_, places) in enumerate(route.groups) for p in places}
        index = torch.tensor([place[i] for i in range(rows)], device=y.device)
        return torch.stack([F.pad(p, (0, 0, 0, most - p.shape[1])) for p in each])[index]

    def following(self, route: Route, like: Tensor) -> Tensor | None:
        """Of which rows a block is asked what the block before answered, (B, 1, 1), or (1,) for all; None: of none."""
        if route.single is not None:
            return torch.ones(1, dtype=torch.bool, device=like.device) if self.follows(route.single) else None
        mine = {p for t, places in route.groups if self.follows(t) for p in places}
        if not mine:
            return None
        return torch.tensor([i in mine for i in range(len(like))], device=like.device)[:, None, None]

    def follows(self, tenant: Tenant | None) -> bool:
        entries = [] if tenant is None else tenant.table.get(self.at.name, [])
        return any(getattr(e.bind, "follows", False) for e in entries)

    def of(self, tenant: Tenant | None, like: Tensor) -> Tensor:
        """(n, T, d) of one tenant, or of several as one with a dimension before; T is 0 where it asks nothing."""
        entries = [] if tenant is None else tenant.table.get(self.at.name, [])
        if not entries:
            return like.new_empty(len(self.at.blocks), 0, self.at.width)
        return torch.cat([e.bind.queries(**e.slots(like.dtype)) for e in entries], -2)


def standing(call: dict[str, Any], x: Tensor, there: Tensor | None) -> dict[str, Any]:
    """A call of a block as it is for one token, at the place of each row's last that is no padding: positions and
    rotations of that place, no mask or bias by (query, key), no cache. What comes from an encoder stays."""
    b, t = x.shape[:2]
    last = x.new_full((b,), t - 1, dtype=torch.long) if there is None else t - 1 - there.flip(1).long().argmax(1)

    def put(v: Any) -> Any:
        if isinstance(v, tuple):
            return tuple(map(put, v))
        if hasattr(v, "get_seq_length"):
            return None
        if not isinstance(v, Tensor) or v.dim() < 2 or v.shape[0] not in (1, b):
            return v
        if v.dim() < 4 and v.shape[1] == t:
            return v.expand(b, *v.shape[1:])[torch.arange(b, device=v.device), last][:, None]
        return None if v.dim() == 4 else v

    def one(name: str, v: Any) -> Any:
        if isinstance(v, Tensor) and bare(v) is x:
            return STATES
        if not name.startswith("encoder_"):
            return put(v)
        if isinstance(v, Tensor) and v.dim() == 4 and v.shape[2] == t and v.shape[0] in (1, b):
            return v.expand(b, -1, -1, -1)[torch.arange(b, device=v.device), :, last][:, :, None]
        return v

    return {k: one(k, v) for k, v in call.items()}
