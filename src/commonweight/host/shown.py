"""Statistics of rows at the sites of a host, for methods that begin from data."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..core import CommonweightError, Plan, Site, counted
from ..core.statistics import Grams, add_squared, rows_of, tokens
from ..methods import Method, get, head
from ..methods import plan as make_plan
from ..methods.shown import Shown, Statistics
from .roster import Roster
from .routes import routes
from .rows import finite, read_by_model, told, unscored
from .streams import Streams
from .tenant import Tenant
from .weights import device_of
from .within import head_width, within

if TYPE_CHECKING:
    from .hooked import HookedModel

Twin = tuple[Method, Any, int]
_NAME = "statistics-of-rows"


def statistics(
    roster: Roster, kind: str, sites: Sequence[Site], shown: Shown, labels: int | None, twin: Twin | None = None
) -> Statistics:
    """kind: of `methods.shown.KINDS`. labels: the classes of a head that the model has not, whose start is the one that
    a tenant of seed 0 has. twin: (method, config, seed) of the dense tenant of the kinds "twin" and "curvature".

    Gradients are those of a tenant that may change every weight, at zero: whatever a layer may store its weight in, an
    expert's or a part of a fused one, they have the site's shape. Cost: `gradient` a step of full fine-tuning a batch
    and two copies of the weights read; `squared` the same a row; `curvature` three steps of the dense tenant a batch;
    `blocks` as `squared`, of all projections in the trunks; `projections` no pass;
    `inputs` a forward pass a batch and inp^2 a site; `routes` and `gates` a forward pass a batch.
    Raises: CommonweightError for no rows, rows that the model cannot read or that score nothing, a site that they never
    came to, and a statistic that is not finite.
    """
    was, device = roster.base.model.training, device_of(roster.base.model)
    shown = shown._replace(batches=(_at(b, device) for b in shown.batches))
    roster.base.model.eval()
    try:
        if kind in ("inputs", "answers"):
            found = _inputs(roster, sites, shown, kind == "answers")
        elif kind == "channels":
            found = _channels(roster, sites, shown)
        elif kind == "streams":
            found = _streams(roster, sites, shown)
        elif kind in ("twin", "curvature"):
            assert twin is not None
            found = _twin(roster, sites, shown, labels, twin, kind == "curvature")
        elif kind in ("routes", "gates"):
            found = routes(roster.base, sites, shown, partial(_pass, roster), kind == "gates")
        elif kind in ("blocks", "projections"):
            found = _blocks(roster, sites, shown, labels, kind == "blocks")
        else:
            found = _gradients(roster, kind, sites, shown, labels)
    finally:
        roster.base.model.train(was)
    finite(found)
    return found


def _at(batch: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    """Where the model is: batches come as a tokenizer makes them."""
    return {k: v.to(device) if isinstance(v, Tensor) else v for k, v in batch.items()}


def _gradients(roster: Roster, kind: str, sites: Sequence[Site], shown: Shown, labels: int | None) -> dict[str, Tensor]:
    full = get("full")
    plan: Plan = make_plan(full.config(), [s._replace(bias=False) for s in sites])
    with _attached(roster, full, full.config(), plan, labels, sites) as tenant:
        return _summed(roster, kind, {s.name: tenant.pools[f"{s.name}.dw"] for s in sites}, shown)


def _blocks(
    roster: Roster, trunks: Sequence[Site], shown: Shown, labels: int | None, squared: bool
) -> dict[str, Tensor]:
    """By the names of `within.within`: what is asked of each projection, and behind "=" itself, (out, inp)."""
    parts = within(roster.base, trunks)
    mine = [*{s.name: s for s, _ in parts.values()}.values()]
    found = _gradients(roster, "squared", mine, shown, labels) if squared else {}
    out: dict[str, Tensor] = {}
    for name, (s, groups) in parts.items():
        for key, of in ((f"{name}=", roster.base.weight), (name, found.__getitem__)):
            if key.endswith("=") or squared:
                w = of(s.name).detach().float().cpu()
                heads = w.unflatten(0, (-1, head_width(roster.base, s))) if groups > 1 else w
                out[key] = heads.repeat_interleave(groups, 0).flatten(0, 1) if groups > 1 else w
    return out


def _twin(
    roster: Roster, sites: Sequence[Site], shown: Shown, labels: int | None, twin: Twin, curved: bool
) -> dict[str, Tensor]:
    method, config, seed = twin
    plan = make_plan(config, sites, seed=seed)
    with _attached(roster, method, config, plan, labels, sites) as tenant:
        pools = {n: tenant.pools[n] for n, p in plan.pools.items() if p.train and (len(p.shape) > 1 or not curved)}
        values = {f"{n}=": p.detach().clone() for n, p in pools.items()}
        if not curved:
            return {**_summed(roster, "gradient", pools, shown), **values}
        shown = shown._replace(batches=[*shown.batches])
        with sdpa_kernel(SDPBackend.MATH):  # the others have no second derivative
            along = _summed(roster, "gradient", pools, shown)
            return {**_summed(roster, "gradient", pools, shown, along), **values}


@contextmanager
def _attached(
    roster: Roster, method: Method, config: Any, plan: Plan, labels: int | None, sites: Sequence[Site]
) -> Iterator[Tenant]:
    if labels is not None:
        plan += head(roster.base.head_site(), labels)
    classes = None if labels is None else tuple(map(str, range(labels)))
    tenant = roster.attach(_NAME, method, config, plan, classes, sites=sites)
    try:
        yield tenant
    finally:
        roster.remove(_NAME)


def _summed(
    roster: Roster, kind: str, pools: Mapping[str, Tensor], shown: Shown, along: Mapping[str, Tensor] | None = None
) -> dict[str, Tensor]:
    """Of the pools of the tenant that is attached. along: of the gradient's product with it, in place of the loss."""
    sums = {n: torch.zeros_like(p) for n, p in pools.items()}
    mine, count, silent = list(pools.values()), 0, 0
    with torch.enable_grad(), roster.base.current.within(roster.route(_NAME)):
        for batch in shown.batches:
            for part in rows_of(batch) if kind == "squared" else (batch,):
                rows = len(next(iter(part.values())))
                if unscored(part):
                    silent += rows
                    continue
                loss = _loss(roster.base.model, part, shown)
                count += rows
                if kind == "squared":
                    add_squared(sums, loss, pools)
                    continue
                grads = torch.autograd.grad(loss, mine, allow_unused=True, create_graph=along is not None)
                if along is not None:
                    product = torch.stack([(g * along[n]).sum() for n, g in zip(pools, grads) if g is not None]).sum()
                    grads = torch.autograd.grad(product, mine, allow_unused=True)
                for total, g in zip(sums.values(), grads):
                    if g is not None:
                        total.add_(g, alpha=rows)
    if not count and silent:
        raise CommonweightError(
            f"rows: all labels of the {counted(silent, 'row')} are -100, so that they score nothing; give rows with "
            "labels that count"
        )
    if not count:
        raise CommonweightError("rows: no rows to take statistics of")
    return sums if kind == "squared" else {n: s / count for n, s in sums.items()}


