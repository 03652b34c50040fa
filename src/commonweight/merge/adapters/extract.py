"""LoRA out of a full model: the difference to its base as low rank, a matrix at a time, every error stated."""

from __future__ import annotations

import math
from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ...core import CommonweightError, Rng
from ...formats import peft
from ...formats.peft import low_rank
from ...formats.peft.keys import targets
from ...formats.peft.low_rank import Low
from ..inputs import checks as inputs
from ..sources.model import open_source
from ..sources.source import Source
from .linears import Linear, linears

_OVER = 8  # columns beside the rank that the random projection has


class Extracted(NamedTuple):
    """ranks, errors: per module, |change - B A|_F / |change|_F. left_out: tensors that changed and are not in the
    adapter, with the share that they have in the whole change. total: |what is left out or lost|_F / |change|_F over
    all tensors of the model. notices: what was not known of the model."""

    folder: Path
    ranks: dict[str, int]
    errors: dict[str, float]
    left_out: dict[str, float]
    total: float
    notices: tuple[str, ...] = ()


def extract(
    model: Any,
    base: Any,
    out: str | Path,
    *,
    rank: int | None = None,
    energy: float | None = None,
    ranks: Mapping[str, int] | None = None,
    sites: str = "*",
    iterations: int = 4,
    seed: int = 0,
    overwrite: bool = False,
) -> Extracted:
    """Writes a PEFT LoRA folder whose update approximates model - base. model, base: as for `merge`; not quantised.

    rank: of every matrix (16); energy: instead, the smallest rank that keeps this share of |change|_F^2, at most
    `rank`; ranks: {glob over module names: rank}, the first match wins. sites: globs joined by "|". Unchanged
    matrices are skipped. Linear layers are the model's own modules that PEFT wraps (nn.Linear, Conv1D):
    they are found in base or model, if one of them is a module or has a config.json, from which transformers builds
    the modules without weights. Otherwise names decide, with a notice. Everything else is left out, and its change
    counts as lost: embeddings, norms,
    biases, routers, experts that transformers holds as one tensor a layer (also where the file has them one by one).
    Module names are those of the config's architecture. A head that is tied to the embedding counts as the embedding.
    By randomised SVD (Halko et al. 2011, algorithms 4.4 and 5.1, `torch.svd_lowrank`) with `iterations` power
    iterations and 8 columns beside the rank; the whole SVD where that is no more work. Errors are of the factors as
    written, not estimates. Memory: four times the largest matrix in float32. Cost: 2 (iterations + 1) products of the
    matrix with rank + 8 columns; with energy, of all ranks tried, which double.
    Raises: CommonweightError for models that do not fit, NaN, nothing changed, values out of range, a full folder.
    """
    _checked(rank, energy, ranks, iterations)
    sources = open_source(model, "model"), open_source(base, "base")
    found, left, turned = dict[str, Low](), dict[str, float](), set[bool]()
    layers = linears(sources[1], base, model)
    lost = whole = 0.0
    again = {n for n in _again(base) if n in _again(model) or n not in sources[0].shapes}
    for name in sorted(sources[1].shapes.keys() - again):
        if (delta := _delta(name, *sources)) is None:
            continue
        square = delta.double().norm().item() ** 2
        whole += square
        layer = layers.known.get(name)
        if layer is None or not _takes(layer, sites):
            left[name] = square
            lost += square
            continue
        module = layer.module
        turned.add(layer.turned)
        delta = delta.T if layer.turned else delta
        r = next((n for glob, n in (ranks or {}).items() if fnmatchcase(module, glob)), rank)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(Rng(seed, name).integers((1,), 2**31 - 1)))
            A, B = _factors(delta, r, energy, iterations)
        gone = (delta - B @ A).double().norm().item()
        found[module] = Low(A, B, gone / math.sqrt(square))
        lost += gone**2
    extra = sorted(sources[0].shapes.keys() - sources[1].shapes.keys() - _again(model))
    if not found:
        rest = f" and {len(left) - 1} more" if len(left) > 1 else ""
        others = f"; what does is no such layer, or not asked for: {min(left)}{rest}" if left else ""
        raise CommonweightError(
            f"{sources[0].label}: no linear layer at {sites!r} differs from {sources[1].label}'s{others}"
        )
    config = {
        "base_model_name_or_path": str(base) if isinstance(base, str | Path) else None,
        "fan_in_fan_out": turned == {True},
        "inference_mode": True,
        "task_type": None,
        "target_modules": targets(list(found), set(layers.modules)),
        **low_rank.config(found, 0.0),
    }
    notices = (f"{layers.guessed}: which matrices are linear layers is told by their names",) if layers.guessed else ()
    if layers.absent[0]:
        notices += (
            f"{layers.absent[0]} of {layers.absent[1]} linear layers of the model have no tensor of their name in the "
            "files: where they lie there under other names, they are left out",
        )
    said = {n: math.sqrt(s / whole) for n, s in left.items()}
    total = math.sqrt(lost / whole)
    report = {
        "method": "extracted from a full model",
        "modules": {n: {"rank": len(x.A), "error": x.error} for n, x in found.items()},
        "left_out": said,
        "only in the model": extra,
        "total error": total,
        "notices": list(notices),
    }
    keyed = {peft.PREFIX + k: t for k, t in low_rank.tensors(found).items()}
    folder = peft.folder.write(Path(out), config, keyed, report, overwrite)
    left_out = {**said, **dict.fromkeys(extra, math.nan)}
    ranks_of, errors = {n: len(x.A) for n, x in found.items()}, {n: x.error for n, x in found.items()}
    return Extracted(folder, ranks_of, errors, left_out, total, notices)


