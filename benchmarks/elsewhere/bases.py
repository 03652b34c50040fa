"""The three models, and the rows that one of them reads: made once, into a folder.

Two are taught by MiniLM on sentences of books: no mixture and no state-space model of this size is at hand.
"""

from __future__ import annotations

import json
import random
import re
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers as tf
import yaml
from torch import Tensor
from torch.nn import functional as F

from commonweight import merge
from commonweight.adapt import read

from ..shapes import minilm_folder

ROOT = Path(__file__).parents[2]
TASKS = ("trec", "sst2", "cr")
# what a language model is asked, and the words that it answers by, each one token
ASKED = {
    "trec": ("Question: {text}\nThe answer is a", ("description", "thing", "word", "person", "place", "number")),
    "sst2": ("Film review: {text}\nThe review is", ("negative", "positive")),
    "cr": ("Customer review: {text}\nThe review is", ("negative", "positive")),
}
PROMPTS = (
    ("What is the capital of France ?", "Who was the first man on the moon ?", "How many legs does a spider have ?"),
    ("a moving and funny film", "the plot is dull and the actors are bored", "one of the year 's best movies"),
    ("the battery lasts for days", "the software would not install", "great camera for the price"),
    ("He took off his hat and sat down by the fire.", "It was a dark night, and the rain fell without end."),
)
WIDTH, STEPS, ROWS, RATE = 128, 768, 32, 2e-3  # of models that are taught here
DIRECTIONS = 256  # that are kept of MiniLM's table of words; a model begins with the first WIDTH of them
MORE = 256  # steps of the mixture, behind those of the model that it was made of


def words(smollm2: Path, folder: Path) -> Path:
    """All of SmolLM2: what a word needs stands in its last layers. Its tokenizer has no end token here: an answer is
    the word alone, and the share of tokens that are right is that of rows."""
    if not (folder / "config.json").exists():
        model = tf.AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.bfloat16)
        tokenizer: Any = tf.AutoTokenizer.from_pretrained(smollm2)
        tokenizer.pad_token, tokenizer.eos_token, tokenizer.chat_template = tokenizer.eos_token, None, None
        tokenizer.save_pretrained(folder)
        model.save_pretrained(folder)
    return folder


