"""Several models in one array: each reads its matrices by a hash of its own integer key."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from safetensors.torch import save as dump
from torch import nn

from ..address import Hashed
from ..builder import Layout, anatomy, build
from ..builder.folded import folded
from ..builder.load import stock_config
from ..builder.remote import plain_class, shared_class
from ..core import ZEROS, CommonweightError, Pool, safe
from ..core.version import library
from ..formats import atomic
from .methods import hashed

POOL = "pool.safetensors"


def plan(models: Mapping[str, nn.Module], keys: Mapping[str, int] | None = None, **options: Any) -> dict[str, Layout]:
    """A layout for each model; the pool ``psi`` is one and the same in all. Options and arguments: see `pack`.

    Raises: CommonweightError for models of different dtypes, names without a key, and keys that are no whole numbers.
    """
    options.setdefault("compression", 1.0)
    config = hashed.Hashing(**options)
    numbers = dict.fromkeys(models, config.seed) if keys is None else dict(keys)
    if not models or numbers.keys() != models.keys():
        raise CommonweightError(f"models are {sorted(models)}, keys are of {sorted(numbers)}; each model wants one key")
    for name, key in numbers.items():
        safe(name)
        if not isinstance(key, int) or not 0 <= key < 2**31:
            raise CommonweightError(f"the key of {name!r} is {key!r}; wanted a whole number from 0 to 2^31 - 1")
    found = {name: anatomy(model) for name, model in models.items()}
    every = {name: hashed.weights(about, config) for name, about in found.items()}
    dtypes = {w.dtype for weights in every.values() for _, w in weights}
    if len(dtypes) > 1:
        raise CommonweightError(f"the models' matrices are of {sorted(dtypes)}; one array has one dtype: convert them")
    m, chunk = hashed.room(list(every.values()), config)
    out, start = {}, 0
    for name, about in found.items():
        out[name] = hashed.read(about, replace(config, seed=numbers[name]), m, chunk, start)
        start += sum(prod(w.shape) for _, w in every[name])
    return out


def count(layouts: Mapping[str, Layout]) -> int:
    """Numbers of all blocks of all models, the common array once."""
    (m,) = {layout.plan.pools["psi"].numel for layout in layouts.values()}
    return m + sum(layout.count() - m for layout in layouts.values())


def pack(models: Mapping[str, nn.Module], keys: Mapping[str, int] | None = None, **options: Any) -> dict[str, Any]:
    """Models of transformers whose matrices are all read from one array of trainable numbers, by name.

    keys: one integer for each model, by which its reads are found. With one key for all (None: the option `seed`) the
    models lie in the array side by side, and at compression 1 each is exactly what it was. With keys of their own their
    reads meet at random, as in the paper; then the array is the least-squares fit to all of them, which only training
    them together makes useful. options: of the method `hashed`: compression (numbers of all matrices of all models for
    each number of the array; 1), chunk, fold, parts. Nothing is hidden: keys are stored in the models' configs.
    Train them together with an optimizer over `parameters(packed)`; the array's gradient is the sum over the models.
    Cost: one pass over the weights; the unique parameters in memory.
    Source: the abstract of Matryoshka, arXiv 2206.14371, of which the storage alone is built; its map, its scaling and
    its schedule were not found: the hash and the scale are those of `hashed`, whose docstring says which are ours.
    Raises: see `plan`.
    """
    layouts = plan(models, keys, **options)
    out, readers = {}, []
    for name, layout in layouts.items():
        psi = layout.plan.pools["psi"]
        bare = replace(layout, plan=layout.plan._replace(pools={**layout.plan.pools, "psi": _empty(psi)}))
        out[name] = build(models[name], bare)
        blocks = models[name].get_submodule(anatomy(models[name]).path)
        made = out[name].get_submodule(anatomy(models[name]).path)
        for use in layout.plan.uses:
            address = use.reads["weight"].address
            if isinstance(address, Hashed):
                scale = made.get_submodule(use.site.rpartition(".")[0]).weight_scale.detach()
                readers.append((blocks.get_parameter(use.site).detach(), scale, address))
        key = next(a.seed for *_, a in reversed(readers))
        told = {"method": "packed", "options": {"key": key}, "by": library()}
        out[name].config.sharing = {**out[name].config.sharing, **told}
    like = next(arrays(next(iter(out.values()))))[0]._parameters["weight_pool"]
    _read(out, nn.Parameter(folded(readers).to(like)))
    return out


def _empty(psi: Pool) -> Pool:
    return replace(psi, init=ZEROS)


def arrays(model: nn.Module) -> Iterator[tuple[Any, str]]:
    """The layers that read the array, with their names."""
    return ((m, n) for n, m in model.named_modules() if "weight_pool" in m._parameters)


def _read(models: Mapping[str, Any], pool: nn.Parameter) -> None:
    for model in models.values():
        for layer, _ in arrays(model):
            layer.weight_pool = pool


def parameters(models: Mapping[str, nn.Module]) -> list[nn.Parameter]:
    """Of all models that train, each once."""
    found = {id(p): p for model in models.values() for p in model.parameters() if p.requires_grad}
    return list(found.values())


def save(models: Mapping[str, Any], folder: str | os.PathLike[str]) -> Path:
    """Writes packed models into a new folder: the array once, in ``pool.safetensors``, and two files for the rest of
    each model. Whole or not at all.

    Raises: CommonweightError for models that read different arrays, and for a folder that is there.
    """
    pools = {id(layer.weight_pool): layer.weight_pool for m in models.values() for layer, _ in arrays(m)}
    if len(pools) != 1:
        raise CommonweightError(f"these models read {len(pools)} arrays; wanted what packing.pack gave, which read one")
    (pool,) = pools.values()
    files = {POOL: dump({"psi": pool.detach()})}
    for name, model in models.items():
        told = {**model.config.to_dict(), "architectures": [plain_class(model).__name__]}
        files[f"{safe(name)}.json"] = json.dumps(told, indent=2, sort_keys=True, default=str).encode()
        files[f"{name}.safetensors"] = dump({n: p.detach() for n, p in model.named_parameters() if p is not pool})
    return atomic.write_folder(Path(folder), files)


def load(folder: str | os.PathLike[str], *names: str) -> dict[str, Any]:
    """Packed models by name, all of them or `names` alone, with one array in memory.

    Each is a shared model: `share.save` writes it on its own. Raises: CommonweightError for a folder without them.
    """
    import transformers as tf

    here = Path(folder)
    there = sorted(p.stem for p in here.glob("*.json"))
    if not (here / POOL).is_file() or not there:
        raise CommonweightError(f"{here}: no packed models lie there; wanted a folder that packing.save wrote")
    if wrong := [n for n in names if n not in there]:
        raise CommonweightError(f"{here}: no model {wrong[0]!r}; there are {', '.join(there)}")
    pool = nn.Parameter(load_file(here / POOL)["psi"])
    out = {}
    for name in names or there:
        told = json.loads((here / f"{name}.json").read_text(encoding="utf-8"))
        kind: Any = shared_class(getattr(tf, told["architectures"][0]))
        model = kind(stock_config(told)).to(pool.dtype)
        found = model.load_state_dict(load_file(here / f"{name}.safetensors"), strict=False)
        assert not found.unexpected_keys, found.unexpected_keys
        model.tie_weights()
        out[name] = model.eval()
    _read(out, pool)
    return out
