"""A layer whose weight or bias is read from pools by an address, each time that it is used."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

Record = dict[str, Any]


class Addressed:
    """`of` ("weight", or "bias") is what the address makes of the parameters `names`."""

    addresses: dict[str, type] = {}  # noqa: RUF012
    composed = True
    reads: dict[str, tuple[Any, list[str]]]

    def grow(self: Any, of: str, address: Record, names: list[str]) -> None:
        self.reads = {**getattr(self, "reads", {}), of: (self.told(address), names)}
        if isinstance(getattr(type(self), of, None), property):
            return
        setattr(type(self), of, property(lambda module: module.read(of)))  # the class is this layer's alone

    def told(self, value: Any) -> Any:
        if isinstance(value, dict):
            return self.addresses[value["is"]](**{k: self.told(v) for k, v in value.items() if k != "is"})
        return tuple(map(self.told, value)) if isinstance(value, list) else value

    def read(self: Any, of: str) -> Tensor:
        address, names = self.reads[of]
        return address(*(self._parameters[n] for n in names))

    def composed_weight(self: Any) -> Tensor:
        """What the layer computes with, in its own layout."""
        return self.weight

    def fixed(self) -> dict[str, Tensor]:
        """What it computes with now, in the place of what it reads."""
        with torch.no_grad():
            return {of: self.read(of).clone() for of in self.reads}
