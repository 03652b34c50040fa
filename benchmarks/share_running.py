"""A model whose layers are shared in two loops, beside the same model written out: a step, its memory, its loading.

Both are folders that `share.save` wrote. Loading and memory are measured in a process each, in turn.

python -m benchmarks.share_running              all
python -m benchmarks.share_running FOLDER       one folder, as JSON
"""

from __future__ import annotations

import gc
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from commonweight import share

from .harness import alternate, compared, in_fresh_process, resident, store

LOOPS, ROUNDS, STEPS, PROMPT = 2, 5, 101, 64
FORMS = ("remote-code", "unrolled")


def written(folder: Path, width: int = 1024, order: str = "cycle") -> None:
    """A model of twice eight layers (1,024 wide: 200 M parameters), in both forms."""
    torch.manual_seed(0)
    base = LlamaForCausalLM(
        LlamaConfig(
            hidden_size=width, intermediate_size=43 * width // 16, num_hidden_layers=16,
            num_attention_heads=width // 64, num_key_value_heads=width // 128, vocab_size=4096,
            pad_token_id=0, bos_token_id=1, eos_token_id=2,
        )
    )  # fmt: skip
    small = share.share(base, "recursive", loops=LOOPS, init="lower", order=order)
    for form in FORMS:
        share.save(small, folder / form, form=form)


def unique(model: torch.nn.Module) -> int:
    """Bytes of parameters, each counted once."""
    return sum(p.nbytes for p in model.parameters())


def opened(folder: Path) -> Any:
    """The one written out is a stock model."""
    return LlamaForCausalLM.from_pretrained(folder) if folder.name == "unrolled" else share.load(folder)


def loaded(folder: str) -> None:
    """Prints what loading a folder and its first token take."""
    ids = torch.arange(5, 5 + PROMPT)[None]
    with torch.inference_mode():  # what any first pass loads beside weights
        size: dict[str, Any] = {
            "hidden_size": 64,
            "intermediate_size": 64,
            "num_hidden_layers": 1,
            "num_attention_heads": 1,
        }
        LlamaForCausalLM(LlamaConfig(**size, vocab_size=256))(ids)
    gc.collect()
    before, start = resident("VmRSS"), time.perf_counter()
    model = opened(Path(folder))
    with torch.inference_mode():
        model(ids)
        seconds = time.perf_counter() - start
        gc.collect()
    files = sum(f.stat().st_size for f in Path(folder).glob("*.safetensors"))
    held = resident("VmRSS") - before
    print(json.dumps({"ms": 1e3 * seconds, "held": held, "files": files, "unique": unique(model)}))


def decoding(folder: Path) -> Any:
    """A function that makes one more token behind a prompt."""
    model = opened(folder).eval()
    ids = torch.arange(5, 5 + PROMPT)[None]

    @torch.inference_mode()
    def step() -> None:
        model(ids[:, -1:], past_key_values=cache, use_cache=True)
        cache.crop(-1)

    with torch.inference_mode():
        cache = model(ids, use_cache=True).past_key_values
    return step


def main() -> list[dict]:
    name = f"a Llama of 16 layers (1,024 wide) in {LOOPS} loops"
    with tempfile.TemporaryDirectory() as at:
        folder = Path(at)
        written(folder)
        rows = [
            {"what": f"{name}, one decode step, batch 1: shared / written out", "unit": "time", "target": 1.0,
             **alternate(*(decoding(folder / form) for form in FORMS), rounds=STEPS)}
        ]  # fmt: skip
        written(folder / "near", 512, "sequence")
        rows.append(
            {"what": "the same, 512 wide, each layer twice in a row: shared / written out", "unit": "time",
             "target": 1.0, **alternate(*(decoding(folder / "near" / form) for form in FORMS), rounds=STEPS)}
        )  # fmt: skip
        runs = [
            {f: in_fresh_process("benchmarks.share_running", str(folder / f)) for f in FORMS} for _ in range(ROUNDS)
        ]
    ours, theirs = ([r[f] for r in runs] for f in FORMS)
    held, whole = [r["held"] for r in ours], [r["unique"] for r in ours]
    files, others = [r["files"] for r in ours], [r["files"] for r in theirs]
    rows += [
        compared(f"{name}: memory after loading and a token / bytes of unique weights", "memory", 1.02, held, whole,
            ours_mb=round(held[0] / 1e6, 1), theirs_mb=round(whole[0] / 1e6, 1)),
        compared(f"{name}: bytes of its files / those of the one written out", "of the bytes",
            round(whole[0] / theirs[0]["unique"], 3), files, others,
            ours_mb=round(files[0] / 1e6, 1), theirs_mb=round(others[0] / 1e6, 1)),
        compared(f"{name}, loading and first token: shared / written out", "time", None,
            [r["ms"] for r in ours], [r["ms"] for r in theirs],
            ours_ms=round(statistics.median(r["ms"] for r in ours), 1),
            theirs_ms=round(statistics.median(r["ms"] for r in theirs), 1)),
    ]  # fmt: skip
    store("share_running", rows)
    return rows


if __name__ == "__main__":
    if sys.argv[1:]:
        loaded(sys.argv[1])
    else:
        for one in main():
            print(one)
