"""What the examples find where they run: tiny models under the names of real ones, and files of rows.

A name such as ``HuggingFaceTB/SmolLM2-135M-Instruct`` is also a path: where that folder is, nobody asks the hub.
"""

from __future__ import annotations

import json
import random
import warnings
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from tests.adapt import tiny

CHAT = "HuggingFaceTB/SmolLM2-135M-Instruct"
ENCODER = "sentence-transformers/all-MiniLM-L6-v2"
TASKS = ("trec", "sst2", "cr", "mr")


def build(folder: Path) -> None:
    """Everything that more than one page needs."""
    for name in (CHAT, ENCODER):
        (folder / name).mkdir(parents=True)
    tiny.base(folder / ENCODER, "bert")
    tiny.base(folder / CHAT, "llama")
    told = json.loads((config := folder / CHAT / "tokenizer_config.json").read_text(encoding="utf-8"))
    config.write_text(json.dumps(told | {"chat_template": tiny.CHAT}), encoding="utf-8")
    (folder / "MODEL").symlink_to(ENCODER)
    (folder / "my-model").symlink_to(CHAT)
    (folder / "base").symlink_to(CHAT)
    for seed, name in enumerate(("math", "code", "legal"), 1):
        trained(folder / CHAT, folder / name, seed)
    for i, task in enumerate(TASKS):
        for j, (part, n) in enumerate({"train": 16, "dev": 8, "test": 8}.items()):
            tiny.tsv(folder / f"{task}.{part}.tsv", tiny.rows(n, seed=10 * i + j))
    for name in ("legal", "support"):
        tiny.jsonl(folder / f"{name}.jsonl", [{"prompt": words(3, i), "completion": words(4, i)} for i in range(8)])
    tiny.tsv(folder / "train.tsv", tiny.rows(16))
    tiny.tsv(folder / "test.tsv", tiny.rows(8, seed=1))
    tiny.jsonl(folder / "chats.jsonl", [{"messages": chat(i)} for i in range(8)])
    adapter(folder / CHAT, folder / "legal-lora", 1)
    adapter(folder / CHAT, folder / "medical-lora", 2)


def words(n: int, seed: int) -> str:
    return " ".join(random.Random(seed).choices(tiny.WORDS, k=n))


def chat(seed: int) -> list[dict[str, str]]:
    return [{"role": "user", "content": words(3, seed)}, {"role": "assistant", "content": words(4, seed)}]


def trained(base: Path, folder: Path, seed: int) -> None:
    """The base with other weights, as a fine-tuned copy has them."""
    model = AutoModelForCausalLM.from_pretrained(base)
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.02 * torch.randn(p.shape, generator=g))
    model.save_pretrained(folder)
    tiny.tokenizer(folder, "llama")


def adapter(base: Path, folder: Path, seed: int) -> None:
    """A LoRA adapter as PEFT writes it."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(seed)
    config = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT's own, about transformers
        get_peft_model(AutoModelForCausalLM.from_pretrained(base), config).save_pretrained(folder)
