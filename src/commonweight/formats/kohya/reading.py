"""Such a file on one model of its pipeline."""

from __future__ import annotations

import json
import math
import re
import warnings
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import safe_open
from torch import Tensor

from ...core import CommonweightError, counted
from .. import tensors as given
from ..changes import Change
from ..peft.common import by_pattern
from . import keys
from .modules import change
from .transformers import Target, layers_of, split, target, weight_of


class Naming(NamedTuple):
    """What a base has. sites: (out, inp) of what can be changed; modules: names of all its layers; layers: its
    layers_per_block."""

    sites: Mapping[str, tuple[int, int]]
    modules: Collection[str]
    layers: int = 2


def read(path: Path, base: Naming, weight: Callable[[str], Tensor], part: str | None = None) -> dict[str, Change]:
    """{site: change} of the part of the file that belongs to this base: ``unet``, ``te1``, ``text_encoder_2``, ...

    part: which one, where several fit. Other parts, and layers of this part that are no sites here, are left out with a
    warning. weight: of a site, (out, inp). Raises: CommonweightError for a file of other models, for keys that are not
    understood, and for parts that do not fit each other.
    """
    groups, rest = keys.grouped(given.read(path))
    if rest:
        raise CommonweightError(
            f"{path}: {rest[0]} is no key of kohya's scripts, LyCORIS or diffusers that is known here"
        )
    if not groups:
        raise CommonweightError(f"{path}: holds no adapter")
    if part is not None and part not in groups:
        raise CommonweightError(f"{path}: holds no part {part!r}; it has {', '.join(sorted(groups))}")
    by_name = {n.replace(".", "_"): n for n in base.modules}
    found = {g: _named(group, by_name, base) for g, group in groups.items() if part in (None, g)}
    fits = [g for g, at in found.items() if any(at.values())]
    if not fits:
        some = next(iter(next(iter(found.values()))))
        raise CommonweightError(
            f"{path}: made for another model: none of its layers is in this base, for example {some}"
        )
    if len(fits) > 1:
        whole = [g for g in fits if all(found[g].values()) and _shaped(groups[g], found[g], base)]
        if len(whole) != 1:
            raise CommonweightError(
                f"{path}: its parts {', '.join(fits)} all have layers of this base; say which with part="
            )
        fits = whole
    return _read(path, fits[0], groups, found[fits[0]], base, weight)


def _read(
    path: Path, part: str, groups: Mapping[str, keys.Group], targets: Mapping[str, Target | None], base: Naming,
    weight: Callable[[str], Tensor],
) -> dict[str, Change]:  # fmt: skip
    if lost := [n for n, found in targets.items() if found is None]:
        raise CommonweightError(
            f"{path}: {part}: {lost[0]}{f' and {len(lost) - 1} more' if len(lost) > 1 else ''}: this base has no such "
            "layer; made for another model"
        )
    sites, about = set(base.sites), _alphas(path, part)
    left = [n for at in targets.values() if at is not None for n in at.names if n not in sites]
    aside = [g for g in groups if g != part]
    if left or aside:
        told = [f"{counted(len(left), 'layer')} outside the sites here ({left[0]}, ...)"] if left else []
        told += [f"the part {g} ({counted(len(groups[g]), 'layer')}), for a host on that model" for g in aside]
        warnings.warn(f"{path}: left out: {'; '.join(told)}", stacklevel=2)
    out: dict[str, Change] = {}
    for module, parts in groups[part].items():
        at = targets[module]
        if at is None or not any(n in sites for n in at.names):
            continue
        where = f"{path}: {part}.{module}"
        if apart := [n for n in at.names if n not in sites]:
            raise CommonweightError(f"{where}: {apart[0]} is no site here, of the layers that it changes at once")
        whole = change(where, about(module, parts), lambda at=at: weight_of(at, weight))
        for name, one in zip(at.names, split(where, whole, at, [base.sites[n][0] for n in at.names])):
            out[name] = one
    if not out:
        raise CommonweightError(f"{path}: {part}: none of its {counted(len(left), 'layer')} is a site of this host")
    return out


