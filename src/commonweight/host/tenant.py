"""A tenant: a plan, its pools, and a table from site to what happens there. Adding one touches no module."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Collection, Iterator, Mapping, MutableMapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..address import WHOLE, at_task, tasks_of
from ..bind import First, Unread, turned
from ..core import CommonweightError, Plan, Rng, Site, WrongTask
from ..core.spectrum import svd
from ..methods import Beside, Method
from ..methods.beside import without
from .common import Common
from .pools import Packed
from .said_tasks import number, unsaid


class Derive:
    """What pools may be derived from: weights and biases of the frozen base, each SVD computed once."""

    def __init__(self, weight: Callable[[str], Tensor], bias: Callable[[str], Tensor] | None = None):
        self._weight, self._bias, self._svd = weight, bias, {}

    def weight(self, site: str) -> Tensor:
        return self._weight(site).detach().float()

    def bias(self, site: str) -> Tensor:
        if self._bias is None:
            raise CommonweightError(f"{site}: its bias is wanted, and no base is at hand")
        return self._bias(site).detach().float()

    def svd(self, site: str, rounded: bool = False) -> tuple[Tensor, Tensor, Tensor]:
        if (site, rounded) not in self._svd:
            w = self.weight(site)
            self._svd[site, rounded] = svd(w.bfloat16().float() if rounded else w)
        return self._svd[site, rounded]


_PLACES: dict[frozenset[str], frozenset[str]] = {}  # each set of sites that tenants have, once
_SIGNATURES: dict[Any, int] = {}  # what entries must agree in to run as one group -> a small number


class Entry:
    """One Use, ready to run: its bind and its reads with the tensors in hand."""

    __slots__ = (
        "bind", "context", "grouped", "hands", "inputs", "invocation", "lends", "opens", "output", "placed", "precise",
        "reads", "rows", "signature", "sources", "trained", "whole",
    )  # fmt: skip

    def __init__(self, bind: Any, reads: list[tuple[str, Any, tuple[Tensor, ...]]], rows: tuple[int, int] | None):
        self.bind, self.reads = bind, reads
        self.opens: Callable | None = getattr(bind, "opens", None)
        self.inputs: Callable | None = getattr(bind, "input", None)
        self.output: Callable | None = getattr(bind, "output", None)
        self.trained: Callable | None = getattr(bind, "trained", None)
        self.grouped: Callable | None = getattr(bind, "grouped", None)
        self.precise: bool = getattr(bind, "precise", False)
        self.lends = int(getattr(bind, "lends", 0))  # how many sites read what this one is given; not told: 1
        self.hands: bool = getattr(bind, "hands", False)  # whether what it lends is what it gives, not what it is given
        source = getattr(bind, "source", "")  # the site whose input it reads beside its own
        self.sources: tuple[str, ...] = (*((source,) if source else ()), *getattr(bind, "further", ()))
        self.invocation: tuple[int, ...] = getattr(bind, "invocation", ())  # tokens from which on it acts
        self.context: bool = bool(getattr(bind, "context", ""))  # whether it reads its rows' mean embeddings
        self.placed: bool = getattr(bind, "placed", False)  # whether it goes by which token of its row each place is
        self.whole: bool = getattr(bind, "whole", False)  # whether what it does to a token goes by its whole row
        self.narrow(rows)

    def narrow(self, rows: tuple[int, int] | None) -> None:
        """The rows of the layer's weight that it reads; None for all."""
        self.rows = rows
        alike = (self.bind, rows, tuple((s, a, tuple(p.shape for p in ps)) for s, a, ps in self.reads))
        self.signature = _SIGNATURES.setdefault(alike, len(_SIGNATURES))

    def slots(self, dtype: torch.dtype | None) -> dict[str, Tensor]:
        """What the bind is given: every read, in the dtype of the activations unless the bind is `precise`."""
        out = {}
        for i, (slot, _, _) in enumerate(self.reads):
            value = self.read(i)
            if dtype is not None and value.dtype is not dtype and not self.precise and value.is_floating_point():
                value = value.to(dtype)
            out[slot] = value
        return out

    def read(self, i: int) -> Tensor:
        """The i-th of its reads, as its pools have it."""
        _, address, pools = self.reads[i]
        return pools[0] if address is WHOLE else address(*pools)


