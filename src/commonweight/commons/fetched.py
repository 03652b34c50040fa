"""A tenant of a store with its pools open."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core import CommonweightError
from . import pool
from .manifest import Manifest
from .pool import Content

if TYPE_CHECKING:
    from torch import Tensor


class Fetched:
    """What `Host.load_from` takes. Nothing is read before it is asked for; what is open can be read to the end."""

    def __init__(self, root: Path, m: Manifest):
        self.where, self.name, self.label = f"{root}: {m.label}", m.name, m.label
        self.header: Mapping[str, Any] = m.tenant
        self.parents = m.parents
        # of one content, one text: what lies in a pack is known by its place there
        self.hashes: Mapping[str, str] = {
            k: r.hash if r.at is None else f"{r.hash} {r.at} {r.dtype} {r.shape}" for k, r in m.pools.items()
        }
        self._refs, self._files = m.pools, m.files
        self._pools: dict[str, pool.Mapped] = {}
        self._packs: dict[str, Content] = {}
        for tensor, ref in m.pools.items():
            try:
                self._pools[ref.hash] = self._pools.get(ref.hash) or pool.open_pool(root, ref.hash)
            except CommonweightError as e:
                raise type(e)(f"{self.where}: tensor {tensor}: {e}") from e

    def content(self, tensor: str) -> Content:
        """Every bit checked."""
        ref = self._refs[tensor]
        found = self._packs.get(ref.hash) or self._pools[ref.hash].content()
        wanted = self._files[ref.hash]
        if (found.dtype, found.shape) != wanted:
            raise CommonweightError(f"{self.where}: pool {tensor} is {found.dtype} {found.shape}, wanted {wanted}")
        if ref.at is None:
            return found
        self._packs[ref.hash] = found
        return Content(ref.dtype, ref.shape, bytes(memoryview(found.data)[ref.at : ref.at + ref.numbers]))

    def read(self, tensor: str) -> Tensor:
        """A new tensor, every bit checked."""
        return self.content(tensor).tensor()
