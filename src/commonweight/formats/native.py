"""One tenant in one safetensors file: its saved pools, and a JSON header that says what they are.

Layout, versions 1 and 2. Metadata key ``commonweight`` holds a JSON object:

- ``format``: 1, or 2 when a tensor is stored by a codec. ``version``: of the library that wrote it.
- ``digest``: of the whole file, see `digest`. ``codec``: of all trained float32 pools, or {tensor: codec}.
- ``method``, ``config``, ``seed``: the plan is a pure function of these and of the sites; ``plan`` is its digest.
- ``sites``: {name with the first layer number as ``{}``: [out, inp, "0-5,7"]}. ``labels``: classes of the head.
- ``base``: fingerprint of the frozen model. ``metrics``: whatever was measured when it was saved.
- ``quantised``: how the base was packed, "bitsandbytes nf4"; ``float``: fingerprint of the weights that it was made of.
- ``common``: of the host, whose pools of scope `shared` the tenant reads; they stand in the file as its own do.
- ``beside``: what is held beside the method: ``sites`` as above, and of those held by entries, which (``rows``);
  ``biases``: those of them whose bias alone is held.
- ``vocabulary``: entries of the base's table; ``rows``: those of them that the tenant reads from the base, where it
  holds the others itself. ``base`` is the fingerprint of the base with so many.
- ``own``: the tensors that no other tenant has, or true for all of them; see `own`.

Tensors: pools of one shape whose names differ in the first number alone lie stacked in one tensor, so that the
header does not grow with depth. ``~check`` holds one number per pool that is derived from the base instead of saved.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import re
import reprlib
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ..core import CommonweightError, Plan, Site
from . import coding
from .coding import Choice
from .damaged import not_whole

FORMAT = 2
MOST = 1 << 18  # sites of a tenant
FEW = 1 << 12  # of these any file may have so many, however small it is
CHECK = "~check"
_BLANK = "0" * 32
_RANGES = re.compile(r"(\d{1,6}(-\d{1,6})?(,\d{1,6}(-\d{1,6})?)*)?", re.ASCII)


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
        out[key] = [o, i, pack_numbers([n for n in numbers if n is not None])]
    return out


def unpack_sites(where: str, packed: Mapping[str, Any], most: int = MOST) -> dict[str, tuple[int, int]]:
    """{site name: (out, inp)}; at most so many. Raises: CommonweightError, with `where`, for what `pack_sites` does not
    write."""
    out = {}
    for key, entry in packed.items():
        numbers = None
        if isinstance(entry, list) and len(entry) == 3 and all(whole(n) for n in entry[:2]):
            numbers = unpack_numbers(entry[2], most - len(out))
        if numbers is None:
            raise damaged(where, f"the site {key!r} is {reprlib.repr(entry)}, or with it there are over {most:,}")
        for n in numbers or [None]:
            out[key if n is None else key.replace("{}", str(n), 1)] = (entry[0], entry[1])
    return out


def pack_numbers(numbers: list[int]) -> str:
    parts: list[list[int]] = []
    for n in sorted(numbers):
        if parts and n == parts[-1][1] + 1:
            parts[-1][1] = n
        else:
            parts.append([n, n])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in parts)


def unpack_numbers(ranges: Any, most: int = MOST) -> list[int] | None:
    """What `pack_numbers` packed; None for anything else, and for more than `most`."""
    out: list[int] = []
    if not isinstance(ranges, str) or not _RANGES.fullmatch(ranges):
        return None
    for part in ranges.split(",") if ranges else ():
        first, _, last = part.partition("-")
        a, b = int(first), int(last or first)
        if b < a or (out and a <= out[-1]) or len(out) + b - a >= most:
            return None
        out += range(a, b + 1)
    return out


def whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def damaged(where: str, what: str) -> CommonweightError:
    return CommonweightError(f"{where}: its header is damaged ({what}); save the tenant again")


def layout(plan: Plan) -> dict[str, list[str]]:
    """Tensor in the file -> the saved pools that lie in it, stacked in this order (alone: as it is)."""
    groups: dict[tuple, list[str]] = {}
    for name, pool in plan.pools.items():
        if pool.save:
            groups.setdefault((template(name)[0], pool.shape, pool.dtype, pool.scope), []).append(name)
    keys = [k for k, *_ in groups]
    out = {}
    for (key, *_), names in groups.items():
        if len(names) == 1 or keys.count(key) > 1:
            out.update({n: [n] for n in names})
        else:
            out[key] = names
    return out


def encode(
    header: Mapping[str, Any], plan: Plan, pools: Mapping[str, Tensor], check: Tensor | None, codec: Choice = None
) -> bytes:
    """The file's bytes. codec: see `coding.choose`. Cost: one copy of the saved pools."""
    tensors, order = {}, layout(plan)
    codecs = coding.choose(plan, order, codec)
    about: dict[str, Any] = {"codec": coding.told(plan, order, codecs)} if codecs else {}
    if mine := own(plan, order, "common" in header):
        about["own"] = mine
    for key, names in order.items():
        parts = [pools[n].detach().cpu() for n in names]
        tensors[key] = torch.stack(parts) if len(parts) > 1 else parts[0].contiguous()
        if key in codecs:
            tensors[key] = coding.pack(plan, key, names, tensors[key], codecs[key], "common" in header)
    if check is not None and check.numel():
        tensors[CHECK] = check
    return sealed({"format": 2 if codecs else 1, **header, **about}, tensors)


