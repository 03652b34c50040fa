"""The model of a layout: one module for each depth, whose parameters are the same tensors where they read one pool."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import torch
from torch import nn

from ..core import CommonweightError, Rng
from ..host.names import unwrapped
from .dissect import stack
from .inits import Originals
from .kinds import KINDS, form_of, options_of
from .layout import Layout
from .remote import Built, shared_class
from .shared import Record, arrange


def build(model: nn.Module, layout: Layout) -> Any:
    """A new model; the given one stays as it is. What lies outside of the blocks is copied, the blocks are made anew.

    Each depth has a module of its own: its number (which is its place in a cache), its name, its hooks. The class is
    the model's, with `Shared` before it, so that transformers knows what is tied. Cost: the unique parameters.
    """
    inner = unwrapped(model)
    path = stack(inner)
    originals: Any = inner.get_submodule(path)
    same = {id(p): p for p in originals.parameters()}
    copied: dict[int, Any] = dict(same)
    small: Any = deepcopy(inner, copied)
    configs = {id(c): copied[id(c)] for m in inner.modules() if id(c := getattr(m, "config", None)) in copied}
    blocks = [deepcopy(originals[i], {**same, **configs}) for i in layout.like]
    for depth, block in enumerate(blocks):
        _number(block, depth)
    parent, _, name = path.rpartition(".")
    setattr(small.get_submodule(parent), name, type(originals)(blocks))
    _count(small, layout, len(originals))
    for key, value in layout.config:
        setattr(small.config, key, value)
        setattr(small.config.get_text_config(), key, value)
    if len({_structure(b) for b in originals}) > 1:
        _told_by_config(small, path)
    record = record_of(layout, small, path) | _apart(small)
    arrange(small, {**record, "path": _below(small, path)}, KINDS)
    _fill(small, path, layout, Originals(originals, inner))
    if hasattr(small, "config"):
        small.config.sharing = record
    known(small)
    return small.train(model.training)


def known(small: Any) -> None:
    """The model's class becomes one that tells transformers what is tied."""
    if hasattr(small, "get_expanded_tied_weights_keys"):
        if not isinstance(small, Built):  # of a shared model, whose layers are as they were, another one is made
            small.__class__ = shared_class(type(small))
        small.know()


def record_of(layout: Layout, model: nn.Module, path: str) -> Record:
    """What a config says of a shared model, see `Shared`."""
    owners: dict[str, tuple[int, str]] = {}
    tied: dict[str, list[int | str | None]] = {}
    forms: dict[str, dict[str, Any]] = {}
    depths = len(layout.like)
    outside: list[Record] = []
    away: dict[str, str] = {}
    for use in layout.plan.uses:
        depth, _, name = use.site.partition(".")
        found = form_of(use)
        if not depth:
            outside.append(_outside(layout, use, found, away))
            continue
        at = name if found is not None and found.whole else name.rpartition(".")[0]
        shapes = {}
        for key, pool in _parameters(use, found):
            full = f"{at}.{key}" if at else key
            owner, called = owners.setdefault(pool, (int(depth), full))
            none: list[int | str | None] = [None] * depths
            tied.setdefault(full, none)[int(depth)] = owner if called == full else f"{owner}.{called}"
            shapes[key] = list(layout.plan.pools[pool].shape)
        if found is not None:
            told = {"at": at, "form": found.kind.__name__, "parameters": shapes, **_more(layout, use, found)}
            forms.setdefault(repr(told), {**told, "depths": []})["depths"].append(int(depth))
    shared = {n: o for n, o in tied.items() if any(own not in (None, d) for d, own in enumerate(o))}
    told = {"path": _below(model, path), "tied": shared, "forms": list(forms.values())}
    told |= {"outside": outside} if outside else {}
    return told | ({"still": still} if (still := _still(layout)) else {})


def _apart(model: Any) -> Record:
    """also: what else the model's class ties, such as two names of a bias, where it would end with the table's."""
    if getattr(getattr(model, "config", None), "tie_word_embeddings", True):
        return {}
    named = dict(model.named_parameters(remove_duplicate=False))
    pairs = getattr(type(model), "_tied_weights_keys", None) or {}
    also = {a: b for a, b in pairs.items() if a.endswith("bias") and a in named and named[a] is named.get(b)}
    return {"also": also} if also else {}


def _more(layout: Layout, use: Any, found: Any) -> Record:
    told: Record = {"without": list(found.without)}
    told |= {"options": options} if (options := options_of(use)) else {}
    read = {key: layout.plan.pools[pool] for key, pool in _parameters(use, found)}
    frozen = [key for key, pool in read.items() if not pool.train]
    whole = {key: pool.dtype for key, pool in read.items() if not getattr(torch, pool.dtype).is_floating_point}
    return told | ({"frozen": frozen} if frozen else {}) | ({"dtypes": whole} if whole else {})


