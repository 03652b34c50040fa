"""What runs at a site. Callable objects, not lambdas: a deep copy of a model reads the copy's tenants."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from ..bind import Copy, Entries, active
from ..core import CommonweightError, counted
from . import skips
from .apart import Unfit
from .asked import beside
from .bypass import Bypass
from .carried import bare
from .change import changed
from .checkpoints import Replay
from .current import Current
from .framed import Framed, rows_first
from .frozen import copied, own_forward, together
from .limit import Limit
from .route import Bucket, Layout, Route, size
from .seat import Places, of_one
from .sites import Block, Physical
from .skips import NEIGHBOURS, Skip, in_rows, replaced, shorter
from .stacks import stack
from .straight import Straight
from .tenant import Entry, Tenant, takes_input
from .tokens_first import Turned, one_stream, straight
from .told import told_rows
from .weights import plain

LinAlgError = torch.linalg.LinAlgError


class SiteHook:
    """Before and after one module's forward. Base only: one attribute read and a comparison each."""

    def __init__(self, physical: Physical, current: Current, of_images: bool = False, turned: Turned = straight):
        self.at, self.current, self.of_images, self.turned = physical, current, of_images, turned
        self.limit: Limit | None = None  # of the head that scores the vocabulary
        self.last: Any = None  # who read in the last forward here that was not within a backward pass
        self.entry = physical.entry if isinstance(physical, Block) else None  # whose input is read, if another's
        self.states = beside(physical, current, turned)
        self.bypass = Bypass(physical, current) if isinstance(physical, Block) and physical.kind == "block" else None
        self.apart = not any(isinstance(m, NEIGHBOURS) for m in physical.module.modules())
        self.plain = physical.kind == "linear" and (
            type(physical.module) is nn.Linear or type(physical.module).__name__ == "Conv1D"
        )
        self.regrouped = ".experts." in physical.name
        self.packed = self.at.kind == "linear" and type(physical.module).__module__ == "bitsandbytes.nn.modules"

    def install(self) -> list[Any]:
        if self.at.slot != "weight" or self.at.kind == "parameter":  # read through its door
            return []
        after = self.at.module.register_forward_hook(self, with_kwargs=True)
        if self.states is not None:
            return [*self.states.install(), after]
        if isinstance(self.at, Block):
            begin = (self.entry or self.at.module).register_forward_pre_hook(self.enter, with_kwargs=True)
            bypass = [] if self.bypass is None else [self.bypass]
            return [*Framed(self.at, self.current).install(), begin, after, *bypass]
        if self.at.kind != "linear" or self.at.forms != "all":  # a change of the input is one of the weight there
            return [after]
        return [self.at.module.register_forward_pre_hook(self.before, with_kwargs=True), after]

    def enter(self, module: nn.Module, args: tuple, kwargs: dict | None = None) -> Any:
        """A block or a part of one begins: what a part is given waits for its end, which runs in the same thread; so
        does what some tokens skip, see `skips`."""
        route = self.current.route
        if self.bypass is not None:
            self.bypass.copied(module)
        if route is None or not route.touches(self.at.name):
            return None
        waiting = self.current.thread.given_to
        x = rows_first(waiting.pop(self.at.name, None), self.input(args, kwargs or {}))
        if self.entry is not None:
            waiting[self.at.name] = x
        if (gates := self.gates(route, self.turned(x))) is None:
            return None
        if self.turned is not straight:
            one_stream(self.at.name, module, args, kwargs or {})
        waiting[self.at.name] = skip = self.skip(route, x, gates, (args, kwargs or {}))
        if skip.given is x:
            return None
        given = shorter(skip, args, kwargs or {})
        return given[0] if kwargs is None else given

    def gates(self, route: Route, x: Tensor) -> Tensor | None:
        """What share of the module each token gets, (..., 1); None where no reader has a gate here."""
        if self.current.thread.complete:
            return None
        there = self.current.there(self.at.name, x)
        if route.single is not None:
            if not any(e.opens for e in route.single.table[self.at.name]):
                return None
            at = of_one(self.at, route, x, self.current)
            return self.opened(route.single.table[self.at.name], x, there, at)
        if not any(e.opens for t, _ in route.groups if t is not None for e in t.table.get(self.at.name, [])):
            return None
        folded, layout = self.layout(route, x)
        known = x.new_ones(*x.shape[:-1], 1) if there is None else there[..., None]
        run = partial(self.some_opened, places=Places.of(self.at, route, x, self.current))
        return self.by_bucket(layout, folded, route.fold(known)[0], run, x)  # type: ignore[index]

    def opened(self, entries: list[Entry], x: Tensor, there: Tensor | None, at: Any) -> Tensor:
        skips.readable(self.at, x)
        found = [e.opens(x, at, there, **e.slots(x.dtype)) for e in entries if e.opens is not None]
        return torch.stack(found).prod(0)[..., None]

    def some_opened(self, bucket: Bucket, x: Tensor, there: Tensor, places: Places | None) -> Tensor:
        """Of a bucket: `there` is (..., 1)."""
        entries = bucket.entries[0]
        if not any(e.opens for e in entries):
            return torch.ones_like(there)
        at = self.at if places is None else places.seat(self.at, bucket, self.current.thread.heard)
        if len(bucket.entries) == 1:
            self.tokenwise(bucket, x)
            return self.opened(entries, x, there[..., 0].bool(), at)
        skips.readable(self.at, x)
        stacked = self.stacked(bucket, x.dtype, x[0].numel() // x.shape[-1])
        n = x.shape[0]
        given = x.reshape(n, -1, x.shape[-1]), there.reshape(n, -1).bool()
        return entries[0].opens(given[0], at, given[1], **stacked).view(there.shape)  # type: ignore[misc]

    def skip(self, route: Route, x: Tensor, gates: Tensor, given: tuple) -> Skip:
        at = self.at
        assert isinstance(at, Block)
        if at.kind == "block":
            cached = any(hasattr(v, "get_seq_length") for v in pytree.tree_leaves(given))
            first, spare = self.turned(x), self.bypass is not None and self.bypass.fits(*given)
            there, mixed = self.current.there(at.name, first), route.single is None
            skip = skips.block(at, first, gates, there, mixed, cached, spare, first is not x)
            return skip if first is x else skip._replace(x=x, given=x, gates=self.turned(gates))
        home = f"{at.name}." if self.entry is None else f"{at.name.rpartition('.')[0]}."
        key = ("inside", at.name)
        if route.single is None and key not in route.kept:
            read = {n for t, _ in route.groups if t is not None for n in t.table} - {at.name}
            route.kept[key] = any(n.startswith(home) for n in read)
        return skips.part(x, self.turned(gates), whole=not self.apart or (route.single is None and route.kept[key]))

    def before(self, module: nn.Module, args: tuple, kwargs: dict | None = None) -> Any:
        """kwargs: None where another library hands the hook on to a module that it puts in this one's place."""
        if module is not self.at.module:
            copied(self.at, module, self.current)
        route = self.current.route
        if route is None:
            return together(module, args, kwargs)
        alone, kwargs, route = kwargs is None, kwargs or {}, self.readers(route)
        given_x = self.input(args, kwargs)
        x = bare(given_x)
        if route.single is not None:
            entries = route.single.table.get(self.at.name, [])
            changed = self.transform(entries[0], x) if takes_input(entries) else x
        elif not route.touches(self.at.name):
            return together(module, args, None if alone else kwargs)
        else:
            seen = self.turned(x)
            folded, layout = self.layout(route, seen)
            run = partial(self.by_bucket, layout, folded, folded, self.transformed, seen)
            changed = self.turned(run()) if layout.inputs else x
        if changed is x:
            return together(module, args, None if alone else kwargs)
        given = (changed, *args[1:]) if args else ()
        return given if alone else (given, {k: changed if v is given_x else v for k, v in kwargs.items()})

    def input(self, args: tuple, kwargs: dict) -> Tensor:
        x = args[0] if args else next((v for v in kwargs.values() if isinstance(v, Tensor)), None)
        if x is None:
            raise CommonweightError(f"{self.at.name}: it was called without a tensor; a tenant cannot read here")
        return x

    def layout(self, route: Route, x: Tensor) -> tuple[Tensor, Layout]:
        folded = None if x.is_nested or not self.known_rows(route, x) else route.fold(x)
        if folded is None or (self.regrouped and route is not self.current.thread.given):
            shape = "nested" if x.is_nested else tuple(self.at.given(x).shape)
            why = "its tokens are regrouped" if self.regrouped else f"its input is {shape}"
            raise Unfit(
                f"{self.at.name}: the route names {counted(route.length, 'reader')}, {why}; give one reader per row, "
                "or a LongTensor of one number per token",
                self.at.name,
            )
        rows = route.length if route.shape is None else route.shape[0]
        if route.order is not None and not route.order.holds(self.at.name, folded[0], rows):
            raise Unfit(
                f"{self.at.name}: what it is given are not the batch's rows in their order; route one tenant",
                self.at.name,
            )
        by_row = folded[1] and not self.regrouped  # rows of an expert are tokens, many of one reader
        return folded[0], route.layout(self.at.name, by_row, x.device, self.at)

    def readers(self, route: Route) -> Route:
        """The route of what comes to this site: within an expert of a list, that of the tokens that it was given."""
        given = self.current.thread.given if self.regrouped else None
        return route if given is None or route.single is not None else given

    def known_rows(self, route: Route, x: Tensor) -> bool:
        """Whether what a site sees first are the batch's rows. A convolution reads its neighbours: it has no tokens."""
        seen = route.images or not self.of_images
        return seen and self.at.rows_of(x) and (self.at.tokens or route.shape is None)

    def transform(self, entry: Entry, x: Tensor) -> Tensor:
        return entry.inputs(x, self.at.rows(entry.rows), **entry.slots(x.dtype))  # type: ignore[misc]

    def __call__(self, module: nn.Module, args: tuple, kwargs: Any, *output: Any) -> Any:
        y, kwargs = (output[0], kwargs) if output else (kwargs, {})  # handed on as in `before`
        route = self.current.route
        if not torch.compiler.is_compiling():
            self.last = recomputed(self.at.name, self.current, self.last)
        if route is None:
            return None if self.limit is None or self.limit.own is None else self.limit(None, y)
        if isinstance(self.at, Block) and not route.touches(self.at.name):
            return None
        if self.states is not None:
            waiting = self.states.collected(route, y)
        else:
            waiting = self.current.thread.given_to.pop(self.at.name, None) if isinstance(self.at, Block) else None
        skip = waiting if isinstance(waiting, Skip) else None
        x = skip.x if skip is not None else self.input(args, kwargs) if waiting is None else waiting
        x, route = self.at.seen(bare(x)), self.readers(route)
        if self.at.alone and (len(args) + len(kwargs) > 1) and route.touches(self.at.name):
            raise CommonweightError(
                f"{self.at.name}: it was called with an output_size, which what a tenant adds cannot follow; leave "
                "this site out"
            )
        if self.limit is not None and isinstance(y, Tensor):
            return self.limit(route, self.after(route, x, self.linked(x, y)))
        at, listed = 0 if isinstance(y, tuple) else None, False
        if isinstance(self.at, Block):
            came = x if skip is None else skip.given
            at = self.at.main(came, y)
            y, listed = in_rows(y, at, came)
        if skip is not None:
            if self.bypass is not None:
                self.bypass.note(skip, y, at)
            main: Any = y if at is None else y[at]
            y = replaced(y, at, skip.back(main, self.at.name, self.at.kind == "block"))
        if listed:
            main = y if at is None else y[at]
            return replaced(y, at, self.after(route, x, self.linked(x, main)).flatten(0, -2))
        if at is not None:
            return replaced(y, at, self.after(route, x, self.linked(x, y[at])))
        return self.at.given(self.after(route, x, self.at.seen(self.linked(x, y))))  # type: ignore[arg-type]

    def form(self, entry: Entry) -> Callable | None:
        """The bind's fast form on the output, where it holds at this kind of site."""
        return entry.output if self.at.holds(entry.bind) else None

    def linked(self, x: Tensor, y: Tensor) -> Tensor:
        """The output of a packed layer that hands no gradient to its input, with the one of its dequantised weight."""
        if not x.requires_grad or y.requires_grad or not torch.is_grad_enabled() or self.at.exact:
            return y
        return Straight.apply(x, y, self.at)  # type: ignore[return-value]

    def after(self, route: Route, x: Tensor, y: Tensor) -> Tensor:
        if self.turned is straight or not route.touches(self.at.name):
            return self.of_readers(route, x, y)
        return self.turned(self.of_readers(route, self.turned(x), self.turned(y)))

    def of_readers(self, route: Route, x: Tensor, y: Tensor) -> Tensor:
        """What the readers make of the output; rows first."""
        if route.single is not None:
            entries = route.single.table.get(self.at.name)
            if entries is None:
                return y
            at = of_one(self.at, route, x, self.current, y)
            try:
                if torch.is_grad_enabled() and len(entries) == 1:
                    if self.owns_output():
                        return self.trained(entries[0], x, y, at)
                    if self.packed:  # what these answer is a view of a function's output, not to be written over
                        return self.trained(entries[0], x, y.clone(), at)
                return self.apply(entries, x, y, at)
            except LinAlgError as e:
                return self.ill(route.single, y, e)
        if not route.length or not route.touches(self.at.name):
            return y
        folded, layout = self.layout(route, x)
        places = Places.of(self.at, route, x, self.current, y)
        run = self.mixed if places is None else partial(self.mixed, places=places)
        return self.by_bucket(layout, folded, route.fold(y)[0], run, y)  # type: ignore[index]

    def apply(self, entries: list[Entry], x: Tensor, y: Tensor, at: Physical) -> Tensor:
        """All uses of one tenant at this site, in order. at: the site as they see it."""
        if len(entries) == 1 and entries[0].rows is None:
            entry = entries[0]
            if (form := self.form(entry)) is not None:
                return form(x, y, at, **entry.slots(active(x, y)))
            return y if entry.inputs is not None and self.at.forms == "all" else self.reference(entries, x, y)
        if any(self.form(e) is None or e.inputs is not None for e in entries) or reads_own(entries):
            return self.reference(entries, x, y)
        for entry in entries:
            base = at.rows(entry.rows)
            if entry.rows is None:
                y = entry.output(x, y, base, **entry.slots(active(x, y)))  # type: ignore[misc]
            else:
                a, b = entry.rows
                part = entry.output(x, y[..., a:b], base, **entry.slots(active(x, y)))  # type: ignore[misc]
                y = torch.slice_scatter(y, part, -1, a, b)
        return y

    def trained(self, entry: Entry, x: Tensor, y: Tensor, at: Physical) -> Tensor:
        """`apply` where a graph is made and y is the module's own new output."""
        if entry.trained is None or entry.rows is not None:
            return self.apply([entry], x, y, at)
        return entry.trained(x, y, at, self.product(x), **entry.slots(x.dtype))

    def product(self, x: Tensor) -> Tensor | None:
        """The frozen weight, (out, inp), of which the module's output is x weight^T + bias; None where more is done."""
        parameters = self.at.module._parameters
        w, b = parameters.get("weight"), parameters.get("bias")
        if w is None or not plain(w) or w.requires_grad or (b is not None and b.requires_grad):
            return None
        if w.dtype is not x.dtype or w.device != x.device:
            return None
        return w.T if self.at.transposed else w

    def reference(self, entries: list[Entry], x: Tensor, y: Tensor) -> Tensor:
        """The weight form: the module's own mathematics with changed numbers. A packed layer computes with codes: there
        it is what the layer answers and what the change adds, so that no change is none to the bit."""
        w, b = changed(self.at, entries)
        if not self.at.exact:
            w, b = w - self.at.weight.to(w), None if b is None else b - self.at.bias  # type: ignore[operator]
            return y + self.at.call(x, w.to(x), None if b is None else b.to(x)).to(y.dtype)
        like = x if x.is_floating_point() else y
        return self.at.call(x, w.to(like), None if b is None else b.to(like))

    def by_bucket(self, layout: Layout, x: Tensor, y: Tensor, run: Callable, like: Tensor) -> Tensor:
        """`run(bucket, x, y)` on every bucket's places, and the results in the order and shape of the batch."""
        parts = []
        for bucket in layout.buckets:
            w = bucket.where
            parts.append(self.sound(run, bucket, x if w is None else x[w], y if w is None else y[w]))
        out = parts[0] if layout.order is None else self.widened(parts).index_select(0, layout.order)
        return out.reshape(*like.shape[:-1], out.shape[-1])

    def sound(self, run: Callable, bucket: Bucket, x: Tensor, y: Tensor) -> Tensor:
        """`run`, and where a tenant's numbers have no factorisation, that tenant's rows alone end as NaN."""
        try:
            return run(bucket, x, y)
        except LinAlgError as e:
            if len(bucket.entries) > 1:
                readers = range(len(y)) if bucket.reader is None else bucket.reader.tolist()
                alone = [Bucket([bucket.tenants[r]], [bucket.entries[r]], None, None, {}) for r in readers]
                return torch.cat([self.sound(run, b, x[i : i + 1], y[i : i + 1]) for i, b in enumerate(alone)])
            return self.ill(bucket.tenants[0], y, e)  # type: ignore[arg-type]

    def ill(self, tenant: Tenant, y: Tensor, error: Exception) -> Tensor:
        """NaN where the tenant's own pools are not finite; else what went wrong, under the tenant's name."""
        if all(bool(p.isfinite().all()) for p in tenant.pools.values() if p.is_floating_point()):
            raise CommonweightError(
                f"{self.at.name}: tenant {tenant.name!r} ({tenant.method.name}): {error}"
            ) from error
        return torch.full_like(y, float("nan"))

    def transformed(self, bucket: Bucket, x: Tensor, _: Tensor) -> Tensor:
        entries = bucket.entries[0]
        return self.transform(entries[0], x) if takes_input(entries) else x

    def mixed(self, bucket: Bucket, x: Tensor, y: Tensor, places: Places | None = None) -> Tensor:
        """A bucket of one tenant by its own form; of several, one batched product for all of them."""
        if not bucket.entries[0]:
            return y
        at = self.at if places is None else places.seat(self.at, bucket, self.current.thread.heard)
        if len(bucket.entries) == 1:
            if getattr(at, "there", None) is None:
                self.tokenwise(bucket, y)
            return self.apply(bucket.entries[0], x, y, at)
        stacked = self.stacked(bucket, active(x, y), x[0].numel() // x.shape[-1])
        if bucket.where is None and not (torch.is_grad_enabled() or self.owns_output()):
            y = y.clone()
        n, grouped = x.shape[0], bucket.entries[0][0].grouped
        x = x.reshape(n, -1, x.shape[-1]) if self.at.forms == "all" else x
        out = grouped(x, y.reshape(n, -1, y.shape[-1]), at, **stacked)  # type: ignore[misc]
        return out.view(y.shape)

    def owns_output(self) -> bool:
        """Whether the module's output is a new tensor that no other hook was given before: it may be written over."""
        return (
            self.plain
            and own_forward(self.at.module)
            and not torch.compiler.is_compiling()
            and next(iter(self.at.module._forward_hooks.values()), None) is self
        )

    def stacked(self, bucket: Bucket, dtype: torch.dtype, tokens: int) -> dict[str, Tensor]:
        """Per place, the slots in one tensor each. A pass over new rows lays them into memory that the next site uses
        again; a second pass on the same route, or a first one of one token a row, which is a step of many, keeps them
        while it is open, nobody trains and no pool is written."""
        uses = [e[0] for e in bucket.entries]
        if torch.is_grad_enabled() or torch.compiler.is_compiling():
            return stack(uses, dtype, bucket.reader)
        if "pools" not in bucket.kept:
            bucket.kept["pools"] = [p for e in uses for _, _, read in e.reads for p in read]
            if tokens > 1:
                return stack(uses, dtype, bucket.reader, self.current.room)
        try:
            written = [(p._version, p.data_ptr()) for p in bucket.kept["pools"]]
        except RuntimeError:  # pools made in inference mode do not count their writes
            return stack(uses, dtype, bucket.reader, self.current.room)
        if bucket.kept.get("written") != (written, dtype):
            bucket.kept.update(written=(written, dtype), slots=stack(uses, dtype, bucket.reader))
        return bucket.kept["slots"]

    def tokenwise(self, bucket: Bucket, y: Tensor) -> None:
        if y.dim() < 3 and not all(e.context or getattr(e.bind, "tokenwise", True) for e in bucket.entries[0]):
            tenant = bucket.tenants[0]
            raise CommonweightError(
                f"{self.at.name}: tenant {tenant.name!r} ({tenant.method.name}) edits positions of a sequence; "  # type: ignore[union-attr]
                "route it per row, not per token"
            )

    def widened(self, parts: list[Tensor]) -> Tensor:
        """The parts in one; heads of different widths are padded with -inf."""
        width = max(p.shape[-1] for p in parts)
        if any(p.shape[-1] != width for p in parts):
            if self.at.kind != "head":
                raise CommonweightError(f"{self.at.name}: the readers' outputs differ in width")
            parts = [nn.functional.pad(p, (0, width - p.shape[-1]), value=float("-inf")) for p in parts]
        return torch.cat(parts)


def reads_own(entries: list[Entry]) -> bool:
    """Whether a fast form would read the base's weight where the tenant has one of its own."""
    return isinstance(entries[0].bind, Copy | Entries) and any(not getattr(e.bind, "anywhere", "") for e in entries)


def recomputed(name: str, current: Current, last: Any) -> Any:
    """Who reads now, for `last` of the next pass; `last` itself within a backward pass.

    A forward there is a checkpoint's, whose gradients are wrong under another route than that of its forward. torch's
    own keep their route, see `checkpoints`; others are held against the last forward.
    """
    readers = None if current.route is None else current.route.readers
    if torch._C._current_graph_task_id() == -1:
        return last if current.thread.answering is not None else readers
    if readers != last and not current.replayed and current.thread.answering is None:
        raise CommonweightError(
            f"{name}: a checkpoint recomputes it in backward, where the route of its forward is not in "
            "force; run backward inside the host.route(...) of its forward, right after it, or use "
            "torch.utils.checkpoint, which keeps its route"
        )
    return last


@torch.compiler.disable(
    reason="a route is a context variable: make the host before torch.compile, and compile host.model itself"
)
def bring(current: Current, module: nn.Module, found: tuple[int, int] | None) -> None:
    """Where the model is a part of what is compiled: one break of the graph, before it."""
    current.bring(found)
    arrive(module, found, compiled=True)


WATCH = "_commonweight_watch"  # what a hooked model keeps to be told of its passes: `doors.Doors.arrive`


def arrive(module: nn.Module, found: tuple[int, int] | None, compiled: bool = False) -> None:
    if (watch := module.__dict__.get(WATCH)) is not None:
        watch(found, compiled)


class ModelHook:
    """Before the whole model: checkpoints learn to keep their route, and the number of rows must be the route's."""

    def __init__(self, model: nn.Module, current: Current):
        self.current = current
        self.checkpointed = [m for m in model.modules() if hasattr(m, "gradient_checkpointing")]

    def __call__(self, module: nn.Module, args: tuple, kwargs: dict) -> None:
        found = size(args, kwargs)
        if torch.compiler.is_compiling():
            if not self.current.thread.brought:
                bring(self.current, module, found)
            return self.told(module, args, kwargs, found)
        self.current.bring(found)
        self.current.thread.begin(module, args, kwargs)
        try:
            self.keep_routes()
            arrive(module, found)
            self.told(module, args, kwargs, found)
        except BaseException:  # the forward, which ends the pass, does not run
            self.current.thread.run.end()
            raise

    def told(self, module: nn.Module, args: tuple, kwargs: dict, found: tuple[int, int] | None) -> None:
        if (heard := self.current.thread.heard) is not None:
            heard.begin(module, args, kwargs)
        told_rows(self.current.route, module, kwargs, found)

    def keep_routes(self) -> None:
        for m in self.checkpointed:
            function = getattr(m, "_gradient_checkpointing_func", None)
            if function is not None and not isinstance(function, Replay):
                m._gradient_checkpointing_func = Replay(function, self.current)  # type: ignore[assignment]
