"""What runs at a site. Callable objects, not lambdas: a deep copy of a model reads the copy's tenants."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..core import CommonweightError
from .route import Bucket, Current, Layout, Route
from .sites import Physical
from .tenant import Entry, takes_input

if TYPE_CHECKING:
    from torch.utils.hooks import RemovableHandle


class SiteHook:
    """Before and after one module's forward. Base only: one attribute read and a comparison each."""

    def __init__(self, physical: Physical, current: Current):
        self.at, self.current = physical, current

    def install(self) -> list[RemovableHandle]:
        after = self.at.module.register_forward_hook(self)
        if self.at.kind != "linear":
            return [after]
        return [self.at.module.register_forward_pre_hook(self.before), after]

    def before(self, module: nn.Module, args: tuple) -> tuple | None:
        route = self.current.route
        if route is None:
            return None
        if route.single is not None:
            entries = route.single.table.get(self.at.name, [])
            return (self.transform(entries[0], args[0]), *args[1:]) if takes_input(entries) else None
        x = args[0]
        layout = self.layout(route, x)
        return (self.by_bucket(layout, route, x, x, self.transformed), *args[1:]) if layout.inputs else None

    def layout(self, route: Route, x: Tensor) -> Layout:
        return route.layout(self.at.name, x.shape[0] == route.length, x.device)

    def transform(self, entry: Entry, x: Tensor) -> Tensor:
        return entry.inputs(x, self.at.rows(entry.rows), **entry.slots(x.dtype))  # type: ignore[misc]

    def __call__(self, module: nn.Module, args: tuple, y: Any) -> Any:
        route = self.current.route
        if route is None:
            return None
        if isinstance(y, tuple):
            edited = self.after(route, args[0] if args else y[0], y[0])
            return (edited, *y[1:])
        return self.after(route, args[0] if args else y, y)

    def after(self, route: Route, x: Tensor, y: Tensor) -> Tensor:
        if route.single is not None:
            entries = route.single.table.get(self.at.name)
            return y if entries is None else self.apply(entries, x, y)
        layout = self.layout(route, x)
        return self.by_bucket(layout, route, x, y, self.mixed) if layout.touched else y

    def apply(self, entries: list[Entry], x: Tensor, y: Tensor) -> Tensor:
        """All uses of one tenant at this site, in order."""
        if len(entries) == 1 and entries[0].rows is None:
            entry = entries[0]
            if entry.output is not None:
                return entry.output(x, y, self.at, **entry.slots(x.dtype))
            return y if entry.inputs is not None else self.reference(entries, x)
        if any(e.output is None or e.inputs is not None for e in entries):
            return self.reference(entries, x)
        for entry in entries:
            base = self.at.rows(entry.rows)
            if entry.rows is None:
                y = entry.output(x, y, base, **entry.slots(x.dtype))  # type: ignore[misc]
            else:
                a, b = entry.rows
                part = entry.output(x, y[..., a:b], base, **entry.slots(x.dtype))  # type: ignore[misc]
                y = torch.slice_scatter(y, part, -1, a, b)
        return y

    def reference(self, entries: list[Entry], x: Tensor) -> Tensor:
        """The weight form: the module's own mathematics with changed numbers."""
        w, b = changed(self.at, entries)
        b = b if b is None else b.to(x.dtype)
        return self.at.call(x, w.to(x.dtype), b)

    def by_bucket(self, layout: Layout, route: Route, x: Tensor, y: Tensor, run: Callable) -> Tensor:
        """`run(bucket, x, y)` on every bucket's places, and the results back in the order of the batch."""
        fx = self.spread(route, x)
        fy = fx if x is y else self.spread(route, y)
        parts = []
        for bucket in layout.buckets:
            w = bucket.where
            parts.append(run(bucket, fx if w is None else fx[w], fy if w is None else fy[w]))
        out = parts[0] if layout.order is None else self.widened(parts).index_select(0, layout.order)
        return out.reshape(*y.shape[:-1], out.shape[-1])

    def transformed(self, bucket: Bucket, x: Tensor, _: Tensor) -> Tensor:
        entries = bucket.entries[0]
        return self.transform(entries[0], x) if takes_input(entries) else x

    def mixed(self, bucket: Bucket, x: Tensor, y: Tensor) -> Tensor:
        """A bucket of one tenant by its own form; of several, one batched product for all of them."""
        if not bucket.entries[0]:
            return y
        if len(bucket.entries) == 1:
            self.tokenwise(bucket, y)
            return self.apply(bucket.entries[0], x, y)
        stacked = self.stacked(bucket, x.dtype)
        n, grouped = x.shape[0], bucket.entries[0][0].grouped
        out = grouped(x.reshape(n, -1, x.shape[-1]), y.reshape(n, -1, y.shape[-1]), self.at, **stacked)  # type: ignore[misc]
        return out.view(y.shape)

    def stacked(self, bucket: Bucket, dtype: torch.dtype) -> dict[str, Tensor]:
        """Per place, the slots in one tensor each; kept while the route is open, nobody trains, no pool is written."""
        uses = [e[0] for e in bucket.entries]
        pools = bucket.kept.get("pools")
        if torch.is_grad_enabled() or torch.compiler.is_compiling():
            return stack(uses, dtype, bucket.reader)
        if pools is None:
            pools = bucket.kept["pools"] = [p for e in uses for _, _, read in e.reads for p in read]
        try:
            written = sum([p._version for p in pools])
        except RuntimeError:  # pools made in inference mode do not count their writes
            return stack(uses, dtype, bucket.reader)
        if bucket.kept.get("written") != (written, dtype):
            bucket.kept.update(written=(written, dtype), slots=stack(uses, dtype, bucket.reader))
        return bucket.kept["slots"]

    def tokenwise(self, bucket: Bucket, y: Tensor) -> None:
        if y.dim() < 3 and not all(getattr(e.bind, "tokenwise", True) for e in bucket.entries[0]):
            tenant = bucket.tenants[0]
            raise CommonweightError(
                f"{self.at.name}: tenant {tenant.name!r} ({tenant.method.name}) edits positions of a sequence; "  # type: ignore[union-attr]
                "route it per row, not per token"
            )

    def spread(self, route: Route, x: Tensor) -> Tensor:
        """x with the route's places first: as it is per row, flattened per token."""
        if x.shape[0] == route.length:
            return x
        if x.shape[:-1].numel() == route.length:
            return x.reshape(route.length, x.shape[-1])
        raise CommonweightError(
            f"{self.at.name}: the route names {route.length} readers, the batch has {x.shape[0]} rows"
            f" of shape {tuple(x.shape[1:])}; give one reader per row, or per token"
        )

    def widened(self, parts: list[Tensor]) -> Tensor:
        """The parts in one; heads of different widths are padded with -inf."""
        width = max(p.shape[-1] for p in parts)
        if any(p.shape[-1] != width for p in parts):
            if self.at.kind != "head":
                raise CommonweightError(f"{self.at.name}: the readers' outputs differ in width")
            parts = [nn.functional.pad(p, (0, width - p.shape[-1]), value=float("-inf")) for p in parts]
        return torch.cat(parts)