def own(plan: Plan, order: Mapping[str, list[str]], common: bool) -> bool | list[str]:
    """What a header's ``own`` says: the tensors of the file that are the tenant's alone; True where all of them are.

    In a common those of scope `tenant`; without one what was trained: what is frozen may be another tenant's too.
    """
    mine = [
        key
        for key, names in order.items()
        if (plan.pools[names[0]].scope == "tenant" if common else all(plan.pools[n].train for n in names))
    ]
    return len(mine) == len(order) > 0 or sorted(mine)


def rounded(plan: Plan, pools: Mapping[str, Tensor], codec: Choice, common: bool) -> dict[str, Tensor]:
    """The coded pools as a file with this codec gives them back: encoding them again loses nothing."""
    order, out = layout(plan), {}
    for key, codec_ in coding.choose(plan, order, codec).items():
        names = order[key]
        value = torch.stack([pools[n].detach().cpu() for n in names])
        value = value if len(names) > 1 else value[0]
        stored = coding.pack(plan, key, names, value, codec_, common)
        back = coding.unpack(key, plan, key, names, stored, codec_, common)
        out.update(zip(names, back if len(names) > 1 else [back]))
    return out


def sealed(header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> bytes:
    """A file's bytes, with their digest in the header."""
    text = json.dumps({**header, "digest": _BLANK}, sort_keys=True)
    data = bytearray(save(dict(tensors), {"commonweight": text}))
    at = _place(data, _BLANK)
    data[at : at + len(_BLANK)] = digest(data, _BLANK).encode()
    return bytes(data)


Bytes = bytes | bytearray | mmap.mmap


def digest(data: Bytes, said: str) -> str:
    """BLAKE2b-128 of a file's bytes with the 32 digits of its ``digest``, here `said`, read as zeros."""
    h, at = hashlib.blake2b(digest_size=16), _place(data, said)
    with memoryview(data) as view, view[:at] as before, view[at + len(said) :] as after:
        for part in (before, _BLANK.encode(), after):
            h.update(part)
    return h.hexdigest()


def _place(data: Bytes, said: str) -> int:
    """Where in a file its digest stands, quotation marks escaped as they are in a string within JSON."""
    mark = b'\\"digest\\": \\"'
    return max(0, data.find(mark + said.encode())) + len(mark)


def verify(where: str, header: Mapping[str, Any], data: Bytes) -> None:
    """Raises: CommonweightError when a bit of the file is not as it was written. Files of old may have no digest."""
    said = header.get("digest")
    if said is not None and digest(data, said) != said:
        raise CommonweightError(f"{where}: this file was altered; it does not have the content its digest says")


def read_header(path: Path) -> dict[str, Any]:
    """The JSON header of a tenant's file. Reads no tensor, unless the header names many sites: then every bit is looked
    at before they are made."""
    with opened(path) as f:
        raw = (f.metadata() or {}).get("commonweight")
    if raw is None:
        raise CommonweightError(
            f"{path}: a safetensors file, but not a commonweight tenant; a PEFT adapter folder is read by import_peft"
        )
    with path.open("rb") as f, mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ) as data:
        return parse_header(str(path), raw, data)


