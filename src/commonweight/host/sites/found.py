"""What each kind of site tells of one module."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from torch import nn

from ...core import Site
from .physical import Physical


class Found(NamedTuple):
    """One site. default: whether a tenant reads it when no pattern chose it."""

    at: Physical
    site: Site
    default: bool


@dataclass(frozen=True)
class Whole:
    """What a kind may know beside a module: the model, its modules by name, the names of its transformer blocks, and of
    all blocks, those of convolutions too."""

    model: nn.Module
    names: Mapping[str, nn.Module]
    blocks: tuple[str, ...]
    parts: tuple[str, ...]

    def inside(self, name: str) -> bool:
        """Whether it is part of a block; of a model without blocks everything is."""
        return not self.parts or any(name.startswith(b + ".") for b in self.parts)
