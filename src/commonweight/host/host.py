"""The host is the only part that touches a model. It hooks every site once; tenants are added and removed beside it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from os import PathLike
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ..core import CommonweightError, Site, unknown
from ..formats.coding import Choice
from ..methods import OVER, Method, beside, head, head_of, resolve
from ..methods import plan as make_plan
from ..methods.shown import Seen, Shown, Statistics
from . import adapters, encode, files, peft, room
from .beside import Names, Rows, chosen, others
from .common import Common
from .coverage import Coverage, coverage
from .current import Opened
from .files import Source
from .follow import served
from .heard import Heard, listening
from .hooked import HookedModel
from .merged import in_float, merged
from .module import tenant_module
from .over import of_names, over_tenants, plan_over, pools_over, sites_of
from .replanned import smaller
from .roster import Prompts, Reader, Roster
from .rows import asked as rows_asked
from .rows import taken
from .said_tasks import Tasks
from .shown import statistics
from .sites import Pattern
from .tenant import Tenant
from .unmatched import idle, tell, tell_of_sites, tell_of_widths
from .vocabulary import grow, invocable


class Host:
    """Many behaviours on one frozen model.

    model: any nn.Module; its parameters are frozen and never written. sites: None for every linear projection,
    norm and output of the transformer blocks; a pattern (``"*.q_proj|*.v_proj"``, ``"...|!*.0.*"``: the usual ones
    but those of block 0); or callable(name, module).
    fused: {pattern: parts}, to see the rows of a fused projection as separate sites.
    Cost: two hooks per linear layer, once; a tenant adds none.
    """

    def __init__(self, model: nn.Module, sites: Pattern = None, fused: Mapping[str, int] | None = None):
        self.roster = Roster(base := HookedModel(model, sites, fused))
        tell_of_sites(sites, base.chosen, base.every)

    @property
    def model(self) -> nn.Module:
        return self.roster.base.model

    @property
    def base(self) -> HookedModel:
        """The model with its sites, as it is now: layers that were replaced since are followed."""
        self.roster.base.follow([*self.roster.tenants.values()])
        return self.roster.base

    # -- tenants ---------------------------------------------------------------------------------------------------

    @property
    def sites(self) -> tuple[Site, ...]:
        """The sites that a tenant reads by default."""
        return tuple(self.base.chosen)

    def __getitem__(self, name: str) -> Tenant:
        return self.roster[name]

    def __contains__(self, name: object) -> bool:
        return name in self.roster.tenants

    def __iter__(self) -> Iterator[str]:
        return iter(self.roster.tenants)

    def __len__(self) -> int:
        return len(self.roster.tenants)

    def add(
        self,
        name: str,
        method: str | Any = "lora",
        *,
        sites: Pattern = None,
        seed: int = 0,
        labels: Sequence[str] | int | None = None,
        common: str | None = None,
        modules_to_save: Names = None,
        token_rows: Rows = None,
        rows: Shown | Iterable[Mapping[str, Any]] | None = None,
        retain: Shown | Iterable[Mapping[str, Any]] | None = None,
        over: Sequence[str] | None = None,
        **options: Any,
    ) -> Tenant:
        """Adds a tenant, by a method's name and options or by its config. If an error is raised, nothing has changed.

        sites: replaces the host's sites for this tenant; ``...`` in it are those, ``!`` is before what is left out.
        labels: the classes of a classification head, or their number; it becomes part of the tenant. common: the name
        of one, which is made if it is not there; its tenants share the pools of scope `shared`, frozen ones for good.
        Beside the method: modules_to_save, names of modules, by their last parts or as globs, whose weights are the
        tenant's own, whole (``["embed_tokens", "lm_head"]``); token_rows, trained entries of the table of input tokens
        (``[128256, 128257]``), or {name of a table or head: entries}. Where the head is tied to the table, a change of
        the table is one of the head.
        rows: for a method that begins from data: batches of the model's inputs (with "labels" where it wants
        gradients), or a `Shown`, with a loss of one's own. What they cost: see `host.shown`. retain: the same, of rows
        of which a method keeps what the model makes (`salora`, `corda` in its mode kpm).
        over: for a method that weighs other tenants (`lorahub`, `arrow`, `psec`, `phatgoose`, `autolora`), their names.
        While it is there, these are frozen and cannot be removed; its file holds its own numbers alone.
        Cost: the tenant's own pools. No module is touched, however many tenants there are.
        Raises: CommonweightError for a name that is taken or unsafe, an unknown method, option or site, a bad width.
        """
        self.roster.free(name)
        if not isinstance(seed, int) or isinstance(seed, bool) or seed < 0:
            raise CommonweightError(f"seed is {seed!r}; wanted a whole number >= 0")
        if over is not None or over_tenants(method):
            given = sites, common, modules_to_save, token_rows, rows, retain
            return self._over(name, *OVER.resolve(method, options), over or (), seed, labels, given)
        found, config = resolve(method, options)
        held, more = chosen(self.base, modules_to_save, token_rows)
        reads = found.of(config)
        mine = others(self.base, self.sites_for(reads, sites), held)
        if sites is None and self.base.pattern is None:
            tell_of_widths(reads, mine, self.base.chosen)
        if found.asks(config) or found.kept(config):
            mine = [s for s in mine if s.kind in (*reads.kinds, *reads.named)]
        room.asked(found, config, mine)
        invocable(self.base, config)
        asked = config
        config = self.base.told(found, config, mine)
        config, values = self._begun(found, config, mine, rows, retain, labels, seed)
        own = make_plan(config, mine, seed=seed)
        plan = beside(held, more, seed) + own
        if labels is not None:
            labels = _classes(labels)
            plan += head_of(found, config, mine, self.head_site(), len(labels))
        # a probe is a head alone, and says so; of a stored form nothing may be left
        if found.kinds and not plan.count() and getattr(config, "form", "") != "stored":
            raise idle(found, mine)
        tell(name, asked, mine, self.base.every)
        tell_of_sites(sites, mine, self.base.every)
        return self.roster.attach(
            name, found, config, plan, labels, values, sites=mine, of=self.roster.join(common, found, plan),
            beside=held, held=more,
        )  # fmt: skip

    def _over(
        self, name: str, found: Method, config: Any, over: Sequence[str], seed: int, labels: Any, given: tuple
    ) -> Tenant:
        if any(v is not None for v in given):
            raise CommonweightError(
                f"{found.name} stands on tenants and reads what they read; leave out sites, common, modules_to_save, "
                "token_rows, rows and retain"
            )
        below = of_names(self.roster, found, over)
        mine = sites_of(self.base, below, found)
        plan = plan_over(found, config, mine, below, seed)
        values = pools_over(found, config, plan, below)
        if labels is not None:
            labels = _classes(labels)
            plan += head(self.head_site(), len(labels))
        return self.roster.attach(name, found, config, plan, labels, values, sites=mine, over=below)

    def _begun(
        self, method: Method, config: Any, sites: list[Site], rows: Any, retain: Any, labels: Any, seed: int
    ) -> tuple[Any, Mapping[str, Tensor]]:
        """The config and the first values of a tenant that begins from data; else the config as it is, and none."""
        kinds = rows_asked(method, config, rows, retain)
        if method.begin is None or not any(kinds):
            return config, {}
        classes = None if labels is None else len(_classes(labels))
        twin = None if method.twin is None else (method, method.twin(config), seed)

        def seen(name: str, kind: str, given: Any) -> Statistics:
            return statistics(self.roster, kind, sites, taken(name, given), classes, twin) if kind else {}

        found = seen("rows", kinds[0], rows), seen("retain", kinds[1], retain)
        return method.begin(config, sites, Seen(found[0], found[1], self.weight))

    def resize_vocabulary(self, size: int) -> int:
        """Adds entries to the table of tokens and to the head, each the mean of those there; gives how many there were.

        The plain base and the tenants that are there answer as before, and never say the new ones; a tenant that
        changes the table or the head from now on knows them.
        Cost: a copy of the table and of the head, on the model itself.
        Raises: CommonweightError for fewer entries than there are, and while an engine is at work on the model.
        """
        base = self.base
        before = base.vocabulary
        if not isinstance(size, int) or isinstance(size, bool) or before is None or size != before:
            grow(base, size, [*self.roster.tenants.values()])
        return before or 0

    def common(self, name: str) -> Common:
        """The pools that the tenants of a common share."""
        if name not in self.roster.commons:
            raise unknown("common", str(name), dict(self.roster.commons))
        return self.roster.commons[name]

    def freeze(self, common: str, frozen: bool = True) -> Common:
        """Freezes a common: its tenants, and those that join later, train only their own pools, and its bytes do not
        change. frozen=False: its tenants train it again. Make optimisers after this call, not before."""
        found = self.common(common)
        found.freeze(frozen)
        if not frozen:  # what is trained on is no longer what a store calls by its content
            mine = {id(t) for t in found.pools.values()}
            for key in [k for k, t in self.roster.frozen.items() if id(t) in mine]:
                del self.roster.frozen[key]
        return found

    def sites_for(self, method: Method, pattern: Pattern = None) -> list[Site]:
        """The sites that a method adapts here: of its kinds, and in its default roles unless a pattern is given."""
        return self.base.sites_for(method, pattern)

    def coverage(
        self, of: str | Method | Tenant | None = None, sites: Pattern = None, *, modules_to_save: Names = None,
        **options: Any,
    ) -> Coverage:  # fmt: skip
        """How many of the weights are read, which families are left out, and the option that adds each.

        of: a tenant or its name, a method or its name, or None for the host's own default sites. sites,
        modules_to_save: as in `add`; options: the method's, which have to fit. Weights are counted by number, tied ones
        once; of a method that reads biases or entries of a table, these alone. A method that edits what blocks give
        reads none. Raises: CommonweightError where its numbers would not fit the machine.
        """
        base = self.base
        if isinstance(of, Tenant):
            of = of.name
        if isinstance(of, str) and of in self.roster.tenants:
            tenant = self[of]
            used = {n for n in tenant.table} | {u.site for u in tenant.plan.uses}
            read = [s for s in base.every if s.name in used]
            return coverage(base, of, read, tenant.method.of(tenant.config), tenant.plan)
        if of is None:
            read = base.chosen if sites is None else base.sites_of(sites)
            return coverage(base, "the host", read, None)
        method, config = resolve(of.name if isinstance(of, Method) else of, options)
        there = bool(method.kinds) and (sites is not None or base.reads(method))
        read = base.sites_for(method.of(config), sites) if there else []
        held = chosen(base, modules_to_save, None)
        room.asked(method, config, read)
        try:
            plan = beside(*held, 0) + make_plan(base.told(method, config, read), others(base, read, held[0]))
        except CommonweightError:
            if read and not (method.asks(config) or method.kept(config)):
                raise
            plan = None  # no rows to begin from, or nothing to read: the sites are told all the same
        if plan is not None:
            room.check(plan, method, config)
        used = None if plan is None else {u.site for u in plan.uses}
        mine = [s for s in (*read, *held[1]) if used is None or s.name in used]
        return coverage(base, method.name, mine, method.of(config), plan)

    def head_site(self) -> Site:
        """The site of a tenant's classification head."""
        return self.base.head_site()

    def remove(self, name: str) -> None:
        """Removes a tenant, and frozen shared pools that no other tenant reads. O(1) in the number of tenants.

        An open route keeps serving it until the route closes. A common is removed with its last tenant.
        Raises: CommonweightError where another tenant stands on it."""
        self.roster.remove(name)

    def compact(self, name: str) -> Tenant:
        """Gives a trained tenant the smaller form in which its method stores it. It answers the same, by other pools:
        an optimizer and a module of it must be made anew. Without such a form, and in a common, it stays as it is."""
        return smaller(self.roster, self[name])

    def close(self) -> None:
        """Removes every hook and leaves the model as it was."""
        self.roster.base.close()
        self.roster.tenants.clear()  # modules that were made of them refuse from now on
        self.roster = Roster(self.roster.base)

    # -- running ---------------------------------------------------------------------------------------------------

    def route(
        self, readers: Reader | Sequence[Reader] | Tensor, tasks: Tasks = None, prompts: Prompts = None
    ) -> Opened:
        """Makes the model answer as these tenants, inside a ``with`` block.

        readers: a name; one name or None for each row; or a LongTensor of `Tenant.number` (-1: the plain base), of
        shape (B,) for rows, (B, T) for tokens, or (T,) for one packed row.
        tasks: of tenants that go by tasks (`poly tasks=...`), by name or number: one for all rows, one a row, or one a
        token (a LongTensor or a list of lists, (B, T)); None and -1 where a reader knows none: there
        another is refused, with the row.
        prompts: of tenants that go by a prompt's embedding, the token ids of each row's prompt, for passes that do not
        say it themselves, as `generate` and labels of -100 do.
        Use it as a context manager or a decorator (also of coroutines; generators are refused). Routes nest. A route
        belongs to the work inside it: each task of an event loop has its own, and threads and executors that get work
        inside it keep it. If it cannot be known whose work a thread does, the model raises an error. Without
        gradients, stacked pools are kept while the route is open: write to pools under ``torch.no_grad()``, not
        through ``.data``, or only the next route sees the change."""
        encode.install()
        return self.roster.base.current.within(self.roster.route(readers, tasks, prompts))

    def listening(self) -> AbstractContextManager[Heard]:
        """Within it, what tenants' routers say in passes with gradients is kept, for a loop of one's own::

            with host.route("t"), host.listening() as heard:
                loss = model(**batch).loss
            (loss + heard.loss(host["t"])).backward()

        A loss of routers (load balance, entropy) is a mean over its tenant's own tokens, padding aside, so that a mixed
        batch gives each tenant what it has alone. `commonweight.adapt` adds it by itself."""
        return listening(self.base.current)

    @contextmanager
    def complete(self) -> Iterator[None]:
        """Within it no token skips anything: blocks and parts with gates are computed for all tokens, and nobody hears
        what the gates would have been. Of this thread."""
        thread = self.base.current.thread
        before, thread.complete = thread.complete, True
        try:
            yield
        finally:
            thread.complete = before

    def module(self, name: str | Sequence[str] | None) -> nn.Module:
        """The model as this tenant, as an nn.Module whose only trainable parameters are the tenant's pools.

        For transformers.Trainer, accelerate and DistributedDataParallel. Its state_dict holds only the pools.
        With several names, a batch needs ``tenants``, the number of each row's tenant; a pool of a common is there
        once. None is the plain base, without parameters to train: a reference model on the same weights (TRL).
        """
        if name is None:
            return tenant_module(self.roster, [])
        names = [name] if isinstance(name, str) else list(dict.fromkeys(name))
        if not names:
            raise CommonweightError("module([]): wanted a tenant's name, or several")
        return tenant_module(self.roster, [self[n] for n in names])

    # -- what it is ------------------------------------------------------------------------------------------------

    def weight(self, site: str) -> Tensor:
        """The frozen weight at a site, (out, inp)."""
        return self.base.weight(site)

    @property
    def fingerprint(self) -> str:
        """Identifies the base: names, shapes and 64 values of every parameter except heads. Values are rounded to
        bfloat16, so a float32 and a bfloat16 copy count as one base; see `fingerprint.of_base`. Cost: milliseconds; for
        a base packed by a library other than bitsandbytes, every weight is read once. Computed on every access. On a
        sharded base, every process must call it."""
        return self.base.fingerprint

    def merged(self, name: str, *, requantise: bool = False, task: str | int | None = None) -> dict[str, Tensor]:
        """The weights that differ from the base, by parameter name, in the model's own layout and dtype.

        For an ordinary model of the same architecture: ``other.load_state_dict(host.merged(n), strict=False)``. For a
        quantised base these are its dequantised weights plus the change, in floating point; requantise=True packs them
        again as the layer was, under the keys of its own state dict. task: of a tenant that goes by tasks, which.
        Raises: CommonweightError if the method does not change weights, or if a format cannot be packed here.
        """
        base, tenant = self.base, self[name]
        served(tenant)
        return merged(base, tenant.at(task), requantise)

    def merged_model(self, name: str, *, task: str | int | None = None) -> nn.Module:
        """The tenant as a model of its own: of transformers, all weights in floating point, whatever the base is packed
        in, and no word of quantisation in its config; `save_pretrained` writes it. task: as in `merged`.

        Cost: the whole model once more. Raises: as `merged`, and for a model that is not made from a config.
        """
        base, tenant = self.base, self[name]
        served(tenant)
        return in_float(base, merged(base, tenant.at(task)))

    # -- files -----------------------------------------------------------------------------------------------------

    def save(
        self,
        name: str,
        path: str | PathLike[str],
        metrics: Mapping[str, Any] | None = None,
        *,
        codec: Choice = None,
        overwrite: bool = True,
    ) -> Path:
        """Writes one tenant to one safetensors file, atomically. Size: its saved pools and a header.

        codec: stores the pools in fewer bytes, with a small error: ``"bfloat16"``, ``"int8"``, ``"int4"``,
        or ``"compeft"`` for all trainable pools, with each of them, or alone, ``"ordered"`` for all places of sparse
        methods, without error, or a mapping from patterns of pool names, ``{"*A": "int8", "*": "int4"}``. ``"onebit"``
        is for `bi-lora` and `bi-adaptformer`, without error: their matrices have two values; a head stays as it is. The
        tenant in memory does not change; the file has those methods at their levels, as after `compact`. Loading needs
        no option and gives the pools in their own dtypes again.

        overwrite: False refuses to replace another file, with a CommonweightError; one with the same bytes stays.
        """
        return files.save(self.base, self[name], Path(path), metrics, codec, overwrite)

    def load(self, name: str, path: str | PathLike[str], *, check_base: bool = True) -> Tenant:
        """Loads a tenant's file under a name. check_base=False accepts a base with other weights."""
        self.roster.free(name)
        return files.load(self.roster, name, Path(path), check_base)

    def load_from(self, source: Source, name: str, *, as_: str | None = None, check_base: bool = True) -> Tenant:
        """Loads a tenant from a store, `commonweight.Commons`: its newest version, or ``"legal@2"``.

        Frozen pools that another tenant loaded from a store are shared in memory; trainable ones are copied.
        What it stands on is loaded with it, where the host has no tenant with these numbers.
        as_: another name for it on this host. If an error is raised, the host is unchanged.
        """
        if as_ is not None:
            self.roster.free(as_)
        stored = source.fetch(name)
        self.roster.free(as_ or stored.name)
        return files.load_stored(self.roster, as_ or stored.name, stored, check_base, source)

    def load_adapter(
        self,
        path: str | PathLike[str],
        name: str | None = None,
        *,
        format: str | None = None,
        labels: Sequence[str] | int | None = None,
        tolerance: float | None = None,
        task: int | None = None,
        part: str | None = None,
        alpha: float | None = None,
        start: str | PathLike[str] | None = None,
        check_base: bool = True,
    ) -> Tenant:
        """Reads an adapter of any tool as a tenant: PEFT, mlx-lm, llama.cpp, torchtune, kohya's scripts,
        LyCORIS, diffusers, and a tenant's own file.

        The content tells which, never a name alone.

        path: a file, or the folder that holds it. name: without one, as the file or folder is called.
        format: one of `formats.recognise.FORMATS`, in place of looking. labels, task, start: as for `import_peft`.
        part: of a file for several models of a pipeline, such as ``"te1"``, where more than one fits.
        alpha: of a torchtune checkpoint with no adapter_config.json beside it.
        tolerance: relative error that may remain at a weight (Frobenius norm) where the change has no factors; without
        it all of it is kept, in low rank where that is smaller, else as a whole difference.
        Cost: the file in memory; for changes without factors an SVD of each. Nothing is unpickled.
        Raises: CommonweightError naming the file, the key, what came, what was wanted, and adapters for another base.
        """
        how = adapters.How(format, _given(labels), tolerance, task, part, alpha, start, check_base)
        return adapters.load_adapter(self.roster, Path(path), name, how)

    def export(
        self, name: str, path: str | PathLike[str], format: str = "peft", *, task: str | int | None = None,
        **options: Any,
    ) -> Path:  # fmt: skip
        """Writes a tenant as an adapter of another tool: ``"peft"`` or ``"mlx"`` (folders), ``"gguf"``, ``"diffusers"``
        or ``"kohya"`` (a file).

        Options: overwrite; rank and tolerance, for the nearest low rank of what is no product of two factors; of peft
        also those of `export_peft`; of the last two also part, what they call this model in its pipeline. task: of a
        tenant that goes by tasks, which. Raises: CommonweightError for what the format cannot say.
        """
        base = self.base
        served(self[name])
        return adapters.export(base, self[name].at(task), Path(path), format, **options)

    def export_peft(
        self, name: str, folder: str | PathLike[str], *, task: str | int | None = None, **options: Any
    ) -> Path:
        """Writes a tenant as a PEFT adapter folder: see `commonweight.formats.peft`. task: as in `export`."""
        return self.export(name, folder, task=task, **options)

    def import_peft(
        self,
        name: str,
        folder: str | PathLike[str],
        *,
        labels: Sequence[str] | int | None = None,
        tolerance: float | None = None,
        task: int | None = None,
        start: str | PathLike[str] | None = None,
    ) -> Tenant:
        """Loads a PEFT adapter folder as a tenant: see `commonweight.formats.peft`. labels: the classes of the head
        in the folder; () leaves the head out. tolerance, task: for the types that are read through PEFT. start: the
        folder of a CorDA's or LoRA-GA's adapter as it was before training."""
        self.roster.free(name)
        how = {"tolerance": tolerance, "task": task, "start": start}
        return peft.import_peft(self.roster, name, Path(folder), _given(labels), **how)


def _given(labels: Sequence[str] | int | None) -> tuple[str, ...] | None:
    """The classes of a head; () leaves it out, None is nothing said."""
    return None if labels is None else _classes(labels) if labels else ()


def _classes(labels: Sequence[str] | int) -> tuple[str, ...]:
    """Distinct names of a head's classes; "0", "1", ... for a number of them."""
    if isinstance(labels, int) and not isinstance(labels, bool) and labels >= 1:
        return tuple(map(str, range(labels)))
    if isinstance(labels, Sequence) and not isinstance(labels, str):
        names = tuple(labels)
        if names and all(isinstance(n, str) for n in names) and len(set(names)) == len(names):
            return names
    raise CommonweightError(f"labels is {labels!r}; wanted distinct strings, at least one, or a number of them >= 1")