def takes_input(entries: list[Entry]) -> bool:
    """One use that changes the input alone; uses in company take the reference form."""
    return len(entries) == 1 and entries[0].inputs is not None and entries[0].rows is None


class Tenant:
    """One trained behaviour of a host. `plan` describes it; `pools` holds its numbers by name."""

    def __init__(
        self,
        name: str,
        number: int,
        method: Method,
        config: Any,
        plan: Plan,
        pools: Mapping[str, Tensor],
        rows: Mapping[str, tuple[int, int] | None],
        labels: tuple[str, ...] | None = None,
        sites: Sequence[Site] = (),
        common: Common | None = None,
        ties: Mapping[str, Sequence[tuple[str, bool]]] | None = None,
        beside: Beside = Beside(),  # noqa: B008
        held: Sequence[Site] = (),
    ):
        self.name, self.number, self.method, self.config = name, number, method, config
        self.plan, self.labels = plan, labels
        self.pools: Mapping[str, Tensor] = pools if isinstance(pools, Packed) else dict(pools)
        self.sites = tuple(sites)  # those the method's plan was made for; it may use fewer
        self.beside, self.held = beside, tuple(held)  # what it holds beside the method, and the sites of that
        self.vocabulary: int | None = None  # entries of the base's table when it was made: it says no others
        self.known: dict[str, int] = {}  # tables that have grown since -> the entries that it knows
        self.common = common
        self.over: tuple[Tenant, ...] = ()  # frozen tenants that it stands on
        self.under: list[Tenant] = []  # those that stand on it: while there are any, nothing of it trains
        self.prompted = False  # whether it goes by the embedding of a row's prompt
        self.hidden = False  # whether it is there for these alone, and has no name on the host
        self.base: weakref.ref[Any] | None = None  # the model that it is on, for what only that knows: its weights
        self.misfit: str | None = None  # what the model no longer has of what it reads
        self.rows = rows
        self.apart = False  # whether a change of a table is none of what is tied to it, as in some files of PEFT
        self.ties = ties or {}  # a site -> those that read the same weight, and whether they read it transposed
        self._table: dict[str, list[Entry]] | None = None
        self._places: frozenset[str] | None = None
        self.task = -1  # which of its tasks it is, of a view as `at` makes them
        self._origin: weakref.ref[Any] | None = None
        self._tasks: tuple[str, ...] | None = None
        self._binds: tuple[Plan, tuple[Any, ...]] | None = None  # of which plan, and its
        self._at: dict[int, Tenant] = {}  # its views
        self.by_expert: dict[str, dict[int, list[Entry]]] = {}  # what `experts.readers` makes of the table, once

    @property
    def table(self) -> dict[str, list[Entry]]:
        """What happens at each site. It is made when somebody asks, and kept until `rest`."""
        if (table := self._table) is None:
            table = self._table = self._entered()
        return table

    @property
    def places(self) -> frozenset[str]:
        """Names of the sites in `table`. Tenants that have the same there have one object."""
        if (found := self._places) is None:
            found = frozenset(self.table)
            found = self._places = _PLACES.setdefault(found, found)
        return found

    @table.setter
    def table(self, table: dict[str, list[Entry]]) -> None:
        self._table, self._places = table, None

    @property
    def packs(self) -> bool:
        """Whether it does to a text what it does alone where texts stand side by side in one row."""
        binds = [e.bind for entries in self.table.values() for e in entries]
        return all(getattr(b, "tokenwise", True) or hasattr(b, "invocation") for b in binds)

    @property
    def tokenwise(self) -> bool:
        """Whether what it does to a token goes by that token alone, not by its place or by others of its row."""
        return all(getattr(e.bind, "tokenwise", True) for entries in self.table.values() for e in entries)

    @property
    def invocations(self) -> frozenset[tuple[int, ...]]:
        """Tokens from which on it acts; empty where it acts everywhere."""
        return frozenset(i for b in self.binds if (i := getattr(b, "invocation", ())))

    @property
    def binds(self) -> tuple[Any, ...]:
        """The binds of its plan, each once: a plan for thousands of experts has one or two."""
        if (found := self._binds) is None or found[0] is not self.plan:
            found = self._binds = self.plan, tuple(dict.fromkeys(u.bind for u in self.plan.uses))
        return found[1]

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks by which its numbers differ; none where they do not, and of a view."""
        if (found := self._tasks) is None:
            each = (tasks_of(u.reads) for u in self.plan.uses) if self.task < 0 else ()
            found = self._tasks = next((t for t in each if t), ())
        return found

    @property
    def origin(self) -> Tenant:
        """The tenant that it is a view of; itself where it is none, or where that one is gone."""
        return self if self._origin is None else self._origin() or self

    @property
    def key(self) -> Any:
        """Its number, and of a view its task too."""
        return self.number if self.task < 0 else (self.number, self.task)

    def at(self, task: Any) -> Tenant:
        """The same as it is for one of its tasks, by name or number: a view of its pools. A tenant without tasks, for
        which none is said (None, -1), is its own. Raises: WrongTask for any other."""
        names, i = self.tasks, number(task)
        if not names and unsaid(task):
            return self
        if isinstance(task, str) and task in names:
            i = names.index(task)
        elif not names or i is None or not 0 <= i < len(names):
            raise self._wrong(task)
        view = self._at.get(i)
        if view is None or view.pools is not self.pools:  # it may have been given another plan
            uses = tuple(u._replace(reads=at_task(u.reads, names[i])) for u in self.plan.uses)
            view = self._again(self.plan._replace(uses=uses), self.beside, self.held)
            view.task, view._origin, view.pools = i, weakref.ref(self), self.pools
            view.keep(self.known)
            self._at[i] = view
        return view

    def _wrong(self, task: Any) -> WrongTask:
        """What is wrong with a task that is none of its own."""
        names = self.tasks
        if names and (isinstance(task, str) or number(task) not in (None, -1)):
            return WrongTask(f"unknown task {task!r} of tenant {self.name!r}; known: {', '.join(names)}")
        if not names:
            wrong = f"it knows no tasks, and {task!r} is said; leave it out"
        elif unsaid(task):
            known = ", ".join(names)
            wrong = f"it goes by tasks, and none is said; say which, of {known}, with tasks= or task= (--task-name)"
        else:
            wrong = f"a task is a name or a whole number, and {task!r} is said; wanted one of {', '.join(names)}"
        return WrongTask(f"tenant {self.name!r} ({self.method.name}): {wrong}")

    def rest(self) -> None:
        """Keeps its numbers alone until somebody reads it again: some 100 kB less, which come back with its table."""
        self._table = self._places = None
        self.by_expert = {}
        for view in self._at.values():
            view.rest()

    def _entered(self) -> dict[str, list[Entry]]:
        table: dict[str, list[Entry]] = {}
        for use in self.plan.uses:
            reads = [(slot, r.address, tuple(self.pools[p] for p in r.pools)) for slot, r in use.reads.items()]
            table.setdefault(use.site.split("[")[0], []).append(Entry(use.bind, reads, self.rows.get(use.site)))
        for site in [s for s in table if s in self.ties]:
            for other, across in self.ties[site]:
                rows = (0, self.known[site]) if across and site in self.known else None
                both = [e for e in table[site] if not across or hasattr(e.bind, "weight")]  # else of what it gives
                mine = [Entry(turned(e.bind) if across else e.bind, e.reads, rows or e.rows) for e in both]
                if not across and site in self.known:
                    mine = [Entry(First(e.bind, self.known[site]), e.reads, e.rows) for e in mine]
                if mine:
                    table.setdefault(other, mine)  # one that has a use of its own there has it in place of this
        for site, n in self.known.items():
            table[site] = [Entry(First(e.bind, n), e.reads, e.rows) for e in table[site]]
        base = None if self.base is None else self.base()
        for site in () if base is None else base.emptied & table.keys():
            free = [hasattr(e.bind, "weight") for e in table[site]]  # of zeros it gives zeros, and a bias of its own
            table[site] = [e if f else Entry(Unread(e.bind), e.reads, e.rows) for f, e in zip(free, table[site])]
        return table

    def stand(self, over: Sequence[Tenant]) -> None:
        """On these, from now on: they are frozen, also for optimisers that hold their pools."""
        self.over = tuple(over)
        for t in over:
            t.under.append(self)
            for name, pool in t.plan.pools.items():
                if pool.train:
                    t.pools[name].requires_grad_(False)
                    t.pools[name].grad = None

    def free(self, doing: str) -> None:
        """Raises: CommonweightError where others stand on it."""
        if self.under:
            names = ", ".join(repr(t.name) for t in self.under)
            raise CommonweightError(
                f"{self.name!r} cannot be {doing}: {names} stand{'s' * (len(self.under) == 1)} on it; remove that first"
            )

    def leave(self) -> None:
        """It stands on nothing any more; what it stood on trains again, if it was the last."""
        for t in self.over:
            t.under.remove(self)
            if t.hidden and not t.under:
                t.leave()
            for name, pool in t.plan.pools.items():
                if pool.train and not t.under and not t.reads_frozen(name):
                    t.pools[name].requires_grad_(True)
        self.over = ()

    def bare(self) -> Tenant:
        """The same without what it holds beside its method."""
        if not self.held:
            return self
        out = self._again(without(self.plan, self.beside))
        out.keep({n: k for n, k in self.known.items() if n in out.table})
        return out

    def _again(self, plan: Plan, beside: Beside = Beside(), held: Sequence[Site] = ()) -> Tenant:  # noqa: B008
        """Another plan on the same pools."""
        out = Tenant(
            self.name, self.number, self.method, self.config, plan, self.pools, self.rows, self.labels, self.sites,
            self.common, self.ties, beside, held,
        )  # fmt: skip
        out.apart, out.base, out.vocabulary = self.apart, self.base, self.vocabulary
        out.prompted = self.prompted
        return out

    def other(self, config: Any, plan: Plan, pools: Mapping[str, Tensor]) -> Tenant:
        """The same by another config, plan and pools, for who writes it."""
        out = self._again(plan, self.beside, self.held)
        out.config, out.pools, out.over = config, dict(pools), self.over
        out.keep(self.known)
        return out

    def keep(self, known: Mapping[str, int]) -> None:
        """Tables that have grown, and the entries of them that it knows: its changes are of these."""
        if known != self.known:
            self.known, self._at = dict(known), {}
            self.rest()

    def narrow(self, site: str, rows: tuple[int, int] | None) -> None:
        """The rows of a site's weight that it reads from now on."""
        if self.rows.get(site) != rows:
            self.rows, self._at = {**self.rows, site: rows}, {}
            self.rest()

    def __getstate__(self) -> dict[str, Any]:
        """Without the table, whose entries are numbered by the process: it is made anew. The host links itself."""
        return {**self.__dict__, "base": None, "_table": None, "by_expert": {}, "_at": {}, "_origin": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        for name, pool in self.plan.pools.items():
            if pool.train and not self.under and not self.reads_frozen(name):
                yield name, self.pools[name]  # type: ignore[misc]

    def reads_frozen(self, pool: str) -> bool:
        """Whether a pool belongs to a frozen common."""
        return self.common is not None and self.common.frozen and pool in self.common.pools

    def parameters(self) -> Iterator[nn.Parameter]:
        """The trainable pools, except those of a frozen common, for any optimiser."""
        return (p for _, p in self.named_parameters())

    def param_groups(
        self, lr: float | None = None, *, lora_plus: float | None = None, one: bool = False
    ) -> list[dict[str, Any]]:
        """Optimiser groups with a learning rate for each pool: lr * pool.lr / sqrt(readers).

        A step of Adam does not depend on the size of the gradient, but the n readers of a pool move together, so the
        model changes by sqrt(n) to n times as much. lr: None takes the method's own. lora_plus: pools that are read as
        B alone get so many times the rate (LoRA+, arXiv 2402.12354). one: one group of one rate, for optimisers that
        refuse groups of different rates (Prodigy).
        Raises: CommonweightError for lora_plus of a method that has no B to train.
        """
        lr = self.method.lr if lr is None else lr
        if one:
            if lora_plus is not None:
                raise CommonweightError("param_groups: one rate for all pools, and lora_plus; leave out one of them")
            return [{"params": list(self.parameters()), "lr": lr}]
        raised = self._read_as_b() if lora_plus is not None else set()
        if lora_plus is not None and not raised:
            raise CommonweightError(f"lora_plus: {self.method.name} trains no B of its own; leave it out")
        readers = self.plan.readers()
        groups: dict[float, list[nn.Parameter]] = {}
        for name, p in self.named_parameters():
            rate = lr * self.plan.pools[name].lr / max(1, readers[name]) ** 0.5
            if lora_plus is not None and name in raised:
                rate *= lora_plus
            groups.setdefault(rate, []).append(p)
        return [{"params": ps, "lr": rate} for rate, ps in groups.items()]

    def _read_as_b(self) -> set[str]:
        """Trained pools that binds read in the slot B, and in no other."""
        slots: dict[str, set[str]] = {}
        for use in self.plan.uses:
            for slot, read in use.reads.items():
                for pool in read.pools:
                    slots.setdefault(pool, set()).add(slot)
        return {n for n, _ in self.named_parameters() if slots.get(n) == {"B"}}

    def count(self) -> int:
        """Trainable numbers, counted on the real tensors."""
        return sum(p.numel() for p in self.parameters())

    @property
    def nbytes(self) -> int:
        """Bytes of the pools that a file would hold, those of a common included, as they are here: a codec makes the
        file smaller than this, `Host.save` returns its path."""
        return sum(self.pools[n].nbytes for n, p in self.plan.pools.items() if p.save)

    @property
    def private_nbytes(self) -> int:
        """Bytes of the saved pools that are its own: what it costs beside its common."""
        taken = self.common.pools if self.common is not None else ()
        return sum(self.pools[n].nbytes for n, p in self.plan.pools.items() if p.save and n not in taken)

    def __repr__(self) -> str:
        return f"Tenant({self.name!r}, {self.method.name}, {self.count():,} trainable, {self.nbytes:,} bytes)"


def materialise(
    plan: Plan, base: Derive, like: torch.device, frozen: MutableMapping[Any, Tensor], own: Collection[str] = ()
) -> dict[str, Tensor]:
    """Tensors for a plan's pools. A pool that is neither trained nor saved exists once per host: `frozen` finds it,
    but for those of `own`.

    What is derived from the base does not depend on the seed, and serves as a start of trained pools too.
    """
    out: dict[str, Tensor] = {}
    for name, pool in plan.pools.items():
        derived = getattr(pool.init, "derived", False)
        key = (pool.init, pool.shape, pool.dtype) if derived else (plan.seed, name, pool.init, pool.shape, pool.dtype)
        value = frozen.get(key)
        if value is None:
            value = pool.init(pool.shape, Rng(plan.seed, name), base)
            if tuple(value.shape) != pool.shape:
                raise ValueError(f"pool {name}: its init gave shape {tuple(value.shape)}, wanted {pool.shape}")
            value = value.to(device=like, dtype=getattr(torch, pool.dtype))
            if not pool.train and not pool.save and name not in own:
                frozen[key] = value
        elif pool.train or pool.save:
            value = value.clone()
        out[name] = nn.Parameter(value, requires_grad=True) if pool.train else value
    return out
