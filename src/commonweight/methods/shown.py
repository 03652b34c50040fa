"""What a method may ask of rows before training, by name: statistics of each site that it reads."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from torch import Tensor, nn

from ..core import Site

KINDS = {
    "gradient": "the mean gradient of the loss by each weight, (out, inp)",
    "squared": "the sum over rows of the squared gradient of each row's loss by each weight, (out, inp)",
    "inputs": "X^T X / n of the n tokens that come into each layer, (inp, inp)",
    "channels": "the norm of each channel of what a layer gives, over the tokens of a class; the mean over classes",
    "streams": "the norm of each channel of a block's stream behind its attention, over the tokens of a class; the "
    "mean over classes",
    "twin": "the mean gradient of the loss by each pool of a dense tenant, and the pool",
    "curvature": "the Hessian of the loss by the matrices of a dense tenant, times their gradient, and these",
    "answers": "X^T X / n of the n tokens with a label that come into each layer, (inp, inp), of rows of which the "
    "method keeps what the model makes",
    "routes": "the share of a layer's routes, tokens times experts a token, that each expert gets, a number",
    "blocks": "the sum over rows of the squared gradient of each row's loss by each projection of a trunk's blocks, "
    "and the projections",
    "projections": "the projections of a trunk's blocks, which need no rows",
    "gates": "the mean over a layer's tokens of the weight that each expert's answer gets, 0 where it is not chosen",
}  # each is said alone, in errors. A stream goes by the norm that is given it, or where norms stand before by
# "attention<norm"
LABELLED = frozenset({"gradient", "squared", "twin", "curvature", "answers", "blocks"})  # whose rows need labels
NO_ROWS = frozenset({"projections"})  # those that are asked of the model alone
Statistics = Mapping[str, Tensor]  # site -> float32
KEPT, WEIGHT = "kept/", "weight/"  # before a site's name: of the rows to keep; the frozen weight (out, inp), float32


@dataclass(frozen=True)
class Seen(Mapping[str, Tensor]):
    """What a method begins from: the statistic of each site, under "kept/" that of the rows to keep, and under
    "weight/" its frozen weight, which is read when it is asked for."""

    rows: Statistics
    kept: Statistics
    weight: Callable[[str], Tensor]

    def __getitem__(self, key: str) -> Tensor:
        if key.startswith(WEIGHT):
            return self.weight(key.removeprefix(WEIGHT)).detach().float().cpu()
        return self.kept[key.removeprefix(KEPT)] if key.startswith(KEPT) else self.rows[key]

    def __iter__(self) -> Iterator[str]:
        yield from self.rows
        yield from (KEPT + n for n in self.kept)

    def __len__(self) -> int:
        return len(self.rows) + len(self.kept)


def begun(config: Any, sites: Sequence[Site]) -> Any:
    """The config of a tenant whose start was worked out from rows."""
    return replace(config, start="given") if config.start == "rows" else config


class Shown(NamedTuple):
    """Rows for a method that begins from data. batches: the model's inputs, rows along the first dimension. loss: of
    the model and a batch; the mean over its rows. None: the model's own, of batches with "labels"."""

    batches: Iterable[Mapping[str, Any]]
    loss: Callable[[nn.Module, Any], Tensor] | None = None
