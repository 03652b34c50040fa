"""One tenant in one safetensors file: its saved pools, and a JSON header that says what they are.

Layout, version 1. Metadata key ``commonweight`` holds a JSON object:

- ``format``: 1. ``version``: of the library that wrote it.
- ``method``, ``config``, ``seed``: the plan is a pure function of these and of the sites; ``plan`` is its digest.
- ``sites``: {name with the first layer number as ``{}``: [out, inp, "0-5,7"]}. ``labels``: classes of the head.
- ``base``: fingerprint of the frozen model. ``metrics``: whatever was measured when it was saved.

Tensors: pools of one shape whose names differ in the first number alone lie stacked in one tensor, so that the
header does not grow with depth. ``~check`` holds one number per pool that is derived from the base instead of saved.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ..core import CommonweightError, Plan, Site

FORMAT = 1
CHECK = "~check"


def template(name: str) -> tuple[str, int | None]:
    """("layers.{}.q.A", 3) from "layers.3.q.A"; a name without a number stays, with None."""
    found = re.search(r"(?<![^.])\d+(?![^.])", name)
    if found is None:
        return name, None
    return f"{name[: found.start()]}{{}}{name[found.end() :]}", int(found[0])


def pack_sites(sites: list[Site]) -> dict[str, list[Any]]:
    groups: dict[str, tuple[int, int, list[int | None]]] = {}
    out: dict[str, list[Any]] = {}
    for s in sites:
        key, number = template(s.name)
        if key in groups and groups[key][:2] != (s.out, s.inp):
            key, number = s.name, None
        groups.setdefault(key, (s.out, s.inp, []))[2].append(number)
    for key, (o, i, numbers) in groups.items():
        out[key] = [o, i, _ranges([n for n in numbers if n is not None])]
    return out


def unpack_sites(packed: Mapping[str, list[Any]]) -> dict[str, tuple[int, int]]:
    """{site name: (out, inp)}."""
    out = {}
    for key, (o, i, ranges) in packed.items():
        for n in _numbers(ranges) if ranges else [None]:
            out[key if n is None else key.replace("{}", str(n), 1)] = (int(o), int(i))
    return out


def _ranges(numbers: list[int]) -> str:
    parts: list[list[int]] = []
    for n in sorted(numbers):
        if parts and n == parts[-1][1] + 1:
            parts[-1][1] = n
        else:
            parts.append([n, n])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in parts)


def _numbers(ranges: str) -> list[int]:
    out: list[int] = []
    for part in ranges.split(","):
        first, _, last = part.partition("-")
        out += range(int(first), int(last or first) + 1)
    return out


def layout(plan: Plan) -> dict[str, list[str]]:
    """Tensor in the file -> the saved pools that lie in it, stacked in this order (alone: as it is)."""
    groups: dict[tuple, list[str]] = {}
    for name, pool in plan.pools.items():
        if pool.save:
            groups.setdefault((template(name)[0], pool.shape, pool.dtype), []).append(name)
    keys = [k for k, _, _ in groups]
    out = {}
    for (key, _, _), names in groups.items():
        if len(names) == 1 or keys.count(key) > 1:
            out.update({n: [n] for n in names})
        else:
            out[key] = names
    return out


def encode(header: Mapping[str, Any], plan: Plan, pools: Mapping[str, Tensor], check: Tensor | None) -> bytes:
    """The file's bytes. Cost: one copy of the saved pools."""
    tensors = {}
    for key, names in layout(plan).items():
        parts = [pools[n].detach().cpu() for n in names]
        tensors[key] = torch.stack(parts) if len(parts) > 1 else parts[0].contiguous()
    if check is not None and check.numel():
        tensors[CHECK] = check
    return save(tensors, {"commonweight": json.dumps({"format": FORMAT, **header}, sort_keys=True)})


def read_header(path: Path) -> dict[str, Any]:
    """The JSON header of a tenant's file. Reads no tensor."""
    with _open(path) as f:
        raw = (f.metadata() or {}).get("commonweight")
    if raw is None:
        raise CommonweightError(
            f"{path}: a safetensors file, but not a commonweight tenant; a PEFT adapter folder is read by import_peft"
        )
    return parse_header(str(path), raw)


def parse_header(where: str, raw: str) -> dict[str, Any]:
    """The JSON header from its text, looked at."""
    try:
        header = json.loads(raw)
        version = header["format"]
        _ = header["method"], header["config"], header["seed"], header["sites"], header["plan"], header["base"]
    except (ValueError, KeyError, TypeError) as e:
        raise CommonweightError(f"{where}: its header is damaged ({e}); save the tenant again") from e
    if not isinstance(version, int) or version > FORMAT:
        raise CommonweightError(f"{where}: format {version}; this version reads up to {FORMAT}: upgrade commonweight")
    return header


def decode(path: Path, plan: Plan) -> tuple[dict[str, Tensor], Tensor | None]:
    """(saved pools by name, check numbers), every name, shape, dtype and value looked at."""
    with _open(path) as f:
        return unpack(str(path), plan, f.keys(), f.get_tensor)


def unpack(
    where: str,
    plan: Plan,
    there: Iterable[str],
    get: Callable[[str], Tensor],
    known: Mapping[str, Tensor] | None = None,
) -> tuple[dict[str, Tensor], Tensor | None]:
    """`decode`, wherever the tensors named in `there` come from. known: pools at hand, which need no `get`."""
    out: dict[str, Tensor] = {}
    there, wanted, known = set(there), layout(plan), known or {}
    if there - {CHECK} != set(wanted):
        missing, extra = sorted(set(wanted) - there), sorted(there - set(wanted) - {CHECK})
        raise CommonweightError(f"{where}: missing pools {missing[:3]}, unknown pools {extra[:3]}")
    for key, names in wanted.items():
        if all(n in known for n in names):
            out.update({n: known[n] for n in names})
            continue
        value, pool = get(key), plan.pools[names[0]]
        shape = pool.shape if len(names) == 1 else (len(names), *pool.shape)
        if tuple(value.shape) != shape or value.dtype != getattr(torch, pool.dtype):
            raise CommonweightError(
                f"{where}: pool {key} is {tuple(value.shape)} {value.dtype}, wanted {shape} {pool.dtype}"
            )
        if value.is_floating_point() and not value.isfinite().all():
            raise CommonweightError(f"{where}: pool {key} holds NaN or infinity; it cannot be used")
        out.update(zip(names, [value] if len(names) == 1 else [v.clone() for v in value]))
    return out, get(CHECK) if CHECK in there else None


def _open(path: Path):
    if not path.is_file():
        raise CommonweightError(f"{path}: no such file")
    try:
        return safe_open(path, "pt")
    except (SafetensorError, OSError, ValueError) as e:
        raise CommonweightError(f"{path}: not a whole safetensors file ({e})") from e