def _loss(model: nn.Module, batch: Any, shown: Shown) -> Tensor:
    if shown.loss is not None:
        loss = shown.loss(model, batch)
    else:
        with read_by_model(batch):
            loss = getattr(model(**batch), "loss", None)
    if loss is None:
        raise CommonweightError('rows: the model gives no loss of these batches; give them "labels", or a loss')
    if not bool(loss.isfinite().all()):
        raise CommonweightError(
            f"rows: the loss of a batch of {told(batch)} is {loss.detach().float().mean().item():g}; wanted a finite "
            "one: look at its labels and inputs"
        )
    return loss


class Norms:
    """The norm of each channel over the tokens of a class, the mean over classes, by name.

    Rows are of the class that "labels" says, (rows,) whole numbers; without such all are of one."""

    def __init__(self) -> None:
        self.sums: dict[tuple[str, int], Tensor] = {}
        self.mask: Tensor | None = None
        self.rows: list[int] = []
        self.tokens = 0

    def begin(self, batch: Mapping[str, Any]) -> None:
        given, labels = batch.get("attention_mask"), batch.get("labels")
        self.mask = None if given is None else given.bool()
        self.rows = [0] * len(next(iter(batch.values())))
        if isinstance(labels, Tensor) and labels.dim() == 1 and not labels.is_floating_point():
            self.rows = labels.tolist()

    def see(self, name: str, y: Tensor) -> None:
        for i, (k, found) in enumerate(zip(self.rows, y.detach().double())):
            if self.mask is not None and found.shape[:1] == self.mask.shape[1:]:
                found = found[self.mask[i]]
            self.tokens += found.numel()
            squares = found.reshape(-1, found.shape[-1]).square().sum(0)
            self.sums[name, k] = self.sums[name, k] + squares if (name, k) in self.sums else squares

    def found(self) -> dict[str, Tensor]:
        """Float32. Raises: CommonweightError for no rows."""
        if not self.sums:
            raise CommonweightError("rows: no rows to take statistics of")
        if not self.tokens:
            raise CommonweightError("rows: no token of them is no padding; give others")
        names = dict.fromkeys(n for n, _ in self.sums)
        return {n: torch.stack([v.sqrt() for (m, _), v in self.sums.items() if m == n]).mean(0).float() for n in names}


