"""A message's bytes in one array of Flower's, and back. Flower cuts arrays, and nothing else, into pieces of 5 MiB.

The array is never made into numbers by Flower: its kind of serialisation is a name of our own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from safetensors.torch import load, save
from torch import Tensor, from_numpy

from ..message import Facts, Refused, Table, pack, unpack

NAME, KIND = "message", "commonweight.message"


def array(data: bytes) -> ArrayRecord:
    return ArrayRecord({NAME: Array(dtype="uint8", shape=(len(data),), stype=KIND, data=data)})


def packed(data: bytes, **facts: Any) -> RecordDict:
    """facts: numbers and words beside the message."""
    return RecordDict({NAME: array(data), "facts": ConfigRecord(facts)})


def data_of(content: RecordDict) -> bytes:
    """The message's bytes. Raises: Refused where there is no such array, or more than that one."""
    records = content.array_records
    found = [(k, n) for k, record in records.items() for n in record]
    if found != [(NAME, NAME)]:
        raise Refused("wrong shape", f"it holds the arrays {[f'{k}/{n}' for k, n in found][:5]}; wanted {NAME}/{NAME}")
    data = records[NAME][NAME].data
    if not isinstance(data, bytes):
        raise Refused("not whole", f"its array holds {type(data).__name__}; wanted bytes")
    return data


# the same message as arrays of float32 under the names of its pools, for mods of Flower that clip and add noise

FACTS = "facts"


def plain(data: bytes, table: Table, wanted: Facts) -> RecordDict:
    """A message as arrays that Flower's mods can work on. Raises: Refused for what `unpack` refuses."""
    said, tensors = unpack(data, table, wanted)
    record = ArrayRecord({n: Array(v.contiguous().numpy()) for n, v in tensors.items()})
    return RecordDict({NAME: record, FACTS: ConfigRecord(asdict(said))})


def packed_again(content: RecordDict, table: Table) -> bytes:
    """The message's bytes, of `plain` and what a mod made of it. Raises: Refused."""
    if set(content.array_records) != {NAME} or content.array_records[NAME].keys() != table.keys():
        found = {k: len(r) for k, r in content.array_records.items()}
        raise Refused("wrong shape", f"it holds arrays {found}; wanted {len(table)} of the record {NAME}")
    try:
        said = {f.name: content.config_records[FACTS][f.name] for f in fields(Facts)}
        arrays = {n: content.array_records[NAME][n].numpy() for n in table}
    except (KeyError, ValueError, TypeError) as e:
        raise Refused("not whole", f"its arrays or facts cannot be read ({e})") from e
    for n, v in arrays.items():
        if v.shape != table[n].shape:
            raise Refused("wrong shape", f"{n} is {v.shape}; wanted {table[n].shape}")
    tensors = {n: from_numpy(np.ascontiguousarray(v, np.float32)) for n, v in arrays.items()}
    return pack(Facts(**said), tensors, table)


def fact(content: RecordDict, name: str) -> Any:
    """Raises: Refused."""
    try:
        return content.config_records["facts"][name]
    except KeyError as e:
        raise Refused("not whole", f"it does not say its {name}") from e


# what a client keeps, in the state of its context: one array for each round that it took part in


def remember(state: RecordDict, client: int, round: int, tensors: Mapping[str, Tensor]) -> None:
    """Of a client the last round before this one stays too: a server that was killed may ask for this one again."""
    before = [r for r in kept_rounds(state, client) if r < round]
    for r in kept_rounds(state, client):
        if r >= round or r != max(before):
            del state.array_records[_key(client, r)]
    if tensors:
        state.array_records[_key(client, round)] = array(save({k: v.contiguous() for k, v in tensors.items()}))


def remembered(state: RecordDict, client: int, round: int) -> dict[str, Tensor]:
    """What a client kept before this round; {} where it took part in none."""
    before = [r for r in kept_rounds(state, client) if r < round]
    return load(state.array_records[_key(client, max(before))][NAME].data) if before else {}


def kept_rounds(state: RecordDict, client: int) -> list[int]:
    start = f"keep.{client}."
    return [int(k.removeprefix(start)) for k in state.array_records if k.startswith(start)]


def _key(client: int, round: int) -> str:
    return f"keep.{client}.{round}"
