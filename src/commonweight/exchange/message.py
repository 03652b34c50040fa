"""What travels: a few JSON facts and named tensors in one safetensors file. Nothing is unpickled.

Both sides know the table of what may be in it, so names and shapes do not travel: tensors of a known shape lie one
behind the other, one flat tensor for each dtype. A message is looked at in this order: its length, before it is read;
whether it is whole; who sent it, for which run and round; shapes; values.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from ..core import CommonweightError

FORMAT = 1
FRAME = 1024  # bytes of facts and names at most, beside the numbers
SERVER = -1

REASONS = (
    "too long", "not whole", "other version", "other run", "other base", "other method", "unknown client", "old round",
    "answered twice", "wrong shape", "not finite", "vanished", "late",
)  # fmt: skip


class Refused(CommonweightError):
    """A message that is left out. reason: one of `REASONS`, by which a round counts it."""

    def __init__(self, reason: str, what: str):
        super().__init__(f"{reason}: {what}")
        self.reason = reason


class Part(NamedTuple):
    """One tensor of a message. shape: None stands for a length that varies, of at most `most`."""

    shape: tuple[int | None, ...]
    dtype: str = "float32"
    most: int = 0

    @property
    def fixed(self) -> bool:
        return None not in self.shape

    @property
    def nbytes(self) -> int:
        """Its bytes, or the most that they can be."""
        return math.prod(self.most if n is None else n for n in self.shape) * kind(self.dtype).itemsize


Table = Mapping[str, Part]


@dataclass(frozen=True)
class Facts:
    """method, run and base: what both sides must share. round: from 0. client: its number; `SERVER` for what is sent to
    clients. rows: of the client."""

    method: str
    run: str
    base: str
    round: int
    client: int = SERVER
    rows: int = 0
    format: int = FORMAT


def payload(table: Table) -> int:
    """Bytes of the numbers alone; where lengths vary, the most that they can be."""
    return sum(p.nbytes for p in table.values())


def bound(table: Table) -> int:
    """The most bytes that a message of this table can have."""
    return payload(table) + FRAME + 128 * sum(not p.fixed for p in table.values())


def pack(facts: Facts, tensors: Mapping[str, Tensor], table: Table) -> bytes:
    """The message's bytes. Raises: ValueError where the tensors are not those of the table: a fault of the method."""
    if tensors.keys() != table.keys():
        raise ValueError(f"{facts.method}: packs {sorted(tensors)}, its table has {sorted(table)}")
    out: dict[str, Tensor] = {}
    flat: dict[str, list[Tensor]] = {}
    for name, part in table.items():
        value = tensors[name].detach().cpu()
        if not fits(value, part):
            raise ValueError(f"{facts.method}: {name} is {tuple(value.shape)} {value.dtype}, its table has {part}")
        if part.fixed:
            flat.setdefault(part.dtype, []).append(value.reshape(-1))
        else:
            out[name] = value.contiguous()
    out |= {f"*{dtype}": torch.cat(values) for dtype, values in flat.items()}
    return save(out, {"facts": json.dumps(asdict(facts), separators=(",", ":"))})


def without(facts: Facts) -> bytes:
    """The answer of a client that has no finite numbers to send: facts alone, refused as "not finite"."""
    return save({}, {"facts": json.dumps(asdict(facts), separators=(",", ":"))})


def unpack(data: bytes, table: Table, wanted: Facts) -> tuple[Facts, dict[str, Tensor]]:
    """(facts, tensors by name). wanted: method, run, base and round that it must have; its client is not looked at.

    Cost: nothing is read of a message that is longer than `bound`. Raises: Refused.
    """
    if len(data) > bound(table):
        raise Refused("too long", f"{len(data):,} bytes; at most {bound(table):,} are read")
    facts = read_facts(data)
    if facts.format != wanted.format:
        raise other_version(facts.format)
    for name, reason in (("method", "other method"), ("run", "other run"), ("base", "other base")):
        if getattr(facts, name) != getattr(wanted, name):
            raise Refused(reason, f"{getattr(facts, name)!r}; this run has {getattr(wanted, name)!r}")
    if facts.round != wanted.round:
        raise Refused("old round", f"of round {facts.round}; this is round {wanted.round}")
    try:
        found = load(data)
    except (SafetensorError, ValueError, KeyError, RuntimeError) as e:
        raise Refused("not whole", f"its tensors cannot be read ({e})") from e
    return facts, spread(found, table)