def _checked(rank: int | None, energy: float | None, ranks: Mapping[str, int] | None, iterations: int) -> None:
    for where, r in [("rank", rank), *((f"ranks[{g!r}]", r) for g, r in (ranks or {}).items())]:
        if r is not None and (isinstance(r, bool) or not isinstance(r, int) or r < 1):
            raise CommonweightError(f"extract: {where} is {r!r}; it must be a whole number >= 1")
    if energy is not None and not 0 < energy <= 1:
        raise CommonweightError(f"extract: energy is {energy}; it is a share of the squared norm, above 0, at most 1")
    if iterations < 0:
        raise CommonweightError(f"extract: iterations is {iterations}; it must be 0 or more")


def _again(given: Any) -> set[str]:
    """Tensors in memory that have an earlier name too: a head tied to the embedding is one tensor, as in files."""
    state = given.state_dict() if isinstance(given, nn.Module) else given if isinstance(given, Mapping) else {}
    first: dict[Any, str] = {}
    return {n for n, t in state.items() if t.numel() and first.setdefault((t.data_ptr(), t.shape, t.stride()), n) != n}


def _delta(name: str, model: Source, base: Source) -> Tensor | None:
    """model - base in float32; None where they are the same."""
    if name not in model.shapes:
        raise CommonweightError(f"{name}: {model.label} has no such tensor, {base.label} has")
    inputs.same(name, (base, name), (model, name))
    if not base.dtypes[name].is_floating_point:
        return None
    delta = model.read(name).detach().float().cpu() - base.read(name).detach().float().cpu()
    if not delta.isfinite().all():
        raise CommonweightError(f"{name}: {model.label} or {base.label} has NaN or infinity there")
    return delta if delta.any() else None


def _takes(layer: Linear, sites: str) -> bool:
    return any(fnmatchcase(layer.module, glob.strip()) for glob in sites.split("|"))


def _factors(delta: Tensor, rank: int | None, energy: float | None, iterations: int) -> tuple[Tensor, Tensor]:
    """(A, B), the singular values halved between them."""
    most, square = min(delta.shape), delta.double().square().sum()
    top = min(most, rank or (16 if energy is None else most))
    tried = top if energy is None else min(top, 16)
    while True:
        u, s, v = _svd(delta, tried, iterations)
        kept = s.double().square().cumsum(0) / square
        enough = [] if energy is None else (kept[:tried] >= energy - 1e-7).nonzero().flatten().tolist()
        if enough or tried == top:
            r = enough[0] + 1 if enough else tried
            root = s[:r].sqrt()
            return (root[:, None] * v[:, :r].T).contiguous(), (u[:, :r] * root).contiguous()
        tried = min(top, 2 * tried)


def _svd(delta: Tensor, rank: int, iterations: int) -> tuple[Tensor, Tensor, Tensor]:
    if 2 * (rank + _OVER) >= min(delta.shape):
        u, s, vh = torch.linalg.svd(delta, full_matrices=False)
        return u, s, vh.T
    return torch.svd_lowrank(delta, rank + _OVER, iterations)
