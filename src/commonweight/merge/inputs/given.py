"""The models of a call in Python as sources: state dicts and modules, paths, adapters and tenants on a model."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ...core import CommonweightError
from ...formats.peft.folder import CONFIG, TENSORS
from ...host.files import weights
from ...host.names import adapters
from ...host.tenant import Tenant
from ..schema.types import Input, Recipe, Slice
from ..sources.adapted import Adapted
from ..sources.heads import settle, tied
from ..sources.model import open_source
from ..sources.opened import Opened, is_tenant, stored
from ..sources.source import Source, config_of
from ..sources.tenanted import Tenanted
from .models import Models, whole

_ELSEWHERE = re.compile(r"\+|^[\w-][^/]*/[^/]+$")  # a model with an adapter, or a hub name


class Given(NamedTuple):
    """base: for the method; dtypes: of the result, by name."""

    sources: list[Source]
    base: Source | None
    dtypes: Mapping[str, torch.dtype]


def given(models: Any, base: Any = None, takes_base: bool = True) -> Given:
    """models: a list, or name -> model, of state dicts, modules, paths of models, "MODEL+ADAPTER", and of what stands
    on `base`: folders of LoRA adapters (PEFT), tenants (files, "STORE:TENANT", `host[name]`).

    takes_base: whether the method does. Where it does not, a base is what adapters and tenants stand on, and no more.
    The head that some models tie to their embedding, and others leave out, is left out of all; where others have a head
    of their own, the embedding stands for it. Buffers that only some have, and a model makes anew, are left out. What
    is not known of a tenant is a warning, as on which weights it was trained where its host is gone.
    Raises: CommonweightError for what is no model, and for an adapter or a tenant that has no base to stand on.
    """
    if isinstance(models, str | Path):
        raise CommonweightError(f"models is {str(models)!r}; wanted a list of models, as in [{str(models)!r}, ...]")
    several = models if isinstance(models, Mapping | Sequence) else [models]
    named = several.items() if isinstance(several, Mapping) else enumerate(several)
    asked = [(f"model {k}", m, _part(m)) for k, m in named]
    if (part := _part(base)) is not None:
        raise CommonweightError(f"base is {part.what}, which is not a model by itself; give the model, or {part.whole}")
    paths = _Paths()
    root = None if base is None else paths.open(base, "base")
    found = [paths.open(m, label) if p is None else _standing(p, label, root) for label, m, p in asked]
    every = found if root is None else [root, *found]
    for source in every:
        whole(source)
    for notice in dict.fromkeys(n for s in found if isinstance(s, Tenanted) for n in s.notices):
        warnings.warn(notice, stacklevel=2)
    settled = settle({str(i): s for i, s in enumerate(every)}, lambda i: _ties(every[int(i)])).sources
    found = [settled[str(i)] for i in range(len(every) - len(found), len(every))]
    root = None if root is None else settled["0"]
    stands = not takes_base and any(p is not None for *_, p in asked)
    lead = root or (found[0] if found else None)
    return Given(found, None if stands else root, {} if lead is None else getattr(lead, "kept", lead.dtypes))


def _ties(source: Source) -> bool:
    """By the config beside its files; of what is in memory nothing is known."""
    return bool(source.files) and tied(config_of(source.files[0]))


class _Part(NamedTuple):
    """Of a model: an adapter or a tenant. what, whole: for messages, and how to write it as a model."""

    what: str
    whole: str
    adapter: Path | None = None
    tenant: str | Path | Opened | None = None


def _part(model: Any) -> _Part | None:
    if isinstance(model, Tenant):
        pools = {n: p.detach().cpu() for n, p in model.pools.items()}
        base = None if model.base is None else model.base()
        header = {
            "method": model.method.name,
            "weights": None if base is None else weights(base, model),
            "adapters": None if base is None else adapters(base.model),
        }
        opened = Opened(model.name, header, model.plan, pools, None, model.sites)
        whole = f"the state dict with host.merged({model.name!r}) over it"
        return _Part(f"the tenant {model.name} of a host", whole, tenant=opened)
    if not isinstance(model, str | Path):
        return None
    path = Path(model).expanduser()
    if path.name == TENSORS and (path.parent / CONFIG).is_file():
        path = path.parent
    whole = f"'MODEL+{model}'"
    if stored(path) is not None or is_tenant(path):
        return _Part(f"the tenant {model}", whole, tenant=path)
    return _Part(f"the adapter {model}", whole, adapter=path) if (path / CONFIG).is_file() else None


def _standing(part: _Part, label: str, base: Source | None) -> Source:
    if base is None:
        raise CommonweightError(f"{label} is {part.what}, which changes a model: give base=, or {part.whole}")
    label = f"{label} ({part.what})"
    if part.adapter is not None:
        return Adapted(label, base, part.adapter)
    assert part.tenant is not None
    return Tenanted(label, base, part.tenant)


class _Paths:
    """Opens models; "MODEL+ADAPTER" and hub names as recipes do, each model once."""

    def __init__(self) -> None:
        self._models: Models | None = None

    def open(self, model: Any, label: str) -> Source:
        if isinstance(model, str) and not Path(model).expanduser().exists() and _ELSEWHERE.search(model):
            if self._models is None:
                self._models = Models(Recipe("linear", (Slice((Input(model),)),)))
            source = self._models.open(model)
            source.label = f"{label} ({model})"
            return source
        state = model.state_dict() if isinstance(model, nn.Module) else model
        if isinstance(state, Mapping):
            _checked(state, label)
        return open_source(Path(state).expanduser() if isinstance(state, str) else state, label)


def _checked(state: Mapping[Any, Any], label: str) -> None:
    for name, t in state.items():
        if not isinstance(name, str):
            raise CommonweightError(f"{label}: a key is {name!r}; wanted tensors by their names")
        if isinstance(t, Tensor) and t.is_meta:
            raise CommonweightError(f"{name}: {label} has it on the meta device, without numbers; load the weights")
        if isinstance(t, Tensor) and (t.layout != torch.strided or t.is_quantized or t.is_complex()):
            kind = t.dtype if t.layout == torch.strided else str(t.layout).removeprefix("torch.")
            raise CommonweightError(f"{name}: {label} has a tensor of {kind}; wanted a dense one of real numbers")
