"""What a store can do without."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import NamedTuple

from . import blueprint, pool
from .manifest import JOINT


class Freed(NamedTuple):
    """What a gc took: pools, versions of tenants, files that killed writers left; bytes of all together."""

    pools: int
    versions: int
    torn: int
    nbytes: int


def garbage(root: Path, needed: Collection[str]) -> Iterator[Path]:
    """What nobody reads, and what killed writers left. Only under the lock."""
    homes = "pools/??/*", f"{blueprint.FOLDER}/*", "tenants/*", "*"
    for at in [p for home in homes for p in root.glob(home)]:
        named = at.parent.name == blueprint.FOLDER or at.parent.parent.name == "pools"
        if at.name.startswith("."):
            whole = at.name.rpartition(".")[0]
            joint = at.parent == root / "tenants" and JOINT.fullmatch(whole[1:])
            if joint or whole.endswith((".json", ".safetensors", ".txt")):
                yield at
        elif at.parent == root / "tenants" and JOINT.fullmatch(at.name):
            if at.is_dir() and not any(at.iterdir()):
                yield at
        elif named and pool.HASH.fullmatch(at.stem) and at.stem not in needed:
            yield at