def stack(entries: list[Entry], dtype: torch.dtype, reader: Tensor | None) -> dict[str, Tensor]:
    """Every slot with a leading dimension, one per place; a read that all have in common is done and held once."""
    common = {
        slot: all(a is b for e in entries for a, b in zip(e.reads[i][2], pools)) and not pools[0].requires_grad
        for i, (slot, _, pools) in enumerate(entries[0].reads)
    }
    slots = [e.slots(dtype) for e in entries]
    n = len(entries) if reader is None else len(reader)
    out = {}
    for k, v in slots[0].items():
        if common[k]:
            out[k] = v.expand(n, *v.shape)
        else:
            each = torch.stack([s[k] for s in slots])
            out[k] = each if reader is None else each.index_select(0, reader)
    return out


def changed(at: Physical, entries: list[Entry]) -> tuple[Tensor, Tensor | None]:
    """(w', b') in float32, by the weight and bias forms, in order."""
    for entry in entries:  # first of all: a block has no weight to start from
        if getattr(entry.bind, "weight", None) is None:
            raise CommonweightError(
                f"{at.name}: {type(entry.bind).__name__} is no change of a weight; it cannot be merged"
            )
    w, b = at.weight.float(), at.bias
    b = None if b is None else b.float()
    for entry in entries:
        slots = entry.slots(None)
        form, bias = entry.bind.weight, getattr(entry.bind, "bias", None)
        if entry.rows is None:
            w = form(w, **slots)
            b = bias(b, **slots) if bias is not None and b is not None else b
        else:
            s = slice(*entry.rows)
            w = torch.slice_scatter(w, form(w[s], **slots), 0, *entry.rows)
            if bias is not None and b is not None:
                b = torch.slice_scatter(b, bias(b[s], **slots), 0, *entry.rows)
    return w, b


class Replay:
    """A checkpoint function that keeps its route: the recomputation happens in backward, maybe outside `route`,
    maybe in another thread."""

    def __init__(self, checkpoint: Callable, current: Current):
        self.checkpoint, self.current = checkpoint, current

    def __call__(self, function: Callable, *args: Any, **kwargs: Any) -> Any:
        return self.checkpoint(partial(self.run, self.current.route, function), *args, **kwargs)

    def run(self, route: Route | None, function: Callable, *args: Any, **kwargs: Any) -> Any:
        before, self.current.route = self.current.route, route
        try:
            return function(*args, **kwargs)
        finally:
            self.current.route = before


class ModelHook:
    """Before the whole model: checkpoints learn to keep their route, and the number of rows must be the route's."""

    def __init__(self, model: nn.Module, current: Current):
        self.current = current
        self.checkpointed = [m for m in model.modules() if hasattr(m, "gradient_checkpointing")]

    def __call__(self, module: nn.Module, args: tuple, kwargs: dict) -> None:
        if not torch.compiler.is_compiling():
            self.keep_routes()
        route = self.current.route
        if route is None or route.single is not None:
            return
        x = next((v for v in (*args, *kwargs.values()) if isinstance(v, Tensor) and v.dim() > 0), None)
        if x is not None and route.length not in (x.shape[0], x.shape[:2].numel()):
            raise CommonweightError(
                f"the route names {route.length} readers, the batch has {x.shape[0]} rows; "
                "give one reader per row (None for the plain base), or a LongTensor with one number per token"
            )

    def keep_routes(self) -> None:
        for m in self.checkpointed:
            function = getattr(m, "_gradient_checkpointing_func", None)
            if function is not None and not isinstance(function, Replay):
                m._gradient_checkpointing_func = Replay(function, self.current)  # type: ignore[assignment]