@torch.no_grad()
def _channels(roster: Roster, sites: Sequence[Site], shown: Shown) -> dict[str, Tensor]:
    base: HookedModel = roster.base
    norms = Norms()
    names = dict.fromkeys(s.name.split("[")[0] for s in sites)
    handles = [base.modules[n].module.register_forward_hook(partial(_gave, norms.see, n)) for n in names]
    try:
        for batch in shown.batches:
            norms.begin(batch)
            _pass(roster, batch, shown)
    finally:
        for h in handles:
            h.remove()
    found, out = norms.found(), {}
    for s in sites:
        name = s.name.split("[")[0]
        if name not in found:
            raise CommonweightError(f"{s.name}: no token of the rows came to it; give more rows, or leave the site out")
        out[s.name] = found[name] if s.rows is None else found[name][s.rows[0] : s.rows[1]]
    return out


@torch.no_grad()
def _streams(roster: Roster, sites: Sequence[Site], shown: Shown) -> dict[str, Tensor]:
    norms = Norms()
    with Streams(roster.base, sites, norms.see):
        for batch in shown.batches:
            norms.begin(batch)
            _pass(roster, batch, shown)
    return norms.found()


@torch.no_grad()
def _inputs(roster: Roster, sites: Sequence[Site], shown: Shown, answers: bool) -> dict[str, Tensor]:
    base: HookedModel = roster.base
    grams, mask = Grams(), None

    def see(name: str, x: Tensor) -> None:
        grams.add(name, tokens(x, mask))

    names = dict.fromkeys(s.name.split("[")[0] for s in sites)
    handles = [base.modules[n].module.register_forward_pre_hook(partial(_came, see, n)) for n in names]
    try:
        for batch in shown.batches:
            mask = _counted(batch, answers)
            _pass(roster, batch, shown)
    finally:
        for h in handles:
            h.remove()
    if not grams.counts:
        raise CommonweightError("rows: no rows to take statistics of")
    if not any(grams.counts.values()):
        what = "is no padding and has a label" if answers else "is no padding"
        raise CommonweightError(f"rows: no token of them {what}; give others")
    if lost := [s.name for s in sites if not grams.counts.get(s.name.split("[")[0])]:
        raise CommonweightError(f"{lost[0]}: no token of the rows came to it; give more rows, or leave the site out")
    return {s.name: grams.mean(s.name.split("[")[0]) for s in sites}


def _counted(batch: Mapping[str, Any], answers: bool) -> Tensor | None:
    """Which tokens count: all but padding; answers: of these the ones with a label, where each token may have one."""
    given, labels = batch.get("attention_mask"), batch.get("labels")
    mask = None if given is None else given.bool()
    if answers and isinstance(labels, Tensor) and labels.dim() == 2 and batch["input_ids"].shape == labels.shape:
        mask = labels.ne(-100) if mask is None else mask & labels.ne(-100)
    return mask


def _pass(roster: Roster, batch: Mapping[str, Any], shown: Shown) -> None:
    """A forward pass whose answer nobody wants."""
    if shown.loss is not None:
        shown.loss(roster.base.model, dict(batch))
    else:
        with read_by_model(batch):
            roster.base.model(**{k: v for k, v in batch.items() if k != "labels"})


def _gave(see: Callable[[str, Tensor], None], name: str, module: nn.Module, args: Any, y: Tensor) -> None:
    see(name, y)


def _came(see: Callable[[str, Tensor], None], name: str, module: nn.Module, args: tuple[Tensor, ...]) -> None:
    see(name, args[0])
