"""Who reads a model: its tenants by name, the pools that they have in common, and numbers that exist once for all."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Mapping, MutableMapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..core import CommonweightError, Plan, Site, WrongTask, counted, safe, unknown
from ..methods import Beside, Method, available
from . import causal, queries, room
from .common import Common, Held, shared
from .follow import served
from .pools import drawn, packed
from .route import Route, numbered
from .said_tasks import Tasks, listed, none, spread
from .sites.tied import input_table
from .tenant import Derive, Tenant, materialise
from .weights import device_of

if TYPE_CHECKING:
    from .hooked import HookedModel

Reader = str | None
Prompts = Sequence[Sequence[int]] | None  # token ids of a route's rows


class Roster:
    """The tenants of one hooked model. Each is entered whole or not at all; O(1) in how many there are.

    Threads may load and remove tenants at the same time: `lock` is held while names change, never while pools are read
    or made."""

    def __init__(self, base: HookedModel):
        self.base = base
        self.tenants: dict[str, Tenant] = {}
        self.frozen: MutableMapping[Any, Tensor] = Held()
        self.commons: MutableMapping[str, Common] = Held()
        self.alike: MutableMapping[Any, Tenant] = Held()  # the last tenant of a kind, whose plan equal ones share
        self.next = 0  # number of the next tenant
        self.lock = threading.RLock()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "lock": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """A copy, or what a pickle brings to another process: its tenants know the model of the copy."""
        self.__dict__.update(state)
        self.lock = threading.RLock()
        for tenant in self.tenants.values():
            tenant.base = weakref.ref(self.base)

    def __getitem__(self, name: str) -> Tenant:
        if name not in self.tenants:
            raise unknown("tenant", str(name), self.tenants)
        return self.tenants[name]

    def free(self, name: str) -> None:
        """Raises: CommonweightError where a name is unsafe or taken, and for a host that was closed."""
        safe(name)
        if self.base.closed:
            raise CommonweightError("this host was closed; make a new one: Host(model)")
        if name in self.tenants:
            raise CommonweightError(f"the tenant name {name!r} is taken; choose another, or remove it first")

    def join(self, name: str | None, method: Method, plan: Plan, frozen: bool = False) -> Common | None:
        """The common of this name that a tenant of the plan may enter, new where there is none; None without a name."""
        if name is None:
            return None
        safe(name)
        if not shared(plan.pools):
            able = ", ".join(m.name for m in available().values() if m.common)
            raise CommonweightError(
                f"common={name!r}: this method has no pool that tenants could share; leave common out, or take {able}"
            )
        there = self.commons.get(name)
        if there is not None and there.method != method.name:
            raise CommonweightError(
                f"common={name!r}: its tenants are of {there.method}, this one is of {method.name}; take another common"
            )
        return there or Common(name, method.name, frozen)

    def attach(
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
        apart: bool = False,
        beside: Beside = Beside(),  # noqa: B008
        held: Sequence[Site] = (),
        over: Sequence[Tenant] = (),
    ) -> Tenant:
        """Builds everything first, then enters it in one step. values: pools that are not to be initialised.
        common: for those among them that exist once per host, the key. sites: those the plan was made for.
        of: the common it joins. apart: what it changes at a table is no change of what is tied to the table. beside,
        held: what it holds beside its method, and the sites of that. over: the tenants that it stands on."""
        prompts = self.base.current.prompts
        causal.refuse(method.name, plan, self.base.every, prompts)
        queries.refuse(plan, self.base.every, input_table(self.base.inner, self.base.modules))
        device = device_of(self.base.model)
        plan, like = self._known(method, plan)
        own = drawn(plan) if of is not None else []
        frozen, given = self.frozen, values or {}
        joined = {} if of is None else of.known(plan, given)
        rest = plan._replace(pools={k: p for k, p in plan.pools.items() if k not in given and k not in joined})
        with room.held(rest, method, config):
            made = materialise(rest, Derive(self.base.weight, self.base.bias), device, frozen, own)
        rows = {s.name: s.rows for s in self.base.every if s.rows is not None}
        with self.lock:
            self.free(name)
            if of is not None:  # another thread may have made this common meanwhile, or filled it
                of = self.join(of.name, method, plan, of.frozen)
                assert of is not None
                joined = of.known(plan, given)
            pools = made | joined
            for k, v in given.items():
                spec, key = plan.pools[k], (common or {}).get(k)
                if k in joined:
                    continue
                v = frozen[key] if key in frozen else v.to(device=device, dtype=getattr(torch, spec.dtype))
                pools[k] = v if isinstance(v, nn.Parameter) or not spec.train else nn.Parameter(v)
                if key is not None:
                    frozen[key] = pools[k]
            pools: Mapping[str, Tensor] = {k: pools[k] for k in plan.pools}
            if own:
                pools = packed(pools, plan, own, None if like is None else like.pools)
            tenant = Tenant(
                name, self.next, method, config, plan, pools, rows, labels, sites, of, {} if apart else self.base.ties,
                beside, held,
            )  # fmt: skip
            tenant.apart, tenant.vocabulary = apart, self.base.vocabulary
            if self.base.limit.own is not None and not self.base.speaking & tenant.table.keys():
                tenant.vocabulary = self.base.limit.own  # nobody has trained what was added since
            tenant.base = weakref.ref(self.base)
            tenant.prompted = prompts and any(getattr(u.bind, "context", "") for u in plan.uses)
            if of is not None:
                of.enter(plan, pools)
                self.commons[of.name] = of
            tenant.stand(over)
            self.tenants[name] = tenant
            self.alike[_kind(method, plan)] = tenant
            self.next += 1
        return tenant

    def _known(self, method: Method, plan: Plan) -> tuple[Plan, Tenant | None]:
        """(an equal plan that holds no objects of its own but its seed, the tenant that it has them from)."""
        there = self.alike.get(_kind(method, plan))
        if there is None or there.plan._replace(seed=plan.seed) != plan:
            return plan, None
        return there.plan._replace(seed=plan.seed), there

    def remove(self, name: str, *, stood: bool = False) -> None:
        """Forgets a tenant; common frozen pools that nobody else reads go with it. O(1) in the number of tenants.

        A route that is open keeps serving it until it closes. With its last tenant a common ends. stood: also where
        others stand on it, which keep its numbers. Raises: CommonweightError where they do, without."""
        with self.lock:
            tenant = self[name]
            if not stood:
                tenant.free("removed")
            tenant.leave()
            del self.tenants[name]
            if (common := tenant.common) is not None:
                common.tenants -= 1
                if not common.tenants:  # whoever still holds a tenant of it: the next one of this name is another
                    del self.commons[common.name]

    def rename(self, old: str, new: str) -> None:
        """Gives a tenant a name that is free."""
        with self.lock:
            self.free(new)
            tenant = self[old]
            del self.tenants[old]
            tenant.name = new
            for view in tenant._at.values():
                view.name = new
            self.tenants[new] = tenant

    def route(
        self, readers: Reader | Sequence[Reader] | Tensor, tasks: Tasks = None, prompts: Prompts = None
    ) -> Route | None:
        """The route of these readers, on the model as it is now; see `Host.route`."""
        if readers is None:
            none(listed(tasks)[0], "the plain base")
            return None
        self.base.follow([*self.tenants.values()])
        self.base.doors.begin()
        route = self._route(readers, tasks)
        for tenant in [route.single] if route.single is not None else [t for t, _ in route.groups]:
            if tenant is not None:
                served(tenant.origin)
        if prompts is not None and route.prompted:
            route.context = self._told(route, prompts)
        return route

    def _told(self, route: Route, prompts: Sequence[Sequence[int]]) -> Tensor:
        """The embeddings of the rows' prompts. Raises: CommonweightError for another number of them than of rows."""
        several = route.shape is not None and len(route.shape) > 1
        if several or (route.single is None and len(prompts) != route.length):
            raise CommonweightError(
                f"the route names {counted(route.length, 'reader')} and {counted(len(prompts), 'prompt')}; give one "
                "reader per row, and one prompt"
            )
        from .embedded import of_prompts  # brings torch's compiler, which merging has no use of

        return of_prompts(self.base.inner, self.base.current, prompts)

    def _route(self, readers: str | Sequence[Reader] | Tensor, tasks: Tasks) -> Route:
        if isinstance(readers, str):
            tenant, (each, shape) = self[readers], listed(tasks)
            if shape == ():
                return Route(single=tenant.at(each[0]))
            places = isinstance(tasks, Tensor) or len(shape) > 1  # a list of names is one of rows
            return Route.of(_at([tenant] * len(each), each, shape), shape if places else None)
        if isinstance(readers, Tensor):
            if readers.is_floating_point() or readers.dtype == torch.bool:
                raise CommonweightError(f"a route of tenant numbers is a LongTensor; this is {readers.dtype}")
            found, shape = numbered(readers, {t.number: t for t in self.tenants.values()}), tuple(readers.shape)
            return Route.of(_at(found, spread(tasks, shape), shape), shape)
        if not isinstance(readers, Sequence):
            raise CommonweightError(
                f"route({readers!r}): wanted a tenant's name, one name or None per row, or a LongTensor"
            )
        shape = (len(readers),)
        return Route.of(_at([None if r is None else self[r] for r in readers], spread(tasks, shape), shape))


def _at(tenants: Sequence[Tenant | None], tasks: Sequence[Any], shape: tuple[int, ...]) -> list[Tenant | None]:
    """Each reader as it is for its task. Raises: WrongTask, with the row, for a task of a reader that goes by none, one
    for all rows included, and as `Tenant.at`."""
    out = []
    for i, (tenant, task) in enumerate(zip(tenants, tasks)):
        try:
            if tenant is None:
                none([task], "the plain base")
            out.append(tenant and tenant.at(task))
        except WrongTask as e:
            row = f"row {i}" if len(shape) < 2 else f"row {i // shape[1]}, token {i % shape[1]}"
            mine = tenant is not None and tenant.tasks
            raise WrongTask(f"{row}: {e}{'' if mine else '; None or -1 says so beside rows that have one'}") from None
    return out


def _kind(method: Method, plan: Plan) -> Any:
    return method.name, len(plan.pools), len(plan.uses)
