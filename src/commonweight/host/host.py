"""The host: the only part that touches a model. It hooks every site once; tenants come and go beside it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ..core import CommonweightError, Site, unknown
from ..formats.coding import Choice
from ..methods import Method, head, resolve
from ..methods import plan as make_plan
from . import adapters, encode, files, peft
from .common import Common
from .current import Opened
from .files import Source
from .follow import served
from .hooked import HookedModel
from .merged import merged
from .module import tenant_module
from .roster import Reader, Roster
from .sites import Pattern
from .tenant import Tenant


class Host:
    """Many behaviours on one frozen model.

    model: any nn.Module; its parameters are frozen and never written. sites: None for every linear projection,
    norm and output of the transformer blocks; a glob pattern (``"*.q_proj|*.v_proj"``); or callable(name, module).
    fused: {pattern: parts}, to see the rows of a fused projection as separate sites.
    Cost: two hooks per linear layer, once; a tenant adds none.
    """

    def __init__(self, model: nn.Module, sites: Pattern = None, fused: Mapping[str, int] | None = None):
        self.roster = Roster(HookedModel(model, sites, fused))

    @property
    def model(self) -> nn.Module:
        return self.roster.base.model

    @property
    def base(self) -> HookedModel:
        """The model with its sites, as it is now: layers that were replaced since are followed."""
        self.roster.base.follow(self.roster.tenants.values())
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
        **options: Any,
    ) -> Tenant:
        """A new tenant, by a method's name and options or by its config. Either all of it happens or nothing.

        sites: other sites than the host's. labels: the classes of a classification head (or how many), which
        becomes one of the tenant's pools. common: the pools of scope `shared` are one with those of the other tenants
        of this common, which is made when there is none; those of a frozen one stay as they are.
        Cost: its own pools; no module is touched, however many tenants there are.
        Raises: CommonweightError for a name that is taken or unsafe, an unknown method, option or site, a bad width.
        """
        self.roster.free(name)
        if not isinstance(seed, int) or isinstance(seed, bool) or seed < 0:
            raise CommonweightError(f"seed is {seed!r}; wanted a whole number >= 0")
        found, config = resolve(method, options)
        chosen = self.sites_for(found, sites)
        plan = make_plan(config, chosen, seed=seed)
        if labels is not None:
            labels = _classes(labels)
            plan += head(self.head_site(), len(labels))
        return self.roster.attach(
            name, found, config, plan, labels, sites=chosen, of=self.roster.join(common, found, plan)
        )

    def common(self, name: str) -> Common:
        """The pools that the tenants of a common have together."""
        if name not in self.roster.commons:
            raise unknown("common", str(name), dict(self.roster.commons))
        return self.roster.commons[name]

    def freeze(self, common: str, frozen: bool = True) -> Common:
        """From now on the tenants of a common train their own pools alone, those that join later too; its bytes do not
        change. frozen=False: all of them write to it again. Make optimisers after it, not before."""
        found = self.common(common)
        found.freeze(frozen)
        if not frozen:  # what is trained on is no longer what a store calls by its content
            mine = {id(t) for t in found.pools.values()}
            for key in [k for k, t in self.roster.frozen.items() if id(t) in mine]:
                del self.roster.frozen[key]
        return found

    def sites_for(self, method: Method, pattern: Pattern = None) -> list[Site]:
        """The sites a method takes here: of its kinds, in its default roles unless a pattern chose them."""
        return self.base.sites_for(method, pattern)

    def head_site(self) -> Site:
        """Where a classification head of a tenant stands."""
        return self.base.head_site()

    def remove(self, name: str) -> None:
        """Forgets a tenant; common frozen pools that nobody else reads go with it. O(1) in the number of tenants.

        A route that is open keeps serving it until it closes. With its last tenant a common ends."""
        self.roster.remove(name)

    def close(self) -> None:
        """Takes every hook off and gives the model back as it was."""
        self.roster.base.close()
        self.roster.tenants.clear()  # modules that were made of them refuse from now on
        self.roster = Roster(self.roster.base)

    # -- running ---------------------------------------------------------------------------------------------------

    def route(self, readers: Reader | Sequence[Reader] | Tensor) -> Opened:
        """Within it, the model answers as these tenants: a name, one name or None per row, or a LongTensor of
        `Tenant.number` (-1: the plain base), of shape (B,) per row or (B, T) per token, or (T,) for one packed row.

        A context manager or a decorator (of coroutines too; generators are refused); routes nest. A route belongs to
        the work that is done within it: each task of an event loop has its own, and threads and executors that are
        given work within it take it along. Where it
        cannot be known whose work a thread does, the model raises an error. While a route is open without gradients,
        stacked pools are kept: write to pools under ``torch.no_grad()``, not through ``.data``, or the change is seen
        only by the next route."""
        encode.install()
        return self.roster.base.current.within(self.roster.route(readers))

    def module(self, name: str | Sequence[str]) -> nn.Module:
        """The model as this tenant, as an nn.Module whose only trainable parameters are the tenant's pools.

        For transformers.Trainer, accelerate and DistributedDataParallel; its state_dict holds the pools alone.
        Several names: a batch then brings ``tenants``, the number of each row's tenant; a pool of a common is there
        once.
        """
        names = [name] if isinstance(name, str) else list(dict.fromkeys(name))
        if not names:
            raise CommonweightError("module([]): wanted a tenant's name, or several")
        return tenant_module(self.roster, [self[n] for n in names])

    # -- what it is ------------------------------------------------------------------------------------------------

    def weight(self, site: str) -> Tensor:
        """The frozen weight that a site reads, (out, inp)."""
        return self.base.weight(site)

    @property
    def fingerprint(self) -> str:
        """Of the base: names, shapes and 64 values of every parameter but those of heads, rounded to bfloat16, so that
        a float32 and a bfloat16 copy are the same base; see `fingerprint.of_base`. Cost: milliseconds, of a packed base
        one reading of every weight; made anew at every look. On a sharded base every process must ask."""
        return self.base.fingerprint

    def merged(self, name: str) -> dict[str, Tensor]:
        """The weights that differ from the base, by parameter name, in the model's own layout and dtype.

        For an ordinary model of the same architecture: ``other.load_state_dict(host.merged(n), strict=False)``. Of a
        quantised base they are the numbers that its codes stand for and the change, in floating point.
        Raises: CommonweightError where a method is no change of weights.
        """
        base, tenant = self.base, self[name]
        served(tenant)
        return merged(base, tenant)

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
        return files.save(self.base, self[name], Path(path), metrics, codec)

    def load(self, name: str, path: str | PathLike[str], *, check_base: bool = True) -> Tenant:
        """Reads a tenant's file under a name. check_base=False: also when the base's numbers differ."""
        self.roster.free(name)
        return files.load(self.roster, name, Path(path), check_base)

    def load_from(self, source: Source, name: str, *, as_: str | None = None, check_base: bool = True) -> Tenant:
        """Reads a tenant out of a store, `commonweight.Commons`: its newest version, or ``"legal@2"``.

        Frozen pools that another tenant has from a store already are shared in memory; trainable ones are copied.
        as_: its name here, where it is to be another one. Either all of it is loaded or the host is as it was.
        """
        if as_ is not None:
            self.roster.free(as_)
        stored = source.fetch(name)
        self.roster.free(as_ or stored.name)
        return files.load_stored(self.roster, as_ or stored.name, stored, check_base)

    def load_adapter(
        self,
        path: str | PathLike[str],
        name: str | None = None,
        *,
        format: str | None = None,
        labels: Sequence[str] | int | None = None,
        tolerance: float | None = None,
        task: int | None = None,
        check_base: bool = True,
    ) -> Tenant:
        """Reads an adapter of any tool as a tenant: PEFT, mlx-lm, or a tenant's own file; the content tells which.

        path: a file, or the folder that holds it. name: without one, as the file or folder is called.
        format: one of `formats.recognise.FORMATS`, in place of looking. labels, task: as for `import_peft`.
        tolerance: relative error that may remain at a weight (Frobenius norm) where the change has no factors; without
        it all of it is kept, in low rank where that is smaller, else as a whole difference.
        Cost: the file in memory; for changes without factors an SVD of each. Nothing is unpickled.
        Raises: CommonweightError naming the file, the key, what came, what was wanted, and adapters for another base.
        """
        how = adapters.How(format, _given(labels), tolerance, task, check_base)
        return adapters.load_adapter(self.roster, Path(path), name, how)

    def export(self, name: str, path: str | PathLike[str], format: str = "peft", **options: Any) -> Path:
        """Writes a tenant as an adapter of another tool: ``"peft"`` or ``"mlx"`` (folders).

        Options: overwrite; rank and tolerance, for the nearest low rank of what is no product of two factors; of peft
        also those of `export_peft`. Raises: CommonweightError for what the format cannot say.
        """
        base = self.base
        served(self[name])
        return adapters.export(base, self[name], Path(path), format, **options)

    def export_peft(self, name: str, folder: str | PathLike[str], **options: Any) -> Path:
        """Writes a tenant as a PEFT adapter folder: see `commonweight.formats.peft`."""
        base = self.base
        served(self[name])
        return peft.export_peft(base, self[name], Path(folder), **options)

    def import_peft(
        self,
        name: str,
        folder: str | PathLike[str],
        *,
        labels: Sequence[str] | int | None = None,
        tolerance: float | None = None,
        task: int | None = None,
    ) -> Tenant:
        """Reads a PEFT adapter folder as a tenant: see `commonweight.formats.peft`. labels: the classes of the head
        that lies beside the adapter; () leaves it out. tolerance, task: of the types that are read through PEFT."""
        self.roster.free(name)
        return peft.import_peft(self.roster, name, Path(folder), _given(labels), tolerance=tolerance, task=task)


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
