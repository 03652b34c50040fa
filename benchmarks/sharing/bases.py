"""The two models, what they are healed on, and what is measured of them."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers as tf
from torch import Tensor

from commonweight.adapt import read
from commonweight.share.run import measure

from ..harness import DEVICE
from ..shapes import minilm_folder

HELD_OUT = ("carroll_alice", "wells_war_of_the_worlds")
TASKS = ("trec", "sst2", "cr")
# of SmolLM2: passages of a book, tokens of one healing and of one try, rows of a step; a GPU has time for more
MOST, TOKENS, TRIAL, ROWS = (400, 1_048_576, 131_072, 16) if DEVICE.type == "cuda" else (40, 32_768, 8_192, 2)


@dataclass(frozen=True)
class Base:
    """rows: those that heal. figures: the measured model -> its figures; `main` is the one that the page ranks by, with
    whether more is better. tokens: read by one healing; trial: by one try of a learning rate."""

    name: str
    load: Callable[[], Any]
    rows: Callable[[], list[dict[str, str]]]
    figures: Callable[[Any], dict[str, float]]
    main: tuple[str, bool]
    tokens: int
    trial: int
    rates: tuple[float, ...]
    recipe: dict[str, Any] = field(default_factory=dict)


def passages(data: Path, names: list[str], size: int, most: int, seed: int = 0) -> list[dict[str, str]]:
    """Pieces of `size` characters of books, in an order of one's own; `most` of each book."""
    draw, out = random.Random(seed), []
    for name in names:
        text = (data / "books" / f"{name}.txt").read_text("utf-8")
        starts = list(range(size, len(text) - 2 * size, size))
        out += [{"text": text[s : s + size]} for s in draw.sample(starts, min(most, len(starts)))]
    draw.shuffle(out)
    return out


def smollm2(folder: Path, data: Path) -> Base:
    def rows() -> list[dict[str, str]]:
        books = sorted(p.stem for p in (data / "books").glob("*.txt") if p.stem not in HELD_OUT)
        sums = read(data / "gsm8k" / "train.jsonl")[:400]
        told = [{"text": f"{r['question']}\n{r['answer']}"} for r in sums]
        mixed = passages(data, books, 2000, MOST) + told
        random.Random(1).shuffle(mixed)
        return mixed

    held = passages(data, list(HELD_OUT), 2000, 6)
    sums = [{"text": f"{r['question']}\n{r['answer']}"} for r in read(data / "gsm8k" / "test.jsonl")[:24]]

    def figures(model: Any) -> dict[str, float]:
        with torch.autocast(DEVICE.type, torch.bfloat16):
            books, school = measure(model, held, 512), measure(model, sums, 512)
        return {
            "books": books["bits_per_byte"], "gsm8k": school["bits_per_byte"],
            "accuracy": 100 * books["token_accuracy"],
        }  # fmt: skip

    def load() -> Any:
        return tf.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).to(DEVICE).eval()

    how = {"batch_size": ROWS, "max_length": 256}
    return Base("smollm2", load, rows, figures, ("books", False), TOKENS, TRIAL, (3e-4, 1e-3), how)


def minilm(data: Path) -> Base:
    def rows() -> list[dict[str, str]]:
        found = [{"text": r["text"]} for t in ("mr", *TASKS) for r in read(data / "sentences" / f"{t}.train.tsv")]
        random.Random(0).shuffle(found)
        return found

    def load() -> Any:
        model = tf.AutoModel.from_pretrained(minilm_folder(), dtype=torch.float32, add_pooling_layer=False)
        return model.to(DEVICE).eval()

    tokenizer = tf.AutoTokenizer.from_pretrained(minilm_folder())
    sets = {t: [read(data / "sentences" / f"{t}.{part}.tsv") for part in ("train", "test")] for t in TASKS}

    def figures(model: Any) -> dict[str, float]:
        each = {t: 100 * probed(model, tokenizer, train[:800], test[:400]) for t, (train, test) in sets.items()}
        return {**each, "accuracy": sum(each.values()) / len(each)}

    how = {"batch_size": 32, "max_length": 64}
    return Base("minilm", load, rows, figures, ("accuracy", True), 131_072, 32_768, (5e-4, 2e-3), how)


def probed(model: Any, tokenizer: Any, train: list[Any], test: list[Any], ridge: float = 1.0) -> float:
    """Accuracy of ridge regression on the mean of the last hidden states."""
    labels = sorted({r["label"] for r in train})
    x, y = features(model, tokenizer, train), torch.tensor([labels.index(r["label"]) for r in train])
    one = torch.cat([x, torch.ones(len(x), 1)], 1).double()
    targets = torch.nn.functional.one_hot(y, len(labels)).double()
    eye = ridge * torch.eye(one.shape[1]).double()
    weights = torch.linalg.solve(one.T @ one + eye, one.T @ targets)
    z = features(model, tokenizer, test)
    found = (torch.cat([z, torch.ones(len(z), 1)], 1).double() @ weights).argmax(1)
    return sum(labels[int(i)] == r["label"] for i, r in zip(found, test)) / len(test)


@torch.no_grad()
def features(model: Any, tokenizer: Any, rows: list[Any], batch: int = 64) -> Tensor:
    """(n, d); rows of like length together."""
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]["text"]))
    out = torch.empty(len(rows), model.config.hidden_size)
    for start in range(0, len(rows), batch):
        at = order[start : start + batch]
        texts = [rows[i]["text"] for i in at]
        inputs = tokenizer(texts, padding=True, truncation=True, max_length=64, return_tensors="pt").to(DEVICE)
        mask = inputs["attention_mask"].unsqueeze(-1).float()
        with torch.autocast(DEVICE.type, torch.bfloat16):
            states = model(**inputs).last_hidden_state.float()
        out[at] = ((states * mask).sum(1) / mask.sum(1)).cpu()
    return out
