"""A tenant's file on its way into a store: which of its tensors become pools of their own, which lie in one pack."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ..core import CommonweightError, safe
from . import pool
from .blueprint import CHECK
from .manifest import Manifest
from .pool import Content, Ref

SMALL = 1 << 16  # bytes: below that a pool's own file and its hash would weigh, and nobody else will read it


class Given(NamedTuple):
    """What is to be published. data: the bytes of its file. metrics: in place of the file's own. parents: labels.
    own: the tensors that no other tenant has, where that is not what the file says."""

    name: str
    where: str
    data: bytes
    metrics: Mapping[str, Any] | None = None
    parents: Sequence[str] = ()
    own: Sequence[str] | None = None


def of_file(
    path: Path, name: str | None = None, metrics: Mapping[str, Any] | None = None, parents: Sequence[str] = ()
) -> Given:
    """A tenant's file, to be published under `name`, or its own."""
    from ..formats import native

    native.read_header(path)  # for its errors
    return Given(path.stem if name is None else name, str(path), path.read_bytes(), metrics, parents)


def of_host(host: Any, name: str, metrics: Mapping[str, Any] | None, codec: Any, parents: Sequence[str]) -> Given:
    """A tenant of a host, as its file would be; see `Host.save`."""
    from ..host.files import encode

    return Given(name, f"tenant {name}", encode(host.base, host[name], metrics, codec), None, parents)


class Incoming(NamedTuple):
    """A tenant without its version yet."""

    name: str
    where: str
    header: Mapping[str, Any]
    refs: Mapping[str, Ref]
    parents: tuple[str, ...]

    def manifest(self, version: int, now: str) -> Manifest:
        return Manifest(self.name, version, self.header, self.refs, self.parents, now)


def take(given: Iterable[Given]) -> tuple[list[Incoming], dict[str, Content]]:
    """(tenants, contents of all their pools by hash, each once). Raises: CommonweightError for what is no sound file,
    and for a name that appears twice."""
    out: list[Incoming] = []
    contents: dict[str, Content] = {}
    for g in given:
        safe(g.name)
        if any(i.name == g.name for i in out):
            raise CommonweightError(f"{g.where}: another tenant is called {g.name!r} too; publish them under two names")
        header, tensors = _split(g.where, g.data)
        if g.own is not None:
            header = {**header, "own": sorted(g.own)}
        if g.metrics is not None:
            header = {**header, "metrics": dict(g.metrics)}
        small = {k: c for k, c in tensors.items() if k in _own(g.where, header, tensors) and len(c.data) < SMALL}
        refs: dict[str, Ref] = {}
        if len(small) > 1:
            whole, refs = pool.pack(small)
            contents[next(iter(refs.values())).hash] = whole
        for k in tensors.keys() - refs.keys():
            refs[k] = Ref(pool.address(tensors[k]), tensors[k].dtype, tensors[k].shape)
            contents.setdefault(refs[k].hash, tensors[k])
        out.append(Incoming(g.name, g.where, header, dict(sorted(refs.items())), tuple(g.parents)))
    return out, contents


def _own(where: str, header: Mapping[str, Any], tensors: Mapping[str, Content]) -> set[str]:
    """The tensors of which the file says that no other tenant has them."""
    said = header.get("own", [])
    own = {*tensors} - {CHECK} if said is True else {*said}
    if strange := own - {*tensors}:
        raise CommonweightError(
            f"{where}: its header is damaged ('own' names {min(strange)}, which is not there); save the tenant again"
        )
    return own


def _split(where: str, data: bytes) -> tuple[dict[str, Any], dict[str, Content]]:
    """(header, tensors) of a tenant file's bytes. Raises: CommonweightError for NaN, infinity, or a broken file."""
    from safetensors import SafetensorError, deserialize

    from ..formats import native

    try:
        tensors = {k: Content(t["dtype"], tuple(t["shape"]), t["data"]) for k, t in deserialize(data)}
        length = int.from_bytes(data[:8], "little")
        raw = json.loads(data[8 : 8 + length])["__metadata__"]["commonweight"]
    except (SafetensorError, ValueError, KeyError) as e:
        raise CommonweightError(f"{where}: not a whole tenant file ({e})") from e
    header = native.parse_header(where, raw, data)
    for k, c in tensors.items():
        if c.dtype not in pool.DTYPES:
            raise CommonweightError(
                f"{where}: pool {k} has the dtype {c.dtype}; wanted one of {', '.join(pool.DTYPES)}"
            )
        value = c.tensor()
        if value.is_floating_point() and not value.isfinite().all():
            raise CommonweightError(f"{where}: pool {k} holds NaN or infinity; nothing was published")
    native.verify(where, header, data)
    header.pop("digest", None)  # every file of a store has its own
    return header, tensors
