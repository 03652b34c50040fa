"""Texts that belong together lie close: pairs, with the rest of the batch as negatives."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...core import CommonweightError
from ...host.weights import device_of
from ..rows import PAIRS, Row, column, text_of
from .base import Example, Given, Seen, batches, marked, need, padded

TEMPERATURE = 0.05


class Embed(Given):
    """InfoNCE over cosine similarities (arXiv 1807.03748, eq. 4) with the batch's other positives as negatives.

    loss_i = -log( exp(a_i p_i / t) / sum_j exp(a_i p_j / t) ), t = 0.05; a positive with the same text as p_i is
    no negative of row i. Metrics, over all rows at once: loss; accuracy, the share of anchors whose own positive is
    nearer than every positive of another text: a tie is no hit.
    """

    usual_length: ClassVar[int] = 128
    better: ClassVar[tuple[str, bool]] = ("accuracy", True)
    mixes: ClassVar[bool] = False  # another tenant's positives are no negatives of this one's

    def examples(self, rows: Sequence[Row]) -> list[Example]:
        need(rows)
        a, p = self._pair(rows)
        self.seen = Seen(used={"anchor": a, "positive": p}, rows=len(rows))
        texts = [[text_of(r, c, i) for i, r in enumerate(rows)] for c in (a, p)]
        ids = [self.cut(t, what) for t, what in zip(texts, ("anchors", "positives"))]
        return [{"anchor": x, "positive": y} for x, y in zip(*ids)]

    def _pair(self, rows: Sequence[Row]) -> tuple[str, str]:
        a, p = self.text_column, self.label_column
        if a or p:
            return column(rows, a, ("anchor",), "text"), column(rows, p, ("positive",), "label")
        for pair in PAIRS:
            if all(c in rows[0] for c in pair):
                return pair
        names = " or ".join("/".join(p) for p in PAIRS)
        raise CommonweightError(
            f"no pair of columns among {', '.join(rows[0])}; wanted {names}; "
            "name yours with --text-column and --label-column"
        )

    def shown(self, example: Example) -> str:
        a, p = (self.tokenizer.decode(example[k]) for k in ("anchor", "positive"))
        return f"{a} -> {marked(p)}"

    def collate(self, examples: Sequence[Example]) -> dict[str, Tensor]:
        """Anchors first, then their positives, in one batch of 2 B rows."""
        return padded([e["anchor"] for e in examples] + [e["positive"] for e in examples], self.tokenizer.pad_token_id)

    def items(self, batch: dict[str, Tensor]) -> int:
        return len(batch["input_ids"]) // 2

    def loss(self, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        a, p = F.normalize(model(**batch).logits.float(), dim=-1).chunk(2)
        texts = batch["input_ids"].chunk(2)[1]
        same = (texts[:, None] == texts[None]).all(-1) & ~torch.eye(len(a), dtype=torch.bool, device=a.device)
        scores = (a @ p.T / TEMPERATURE).masked_fill(same, float("-inf"))
        return F.cross_entropy(scores, torch.arange(len(a), device=a.device))

    def measure(self, model: nn.Module, examples: Sequence[Example], batch_size: int) -> dict[str, float]:
        device = device_of(model)
        n, loss = len(examples), 0.0
        found: list[Tensor] = [torch.empty(0)] * n
        for places, batch in batches(self, examples, batch_size, device):
            both = F.normalize(model(**batch).logits.float(), dim=-1).cpu().chunk(2)
            for i, a, p in zip(places, *both):
                found[i] = torch.stack([a, p])
        a, p = torch.stack(found).unbind(1)
        number: dict[tuple[int, ...], int] = {}
        text = torch.tensor([number.setdefault(tuple(e["positive"]), len(number)) for e in examples])
        right = 0
        for start in range(0, n, 256):  # every anchor against every positive, 256 anchors at a time
            scores = a[start : start + 256] @ p.T / TEMPERATURE
            own = torch.arange(start, min(start + 256, n))
            same = (text[own, None] == text) & (own[:, None] != torch.arange(n))
            scores = scores.masked_fill(same, float("-inf"))
            loss += F.cross_entropy(scores, own, reduction="sum").item()
            mine = scores.gather(1, own[:, None])
            others = scores.scatter(1, own[:, None], float("-inf")).max(1).values
            right += int((mine[:, 0] > others).sum())
        return {"accuracy": right / n, "loss": loss / n, "n": n}
