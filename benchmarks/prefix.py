"""One mixed batch of prefixes, decoding: 32 rows, 32 tenants with 16 keys and values of their own in each attention.

By `generate`, and by an engine. Against PEFT's prefix tuning, whose batch has one prefix, so that its tenants run one
after another; and against the same on this library. All sides generate eight tokens behind eight with a cache, from the
same numbers, and are checked to give the same tokens.

    python -m benchmarks.prefix
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch

import commonweight as cw

from .harness import alternate, store
from .shapes import BASES, batch

BASE = "llama-8x512"
TENANTS, TOKENS, LENGTH, NEW = 32, 16, 8, 8
HOW = {"max_new_tokens": NEW, "min_new_tokens": NEW, "do_sample": False}


def build():
    from peft import PeftModel

    data = batch(BASE, TENANTS, LENGTH)
    rows = [{k: v[i : i + 1] for k, v in data.items()} for i in range(TENANTS)]
    names = [f"t{i}" for i in range(TENANTS)]
    model = BASES[BASE]().eval()
    host, served = cw.Host(model), cw.Host(BASES[BASE]().eval())
    theirs = None
    with tempfile.TemporaryDirectory() as folder:
        for i, n in enumerate(names):
            for h in (host, served):
                h.add(n, "prefix-tuning", tokens=TOKENS, seed=i)
            at = Path(folder) / n
            host.export_peft(n, at)
            if theirs is None:
                theirs = PeftModel.from_pretrained(BASES[BASE]().eval(), at, adapter_name=n).eval()
            else:
                theirs.load_adapter(at, adapter_name=n)

    @torch.inference_mode()
    def mixed():
        with host.route(names):
            return model.generate(**data, **HOW)[:, LENGTH:]

    @torch.inference_mode()
    def peft():
        out = []
        for n, row in zip(names, rows):
            theirs.set_adapter(n)
            out.append(theirs.generate(**row, **HOW)[:, -NEW:])
        return torch.cat(out)

    @torch.inference_mode()
    def one_by_one():
        out = []
        for n, row in zip(names, rows):
            with host.route(n):
                out.append(model.generate(**row, **HOW)[:, LENGTH:])
        return torch.cat(out)

    engine = cw.Engine(served, max_requests=TENANTS, prefix_cache=False)
    asked = [
        cw.Request(tenant=n, prompt=r["input_ids"][0].tolist(), max_new_tokens=NEW, temperature=0, ignore_eos=True)
        for n, r in zip(names, rows)
    ]

    def batched():
        return torch.tensor([a.tokens for a in engine.generate(asked)])

    return mixed, batched, peft, one_by_one


def main() -> list[dict]:
    mixed, batched, peft, one_by_one = build()
    want = mixed()
    for name, other in (("an engine", batched), ("PEFT", peft), ("one after another", one_by_one)):
        if (same := int((other() == want).all(1).sum())) < TENANTS:
            raise SystemExit(f"{name} gives other tokens in {TENANTS - same} of {TENANTS} rows")
    rows = []
    what = f"prefixes of {TOKENS}, 32 rows, 32 tenants, {NEW} tokens decoded, {BASE}"
    for name, other, ours, target in (
        ("PEFT, one after another / an engine's batch", peft, batched, 8.0),
        ("PEFT, one after another / one mixed batch of generate", peft, mixed, 8.0),
        ("ours, one after another / one mixed batch of generate", one_by_one, mixed, None),
    ):
        timed = alternate(other, ours, 7, warm=1)
        timed["ours_ms"], timed["theirs_ms"] = timed["theirs_ms"], timed["ours_ms"]
        rows.append({"what": f"{what}: {name}", "unit": "times faster", "target": target, **timed})
    store("prefix", rows)
    return rows


if __name__ == "__main__":
    for row in main():
        print(row)
