"""What the learned merges of `merging_quality` learn from: dev rows, with one head a task, in a small budget."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoModel, AutoTokenizer

from commonweight import merge
from commonweight.adapt import Classifier
from commonweight.adapt.rows import Row
from commonweight.merge.registry import Beside, limit

from .shapes import minilm_folder

Weights = dict[str, Tensor]
Heads = Mapping[str, tuple[Tensor, Tensor]]  # task -> (W (classes, d), b (classes,))
LENGTH, BATCH, BATCHES = 32, 16, 8  # tokens a row; rows a batch; batches a task
# Rates go up as the steps go down from the authors' (500, 2,000, 500, 300, 300): the same way can be gone.
BUDGET: dict[str, dict[str, Any]] = {
    "adamerging": {"steps": 60, "lr": 8e-3},
    "concrete": {"steps": 60, "lr": 3e-2},
    "dam": {"steps": 20, "lr": 5e-2},
    "atlas": {"steps": 60, "lr": 5e-2},
    "pareto": {"steps": 60, "lr": 2e-4},
    "unconstrained": {"budget": 60, "groups": 1},
}


class Embedded(Classifier):
    """Features of rows that come as word embeddings (B, T, d): what a trigger of DAM can be added to."""

    def forward(self, inputs_embeds: Tensor, attention_mask: Tensor) -> Tensor:  # type: ignore[override]
        return self._features(None, attention_mask, inputs_embeds=inputs_embeds)  # type: ignore[arg-type]


def encoder() -> Embedded:
    return Embedded(AutoModel.from_pretrained(minilm_folder(), dtype=torch.float32)).eval()


@torch.no_grad()
def batches(model: Embedded, rows: list[Row], labels: tuple[str, ...]) -> list[dict[str, Tensor]]:
    """The first rows, all padded to one length, so that one trigger fits every batch."""
    rows = rows[: BATCH * BATCHES]
    made = AutoTokenizer.from_pretrained(minilm_folder())(
        [r["text"] for r in rows], padding="max_length", truncation=True, max_length=LENGTH, return_tensors="pt"
    )
    words = model.encoder.get_input_embeddings()(made["input_ids"])
    truth = torch.tensor([labels.index(str(r["label"])) for r in rows])
    whole = {"inputs_embeds": words, "attention_mask": made["attention_mask"], "labels": truth}
    return [{k: v[i : i + BATCH] for k, v in whole.items()} for i in range(0, len(rows), BATCH)]


def learn(
    name: str,
    models: dict[str, Weights],
    base: Weights,
    heads: Heads,
    rows: Mapping[str, tuple[list[Row], tuple[str, ...]]],
    steps: int | None = None,
) -> tuple[dict[str, Weights], dict[str, Any]]:
    """(the models, the options) that the method is then called with. rows: task -> (rows, labels). steps: instead of
    the budget's."""
    method, model = merge.get(name), encoder()
    tasks, budget = list(models), dict(BUDGET[name])
    if steps is not None:
        budget["budget" if "budget" in budget else "steps"] = steps
    data = [batches(model, *rows[t]) for t in tasks]

    def answer(call: Callable[..., Any], batch: Mapping[str, Tensor], task: int) -> Tensor:
        features = call(inputs_embeds=batch["inputs_embeds"], attention_mask=batch["attention_mask"])
        return F.linear(features, *heads[tasks[task]])

    def loss(call: Callable[..., Any], batch: Mapping[str, Tensor], task: int) -> Tensor:
        return F.cross_entropy(answer(call, batch, task), batch["labels"])

    @torch.no_grad()
    def score(state: Weights) -> float:
        def call(**inputs: Any) -> Tensor:
            return torch.func.functional_call(model, state, (), inputs)

        right = [
            torch.cat([answer(call, b, t).argmax(1) == b["labels"] for b in d]).float() for t, d in enumerate(data)
        ]
        return torch.stack([r.mean() for r in right]).mean().item()

    assert method.learn is not None
    each = list(models.values())
    if name == "unconstrained":
        found = method.learn(score, each, base, **budget)
    elif method.data == "labeled":
        found = method.learn(model, each, base, data, loss=loss, **budget)
    else:
        found = method.learn(model, each, base, data, forward=answer, **budget)
    if isinstance(found, list):  # members, to be merged in the place of the models
        return dict(zip(tasks, found)), {}
    option = next(k for k, (hint, _) in method.options().items() if isinstance(limit(hint), Beside))
    return models, {option: found}
