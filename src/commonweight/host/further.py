"""Prompts in the rows of an encoder, as further positions of the pass.

There a prompt reads the row, so that it is no prefix of keys and values (`front`): its vectors stand in the row, before
its first token, and what comes out at their columns is cut away. Before a decoder it is not: that reads all of them.
The encoder is given longer rows of tokens, of which it counts positions as it always does; those in a prompt's places
mean nothing, and behind the table of tokens the prompt's vectors stand there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..core import CommonweightError, counted
from .apart import Unfit
from .current import Current
from .entrances import Entrance
from .lengthened import Longer
from .route import Route
from .sites import STATES, Further, masked, parameters
from .tenant import Tenant


@dataclass
class Running:
    """A pass with longer rows. vectors: of prompts, (B, M, d). open: whether the encoder runs."""

    rows: Longer
    vectors: Tensor
    open: bool = True


class FurtherForward(Entrance):
    """The encoder's forward: rows and their mask get longer, results as short as the input. Base only: one comparison.

    Of the whole model it stands within the entrance that may run it reader by reader (over)."""

    name = "forward"

    def __init__(self, at: Further, current: Current, over: Entrance | None = None):
        super().__init__(at.module, current, over)
        self.at = at
        self.reads = () if at.decoder is None else parameters(at.decoder)
        self.mask = "" if at.decoder is None else masked(at.decoder) or ""

    def hooks(self) -> list[Any]:
        """Installs it, and hooks behind the table of tokens and behind the blocks, and before the decoder. The table's
        other hooks must be there already."""
        self.install()
        out: list[Any] = [self, self.at.table.register_forward_hook(self.embedded)]
        if self.at.stack is not None:
            out.append(self.at.stack.register_forward_hook(self.passed))
        if self.at.decoder is not None:
            out.append(self.at.decoder.register_forward_pre_hook(self.read, with_kwargs=True))
        return out

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        route = self.current.route
        if route is None or not route.touches(self.at.name):
            return self.own(*args, **kwargs)
        return self.lengthened(route, args, kwargs)

    @torch.compiler.disable(reason="how long rows become is known only while it runs")
    def lengthened(self, route: Route, args: tuple, kwargs: dict) -> Any:
        thread = self.current.thread
        named = {**dict(zip(parameters(self.model), args)), **kwargs}
        ids = named.get("input_ids")
        x = named.get("inputs_embeds") if ids is None else ids
        if not isinstance(x, Tensor):
            return self.own(*args, **kwargs)
        alone = not thread.run.given or thread.run.given[0] is None  # generation calls an encoder by itself
        if alone:
            thread.begin(self.model, args, kwargs)
        tokens, run = route.tokens, thread.run
        run.longer[self.at.name] = found = self.running(route, x, named.get("attention_mask"))
        try:
            route.tokens = found.rows.long
            y = self.own(**self.given(found, named, x))
            return y if self.at.decoder is not None else found.rows.cut(y)
        finally:
            route.tokens, found.open = tokens, False
            if alone:
                run.end()

    def given(self, found: Running, named: dict[str, Any], x: Tensor) -> dict[str, Any]:
        """What the encoder is called with: all that has a number for each token becomes longer."""
        rows, out = found.rows, {**named, "attention_mask": found.rows.mask}
        if named.get("input_ids") is None:
            out["inputs_embeds"], found.open = rows.joined(x, found.vectors.to(x)), False
        else:
            out["input_ids"] = rows.filled(x, *self.numbers())
        if named.get("sequence_id") is not None:  # ESMC's chains, which it reads in place of the mask
            raise CommonweightError(
                f"{self.at.name}: sequence_id says which tokens of a row see each other, and a prompt is of none of "
                "its chains; leave it out, or take a tenant without a prompt"
            )
        for k, v in named.items():
            if k in ("input_ids", "inputs_embeds", "attention_mask") or not isinstance(v, Tensor):
                continue
            if k == "position_ids" and v.dim() == 2:
                out[k] = rows.numbered(v.expand(len(x), -1))
            elif v.dim() > 1 and v.shape[:2] == x.shape[:2]:
                out[k] = rows.joined(v, v.new_zeros(len(x), rows.more, *v.shape[2:]))
        return self.within(rows, out, x)

    def within(self, rows: Longer, out: dict[str, Any], x: Tensor) -> dict[str, Any]:
        """The same, where padding alone goes past the end of a table of positions.

        Raises: CommonweightError where a token does."""
        room, long = self.at.room, rows.long
        if room is None or long <= room:
            return out
        there = torch.ones(1, long, device=x.device) if rows.mask is None else rows.mask
        last = there.sum(-1) if self.at.skips_padding else (there * torch.arange(1, long + 1, device=x.device)).amax(-1)
        if int(last.max()) > room:
            raise CommonweightError(
                f"{self.at.name}: rows of {rows.tokens} tokens are {int(last.max())} with their prompts, and the "
                f"model's table of positions holds {room}; give shorter rows, or a tenant with fewer tokens ahead"
            )
        if not self.at.skips_padding and "position_ids" in parameters(self.model) and out.get("position_ids") is None:
            out["position_ids"] = torch.arange(long, device=x.device).clamp(max=room - 1)[None]
        return out

    def numbers(self) -> tuple[int, int]:
        """(an entry of the table that means nothing to the model, that of padding)."""
        config = getattr(self.model, "config", None)
        special = {v for k in dir(config) if k.endswith("_token_id") and isinstance(v := getattr(config, k), int)}
        padding = self.at.table.padding_idx
        padding = getattr(config, "pad_token_id", None) if padding is None else padding
        plain = next(i for i in range(self.at.table.num_embeddings) if i not in special | {padding})
        return plain, plain if padding is None else padding

    def embedded(self, module: nn.Module, args: tuple, y: Any) -> Any:
        """After the longer rows' tokens have become vectors: a prompt's stand in its places."""
        found = self.running_here()
        if found is None or not found.open or y.shape[:1] != found.vectors.shape[:1]:
            return None
        rows, long = found.rows, found.rows.long
        if y.dim() != 3 or y.shape[1] < long:
            return None
        vectors = found.vectors.to(y) / self.at.scale
        place = rows.joined(torch.zeros(len(y), rows.tokens, 1, device=y.device), torch.ones_like(vectors[..., :1])) > 0
        out = torch.where(place, rows.joined(torch.zeros_like(y[:, : rows.tokens]), vectors), y[:, :long])
        return torch.cat([out, y[:, long:]], 1)

    def passed(self, module: nn.Module, args: tuple, y: Any) -> Any:
        """After the blocks: a pooler behind them is given the row's own."""
        found = self.running_here()
        return None if found is None else found.rows.cut(y)

    def running_here(self) -> Running | None:
        route = self.current.route
        found = self.current.thread.run.longer.get(self.at.name)
        return None if route is None or not route.touches(self.at.name) else found

    @torch.compiler.disable(reason="how long rows become is known only while it runs")
    def read(self, module: nn.Module, args: tuple, kwargs: dict) -> Any:
        """Before the decoder: the mask of what it reads is as long as that."""
        route = self.current.route
        if route is None or not route.touches(self.at.name):
            return None
        named = {**dict(zip(self.reads, args)), **kwargs}
        states, mask = named.get(STATES), named.get(self.mask)
        if not isinstance(states, Tensor):
            return None
        sizes, leads = self.each(route, len(states))
        most = max(sizes)
        if isinstance(mask, Tensor) and mask.shape[1] == states.shape[1]:
            return None  # states that no prompt was in front of
        if mask is None and self.at.name not in self.current.thread.run.longer:
            raise CommonweightError(
                f"{self.at.name}: whether a prompt stands in front of given encoder_outputs is told by the "
                "attention_mask of the rows that they were made of; give that mask too, or the rows in place of states"
            )
        if isinstance(mask, Tensor) and mask.shape[1] + most != states.shape[1]:
            raise CommonweightError(
                f"{self.at.name}: encoder_outputs have {states.shape[1]} columns for {mask.shape[1]} tokens, and these "
                f"readers' prompts make them {mask.shape[1] + most}; give the states that were made under this route"
            )
        rows = Longer.of(states[:, most:] if mask is None else mask, sizes, leads, mask)
        self.current.thread.run.longer[self.at.name] = Running(rows, states, open=False)
        return (), {**named, self.mask: rows.mask}

    def running(self, route: Route, x: Tensor, mask: Any) -> Running:
        """Of a pass with input x (B, T). Cost: the prompts' vectors, once."""
        if mask is not None and (not isinstance(mask, Tensor) or mask.shape != x.shape[:2]):
            raise CommonweightError(
                f"{self.at.name}: the attention_mask is {tuple(getattr(mask, 'shape', ()))}, and a prompt makes rows "
                f"longer; wanted one number for each token, {tuple(x.shape[:2])}"
            )
        rows, groups = Longer.of(x, *self.each(route, len(x)), mask), self.groups(route, len(x))
        each = [self.vectors(t, len(places)) for t, places in groups]
        order = torch.tensor([p for _, places in groups for p in places], device=x.device).argsort()
        return Running(rows, torch.cat([F.pad(v, (0, 0, 0, rows.more - v.shape[1])) for v in each])[order])

    def groups(self, route: Route, rows: int) -> list[tuple[Tenant | None, list[int]]]:
        if route.single is None and (route.length != rows or (route.shape is not None and len(route.shape) > 1)):
            raise Unfit(
                f"{self.at.name}: a prompt stands in a row, and the route names {counted(route.length, 'reader')} for "
                f"{counted(rows, 'row')}; give one reader per row",
                self.at.name,
            )
        return [(route.single, [*range(rows)])] if route.single is not None else route.groups

    def each(self, route: Route, rows: int) -> tuple[list[int], list[bool]]:
        """Of each row: how many vectors stand in front, and whether the first leads."""
        sizes, leads = [0] * rows, [False] * rows
        for tenant, places in self.groups(route, rows):
            entries = [] if tenant is None else tenant.table.get(self.at.name, [])
            with torch.no_grad():
                size = sum(e.bind.places(**e.slots(None)) for e in entries)
            first = any(getattr(getattr(e.bind, "bind", e.bind), "leads", False) for e in entries)
            for p in places:
                sizes[p], leads[p] = size, first
        return sizes, leads

    def vectors(self, tenant: Tenant | None, rows: int) -> Tensor:
        """(rows, m, d) of one tenant, or of several as one; (rows, 0, d) where it has no prompt."""
        entries = [] if tenant is None else tenant.table.get(self.at.name, [])
        weight: Any = self.at.table.weight
        if not entries:
            return torch.zeros(rows, 0, self.at.table.embedding_dim, device=weight.device)
        dtype = weight.dtype if weight.is_floating_point() else torch.float32
        tokens = torch.cat([e.bind.front(**e.slots(dtype)) for e in entries], -2).to(weight.device, dtype)
        tokens = tokens if tokens.dim() == 3 else tokens[None]
        return tokens.repeat_interleave(rows // len(tokens), 0)
