"""The model as one tenant or several, for tools that want an nn.Module with the parameters inside it."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Sequence
from functools import lru_cache
from os import PathLike
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..core import CommonweightError
from .acting import REFUSED, acting, refused
from .change import changed
from .current import Opened
from .embedded import of_tokens
from .entrances import bring
from .merged import in_float, merged
from .origin import quantised
from .roster import Roster
from .route import Route
from .said_tasks import Tasks, none
from .tenant import Tenant


def together(tenants: Sequence[Tenant]) -> dict[str, nn.Parameter]:
    """What several tenants train, every pool once: ``tenant:pool``, and ``common <its name>:pool`` for a shared one.

    Of one tenant alone: by the names of its pools.
    """
    if len(tenants) == 1:
        return dict(tenants[0].named_parameters())
    out = {}
    for t in tenants:
        for name, p in t.named_parameters():
            shared = t.common is not None and name in t.common.pools
            out[f"common {t.common.name}:{name}" if shared and t.common else f"{t.name}:{name}"] = p
    return out


ASKED = "tenants", "tasks", "prompt_mask"  # what a batch may say beside
PACKED = {  # what trainers ask a quantised model for, and refuse to train: here the pools are trained, which are not
    "is_quantized": False,
    "is_loaded_in_4bit": False,
    "is_loaded_in_8bit": False,
    "hf_quantizer": None,
}


class TenantModule(nn.Module):
    """Runs the host's model under one tenant, or several: then every batch says who reads, in ``tenants``.

    tenants: a LongTensor of `Tenant.number`, one per row (B,) or per token (B, T); -1 is the plain base. Of tenants
    that go by tasks a batch says each row's, in ``tasks``: a LongTensor, or names. Of tenants that go by the embedding
    of a row's prompt it says which tokens are the prompt, in ``prompt_mask`` (B, T), where labels of -100 do not.
    Whatever it offers of the model acts as the tenant: `generate`, `generate_batch`, parts such as `.model` or
    `get_encoder()`; functions that would write the base are refused by name. `save_pretrained` writes the whole model
    with the tenant merged into it. `state_dict` holds the tenants' pools, a shared one once, and nothing of the base.
    `load_state_dict` takes and checks the pools alone, in DistributedDataParallel too; it never writes the base.
    Its class has the model's name and signature: trainers choose labels and losses by them.
    """

    _roster: Roster
    _tenants: list[Tenant]

    def __init__(self, roster: Roster, tenants: Sequence[Tenant]):
        super().__init__()
        self.base = roster.base.model
        object.__setattr__(self, "_roster", roster)
        object.__setattr__(self, "_tenants", list(tenants))
        self.renew()
        self.register_load_state_dict_pre_hook(keep_base)
        self.register_load_state_dict_post_hook(pools_alone)

    def train(self, mode: bool = True) -> TenantModule:
        """As a module's; batch norms stay as they answer, since in training mode they would move their statistics, the
        frozen base's, which every tenant reads."""
        super().train(mode)
        for m in self.base.modules():
            if isinstance(m, _BatchNorm):
                m.training = False
        return self

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name in ("base", "pools"):
                raise
        if name in PACKED:
            return PACKED[name]
        value = getattr(super().__getattr__("base"), name)
        if callable(value) and name in REFUSED:
            return refused(name)
        return acting(value, self._run, self._weights)

    @torch.compiler.disable(recursive=False)
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """As a module's. The route is made and opened here, before what torch.compile traces, as the model's own is."""
        current = self._roster.base.current
        before, outer = current.thread.module, current.thread.brought
        opened, kwargs = self._opened(args, kwargs, before, outer)
        try:
            return super().__call__(*args, **kwargs)
        finally:
            self._closed(opened, before, outer)

    @torch.compiler.disable
    def _opened(self, args: tuple, kwargs: dict[str, Any], module: Any, brought: bool) -> tuple[Opened, dict[str, Any]]:
        """The opening of a batch's route, and what is left of the call for the model. What cannot begin is closed."""
        said = {n: kwargs.pop(n, None) for n in ASKED}
        current = self._roster.base.current
        opened = current.within(self._route(args, kwargs, **said))
        opened.__enter__()
        try:
            current.thread.module = self
            bring(self._roster.base.inner, args, kwargs)
        except BaseException:
            self._closed(opened, module, brought)
            raise
        return opened, kwargs

    @torch.compiler.disable
    def _closed(self, opened: Opened, module: Any, brought: bool) -> None:
        thread = self._roster.base.current.thread
        thread.module, thread.brought = module, brought
        thread.run.end()
        opened.__exit__(*sys.exc_info())

    @torch.compiler.disable(reason="which tenant a row is of is looked for beside what is traced")
    def _route(
        self, args: tuple, kwargs: dict[str, Any], tenants: Tensor | None = None, tasks: Tasks = None,
        prompt_mask: Tensor | None = None,
    ) -> Any:  # fmt: skip
        """The route of a batch that says so."""
        for t in self._tenants:
            if self._roster.tenants.get(t.name) is not t:
                raise CommonweightError(
                    f"this module was made for a tenant {t.name!r} that has been removed; make it anew with "
                    "host.module(...), and the optimizer too"
                )
        self._own()
        if tenants is None and len(self._tenants) > 1:
            return Unsaid(f"{len(self._tenants)} tenants", "`tenants`, a LongTensor with one Tenant.number per row")
        if tasks is None and (by_task := next((t for t in self._tenants if t.tasks), None)) is not None:
            known = ", ".join(by_task.tasks)
            return Unsaid(
                f"{by_task.name!r}, which goes by tasks", f"`tasks`, each row's by name or number, of {known}"
            )
        route = self._roster.route(self._reader if tenants is None else tenants, tasks)
        if prompt_mask is not None and isinstance(route, Route) and route.prompted:
            ids = kwargs.get("input_ids", args[0] if args else None)
            if not isinstance(ids, Tensor) or ids.shape != prompt_mask.shape:
                raise CommonweightError(
                    f"prompt_mask {tuple(prompt_mask.shape)}: wanted one entry for each of input_ids"
                )
            route.context = of_tokens(self._roster.base.inner, self._roster.base.current, ids, prompt_mask)
        return route

    def _run(
        self, function: Callable, *args: Any, tenants: Tensor | None = None, tasks: Tasks = None,
        prompt_mask: Tensor | None = None, **kwargs: Any,
    ) -> Any:  # fmt: skip
        """`function`, of the model, under the tenants."""
        current = self._roster.base.current
        with current.within(self._route(args, kwargs, tenants, tasks, prompt_mask)):
            if (
                function is self.base
                or not _reads_tokens(function, args, kwargs)
                or current.thread.run.given is not None
            ):
                return function(*args, **kwargs)
            current.thread.begin(function, args, kwargs)  # of a backbone that a trainer calls in the model's place
            try:
                return function(*args, **kwargs)
            finally:
                current.thread.run.end()

    @property
    def _reader(self) -> str | None:
        return self._tenants[0].name if self._tenants else None

    def renew(self) -> None:
        """After a schedule gave a tenant pools of other shapes: the module's are the tenants' again. Who wraps it and
        holds the old ones, as DistributedDataParallel does, is not told, and must be made anew."""
        self.pools = nn.ParameterDict({n.replace(".", "/"): p for n, p in together(self._tenants).items()})

    def _own(self) -> None:
        """Raises: CommonweightError where others stand for the tenants' pools, which a pass does not see."""
        there = self._modules["pools"]._parameters  # type: ignore[union-attr]
        mine = {n.replace(".", "/"): p for n, p in together(self._tenants).items()}
        for n in mine if mine.keys() == there.keys() else mine.keys() ^ there.keys():
            if there.get(n) is not mine.get(n):
                n = n.replace("/", ".")
                raise CommonweightError(
                    f"the pool {n!r} of this module was replaced, as torch.func.functional_call, "
                    "load_state_dict(assign=True) and nn.DataParallel do; the tenant reads its own. Copy numbers into "
                    "it instead (load_state_dict without assign), and take gradients by backward or "
                    "torch.autograd.grad. Where its schedule gave the tenant other pools: module.renew(), or, in "
                    "DistributedDataParallel and its like, make both anew"
                )

    def _weights(self, part: nn.Module) -> tuple[Tensor, Tensor | None] | None:
        """A layer's weight and bias as the tenant reads them, in the layer's own layout; None: as the base has them.

        For code that multiplies by a weight itself, as fused losses do with the head: a bind's weight form.
        Raises: CommonweightError for several tenants, and for a method that is no change of weights.
        """
        for name, at in self._roster.base.modules.items():
            if at.module is part and at.kind != "parameter" and any(name in t.table for t in self._tenants):
                if len(self._tenants) > 1:
                    raise CommonweightError(f"{name}: its weight differs from tenant to tenant; call the layer instead")
                if self._tenants[0].invocations:
                    raise CommonweightError(
                        f"{name}: somebody multiplies by its weight, as fused losses do by the head's, and an "
                        "activated LoRA, which acts on some tokens, has none; make the tenant without this site"
                    )
                w, b = changed(at, self._tenants[0].table[name])
                w = at.native(w).to(at.weight.dtype)
                return w, b if b is None or at.bias is None else b.to(at.bias.dtype)
        return None

    def requires_grad_(self, requires_grad: bool = True) -> TenantModule:
        """Of the pools alone: the base stays frozen."""
        for p in self.pools.parameters():
            p.requires_grad_(requires_grad)
        return self

    def save_pretrained(self, folder: str | PathLike[str], *, task: str | int | None = None, **options: Any) -> None:
        """Writes the model as this tenant: an ordinary folder of transformers, the tenant merged into its weights.

        task: of a tenant that goes by tasks, which. options: as transformers has them.
        Cost: a copy of the changed weights in memory, the whole model on disk.
        Raises: CommonweightError for several tenants, a tenant that has a head of its own, and methods that are no
        change of weights; `Host.save` writes these, in a file of the tenant alone.
        """
        save: Any = getattr(self.base, "save_pretrained", None)
        if save is None:
            raise CommonweightError(
                "save_pretrained: the model under this tenant is not a transformers model; see Host.save"
            )
        if not self._tenants:
            none([task], "the plain base")
            save(folder, **options)
            return
        if len(self._tenants) > 1:
            raise CommonweightError("save_pretrained: one model holds one tenant; take host.module(name) of each")
        (tenant,) = self._tenants
        if tenant.labels is not None:
            raise CommonweightError(
                f"save_pretrained: {tenant.name!r} has a head of its own, which an ordinary model has no place for; "
                "host.save writes it with the tenant"
            )
        if "state_dict" in options:
            raise CommonweightError("save_pretrained: state_dict is made of the base and the tenant; leave it out")
        changes = merged(self._roster.base, tenant.at(task))
        if quantised(self.base) is not None:  # an ordinary folder is in floating point
            in_float(self._roster.base, changes).save_pretrained(folder, **options)  # type: ignore[operator]
        else:
            save(folder, state_dict={**self.base.state_dict(), **changes}, **options)

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        full = super().state_dict(*args, **kwargs)
        prefix = kwargs.get("prefix", "")
        for k in [k for k in full if k.startswith(f"{prefix}base.")]:
            del full[k]  # in place: a wrapper's own dict may be the one that is filled here
        return full


