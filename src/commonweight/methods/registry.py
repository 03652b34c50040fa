"""The list of methods: name -> what it is. A method is one pure function ``plan(sites, config) -> Plan``."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import lru_cache, partial
from typing import Any

from torch import Tensor

from ..core import CommonweightError, Plan, Registry, Site, counted
from ..core.peers import known, said
from ..core.schedule import Schedule
from .said import RouterLoss
from .shown import Statistics
from .widths import Unfit


@dataclass(frozen=True)
class Method:
    """name, config class, plan function, and what a person wants to know before choosing.

    paper: title and address. formula: trainable parameters. kinds: sites it reads, see `Site`. named: those that
    it reads only where a pattern names them. at: "tokens" where it reads the table of
    input tokens when nobody says what it reads, "scores" where the head that scores the vocabulary and the norm before
    it; "": the host's default sites.
    roles: the projections it takes by default ("" or empty = all). whole: whether it goes by whole rows: it takes no
    site in a block where a token sees those before it alone. depthwise: whether it takes depthwise convolutions
    by default, whose matrix is no wider than their kernel. unfit: (config, site) -> the option that does not fit the
    site's widths, "shards=4", or ""; by default such sites are left out. misfit: the same of one config. lr:
    learning rate of the default recipe.
    fresh: "exact" when a fresh tenant leaves the base unchanged, else why it does not.
    common: what the tenants of a common share, and what is each one's own; empty where they cannot.
    size: the options that make it larger or smaller, the one to turn first in front; the bytes grow with each, or fall
    where it starts with "-". None: "rank", where there is such an option.
    compact: (config, trained pools) -> (config, pools) of the smaller form in which a trained tenant is stored.
    ends: of a config and its sites, that of the largest tenant that a training of it can end with, where that is not
    what `compact` makes of the config.
    at_end: a training ends with it; one with a schedule always does. levels: it answers by levels of its numbers, and
    not by these: a file with a codec has the levels, as `compact` leaves them.
    schedule: (config, plan) -> what it does between the steps of a training run, if anything. penalty: (config, plan,
    pools) -> a number that is added to the loss of its rows, with gradients. routing: of a config, what it makes of its
    routers' logits for the same end, or None. wants: of a config, the kind of `shown.KINDS` that its
    start is worked out from, or ""; None: of no config. begin: (config, sites, that of each site) -> (the config of a
    tenant that has begun, first values of pools). keeps: of a config, the kind of the statistic of other rows, of which
    the method keeps what the model makes; "" where it needs none. twin: of a config, that of the dense tenant of
    whose pools the kinds "twin" and "curvature" are. derived: of a method over tenants, (config, plan, its pools) ->
    those that are worked out of its tenants'. reading: of a config, those of kinds and roles that are not the default.
    complete: of a config, whether a step of training has a second pass in which all its gates are open.
    told: (config, sites, the heads in front of a site, 0 where the model does not say) -> the config with what it
    leaves to the model.
    heads: (config, sites, the head's site, labels) -> what stands in the place of a tenant's plain head.
    """

    name: str
    config: type
    plan: Callable[[Sequence[Site], Any], Plan]
    paper: str
    formula: str
    kinds: tuple[str, ...] = ("linear", "expert", "conv")
    named: tuple[str, ...] = ("router", "embedding")
    at: str = ""
    roles: tuple[str, ...] = ()
    whole: bool = False
    depthwise: bool = True
    unfit: Unfit | None = None
    misfit: Callable[[Site], str] | None = None
    lr: float = 1e-3
    fresh: str = "exact"
    common: str = ""
    size: tuple[str, ...] | None = None
    compact: Callable[[Any, Mapping[str, Tensor]], tuple[Any, Mapping[str, Tensor]]] | None = None
    ends: Callable[[Any, Sequence[Site]], Any] | None = None
    at_end: bool = False
    levels: bool = False
    schedule: Callable[[Any, Plan], Schedule | None] | None = None
    penalty: Callable[[Any, Plan, Mapping[str, Tensor]], Tensor] | None = None
    routing: Callable[[Any], RouterLoss | None] | None = None
    wants: Callable[[Any], str] | None = None
    keeps: Callable[[Any], str] | None = None
    begin: Callable[[Any, Sequence[Site], Statistics], tuple[Any, Mapping[str, Tensor]]] | None = None
    twin: Callable[[Any], Any] | None = None
    derived: Callable[[Any, Plan, Mapping[str, Tensor]], Mapping[str, Tensor]] | None = None
    reading: Callable[[Any], Mapping[str, tuple[str, ...]]] | None = None
    complete: Callable[[Any], bool] | None = None
    told: Callable[[Any, Sequence[Site], Callable[[Site], int]], Any] | None = None
    heads: Callable[[Any, Sequence[Site], Site, int], Plan] | None = None

    def __reduce__(self) -> Any:
        """What is registered goes by its name: a method's functions may have none that a pickle could find them by."""
        if METHODS.all.get(self.name) is self:
            return _named, (self.name,)
        if OVER.all.get(self.name) is self:
            return _over_tenants, (self.name,)
        return super().__reduce__()

    def stored(self, config: Any, sites: Sequence[Site]) -> Any:
        """The config in which a trained tenant of this one is stored: of what only a training can tell, the most."""
        if self.ends is not None:
            return self.ends(config, sites)
        return config if self.compact is None else self.compact(config, {})[0]

    def asks(self, config: Any) -> str:
        """The statistic of rows that a tenant of this config begins from; "" where it needs none."""
        return self.wants(config) if self.wants is not None else ""

    def of(self, config: Any) -> Method:
        """The method with the kinds and roles that a config reads, and the widths that it fits."""
        other: dict[str, Any] = dict(self.reading(config)) if self.reading is not None else {}
        if self.unfit is not None:
            other["misfit"] = partial(self.unfit, config)
        return replace(self, **other) if other else self

    def scheduled(self, config: Any, plan: Plan) -> Schedule | None:
        """What a tenant of this config and plan does between the steps of a training run."""
        return self.schedule(config, plan) if self.schedule is not None else None

    def router_loss(self, config: Any) -> RouterLoss | None:
        """What a tenant of this config adds to its loss of what its routers say; None: nothing."""
        return self.routing(config) if self.routing is not None else None

    def kept(self, config: Any) -> str:
        """The same of the rows of which it keeps what the model makes."""
        return self.keeps(config) if self.keeps is not None else ""

    @property
    def family(self) -> str:
        """The folder in which its file lies."""
        return self.plan.__module__.split(".")[-2]

    @property
    def sizes(self) -> tuple[str, ...]:
        """`size`, or what it is by default."""
        if self.size is not None:
            return self.size
        return ("rank",) if any(f.name == "rank" for f in fields(self.config)) else ()


METHODS = Registry[Method]("method", known, said)  # in any spelling: LORA, LN_TUNING
OVER = Registry[Method]("method over tenants")  # their plan: (sites, config, [(name, plan) of each tenant]) -> Plan


def either(name: str) -> Method:
    """A method by its name, of those over tenants too."""
    return OVER.all[name] if name in OVER.all else METHODS.get(name)


available = METHODS.available
get = METHODS.get
resolve = METHODS.resolve


def _named(name: str) -> Method:
    return METHODS.all[name]


def _over_tenants(name: str) -> Method:
    return OVER.all[name]


def over(name: str, config: type, **about: Any) -> Callable[[Callable[..., Plan]], Callable[..., Plan]]:
    """`method`, of those whose tenants stand on others."""

    def register(plan: Callable[..., Plan]) -> Callable[..., Plan]:
        OVER.add(Method(name=name, config=config, plan=plan, **about))
        return plan

    return register


def method(name: str, config: type, **about: Any) -> Callable[[Callable[..., Plan]], Callable[..., Plan]]:
    """Registers a plan function under `name`; a name or a config used twice raises."""

    def register(plan: Callable[..., Plan]) -> Callable[..., Plan]:
        METHODS.add(Method(name=name, config=config, plan=plan, **about))
        return plan

    return register


@lru_cache(maxsize=64)
def _plan(method: Method, sites: tuple[Site, ...], config: Any, seed: int) -> Plan:
    return method.plan(sites, config)._replace(seed=seed)


def plan(method: str | Any, sites: Sequence[Site], *, seed: int = 0, **options: Any) -> Plan:
    """Makes a plan from sites, without a model.

    >>> sites = [Site(f"layers.{i}.q_proj", 4096, 4096) for i in range(32)]
    >>> plan("lora", sites, rank=8).count()
    2097152
    """
    found, cfg = resolve(method, options)
    kinds = found.of(cfg).kinds
    mine = tuple(s for s in sites if s.kind in (*kinds, *found.named))
    if kinds and not mine:
        raise CommonweightError(
            f"{found.name}: no site of kind {' or '.join(kinds)} among {counted(len(sites), 'site')}"
        )
    return _plan(found, mine, cfg, seed)


def families(sites: Sequence[Site]) -> dict[str, list[Site]]:
    """Sites grouped by projection type: the name with layer numbers replaced by ``*``, and the shape."""
    out: dict[str, list[Site]] = {}
    for site in sites:
        key = re.sub(r"(?<![^.])\d+(?![^.])", "*", site.name)
        if site.kind == "expert":
            key = re.sub(r"\[\d+\]$", "[*]", key)
        out.setdefault(key, []).append(site)
    for key, group in list(out.items()):
        shapes = {(s.out, s.inp) for s in group}
        if len(shapes) > 1:
            del out[key]
            for s in group:
                out.setdefault(f"{key}[{s.out}x{s.inp}]", []).append(s)
    return out