def parse_header(where: str, raw: str, data: Bytes) -> dict[str, Any]:
    """The JSON header from its text, every field looked at. data: the file's bytes, whose digest comes first where the
    header counts further than `FEW`."""
    try:
        header = json.loads(raw)
    except (ValueError, RecursionError) as e:
        raise damaged(where, str(e)) from e
    return look(where, header, data)


def look(where: str, header: Any, data: Bytes | None = None) -> dict[str, Any]:
    """A header with every field looked at. data: the bytes of its file, beyond which no count in it may go: a number
    takes a 64th of a byte at least, a site a byte."""
    if not isinstance(header, dict):
        raise damaged(where, "it is not a JSON object")
    version = header.get("format")
    if isinstance(version, int) and version > FORMAT:
        raise CommonweightError(f"{where}: format {version}; this version reads up to {FORMAT}: upgrade commonweight")
    for key, fits in _FIELDS.items():
        if key not in header and key not in _OPTIONAL:
            raise damaged(where, f"it has no {key!r}")
        if key in header and not fits(header[key]):
            raise damaged(where, f"{key!r} is {header[key]!r}")
    if data is not None:
        _bounded(where, header, data)
    unpack_sites(where, header["sites"])
    return header


def _bounded(where: str, header: Mapping[str, Any], data: Bytes) -> None:
    """Counts are held against the file's size before anything of their size is made."""
    size, most = len(data), 0
    for key, value in header["config"].items():
        if whole(value) and value > max(FEW, 64 * size):
            raise damaged(where, f"its config says {key}={value:,} in a file of {size:,} bytes")
        most = max(most, value if whole(value) else 0)
    named = [e[2] for e in header["sites"].values() if isinstance(e, list) and len(e) == 3 and isinstance(e[2], str)]
    ranges = re.findall(r"(\d{1,9})(?:-(\d{1,9}))?", ",".join(n for n in named if _RANGES.fullmatch(n)))
    sites = sum(max(0, int(b or a) - int(a)) + 1 for a, b in ranges)
    if sites > min(MOST, max(FEW, size)):
        raise damaged(where, f"it names {sites:,} sites in a file of {size:,} bytes")
    if max(most, sites) > FEW and "digest" in header:
        verify(where, header, data)


def _text(value: Any) -> bool:
    return isinstance(value, str)


