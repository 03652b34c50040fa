"""The host: the only part that touches a model. It hooks every site once; tenants come and go beside it."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..core import CommonweightError, Plan, Site, safe, unknown
from ..methods import Method, available, head, resolve
from ..methods import plan as make_plan
from . import carry, encode, entrances, experts
from .change import changed
from .common import Common, Held, shared
from .current import Current, Opened
from .doors import Doors
from .fingerprint import of_base
from .follow import Places, fit, served
from .hooks import ModelHook, Replay, SiteHook
from .kept import give_back, keep_storage
from .names import named, unwrapped
from .route import Route
from .sites import Pattern, Physical, discover, select, strangers, unknown_kind
from .tenant import Derive, Tenant, materialise
from .weights import device_of

if TYPE_CHECKING:
    from ..formats.coding import Choice
    from .files import Source

Reader = str | None


class Host:
    """Many behaviours on one frozen model.

    model: any nn.Module; its parameters are frozen and never written. sites: None for every linear projection,
    norm and output of the transformer blocks; a glob pattern (``"*.q_proj|*.v_proj"``); or callable(name, module).
    fused: {pattern: parts}, to see the rows of a fused projection as separate sites.
    Cost: two hooks per linear layer, once; a tenant adds none.
    """

    def __init__(self, model: nn.Module, sites: Pattern = None, fused: Mapping[str, int] | None = None):
        if any(isinstance(h, SiteHook) for m in model.modules() for h in m._forward_hooks.values()):
            raise CommonweightError("this model already has a host; use that one, or call its close() first")
        self.model, self.inner = model, unwrapped(model)
        self._fused = fused
        self._modules, self._every, self._default = self._found()
        self._chosen = select(sites, self._every, self._default, model)
        self._pattern = sites
        self._tenants: dict[str, Tenant] = {}
        self._frozen: MutableMapping[Any, Tensor] = Held()
        self._commons: MutableMapping[str, Common] = Held()
        self._next = 0
        self._current = Current()
        carry.install()
        self._kept = keep_storage(model.modules())
        self._trained: dict[str, nn.Parameter] = {}
        self._freeze()
        self._handles = [self.inner.register_forward_pre_hook(ModelHook(model, self._current), with_kwargs=True)]
        self._handles += entrances.install(self.inner, self._current)
        self._hook()

    def _found(self) -> tuple[dict[str, Physical], list[Site], list[Site]]:
        modules, every, default = discover(self.model, self._fused)
        for at in experts.stacked(self.model, modules):
            modules[at.name] = at
            every += at.sites()
        return modules, every, default

    def _hook(self) -> None:
        alone = {n: at for n, at in self._modules.items() if not isinstance(at, experts.Stacked)}
        hooks = {n: SiteHook(at, self._current) for n, at in alone.items()}
        self._hooks = [h for hook in hooks.values() for h in hook.install()]
        self._hooks += [h.install() for h in experts.hooks(self._modules, self._current)]
        self._doors = Doors(self.inner, dict(named(self.model)), hooks)
        self._places = Places.of(self.model, self._modules.values())

    def _follow(self) -> None:
        """Where the model was changed since: its new layers are hooked in place of the old; see `follow`."""
        if not self._places.moved():
            return
        found = self._found()
        chosen = select(self._pattern, found[1], found[2], self.model)
        self._unhook()
        self._modules, self._every, self._default = found
        self._chosen = chosen
        for tenant in self._tenants.values():
            fit(tenant, {s.name: s for s in self._every})
        for module in dict(named(self.model)).values():  # an adapter that came meanwhile may be in training
            for p in module._parameters.values():
                if p is not None and p.requires_grad:
                    p.requires_grad_(False)
        self._kept += keep_storage(self.model.modules())
        self._hook()

    def _freeze(self) -> None:
        for n, p in self.model.named_parameters():
            if p.requires_grad:
                p.requires_grad_(False)
                self._trained[n] = p

    def _unhook(self) -> None:
        for h in self._hooks:
            h.remove()
        self._doors.close()

    def __setstate__(self, state: dict[str, Any]) -> None:
        """A copy, or what a pickle brings to another process: its tenants know it, not the one that it was made of."""
        self.__dict__.update(state)
        for tenant in self._tenants.values():
            tenant.host = weakref.ref(self)
        carry.install()

    # -- tenants ---------------------------------------------------------------------------------------------------

    @property
    def sites(self) -> tuple[Site, ...]:
        """The sites that a tenant reads by default."""
        return tuple(self._chosen)

    def __getitem__(self, name: str) -> Tenant:
        if name not in self._tenants:
            raise unknown("tenant", str(name), self._tenants)
        return self._tenants[name]

    def __contains__(self, name: object) -> bool:
        return name in self._tenants

    def __iter__(self) -> Iterator[str]:
        return iter(self._tenants)

    def __len__(self) -> int:
        return len(self._tenants)

    def add(
        self,
        name: str,
        method: str | Any = "lora",
        *,
        sites: Pattern = None,
        seed: int = 0,
        labels: Sequence[str] | int | None = None,
        common: str | None = None,
        **options: Any,
    ) -> Tenant:
        """A new tenant, by a method's name and options or by its config. Either all of it happens or nothing.

        sites: other sites than the host's. labels: the classes of a classification head (or how many), which
        becomes one of the tenant's pools. common: the pools of scope `shared` are one with those of the other tenants
        of this common, which is made when there is none; those of a frozen one stay as they are.
        Cost: its own pools; no module is touched, however many tenants there are.
        Raises: CommonweightError for a name that is taken or unsafe, an unknown method, option or site, a bad width.
        """
        self._free(name)
        if not isinstance(seed, int) or isinstance(seed, bool) or seed < 0:
            raise CommonweightError(f"seed is {seed!r}; wanted a whole number >= 0")
        found, config = resolve(method, options)
        chosen = self.sites_for(found, sites)
        plan = make_plan(config, chosen, seed=seed)
        if labels is not None:
            labels = _classes(labels)
            plan += head(self.head_site(), len(labels))
        return self._attach(name, found, config, plan, labels, sites=chosen, of=self._common(common, found, plan))

    def common(self, name: str) -> Common:
        """The pools that the tenants of a common have together."""
        if name not in self._commons:
            raise unknown("common", str(name), dict(self._commons))
        return self._commons[name]

    def freeze(self, common: str, frozen: bool = True) -> Common:
        """From now on the tenants of a common train their own pools alone, those that join later too; its bytes do not
        change. frozen=False: all of them write to it again. Make optimisers after it, not before."""
        found = self.common(common)
        found.freeze(frozen)
        if not frozen:  # what is trained on is no longer what a store calls by its content
            mine = {id(t) for t in found.pools.values()}
            for key in [k for k, t in self._frozen.items() if id(t) in mine]:
                del self._frozen[key]
        return found

    def _common(self, name: str | None, method: Method, plan: Plan, frozen: bool = False) -> Common | None:
        if name is None:
            return None
        safe(name)
        if not shared(plan.pools):
            able = ", ".join(m.name for m in available().values() if m.common)
            raise CommonweightError(
                f"common={name!r}: this method has no pool that tenants could share; leave common out, or take {able}"
            )
        there = self._commons.get(name)
        if there is not None and there.method != method.name:
            raise CommonweightError(
                f"common={name!r}: its tenants are of {there.method}, this one is of {method.name}; take another common"
            )
        return there or Common(name, method.name, frozen)

    def sites_for(self, method: Method, pattern: Pattern = None) -> list[Site]:
        """The sites a method takes here: of its kinds, in its default roles unless a pattern chose them."""
        self._follow()
        chosen = self._chosen if pattern is None else select(pattern, self._every, self._default, self.model)
        mine = [s for s in chosen if s.kind in method.kinds]
        if pattern is None and self._pattern is None and method.roles and any(s.role in method.roles for s in mine):
            mine = [s for s in mine if s.role in method.roles]
        strange = [s for s in mine if pattern is None and self._pattern is None and unknown_kind(self._modules, s)]
        if strange:
            raise strangers(self._modules, strange, method.name)
        if method.kinds and not mine:
            raise CommonweightError(
                f"{method.name} reads sites of kind {' or '.join(method.kinds)}; the pattern "
                f"{pattern or self._pattern!r} matches none of them"
            )
        return mine

    def head_site(self) -> Site:
        for s in self._every:
            if s.kind == "head":
                return s
        raise CommonweightError(
            "labels were given, but the model has no head site; wrap it in commonweight.Classifier first"
        )

    def _free(self, name: str) -> None:
        safe(name)
        if name in self._tenants:
            raise CommonweightError(f"the tenant name {name!r} is taken; choose another, or remove it first")

    def _attach(
        self,
        name: str,
        method: Method,
        config: Any,
        plan: Plan,
        labels: tuple[str, ...] | None,
        values: Mapping[str, Tensor] | None = None,
        common: Mapping[str, Any] | None = None,
        sites: Sequence[Site] = (),
        of: Common | None = None,
    ) -> Tenant:
        """Builds everything first, then enters it in one step. values: pools that are not to be initialised.
        common: for those among them that exist once per host, the key. sites: those the plan was made for.
        of: the common it joins."""
        device = device_of(self.model)
        frozen, given = self._frozen, values or {}
        joined = {} if of is None else of.known(plan, given)
        rest = plan._replace(pools={k: p for k, p in plan.pools.items() if k not in given and k not in joined})
        pools = joined | materialise(rest, Derive(lambda s: self.weight(s)), device, frozen)
        for k, v in given.items():
            spec, key = plan.pools[k], (common or {}).get(k)
            if k in joined:
                continue
            v = frozen[key] if key in frozen else v.to(device=device, dtype=getattr(torch, spec.dtype))
            pools[k] = v if isinstance(v, nn.Parameter) or not spec.train else nn.Parameter(v)
            if key is not None:
                frozen[key] = pools[k]
        rows = {s.name: s.rows for s in self._every if s.rows is not None}
        pools = {k: pools[k] for k in plan.pools}
        tenant = Tenant(name, self._next, method, config, plan, pools, rows, labels, sites, of)
        tenant.host = weakref.ref(self)
        if of is not None:
            of.enter(plan, pools)
            self._commons[of.name] = of
        self._tenants[name] = tenant
        self._next += 1
        return tenant

    def remove(self, name: str) -> None:
        """Forgets a tenant; common frozen pools that nobody else reads go with it. O(1) in the number of tenants.

        A route that is open keeps serving it until it closes. With its last tenant a common ends."""
        tenant = self[name]
        del self._tenants[name]
        if (common := tenant.common) is not None:
            common.tenants -= 1
            if not common.tenants:  # whoever still holds a tenant of it: the next one of this name is another
                del self._commons[common.name]

    def close(self) -> None:
        """Takes every hook off and gives the model back as it was."""
        for h in self._handles:
            h.remove()
        self._unhook()
        for m in self.model.modules():
            if isinstance(kept := getattr(m, "_gradient_checkpointing_func", None), Replay):
                m._gradient_checkpointing_func = kept.checkpoint  # type: ignore[assignment]
        now = dict(self.model.named_parameters())
        for n, p in self._trained.items():
            now.get(n, p).requires_grad_(True)
            p.requires_grad_(True)
        give_back(self._kept)
        self._handles, self._tenants = [], {}

    # -- running ---------------------------------------------------------------------------------------------------

    def route(self, readers: Reader | Sequence[Reader] | Tensor) -> Opened:
        """Within it, the model answers as these tenants: a name, one name or None per row, or a LongTensor of
        `Tenant.number` (-1: the plain base), of shape (B,) per row or (B, T) per token, or (T,) for one packed row.

        A context manager or a decorator; routes nest. A route belongs to the work that is done within it: each task of
        an event loop has its own, and threads and executors that are given work within it take it along. Where it
        cannot be known whose work a thread does, the model raises an error. While a route is open without gradients,
        stacked pools are kept: write to pools under ``torch.no_grad()``, not through ``.data``, or the change is seen
        only by the next route."""
        encode.install()
        return self._current.within(self._route(readers))

    def _route(self, readers: Reader | Sequence[Reader] | Tensor) -> Route | None:
        if readers is None:
            return None
        self._follow()
        route = self._of(readers)
        for tenant in [route.single] if route.single is not None else [t for t, _ in route.groups]:
            if tenant is not None:
                served(tenant)
        return route

    def _of(self, readers: Reader | Sequence[Reader] | Tensor) -> Route:
        if isinstance(readers, str):
            return Route(single=self[readers])
        if isinstance(readers, Tensor):
            if readers.is_floating_point() or readers.dtype == torch.bool:
                raise CommonweightError(f"a route of tenant numbers is a LongTensor; this is {readers.dtype}")
            return Route.numbered(readers, {t.number: t for t in self._tenants.values()})
        if not isinstance(readers, Sequence):
            raise CommonweightError(
                f"route({readers!r}): wanted a tenant's name, one name or None per row, or a LongTensor"
            )
        return Route.of([None if r is None else self[r] for r in readers])

    def module(self, name: str | Sequence[str]) -> nn.Module:
        """The model as this tenant, as an nn.Module whose only trainable parameters are the tenant's pools.

        For transformers.Trainer, accelerate and DistributedDataParallel; its state_dict holds the pools alone.
        Several names: a batch then brings ``tenants``, the number of each row's tenant; a pool of a common is there
        once.
        """
        from .module import tenant_module

        names = [name] if isinstance(name, str) else list(dict.fromkeys(name))
        if not names:
            raise CommonweightError("module([]): wanted a tenant's name, or several")
        return tenant_module(self, [self[n] for n in names])

    # -- what it is ------------------------------------------------------------------------------------------------

    def weight(self, site: str) -> Tensor:
        """The frozen weight that a site reads, (out, inp)."""
        name, rows = site.split("[")[0], next(s.rows for s in self._every if s.name == site)
        return self._modules[name].rows(rows).weight

    @property
    def fingerprint(self) -> str:
        """Of the base: names, shapes and 64 values of every parameter but those of heads, rounded to bfloat16, so that
        a float32 and a bfloat16 copy are the same base; see `fingerprint.of_base`. Cost: milliseconds, of a packed base
        one reading of every weight; made anew at every look. On a sharded base every process must ask."""
        self._follow()
        linear = {n for n, at in self._modules.items() if at.kind == "linear" and not isinstance(at, experts.Stacked)}
        return of_base(self.model, linear - {s.name.split("[")[0] for s in self._default})

    def merged(self, name: str) -> dict[str, Tensor]:
        """The weights that differ from the base, by parameter name, in the model's own layout and dtype.

        For an ordinary model of the same architecture: ``other.load_state_dict(host.merged(n), strict=False)``. Of a
        quantised base they are the numbers that its codes stand for and the change, in floating point.
        Raises: CommonweightError where a method is no change of weights.
        """
        self._follow()
        served(self[name])
        out: dict[str, Tensor] = {}
        for site, entries in self[name].table.items():
            at = self._modules[site]
            if at.kind == "head":
                continue
            if self._tied(at):
                raise CommonweightError(
                    f"{site}: its weight is tied to another module's, which a merged weight would change too; "
                    "untie them first, or leave this site out"
                )
            with torch.no_grad():
                if isinstance(at, experts.Stacked):
                    out[at.key] = at.changed(entries).contiguous()
                    continue
                w, b = changed(at, entries)
                w = w.T if at.transposed else w
                out[at.key] = w.to(at.weight.dtype).contiguous()
                if b is not None and at.bias is not None and not torch.equal(b, at.bias.float()):
                    out[f"{at.home}{at.bias_slot}"] = b.to(at.bias.dtype)
        return out

    def _tied(self, at: Physical) -> bool:
        weight = at.module._parameters.get(at.slot)
        owners = [m for m in self.model.modules() if any(p is weight for p in m._parameters.values())]
        return weight is not None and len(owners) > 1

    # -- files -----------------------------------------------------------------------------------------------------

    def save(
        self,
        name: str,
        path: str | PathLike[str],
        metrics: Mapping[str, Any] | None = None,
        *,
        codec: Choice = None,
    ) -> Path:
        """Writes one tenant to one safetensors file, atomically. Size: its saved pools and a header.

        codec: stores them in fewer bytes, with an error: ``"bfloat16"``, ``"int8"``, ``"int4"`` or ``"compeft"`` for
        all trainable pools, or a mapping from patterns over pool names, ``{"*.A|*.B": "int4"}``. The tenant here stays
        as it is; loading needs no option and gives float32 pools again.
        """
        from .files import save

        self._follow()
        return save(self, self[name], Path(path), metrics, codec)

    def load(self, name: str, path: str | PathLike[str], *, check_base: bool = True) -> Tenant:
        """Reads a tenant's file under a name. check_base=False: also when the base's numbers differ."""
        from .files import load

        self._free(name)
        return load(self, name, Path(path), check_base)

    def load_from(self, source: Source, name: str, *, as_: str | None = None, check_base: bool = True) -> Tenant:
        """Reads a tenant out of a store, `commonweight.Commons`: its newest version, or ``"legal@2"``.

        Frozen pools that another tenant has from a store already are shared in memory; trainable ones are copied.
        as_: its name here, where it is to be another one. Either all of it is loaded or the host is as it was.
        """
        from .files import load_stored

        if as_ is not None:
            self._free(as_)
        stored = source.fetch(name)
        self._free(as_ or stored.name)
        return load_stored(self, as_ or stored.name, stored, check_base)

    def export_peft(self, name: str, folder: str | PathLike[str], **options: Any) -> Path:
        """Writes a tenant as a PEFT adapter folder: see `commonweight.formats.peft`."""
        from .peft import export_peft

        self._follow()
        served(self[name])
        return export_peft(self, self[name], Path(folder), **options)

    def import_peft(
        self, name: str, folder: str | PathLike[str], *, labels: Sequence[str] | int | None = None
    ) -> Tenant:
        """Reads a PEFT adapter folder as a tenant: see `commonweight.formats.peft`. labels: the classes of the head
        that lies beside the adapter; () leaves it out."""
        from .peft import import_peft

        self._free(name)
        return import_peft(self, name, Path(folder), _classes(labels) if labels else None if labels is None else ())


def _classes(labels: Sequence[str] | int) -> tuple[str, ...]:
    """Distinct names of a head's classes; "0", "1", ... for a number of them."""
    if isinstance(labels, int) and not isinstance(labels, bool) and labels >= 1:
        return tuple(map(str, range(labels)))
    if isinstance(labels, Sequence) and not isinstance(labels, str):
        names = tuple(labels)
        if names and all(isinstance(n, str) for n in names) and len(set(names)) == len(names):
            return names
    raise CommonweightError(f"labels is {labels!r}; wanted distinct strings, at least one, or a number of them >= 1")