def _shaped(group: keys.Group, targets: Mapping[str, Target | None], base: Naming) -> bool:
    """Whether factors of LoRA have the base's shapes: two text encoders may have layers of the same names."""
    for module, parts in group.items():
        up, down, at = parts.get("lora_up.weight"), parts.get("lora_down.weight"), targets[module]
        want = [base.sites[n] for n in at.names if n in base.sites] if at is not None else []
        if up is None or down is None or not want or not up.dim() or not down.dim() or not len(down):
            continue
        if (len(up), down[0].numel()) != (sum(out for out, _ in want), want[0][1]):
            return False
    return True


def _named(group: keys.Group, by_name: Mapping[str, str], base: Naming) -> dict[str, Target | None]:
    """{the file's module: layers of the base, or None}. A prefix before the names, of either side, does not count."""
    out: dict[str, Target | None] = {}
    for module in group:
        flat = keys.diffusers_name(module.replace(".", "_"), base.layers)
        several = layers_of(flat) if flat not in by_name else None
        found = [_one(n, by_name) for n in several or (flat,)]
        names = [n for n in found if n is not None]
        out[module] = target(names, base.sites.get) if len(names) == len(found) else None
    return out


def _one(flat: str, by_name: Mapping[str, str]) -> str | None:
    if flat in by_name:
        return by_name[flat]
    near = [n for f, n in by_name.items() if (flat.endswith(f"_{f}") and "." in n) or f.endswith(f"_{flat}")]
    near = [n for n in near if re.search(r"\d", n)] or near
    longest = max((n.count(".") for n in near), default=0)
    near = [n for n in near if n.count(".") == longest]
    return near[0] if len(near) == 1 else None


def _alphas(path: Path, part: str) -> Callable[[str, Mapping[str, Tensor]], Mapping[str, Tensor]]:
    """Parts with the alpha that diffusers writes in the file's metadata in place of a tensor."""
    with safe_open(path, "pt") as f:
        raw = (f.metadata() or {}).get("lora_adapter_metadata")
    if raw is None:
        return lambda module, parts: parts
    try:
        about: Any = json.loads(raw)
        start = f"{part}." if part else ""
        config = {k.removeprefix(start): v for k, v in about.items() if k.startswith(start)}
    except (ValueError, RecursionError, AttributeError) as e:
        raise CommonweightError(f"{path}: its lora_adapter_metadata is not a JSON object ({e})") from e
    return lambda module, parts: _with_alpha(path, module, parts, config)


def _with_alpha(path: Path, module: str, parts: Mapping[str, Tensor], config: dict[str, Any]) -> Mapping[str, Tensor]:
    if "alpha" in parts or not config:
        return parts
    if (down := parts.get("lora_down.weight")) is not None:
        factor = math.sqrt(len(down)) if config.get("use_rslora") else 1.0
        return {**parts, "alpha": down.new_tensor(_number(path, module, config, "lora_alpha") * factor)}
    if (w := parts.get("hada_w1_b")) is not None:
        return {**parts, "alpha": w.new_tensor(_number(path, module, config, "alpha"))}
    for slot in ("lokr_w1", "lokr_w1_a"):  # PEFT's scale, unlike LyCORIS', is there without a rank too
        if slot in parts:
            s = _number(path, module, config, "alpha") / _number(path, module, config, "r")
            return {**parts, slot: parts[slot] * s}
    return parts


def _number(path: Path, module: str, config: dict[str, Any], name: str) -> float:
    """A number of PEFT's config, as the module's own pattern has it, else as all have it."""
    patterns = config.get("rank_pattern" if name == "r" else "alpha_pattern") or {}
    if not isinstance(patterns, dict):
        raise CommonweightError(
            f"{path}: {name}'s pattern is {patterns!r} in its metadata; wanted an object of numbers"
        )
    found = by_pattern(patterns, module, config.get(name), f"{path}: metadata")
    if isinstance(found, bool) or not isinstance(found, int | float) or not math.isfinite(found) or found == 0:
        raise CommonweightError(f"{path}: {name} is {found!r} in its metadata; wanted a number")
    return float(found)