def other_version(format: int) -> Refused:
    return Refused("other version", f"format {format}; this side speaks {FORMAT}: update the older one")


def read_facts(data: bytes) -> Facts:
    """Raises: Refused where the header is cut off or says something else."""
    try:
        size = int.from_bytes(data[:8], "little")
        if len(data) < 8 or size > min(len(data) - 8, FRAME + len(data)):
            raise ValueError("cut off")
        said = json.loads(json.loads(data[8 : 8 + size])["__metadata__"]["facts"])
        known = {f.name: f.type for f in fields(Facts)}
        if isinstance(said, dict) and type(said.get("format")) is int and said["format"] != FORMAT:
            raise other_version(said["format"])  # whatever else it says
        if not isinstance(said, dict) or said.keys() != known.keys():
            raise ValueError("other facts")
        if any(not isinstance(v, str if known[k] == "str" else int) or isinstance(v, bool) for k, v in said.items()):
            raise ValueError("facts of another type")
        return Facts(**said)
    except Refused:
        raise
    except (ValueError, KeyError, TypeError, RecursionError, AttributeError) as e:
        raise Refused("not whole", f"{len(data):,} bytes that are no message ({e})") from e


def spread(found: Mapping[str, Tensor], table: Table) -> dict[str, Tensor]:
    """Tensors by the names of the table. Raises: Refused."""
    kinds = list(dict.fromkeys(p.dtype for p in table.values() if p.fixed))
    names = {f"*{k}" for k in kinds} | {n for n, p in table.items() if not p.fixed}
    if table and not found:
        raise Refused("not finite", "it says that its own numbers are NaN or infinite")
    if found.keys() != names:
        raise Refused("wrong shape", f"it holds {sorted(found)}; wanted {sorted(names)}")
    if all(v.isfinite().all() for v in found.values() if v.is_floating_point()):
        return named(found, table, kinds)
    out = named(found, table, kinds)
    bad = next(n for n, v in out.items() if v.is_floating_point() and not v.isfinite().all())
    raise Refused("not finite", f"{bad} holds NaN or infinity")


def named(found: Mapping[str, Tensor], table: Table, kinds: Sequence[str]) -> dict[str, Tensor]:
    """Views by the names of the table. kinds: dtypes of what is flat. Raises: Refused."""
    out: dict[str, Tensor] = {}
    for k in kinds:
        mine = {n: p for n, p in table.items() if p.fixed and p.dtype == k}
        sizes = [math.prod(p.shape) for p in mine.values()]  # type: ignore[arg-type]
        flat = found[f"*{k}"]
        if flat.dtype is not kind(k) or flat.shape != (sum(sizes),):
            raise Refused("wrong shape", f"{tuple(flat.shape)} numbers of {flat.dtype}; wanted ({sum(sizes)},) of {k}")
        out.update({n: v.view(p.shape) for (n, p), v in zip(mine.items(), flat.split(sizes))})  # type: ignore[arg-type]
    for n, p in table.items():
        if not p.fixed:
            out[n] = found[n]
            if not fits(found[n], p):
                raise Refused("wrong shape", f"{n} is {tuple(found[n].shape)} {found[n].dtype}; wanted {p}")
    return {n: out[n] for n in table}


def fits(value: Tensor, part: Part) -> bool:
    """Whether a tensor has the shape and dtype of a part."""
    if value.dtype is not kind(part.dtype) or value.dim() != len(part.shape):
        return False
    return all(n <= part.most if wanted is None else n == wanted for n, wanted in zip(value.shape, part.shape))


def kind(dtype: str) -> torch.dtype:
    return getattr(torch, dtype)


def of_client(facts: Facts, client: int, rows: int) -> Facts:
    """The facts of a client's answer to a message with these."""
    return replace(facts, client=client, rows=rows)