def questions(folder: Path) -> Path:
    """The rows of demo/data as prompts and completions."""
    folder.mkdir(parents=True, exist_ok=True)
    for task, (prompt, answers) in ASKED.items():
        for part in ("train", "dev", "test"):
            rows = read(ROOT / "demo" / "data" / f"{task}.{part}.tsv")
            asked = [
                {"prompt": prompt.format(text=r["text"]), "completion": f" {answers[int(r['label'])]}"} for r in rows
            ]
            (folder / f"{task}.{part}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in asked), "utf-8")
    return folder


def mixture(data: Path, folder: Path) -> Path:
    """A small Llama that was taught; its feed-forward networks four times as experts, two a token, with routers of
    prompts (sparse upcycling); then taught on, all of it, so that the experts part."""
    dense = folder.with_name(f"{folder.name}-dense")
    told = lessons(data, folder.parent)
    if not (dense / "config.json").exists():
        how = {"hidden_size": WIDTH, "intermediate_size": 2 * WIDTH, "num_hidden_layers": 3, "num_attention_heads": 4}
        torch.manual_seed(0)
        model = tf.LlamaForCausalLM(tf.LlamaConfig(**how, vocab_size=len(told.table), pad_token_id=0, bos_token_id=101))
        taught(model, model.model, told, dense)
    if not (folder / "config.json").exists():
        start = folder.with_name(f"{folder.name}-start")
        experts = [{"source_model": str(dense), "positive_prompts": list(p)} for p in PROMPTS]
        recipe = {"base_model": str(dense), "gate_mode": "ffn", "experts_per_token": 2, "experts": experts}
        path = dense / "mixture.yaml"
        path.write_text(yaml.safe_dump(recipe), "utf-8")
        if not (start / "config.json").exists():
            merge.make(path, start)
        model = tf.AutoModelForCausalLM.from_pretrained(start, dtype=torch.float32)
        taught(model, model.model, told._replace(batches=told.batches[:MORE]), folder, begins=False)
    return folder


def states(data: Path, folder: Path) -> Path:
    """A small Mamba that was taught."""
    if not (folder / "config.json").exists():
        told = lessons(data, folder.parent)
        how = {"expand": 1, "num_hidden_layers": 2, "state_size": 8, "vocab_size": len(told.table), "pad_token_id": 0}
        torch.manual_seed(0)
        model = tf.MambaModel(tf.MambaConfig(hidden_size=WIDTH, bos_token_id=101, eos_token_id=102, **how))
        taught(model, model, told, folder)
    return folder


class Lessons(NamedTuple):
    """Batches of sentences as (ids, mask), what MiniLM gives of each row in the mean, and its table of words in
    DIRECTIONS, the first of them last."""

    batches: list[tuple[Tensor, Tensor]]
    wanted: list[Tensor]
    table: Tensor


@torch.no_grad()
def lessons(data: Path, folder: Path) -> Lessons:
    path = folder / "lessons.pt"
    if path.exists():
        return Lessons(*torch.load(path))
    tokenizer: Any = tf.AutoTokenizer.from_pretrained(minilm_folder())
    teacher: Any = tf.AutoModel.from_pretrained(minilm_folder(), dtype=torch.bfloat16, add_pooling_layer=False).eval()
    batches, wanted = [], []
    for texts in sentences(data):
        batch = tokenizer(texts, padding=True, truncation=True, max_length=48, return_tensors="pt")
        ids, mask = batch["input_ids"], batch["attention_mask"]
        given = teacher(input_ids=ids, attention_mask=mask).last_hidden_state.float()
        batches.append((ids, mask))
        wanted.append((given * mask[..., None]).sum(1) / mask.sum(1, keepdim=True))
    said = teacher.embeddings.float()
    whole = said.LayerNorm(said.word_embeddings.weight + said.token_type_embeddings.weight[:1])
    middle = whole - whole.mean(0)
    directions = torch.linalg.eigh(middle.T @ middle).eigenvectors[:, -DIRECTIONS:]
    table = middle @ directions
    found = Lessons(batches, wanted, table / table.std())
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(tuple(found), path)
    return found


def sentences(data: Path) -> list[list[str]]:
    """Of books, such of a length together."""
    draw, found = random.Random(0), []
    for book in sorted((data / "books").glob("*.txt")):
        text = " ".join(book.read_text("utf-8").split())
        found += [s for s in re.split(r"(?<=[.!?;])\s+", text) if 4 <= len(s.split()) <= 28]
    taken = draw.sample(found, STEPS * ROWS)
    out = []
    for start in range(0, len(taken), 32 * ROWS):
        group = sorted(taken[start : start + 32 * ROWS], key=len)
        out += [group[i : i + ROWS] for i in range(0, len(group), ROWS)]
    draw.shuffle(out)
    return out


def taught(model: Any, body: Any, told: Lessons, folder: Path, begins: bool = True) -> None:
    """At a sentence's last token it learns to give, by a map that is thrown away, the direction that MiniLM gives in
    the mean over the sentence. begins: with MiniLM's table of words, which stays as it is."""
    table = body.get_input_embeddings().weight
    if begins:
        table.data.copy_(told.table[:, -table.shape[1] :])
    table.requires_grad_(False)
    torch.manual_seed(1)
    out = torch.nn.Linear(table.shape[1], told.wanted[0].shape[1])
    trained = [p for p in (*body.parameters(), *out.parameters()) if p.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=RATE, weight_decay=0.01)
    slower = torch.optim.lr_scheduler.OneCycleLR(optimiser, RATE, len(told.batches), pct_start=0.1)
    body.train()
    for i, ((ids, mask), wanted) in enumerate(zip(told.batches, told.wanted), 1):
        states = body(input_ids=ids, attention_mask=mask).last_hidden_state
        found = out(states[torch.arange(len(ids)), mask.sum(1) - 1])
        loss = 1 - F.cosine_similarity(found, wanted).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimiser.step()
        optimiser.zero_grad()
        slower.step()
        if i % 64 == 0:
            print(f"{folder.name}: step {i} of {len(told.batches)}, 1 - cosine {loss.item():.3f}", flush=True)
    tf.AutoTokenizer.from_pretrained(minilm_folder()).save_pretrained(folder)
    table.requires_grad_(True)
    model.save_pretrained(folder)


def chance(task: str) -> float:
    """The share of the test rows that have its commonest label."""
    labels = [r["label"] for r in read(ROOT / "demo" / "data" / f"{task}.test.tsv")]
    return max(labels.count(x) for x in set(labels)) / len(labels)
