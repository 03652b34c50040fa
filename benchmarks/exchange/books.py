"""A small language model of four authors' books: DiLoCo, a client for each author, beside synchronous steps.

All sides see as many tokens. `python -m benchmarks.exchange books --books FOLDER`: of texts named author_title.txt.
A run is kept in docs/results as soon as it is done, and none is done twice.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from commonweight.adapt import open_host
from commonweight.exchange import simulate
from commonweight.formats import atomic

from ..harness import machine

KEPT = Path(__file__).parents[2] / "docs" / "results" / "exchange_books.json"
AUTHORS = ("austen", "dickens", "melville", "shakespeare")  # those with the most text
SIZE = dict(hidden_size=128, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=4)
VOCABULARY, LENGTH, BATCH = 512, 64, 8  # BATCH: rows of a client and step
STEPS, LR, SEEDS = 600, 3e-3, (0,)
PIECE = 1500  # characters of a row, which the task cuts into LENGTH tokens
HELD = 0.05  # of each author's text, its end
SITES = "*proj|*norm|*lm_head"  # all weights but the embeddings


class Side(NamedTuple):
    """steps of a round, and options of the method. One client: of all rows, with the batches of all clients in one."""

    clients: int
    every: int
    options: dict[str, Any]


PLAIN = {"outer_lr": 1.0, "outer_momentum": 0.0}
SIDES = {
    "synchronous": Side(1, 20, PLAIN),
    "DiLoCo, H 20": Side(len(AUTHORS), 20, {"outer_lr": 0.7, "outer_momentum": 0.9}),
    "DiLoCo, H 60": Side(len(AUTHORS), 60, {"outer_lr": 0.7, "outer_momentum": 0.9}),
    "Streaming, H 60, 2 fragments, 4 bits, tau 2": Side(
        len(AUTHORS), 30,
        {"outer_lr": 0.7, "outer_momentum": 0.9, "bits": 4, "steps": 60, "fragments": 2, "delay": 2, "alpha": 0.5},
    ),
    "mean of the models, H 20": Side(len(AUTHORS), 20, PLAIN),
    "mean of the models, H 60": Side(len(AUTHORS), 60, PLAIN),
    "mean at the end alone": Side(len(AUTHORS), STEPS, PLAIN),
}  # fmt: skip


def texts(folder: Path) -> dict[str, str]:
    """Author -> all of that author's text. Raises: SystemExit."""
    found = {a: "\n".join(p.read_text("utf-8") for p in sorted(folder.glob(f"{a}_*.txt"))) for a in AUTHORS}
    if lacks := [a for a, t in found.items() if not t]:
        raise SystemExit(f"books: {folder} has no text of {', '.join(lacks)}; wanted files named author_title.txt")
    return found


def rows(found: dict[str, str], held: bool) -> Iterator[dict[str, str]]:
    """Pieces of every author's text; held: of its end, an eighth of them."""
    for author, text in found.items():
        cut = int(len(text) * (1 - HELD))
        starts = range(cut, len(text), 8 * PIECE) if held else range(0, cut, PIECE)
        yield from ({"author": author, "text": text[at : min(at + PIECE, len(text) if held else cut)]} for at in starts)


def tokenizer(at: Path) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast.from_pretrained(at)


def base(at: Path, found: dict[str, str], seed: int, size: dict[str, int] = SIZE) -> Path:
    """A Llama of random weights and a tokenizer of these texts, of BPE over bytes."""
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer, raw.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    letters = pre_tokenizers.ByteLevel.alphabet()
    special = ["<s>", "</s>", "<pad>"]
    learning = trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=special, initial_alphabet=letters)
    raw.train_from_iterator((r["text"] for r in rows(found, False)), learning)
    names = dict(zip(("bos_token", "eos_token", "pad_token"), special))
    PreTrainedTokenizerFast(tokenizer_object=raw, **names).save_pretrained(at)  # type: ignore[arg-type]
    torch.manual_seed(seed)
    ids = dict(bos_token_id=0, eos_token_id=1, pad_token_id=2)
    LlamaForCausalLM(LlamaConfig(**size, **ids, vocab_size=VOCABULARY, max_position_embeddings=LENGTH)).save_pretrained(
        at
    )
    return at


def measured(side: Side, folder: Path, seed: int) -> dict[str, Any]:
    """loss of the held-out text in nats a token, after each round that was measured; bytes of a client and run."""
    found, began = texts(folder), time.process_time()
    with tempfile.TemporaryDirectory() as at:
        run = simulate(
            open_host(base(Path(at), found, seed), "lm", dtype="float32"), list(rows(found, False)), method="diloco",
            options={**side.options, "adapter": "full"}, task="lm", eval_rows=list(rows(found, True)), sites=SITES,
            clients=side.clients, split="column:author" if side.clients > 1 else "iid", rounds=STEPS // side.every,
            steps=side.every, batch_size=BATCH * len(AUTHORS) // side.clients, lr=LR, max_length=LENGTH, seed=seed,
            text_column="text", eval_every=max(1, STEPS // side.every // 8), weigh="clients",
        )  # fmt: skip
    curve = [[(r["round"] + 1) * side.every, round(r["loss"], 4)] for r in run.curve if "loss" in r]
    out = {"curve": curve, "loss": curve[-1][1], "numbers": run.setting.count}
    if side.clients > 1:
        out |= {"up": round(run.up / side.clients), "down": round(run.down / side.clients)}
    else:  # each of its steps would send a gradient and fetch the mean: float32, without frames
        out |= {"up": 4 * run.setting.count * STEPS, "down": 4 * run.setting.count * STEPS}
    return out | {"cpu_s": round(time.process_time() - began, 1)}


def kept() -> dict[str, Any]:
    about = {
        "machine": machine(), "authors": AUTHORS, "size": SIZE, "vocabulary": VOCABULARY, "steps": STEPS, "lr": LR,
        "tokens": STEPS * BATCH * len(AUTHORS) * LENGTH,
    }  # fmt: skip
    return json.loads(KEPT.read_text("utf-8")) if KEPT.exists() else {**about, "runs": {}}


def main(folder: Path, minutes: float = 60, only: str = "") -> None:
    until = time.monotonic() + 60 * minutes
    for seed in SEEDS:
        for name, side in SIDES.items():
            key = f"{name} | {seed}"
            if only not in key or key in kept()["runs"] or time.monotonic() > until:
                continue
            row, found = measured(side, folder, seed), kept()
            found["runs"][key] = row
            atomic.write(KEPT, json.dumps({**found, "sides": list(SIDES)}, indent=1).encode() + b"\n")
            print(key, row, flush=True)
