"""Prompts in the rows of an encoder, as further positions of the pass.

There a prompt reads the row, so that it is no prefix of keys and values (`front`): its vectors stand behind the row's,
with position ids in front of them, and what comes out at their columns is cut away. A row's own columns stay where they
are, so that a pooler finds the row's first token, and shorter prompts are padded behind and masked. Attention goes by
position ids alone, so that the order of columns says nothing.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils import _pytree as pytree

from ..core import CommonweightError, counted
from .apart import Unfit
from .current import Current
from .entrances import Entrance
from .route import Route
from .sites import Further, parameters
from .tenant import Tenant


class Longer(NamedTuple):
    """vectors: of the prompts, (B, M, d), with their positions. see: which of them are there, (B, M); None: all.
    leads: of which rows the first one has changed places with the row's first token, (B,); None: of none. mask: of the
    longer rows, (B, T + M); None: all is there."""

    vectors: Tensor
    see: Tensor | None
    leads: Tensor | None
    mask: Tensor | None

    def joined(self, x: Tensor, more: Tensor) -> Tensor:
        """x (B, T, ...) with more (B, M, ...) behind it, the first of both exchanged in rows that lead."""
        if self.leads is not None:
            leads = self.leads.view(-1, *[1] * (x.dim() - 1))
            mine, its = x[:, :1], more[:, :1]
            x = torch.cat([torch.where(leads, its, mine), x[:, 1:]], 1)
            more = torch.cat([torch.where(leads, mine, its), more[:, 1:]], 1)
        return torch.cat([x, more], 1)

    def cut(self, y: Any, tokens: int) -> Any:
        """Results without what belongs to prompts: states (B, T + M, d), attention (B, heads, T + M, keys)."""
        long = tokens + self.vectors.shape[1]

        def part(v: Any) -> Any:
            if not isinstance(v, Tensor) or v.dim() not in (3, 4) or v.shape[v.dim() - 2] != long:
                return v
            return v[..., :tokens, :]

        return pytree.tree_map(part, y)


class FurtherForward(Entrance):
    """The encoder's forward: rows and their mask get longer, results as short as the input. Base only: one comparison.

    Of the whole model it stands within the entrance that may run it reader by reader (over)."""

    name = "forward"

    def __init__(self, at: Further, current: Current, over: Entrance | None = None):
        super().__init__(at.module, current)
        self.at, self.over = at, over
        self.ids = {"input_ids": None} if "input_ids" in parameters(at.embeds) else {}  # DistilBERT's has no default

    def install(self) -> None:
        if self.over is None:
            return super().install()
        self.before, self.over.before = self.over.before, self

    def remove(self) -> None:
        if self.over is not None and self.over.before is self:
            self.over.before = self.before
        super().remove()  # what stood over it may have gone, and left it in its place

    def hooks(self) -> list[Any]:
        """Installs it, and the hook on what makes vectors of tokens."""
        self.install()
        return [self, self.at.embeds.register_forward_hook(self.embedded)]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        route = self.current.route
        if route is None or not route.touches(self.at.name):
            return self.own(*args, **kwargs)
        return self.lengthened(args, kwargs)

    @torch.compiler.disable(reason="how long rows become is known only while it runs")
    def lengthened(self, args: tuple, kwargs: dict) -> Any:
        route, thread = self.current.route, self.current.thread
        assert route is not None
        named = {**dict(zip(parameters(self.model), args)), **kwargs}
        ids = named.get("input_ids")
        x = named.get("inputs_embeds") if ids is None else ids
        if not isinstance(x, Tensor):
            return self.own(*args, **kwargs)
        thread.run.longer[self.at.name] = found = self.longer(route, x, named.get("attention_mask"))
        return found.cut(self.own(**{**named, "attention_mask": found.mask}), x.shape[1])

    def embedded(self, module: nn.Module, args: tuple, y: Any) -> Any:
        """After the row's own tokens have become vectors."""
        route, found = self.current.route, self.current.thread.run.longer.get(self.at.name)
        if route is None or found is None or not route.touches(self.at.name):
            return None
        return found.joined(y, found.vectors.to(y))

    def longer(self, route: Route, x: Tensor, mask: Any) -> Longer:
        """Of a pass with input x (B, T). Cost: the prompts' vectors, once."""
        rows = x.shape[0]
        if route.single is None and (route.length != rows or (route.shape is not None and len(route.shape) > 1)):
            raise Unfit(
                f"{self.at.name}: a prompt stands in a row, and the route names {counted(route.length, 'reader')} for "
                f"{counted(rows, 'row')}; give one reader per row",
                self.at.name,
            )
        if mask is not None and (not isinstance(mask, Tensor) or mask.shape != x.shape[:2]):
            raise CommonweightError(
                f"{self.at.name}: the attention_mask is {tuple(getattr(mask, 'shape', ()))}, and a prompt makes rows "
                f"longer; wanted one number for each token, {tuple(x.shape[:2])}"
            )
        groups = [(route.single, [*range(rows)])] if route.single is not None else route.groups
        each = [self.vectors(t, len(places)) for t, places in groups]
        width = max(v.shape[-1] for v in each)
        sizes = [v.shape[1] for v in each]
        order = torch.tensor([p for _, places in groups for p in places], device=x.device).argsort()
        of = torch.tensor([i for i, (_, places) in enumerate(groups) for _ in places], device=x.device)[order]
        padded = [F.pad(v, (0, width - v.shape[2], 0, max(sizes) - v.shape[1])) for v in each]
        vectors = torch.cat(padded)[order]
        see = None
        if min(sizes) < max(sizes):
            many = torch.tensor(sizes, device=x.device)[of]
            see = torch.arange(max(sizes), device=x.device) < many[:, None]
        leads = [self.leads(t) for t, _ in groups]
        out = Longer(vectors, see, torch.tensor(leads, device=x.device)[of] if any(leads) else None, None)
        if mask is None and see is None:
            return out
        mine = torch.ones(x.shape[:2], dtype=torch.long, device=x.device) if mask is None else mask
        more = torch.ones_like(vectors[..., 0], dtype=torch.bool) if see is None else see
        return out._replace(mask=out.joined(mine, more.to(mine)))

    def vectors(self, tenant: Tenant | None, rows: int) -> Tensor:
        """(rows, m, d) of one tenant, or of several as one; (rows, 0, 0) where it has no prompt."""
        entries = [] if tenant is None else tenant.table.get(self.at.name, [])
        weight: Any = self.at.flagged.weight
        if not entries:
            return torch.zeros(rows, 0, 0, device=weight.device)
        dtype = weight.dtype if weight.is_floating_point() else torch.float32
        tokens = torch.cat([e.bind.front(**e.slots(dtype)) for e in entries], -2).to(weight.device, dtype)
        tokens = tokens if tokens.dim() == 3 else tokens[None]
        tokens = tokens.repeat_interleave(rows // len(tokens), 0)
        thread = self.current.thread
        before, thread.recording = thread.recording, {}  # they stand in front: nothing moves them
        try:
            with self.current.within(Route(single=tenant)):
                return self.at.embeds.forward(**{**self.ids, "inputs_embeds": tokens})
        finally:
            thread.recording = before

    def leads(self, tenant: Tenant | None) -> bool:
        entries = [] if tenant is None else tenant.table.get(self.at.name, [])
        return any(getattr(getattr(e.bind, "bind", e.bind), "leads", False) for e in entries)