def _reads_tokens(function: Callable, args: tuple, kwargs: dict[str, Any]) -> bool:
    """Whether it is a module that is given the token ids of rows."""
    if not isinstance(function, nn.Module) or torch.compiler.is_compiling():
        return False
    ids = kwargs.get("input_ids", args[0] if args else None)
    return isinstance(ids, Tensor) and ids.dim() == 2 and not ids.is_floating_point()


def keep_base(
    module: nn.Module, state: dict[str, Any], prefix: str, _: Any, strict: bool, missing: list[str],
    unexpected: list[str], errors: list[str],
) -> None:  # fmt: skip
    """Before loading: numbers of the base are not expected, and not written."""
    for k in [k for k in state if k.startswith(f"{prefix}base.")]:
        del state[k]
        if strict:
            unexpected.append(k)


def pools_alone(module: nn.Module, keys: Any) -> None:
    """After loading: what lacks of the base is no lack. A wrapper's prefix stands before the names."""
    base = tuple(f"base.{n}" for n in module.base.state_dict())  # type: ignore[union-attr,operator]
    keys.missing_keys[:] = [k for k in keys.missing_keys if not _ends(k, base)]


def _ends(key: str, names: tuple[str, ...]) -> bool:
    return any(key == n or key.endswith(f".{n}") for n in names)