def _names(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(map(_text, value)) and len(set(value)) == len(value)


def _object(value: Any) -> bool:
    return isinstance(value, dict)


def _beside(value: Any) -> bool:
    """What a tenant holds beside its method: its sites, and of those that it holds by entries, which."""
    if not isinstance(value, dict) or not {"sites", "rows"} <= value.keys() <= {"sites", "rows", "biases"}:
        return False
    if not (_object(value["sites"]) and _object(value["rows"]) and _names(value.get("biases", ["-"]))):
        return False
    return all(isinstance(v, list) and 0 < len(v) <= MOST and all(map(whole, v)) for v in value["rows"].values())


_FIELDS: dict[str, Callable[[Any], bool]] = {
    "format": lambda v: whole(v) and v >= 1,
    "method": _text,
    "config": _object,
    "seed": whole,
    "sites": _object,
    "plan": _text,
    "base": _text,
    "version": _text,
    "labels": _names,
    "metrics": _object,
    "common": _text,
    "quantised": _text,
    "adapters": _names,
    "float": _text,
    "apart": lambda v: v is True,
    "beside": lambda v: _beside(v),
    "vocabulary": whole,
    "rows": whole,
    "codec": coding.fits_header,
    "own": lambda v: v is True or _names(v),
    "over": lambda v: isinstance(v, list) and bool(v) and all(_names(p) and len(p) == 2 for p in v),
    "digest": lambda v: _text(v) and re.fullmatch("[0-9a-f]{32}", v) is not None,
}
_OPTIONAL = (
    "version", "labels", "metrics", "common", "quantised", "adapters", "float", "apart", "beside", "vocabulary", "rows",
    "codec", "own", "over", "digest",
)  # fmt: skip


def decode(path: Path, plan: Plan, header: Mapping[str, Any]) -> tuple[dict[str, Tensor], Tensor | None]:
    """(saved pools by name, check numbers), every name, shape, dtype, value and at last every bit looked at."""
    with opened(path) as f:
        found = unpack(str(path), header, plan, f.keys(), partial(_tensor, path, f))
    verify(str(path), header, path.read_bytes())
    return found


def _tensor(path: Path, f: Any, key: str) -> Tensor:
    try:
        return f.get_tensor(key)
    except (SafetensorError, AttributeError, TypeError, ValueError, RuntimeError) as e:
        raise CommonweightError(f"{path}: pool {key} cannot be read ({e}); save the tenant again") from e


def unpack(
    where: str,
    header: Mapping[str, Any],
    plan: Plan,
    there: Iterable[str],
    get: Callable[[str], Tensor],
    known: Mapping[str, Tensor] | None = None,
) -> tuple[dict[str, Tensor], Tensor | None]:
    """`decode`, wherever the tensors named in `there` come from. known: pools at hand, which need no `get`."""
    out: dict[str, Tensor] = {}
    there, wanted, known = set(there), layout(plan), known or {}
    codecs, common = coding.read(where, plan, wanted, header.get("codec")), "common" in header
    if there - {CHECK} != set(wanted):
        missing, extra = sorted(set(wanted) - there), sorted(there - set(wanted) - {CHECK})
        raise CommonweightError(f"{where}: missing pools {missing[:3]}, unknown pools {extra[:3]}")
    for key, names in wanted.items():
        if all(n in known for n in names):
            out.update({n: known[n] for n in names})
            continue
        value, pool = get(key), plan.pools[names[0]]
        if key in codecs:
            value = coding.unpack(where, plan, key, names, value, codecs[key], common)
        shape = pool.shape if len(names) == 1 else (len(names), *pool.shape)
        if tuple(value.shape) != shape or value.dtype != getattr(torch, pool.dtype):
            raise CommonweightError(
                f"{where}: pool {key} is {tuple(value.shape)} {value.dtype}, wanted {shape} {pool.dtype}"
            )
        if value.is_floating_point() and not value.isfinite().all():
            raise CommonweightError(f"{where}: pool {key} holds NaN or infinity; it cannot be used")
        out.update(zip(names, [value] if len(names) == 1 else [v.clone() for v in value]))
    return out, get(CHECK) if CHECK in there else None


def opened(path: Path):
    if path.is_dir():
        raise CommonweightError(f"{path} is a folder; wanted a tenant's file; import_peft reads PEFT's folders")
    if not path.is_file():
        raise CommonweightError(f"{path}: no such file")
    try:
        return safe_open(path, "pt")
    except (SafetensorError, OSError, ValueError) as e:
        raise not_whole(path, e) from e