def _outside(layout: Layout, use: Any, found: Any, owners: dict[str, str]) -> Record:
    """Of a module outside of the blocks. owners: pool -> the parameter that it is, of those before. like: {parameter:
    the module, and its parameter, that has it}."""
    at = use.site[1:]
    shapes = {key: list(layout.plan.pools[pool].shape) for key, pool in _parameters(use, found)}
    named = {key: (owners.setdefault(pool, f"{at}.{key}"), f"{at}.{key}") for key, pool in _parameters(use, found)}
    like = {key: list(owner.rpartition(".")[::2]) for key, (owner, mine) in named.items() if owner != mine}
    told = {"at": at, "form": found.kind.__name__, "parameters": shapes, **_more(layout, use, found)}
    return told | ({"like": like} if like else {})


def _still(layout: Layout) -> list[str]:
    """Weights that train at no depth."""
    trains: dict[str, bool] = {}
    for use in layout.plan.uses:
        if form_of(use) is None and not use.site.startswith("."):
            name = use.site.partition(".")[2]
            trains[name] = trains.get(name, False) or layout.plan.pools[use.reads["weight"].pools[0]].train
    return sorted(n for n, t in trains.items() if not t)


def _parameters(use: Any, found: Any) -> list[tuple[str, str]]:
    """(the parameter of the module, the pool that it is)."""
    if found is None:
        return [(use.site.rpartition(".")[2], use.reads["weight"].pools[0])]
    return [pair for slot, read in use.reads.items() for pair in zip(found.names[slot], read.pools)]


def _below(model: nn.Module, path: str) -> str:
    """The path as the base model has it."""
    prefix = str(getattr(model, "base_model_prefix", ""))
    return path.removeprefix(f"{prefix}.") if prefix and hasattr(model, prefix) else path


def _number(block: nn.Module, depth: int) -> None:
    for module in block.modules():
        if isinstance(getattr(module, "layer_idx", None), int):
            module.layer_idx = depth  # type: ignore[assignment]


def _count(model: Any, layout: Layout, before: int) -> None:
    """The number of layers in the config, and its lists of one entry a layer."""
    config = getattr(model, "config", None)
    if config is None:
        return
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    per_layer = {
        k: [v[i] for i in layout.like]
        for k, v in vars(text).items()
        if isinstance(v, list) and len(v) == before and "token" not in k  # end tokens may be as many as layers
    }
    attribute = getattr(text, "attribute_map", {}).get("num_hidden_layers", "num_hidden_layers")
    if getattr(text, attribute, None) != before:
        raise CommonweightError(f"{type(model).__name__}: its config does not say how many layers it has")
    vars(text)[attribute] = len(layout.like)
    vars(text).update(per_layer)


def _structure(block: nn.Module) -> tuple[Any, ...]:
    return tuple((n, tuple(p.shape)) for n, p in block.named_parameters(remove_duplicate=False))


def _told_by_config(small: Any, path: str) -> None:
    """Of blocks of different kinds. Raises: CommonweightError where a model of this config has others at a depth."""
    kind: Any = next((k for k in type(small).__mro__ if k.__module__.startswith("transformers.")), None)
    if kind is None:
        return
    with torch.device("meta"):
        again = kind(small.config).get_submodule(path)
    for depth, (a, b) in enumerate(zip(small.get_submodule(path), again)):
        if _structure(a) != _structure(b):
            raise CommonweightError(
                f"{kind.__name__}: block {depth} would be of a kind that its config has elsewhere, so that no folder "
                "could hold the model; blocks of different kinds keep their places"
            )


@torch.no_grad()
def _fill(small: Any, path: str, layout: Layout, base: Originals) -> None:
    """Every pool becomes one parameter, wherever it is read."""
    made: dict[str, nn.Parameter] = {}
    for use in layout.plan.uses:
        found = form_of(use)
        whole = found is not None and found.whole
        full = use.site[1:] if use.site.startswith(".") else f"{path}.{use.site}"
        module = small.get_submodule(full if whole else full.rpartition(".")[0])
        for key, pool in _parameters(use, found):
            if pool not in made:
                made[pool] = _made(layout, pool, base, getattr(module, key))
            setattr(module, key, made[pool])


def _made(layout: Layout, name: str, base: Any, like: torch.Tensor) -> nn.Parameter:
    pool = layout.plan.pools[name]
    values = pool.init(pool.shape, Rng(layout.plan.seed, name), base)
    if tuple(values.shape) != pool.shape:
        raise CommonweightError(f"pool {name}: its first values are {tuple(values.shape)}, the plan says {pool.shape}")
    own: torch.dtype = getattr(torch, pool.dtype)
    values = values.to(like.device, like.dtype if own.is_floating_point else own).contiguous()
    return nn.Parameter(values, requires_grad=pool.train)
