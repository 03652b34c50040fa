"""Depth-wise batching with exits against continuous batching of the same model without them.

A small model of four loops is trained here on the characters of books, with exits and for comparison without; then the
classifiers' threshold is set where held-out bits per byte are within half a percent of those without exits, and both
sides generate, sampling at temperature 1. A model of one loop alone, trained alike, says what loops are worth at all.
The other side is the same runner with all loops for every token: then all requests are at one depth, which is
continuous batching. The engine's speed with the model without exits stands beside. Seconds are the processor's, which
the neighbours of a busy machine change less.

    python -m benchmarks.share_depth FILE.txt [FILE.txt ...] [--tokens 600000] [--width 256]
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path
from typing import Any

import torch
import transformers as tf
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from commonweight import share
from commonweight.adapt.tasks import LM
from commonweight.share.depthwise import Depthwise

from .harness import machine, store

LOOPS, UNITS, ROOM, SLACK = 4, 2, 128, 1.005
SURE = (0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.97)


def tokenizer(text: str) -> Any:
    letters = ["<pad>", "<unk>", "<end>", *sorted(set(text))]
    raw = Tokenizer(models.WordLevel({c: i for i, c in enumerate(letters)}, unk_token="<unk>"))
    raw.pre_tokenizer, raw.decoder = pre_tokenizers.Split("", "isolated"), decoders.Fuse()
    return tf.PreTrainedTokenizerFast(
        tokenizer_object=raw, pad_token="<pad>", unk_token="<unk>", eos_token="<end>", model_max_length=ROOM
    )


def trained(
    words: Any, rows: list[dict[str, str]], method: str, args: argparse.Namespace, loops: int = LOOPS, **options: Any
) -> Any:
    """From scratch, on the same rows in the same order."""
    torch.manual_seed(0)
    width = args.width
    size: dict[str, Any] = {"hidden_size": width, "intermediate_size": 3 * width, "num_attention_heads": width // 64}
    config = tf.LlamaConfig(
        **size, num_key_value_heads=width // 64, num_hidden_layers=loops * UNITS, vocab_size=len(words),
        max_position_embeddings=512, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    small = share.share(tf.LlamaForCausalLM(config), method, loops=loops, init="lower", **options)
    start = time.perf_counter()
    done = share.heal(small, rows=rows, tokens=args.tokens, tokenizer=words, lr=2e-3, batch_size=4, max_length=ROOM)
    last = done.curve[-1].get("loss", math.nan)
    print(
        f"{method} {loops}: {done.steps} steps, {time.perf_counter() - start:.0f} s, last loss {last:.3f}", flush=True
    )
    small.generation_config.eos_token_id = None
    return small.eval()


def walk_of(model: Any) -> Any:
    return next(m.walk for m in model.modules() if hasattr(m, "walk"))


def threshold(model: Any, sure: float) -> None:
    for module in model.modules():
        if hasattr(module, "threshold"):
            module.threshold = math.log(sure / (1 - sure))


def mean_of(module: Any) -> float:
    return module.walk.ran.float().mean().item()


@torch.no_grad()
def bits(model: Any, words: Any, text: str) -> tuple[float, float]:
    """(bits per byte of a text, mean loops of a token)."""
    task = LM(words, ROOM)
    examples = task.examples([{"text": text}])
    walked = [m for m in model.modules() if hasattr(m, "walk")]
    ran: list[float] = []
    hook = walked[-1].register_forward_hook(lambda m, x, y: ran.append(mean_of(m))) if walked else None
    found = task.measure(model, examples, 16)["bits_per_byte"]
    if hook:
        hook.remove()
    return found, sum(ran) / len(ran) if ran else LOOPS


def main(argv: list[str] | None = None) -> list[dict[str, Any]]:
    parser = argparse.ArgumentParser()
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--tokens", type=int, default=600_000)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--places", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args(argv)
    text = " ".join(" ".join(f.read_text(encoding="utf-8", errors="ignore").split()) for f in args.files)
    words = tokenizer(text)
    cut = len(text) - 120_000
    rows = [{"text": text[i : i + 4000]} for i in range(0, min(cut, 2 * args.tokens), 4000)]
    calibrating, held = text[cut : cut + 20_000], text[cut + 60_000 : cut + 100_000]
    plain = trained(words, rows, "recursive", args)
    single = trained(words, rows, "recursive", args, loops=1)
    model = trained(words, rows, "exit", args, sure=0.8)
    walk = walk_of(model)
    walk.everywhere = True
    full = bits(model, words, calibrating)[0]
    walk.everywhere = False
    chosen = SURE[-1]
    for sure in SURE[::-1]:
        threshold(model, sure)
        found, mean = bits(model, words, calibrating)
        print(f"sure {sure}: {found:.4f} bits per byte (all loops {full:.4f}), {mean:.2f} loops a token", flush=True)
        if found <= SLACK * full:
            chosen = sure
    threshold(model, chosen)
    quality: dict[str, Any] = {"sure": chosen}
    quality["bits_with_exits"], quality["held_out_loops"] = bits(model, words, held)
    walk.everywhere = True
    quality["bits_without"] = bits(model, words, held)[0]
    quality["bits_trained_without"] = bits(plain, words, held)[0]
    quality["bits_of_one_loop"] = bits(single, words, held)[0]
    print(quality, flush=True)
    ids = words(held)["input_ids"]
    prompts = [ids[i : i + 32] for i in range(0, 32 * 3 * args.places, 32)]
    made: dict[bool, list[dict[str, float]]] = {True: [], False: []}
    for i in range(args.rounds + 1):
        for everywhere in (True, False) if i % 2 else (False, True):
            walk.everywhere = everywhere
            runner = Depthwise(model, args.places, ROOM)
            start = time.process_time()
            runner.generate(prompts, 64, temperature=1.0, seed=i)
            seconds = time.process_time() - start
            if i:  # the first round warms up
                made[everywhere].append({"rate": runner.generated / seconds, "loops": runner.ran / runner.generated})
    ratios = sorted(a["rate"] / b["rate"] for a, b in zip(made[False], made[True]))
    rates = {e: sorted(r["rate"] for r in some)[len(some) // 2] for e, some in made.items()}
    row = {
        "what": "tokens a processor second: depth-wise batching with exits", "with": "all loops, continuous batching",
        "ours": round(rates[False]), "theirs": round(rates[True]), "ratio": round(ratios[len(ratios) // 2], 3),
        "spread": [round(ratios[0], 3), round(ratios[-1], 3)], "rounds": args.rounds,
        "loops": round(sum(r["loops"] for r in made[False]) / args.rounds, 2), **quality,
        "engine": round(engine(plain, words, prompts, args.places)), "target": 1.6,
    }  # fmt: skip
    print(row, machine())
    store("share_depth", [row])
    return [row]


def engine(model: Any, words: Any, prompts: list[list[int]], places: int) -> float:
    """Tokens a second of our own engine on the model without exits."""
    import commonweight as cw

    with cw.Engine(model, tokenizer=words, max_requests=places, page_size=32) as e:
        how: dict[str, Any] = {"max_new_tokens": 64, "temperature": 1.0, "ignore_eos": True}
        asked = [cw.Request(p, seed=i, **how) for i, p in enumerate(prompts)]
        e.generate(asked[:places])
        start = time.process_time()
        answers = e.generate(asked)
        return sum(len(a.tokens) for a in answers) / (time.process_time() - start)


if __name__ == "__main__":
    main()
