"""Depth-wise batching with exits against continuous batching of the same model without them.

The other side is the same runner with all loops for every token: then all requests are at one depth, which is
continuous batching. Our engine, with the model that has no exits, stands beside. One thread; seconds are the
processor's, which the neighbours of a busy machine change less.

Without files, a model that was not trained leaves where its classifiers' numbers happen to lie, at a rate that is set:
what exits are worth in speed, not what they cost in quality. That is how the paper measures too. With files a small
model of four loops is trained here on their characters, with exits and for comparison without; the classifiers'
threshold is set where held-out bits per byte are within half a percent of those without exits, and both sides
generate, sampling at temperature 1. A model of one loop alone, trained alike, says what loops are worth at all.

    python -m benchmarks.share_depth
    python -m benchmarks.share_depth FILE.txt [FILE.txt ...] [--tokens 600000] [--width 256]
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from pathlib import Path
from typing import Any

import torch
import transformers as tf
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

import commonweight as cw
from commonweight import share
from commonweight.adapt.tasks import LM
from commonweight.share.depthwise import Depthwise

from .harness import machine, store

LOOPS, UNITS, ROOM, SLACK = 4, 2, 128, 1.005
PLACES, REQUESTS, PROMPT, NEW, ROUNDS = 64, 256, 32, 48, 5
SURE = (0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.97)
LEAVE = (0.45, 0.25)  # of the tokens that could, so many leave behind each loop: 2.0 and 2.7 loops of 4


def llama(width: int, words: int, depth: int) -> Any:
    size: dict[str, Any] = {"hidden_size": width, "intermediate_size": 3 * width, "num_attention_heads": width // 64}
    return tf.LlamaForCausalLM(
        tf.LlamaConfig(
            **size, num_key_value_heads=width // 64, num_hidden_layers=depth, vocab_size=words,
            max_position_embeddings=512, pad_token_id=0, bos_token_id=1, eos_token_id=2,
        )
    )  # fmt: skip


def walked(model: Any) -> list[Any]:
    """The blocks that choose tokens."""
    return [m for m in model.modules() if hasattr(m, "threshold")]


# -- speed -------------------------------------------------------------------------------------------------------------


def drawn(model: Any, leave: float) -> None:
    """Routers of random numbers, and thresholds that so many tokens are above."""
    ids = torch.randint(3, model.config.vocab_size, (64, ROOM), generator=torch.Generator().manual_seed(1))
    walked(model)[0].walk.everywhere = True
    found: dict[Any, torch.Tensor] = {}
    for block in walked(model):
        if hasattr(block, "router"):
            torch.nn.init.normal_(block.router, std=block.router.shape[1] ** -0.5)
            block.register_forward_pre_hook(lambda m, x: found.update({m: m.choose(x[0], m.walk.last).score}))
    with torch.inference_mode():
        model(ids)
    for block, score in found.items():
        block._forward_pre_hooks.clear()
        block.threshold = score.quantile(1 - leave).item()


def sides(model: Any, prompts: list[list[int]], rounds: int, plain: Any = None, words: Any = None) -> dict[str, Any]:
    """Exits, all loops and the engine in turn."""
    walk = walked(model)[0].walk
    made: dict[str, list[float]] = {"exits": [], "all": [], "engine": []}
    loops: list[float] = []
    for i in range(rounds + 1):
        names = [n for n in made if n != "engine" or plain is not None]
        for name in names if i % 2 else names[::-1]:
            if name == "engine":
                rate = engine(plain, words, prompts)
            else:
                walk.everywhere = name == "all"
                runner = Depthwise(model, PLACES, ROOM)
                start = time.process_time()
                runner.generate(prompts, NEW, temperature=1.0, seed=i)
                rate = runner.generated / (time.process_time() - start)
                if name == "exits" and i:
                    loops.append(runner.ran / runner.generated)
            if i:  # the first round warms up
                made[name].append(rate)
    out: dict[str, Any] = {"loops": round(statistics.mean(loops), 2), "rounds": rounds}
    for name in ("all", "engine"):
        if made[name]:
            ratios = sorted(a / b for a, b in zip(made["exits"], made[name]))
            out[name] = {
                "ours": round(statistics.median(made["exits"])), "theirs": round(statistics.median(made[name])),
                "ratio": round(statistics.median(ratios), 3), "spread": [round(ratios[0], 3), round(ratios[-1], 3)],
            }  # fmt: skip
    return out


def engine(plain: Any, words: Any, prompts: list[list[int]]) -> float:
    """Tokens a second of our own engine on the model without exits."""
    with cw.Engine(plain, tokenizer=words, max_requests=PLACES, page_size=32) as e:
        how: dict[str, Any] = {"max_new_tokens": NEW, "temperature": 1.0, "ignore_eos": True}
        asked = [cw.Request(p, seed=i, **how) for i, p in enumerate(prompts)]
        start = time.process_time()
        answers = e.generate(asked)
        return sum(len(a.tokens) for a in answers) / (time.process_time() - start)


def rows_of(what: str, found: dict[str, Any], **more: Any) -> list[dict[str, Any]]:
    """One row beside all loops, which has the target, and one beside the engine."""
    common = {"unit": "times faster", "rounds": found["rounds"], "loops": found["loops"], **more}
    beside = {"all": "the same runner with all loops", "engine": "our engine, the model without exits"}
    return [
        {"what": f"depth-wise batching, {what}, {found['loops']} loops of {LOOPS} / {beside[name]}", **common,
         "target": 1.6 if name == "all" else None, **found[name]}
        for name in beside if name in found
    ]  # fmt: skip


def speed(width: int, rounds: int) -> list[dict[str, Any]]:
    words = tokenizer("".join(chr(97 + i) for i in range(26)) + " ,.")
    torch.manual_seed(0)
    base = llama(width, 96, LOOPS * UNITS)
    model = share.share(base, "exit", loops=LOOPS, init="lower").eval()
    plain = share.share(base, "recursive", loops=LOOPS, init="lower").eval()
    for m in (model, plain):
        m.generation_config.eos_token_id = None
    dice = torch.Generator().manual_seed(2)
    prompts = torch.randint(3, 96, (REQUESTS, PROMPT), generator=dice).tolist()
    out = []
    for leave in LEAVE:
        drawn(model, leave)
        first = leave == LEAVE[0]
        found = sides(model, prompts, rounds, plain if first else None, words)
        some = rows_of(f"{width} wide, drawn exits", found)
        out += some if first else [{**r, "target": None} for r in some]
    return out


# -- quality -----------------------------------------------------------------------------------------------------------


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
    small = share.share(llama(args.width, len(words), loops * UNITS), method, loops=loops, init="lower", **options)
    start = time.perf_counter()
    done = share.heal(small, rows=rows, tokens=args.tokens, tokenizer=words, lr=2e-3, batch_size=8, max_length=ROOM)
    last = done.curve[-1].get("loss", math.nan)
    print(
        f"{method} {loops}: {done.steps} steps, {time.perf_counter() - start:.0f} s, last loss {last:.3f}", flush=True
    )
    small.generation_config.eos_token_id = None
    return small.cpu().eval()


def mean_of(module: Any) -> float:
    return module.walk.ran.float().mean().item()


@torch.no_grad()
def bits(model: Any, words: Any, text: str) -> tuple[float, float]:
    """(bits per byte of a text, mean loops of a token)."""
    task = LM(words, ROOM)
    examples = task.examples([{"text": text}])
    some = [m for m in model.modules() if hasattr(m, "walk")]
    ran: list[float] = []
    hook = some[-1].register_forward_hook(lambda m, x, y: ran.append(mean_of(m))) if some else None
    found = task.measure(model, examples, 16)["bits_per_byte"]
    if hook:
        hook.remove()
    return found, sum(ran) / len(ran) if ran else LOOPS


def calibrated(model: Any, words: Any, text: str) -> float:
    """Sets the lowest threshold at which the text has about as many bits as with all loops."""

    def sure_of(sure: float) -> None:
        for module in walked(model):
            module.threshold = math.log(sure / (1 - sure))

    walk = walked(model)[0].walk
    walk.everywhere = True
    full, chosen = bits(model, words, text)[0], SURE[-1]
    walk.everywhere = False
    for sure in SURE[::-1]:
        sure_of(sure)
        found, mean = bits(model, words, text)
        print(f"sure {sure}: {found:.4f} bits per byte (all loops {full:.4f}), {mean:.2f} loops a token", flush=True)
        chosen = sure if found <= SLACK * full else chosen
    sure_of(chosen)
    return chosen


def quality(args: argparse.Namespace) -> list[dict[str, Any]]:
    text = " ".join(" ".join(f.read_text(encoding="utf-8", errors="ignore").split()) for f in args.files)
    words = tokenizer(text)
    cut = len(text) - 120_000
    rows = [{"text": text[i : i + 4000]} for i in range(0, min(cut, 2 * args.tokens), 4000)]
    calibrating, held = text[cut : cut + 20_000], text[cut + 60_000 : cut + 100_000]
    plain = trained(words, rows, "recursive", args)
    single = trained(words, rows, "recursive", args, loops=1)
    model = trained(words, rows, "exit", args, sure=0.8)
    told: dict[str, Any] = {"sure": calibrated(model, words, calibrating)}
    told["bits_with_exits"], told["held_out_loops"] = bits(model, words, held)
    walked(model)[0].walk.everywhere = True
    told["bits_without"] = bits(model, words, held)[0]
    told["bits_trained_without"] = bits(plain, words, held)[0]
    told["bits_of_one_loop"] = bits(single, words, held)[0]
    print(told, flush=True)
    ids = words(held)["input_ids"]
    prompts = [ids[i : i + PROMPT] for i in range(0, PROMPT * REQUESTS, PROMPT)]
    found = sides(model, prompts, args.rounds, plain, words)
    return rows_of(f"{args.width} wide, exits where quality is equal", found, **told)


def main(argv: list[str] | None = None) -> list[dict[str, Any]]:
    parser = argparse.ArgumentParser()
    parser.add_argument("files", nargs="*", type=Path)
    parser.add_argument("--tokens", type=int, default=600_000)
    parser.add_argument("--width", type=int, default=None, help="512 without files, 256 with them")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    args = parser.parse_args([] if argv is None else argv)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        if args.files:
            args.width = args.width or 256
            rows = quality(args)
        else:
            rows = speed(args.width or 512, args.rounds)
    finally:
        torch.set_num_threads(threads)
    store("share_depth_trained" if args.files else "share_depth", rows)
    return rows


if __name__ == "__main__":
    import sys

    for one in main(sys.argv[1:]):
        print(one, machine())