class Unsaid:
    """The route where a call does not say which tenants or tasks: passes of the model are refused, the rest works."""

    def __init__(self, runs: str, wants: str):
        self.runs, self.wants, self.root = runs, wants, self

    def again(self) -> Unsaid:
        return self

    @property
    def single(self) -> NoReturn:
        raise CommonweightError(f"this module runs {self.runs}: a batch needs {self.wants}")

    readers = invocations = single


def tenant_module(roster: Roster, tenants: Sequence[Tenant]) -> TenantModule:
    more = ["tenants"] * (len(tenants) > 1) + ["tasks"] * any(t.tasks for t in tenants)
    more += ["prompt_mask"] * any(t.prompted for t in tenants)
    return _like(type(roster.base.model), tuple(more))(roster, tenants)


@lru_cache(maxsize=256)
def _like(model: type[nn.Module], asks: tuple[str, ...]) -> type[TenantModule]:
    """`TenantModule` by the name and the forward signature of the model's class. asks: what a batch says beside."""

    def forward(self: TenantModule, *args: Any, **kwargs: Any) -> Any:
        if self._roster.base.current.thread.module is self:  # its route is open
            return self.base(*args, **kwargs)
        return self._run(self.base, *args, **kwargs)

    own = inspect.signature(model.forward)
    if asks:
        *before, last = own.parameters.values()
        more = [inspect.Parameter(n, inspect.Parameter.KEYWORD_ONLY, default=None) for n in asks]
        rest = [last] if last.kind is inspect.Parameter.VAR_KEYWORD else []
        own = own.replace(parameters=[*before, *([] if rest else [last]), *more, *rest])
    forward.__signature__ = own  # type: ignore[attr-defined]
    forward.__doc__ = f"{model.__name__}.forward, as the tenant."
    return type(model.__name__, (TenantModule,), {"forward": forward, "__reduce__": _again, "__module__": __name__})


def _again(self: TenantModule) -> tuple:
    return tenant_module, (self._roster, self._tenants)
