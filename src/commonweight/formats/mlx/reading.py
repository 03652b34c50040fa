"""mlx-lm's folders in. Layout: mlx_lm/tuner/lora.py and dora.py of mlx-lm 0.32.2."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ...core import CommonweightError, counted
from ...core.readable import CONFIG_BYTES, read_object
from .. import tensors as given
from ..changes import Change
from .names import back

_SLOTS = "lora_a", "lora_b", "m"


def read(folder: Path, model_type: str = "") -> tuple[dict[str, Change], float]:
    """({module: change}, dropout). y = W x + scale (x a) b, a (inp, r), b (r, out): both lie the other way round here.

    DoRA has m (out,) beside them, the length of each row of the result. Modules of stacked experts (`switch_mlp`) come
    one by one, as ``...experts.3.gate_proj``. model_type: of the base, whose mixture may have other names in mlx-lm.
    Raises: CommonweightError naming the file, the key or the option.
    """
    config = read_object(folder / "adapter_config.json", CONFIG_BYTES)
    path = folder / "adapters.safetensors"
    if not path.is_file():
        raise CommonweightError(f"{folder}: has no adapters.safetensors; copy the folder whole")
    kind = config.get("fine_tune_type", "lora")
    if kind not in ("lora", "dora"):
        raise CommonweightError(
            f"{folder}: fine_tune_type {kind!r} keeps whole weights, no adapter; fuse it (mlx_lm.fuse) and make a LoRA "
            "of the result with `commonweight extract`"
        )
    options = config.get("lora_parameters")
    if not isinstance(options, dict):
        raise CommonweightError(f"{folder}/adapter_config.json: has no lora_parameters; wanted rank, scale and dropout")
    scale, dropout = _number(folder, options, "scale"), _number(folder, options, "dropout", 0.0)
    if not 0 <= dropout <= 0.95:
        raise CommonweightError(f"{folder}/adapter_config.json: dropout is {dropout}; wanted 0 to 0.95")
    found, rest = given.parts(given.read(path), _SLOTS)
    if rest:
        raise CommonweightError(f"{path}: {rest[0]} is no tensor of a LoRA or DoRA; mlx-lm would not load it either")
    if not found:
        raise CommonweightError(f"{path}: holds no adapter")
    out: dict[str, Change] = {}
    for module, parts in found.items():
        out |= _module(path, module, parts, scale, kind == "dora")
    return {back(n, model_type): c for n, c in out.items()}, dropout


def _module(path: Path, module: str, parts: Mapping[str, Tensor], scale: float, dora: bool) -> dict[str, Change]:
    a, b, m = (parts.get(s) for s in _SLOTS)
    if (m is not None) != dora:
        raise CommonweightError(
            f"{path}: {module} has {'no' if dora else 'an'} m, adapter_config.json says {'dora' if dora else 'lora'}"
        )
    if a is not None and b is not None and a.dim() == b.dim() == 3:  # experts: a (E, r, inp), b (E, out, r)
        if len(a) != len(b):
            raise CommonweightError(
                f"{path}: {module} has {counted(len(a), 'expert')} in lora_a and {len(b)} in lora_b"
            )
        root, _, name = module.rpartition(".")
        home = root.rpartition(".")[0] if root.endswith((".switch_mlp", ".experts")) else root
        pairs = (given.pair(module, x, y) for x, y in zip(a, b))
        return {f"{home}.experts.{i}.{name}": Change(x, y, scale) for i, (x, y) in enumerate(pairs)}
    bT, aT = given.pair(f"{path}: {module}", b, a)  # (r, out) and (inp, r): what fits as they lie fits turned
    return {module: Change(aT.mT.contiguous(), bT.mT.contiguous(), scale, m)}


def _number(folder: Path, options: Mapping[str, Any], key: str, default: float | None = None) -> float:
    value = options.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise CommonweightError(f"{folder}/adapter_config.json: {key} is {value!r}; wanted a number")
    return float(value)
