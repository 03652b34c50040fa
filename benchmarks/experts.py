"""LoRA of rank 8 on all experts of a small Qwen3-MoE: a training step, its memory, and a batch of 32 tenants.

Against PEFT's `target_parameters`, and against each tenant alone, in turn. Peak memory is that of three steps, model
and all, each side in processes of its own.

    python -m benchmarks.experts             all
    python -m benchmarks.experts SIDE        peak memory of one side, as JSON
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

import commonweight as cw

from .harness import DEVICE, alternate, in_fresh_process, peak, store
from .shapes import batch, loss

ROWS, LENGTH, TENANTS, ROUNDS = 16, 64, 32, 5
EXPERTS = "*.experts.*"


def model() -> nn.Module:
    """Widths in the proportions of Qwen3-30B-A3B, a quarter of them; 8 of 64 experts a token."""
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    torch.manual_seed(0)
    return Qwen3MoeForCausalLM(
        Qwen3MoeConfig(
            hidden_size=512, intermediate_size=1536, moe_intermediate_size=192, num_hidden_layers=4, num_experts=64,
            num_experts_per_tok=8, num_attention_heads=8, num_key_value_heads=4, vocab_size=4096,
            pad_token_id=0, bos_token_id=1, eos_token_id=2, **{"head_dim": 64},
        )
    ).to(DEVICE)  # fmt: skip


def ours() -> Callable[[], None]:
    base = model().train()
    host = cw.Host(base)
    tenant = host.add("t", "lora", rank=8, sites=EXPERTS)
    optimiser = torch.optim.AdamW(tenant.parameters(), lr=1e-4)
    data = batch("qwen3-moe", ROWS, LENGTH)

    def step() -> None:
        with host.route("t"):
            loss(base(**data)).backward()
        optimiser.step()
        optimiser.zero_grad()

    return step


def peft() -> Callable[[], None]:
    from peft import LoraConfig, get_peft_model

    named = ["experts.gate_up_proj", "experts.down_proj"]
    wrapped = get_peft_model(
        model(), LoraConfig(r=8, lora_alpha=16, target_modules=[], target_parameters=named)
    ).train()
    optimiser = torch.optim.AdamW([p for p in wrapped.parameters() if p.requires_grad], lr=1e-4)
    data = batch("qwen3-moe", ROWS, LENGTH)

    def step() -> None:
        loss(wrapped(**data)).backward()
        optimiser.step()
        optimiser.zero_grad()

    return step


SIDES: dict[str, Callable[[], Callable[[], None]]] = {"ours": ours, "peft": peft}


def tenants(length: int) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """(one mixed batch of a row for each tenant, each tenant's row alone, in turn): their logits."""
    base = model().eval()
    host, names = cw.Host(base), [f"t{i}" for i in range(TENANTS)]
    for i, n in enumerate(names):
        for p in host.add(n, "lora", rank=8, seed=i, sites=EXPERTS).parameters():
            p.data.normal_(std=0.02)
    data = batch("qwen3-moe", TENANTS, length)

    @torch.inference_mode()
    def mixed() -> torch.Tensor:
        with host.route(names):
            return base(**data).logits

    @torch.inference_mode()
    def alone() -> torch.Tensor:
        out = []
        for i, n in enumerate(names):
            with host.route(n):
                out.append(base(**{k: v[i : i + 1] for k, v in data.items()}).logits)
        return torch.cat(out)

    return mixed, alone


def main(rounds: int = 11) -> list[dict]:
    what = f"LoRA r8 on all experts, Qwen3-MoE 4x512, 8 of 64 experts, {ROWS}x{LENGTH}: ours / PEFT target_parameters"
    rows = [{"what": f"training step, {what}", "unit": "time", "target": 0.7, **alternate(ours(), peft(), rounds)}]
    found = [{s: in_fresh_process("benchmarks.experts", s) for s in SIDES} for _ in range(ROUNDS)]
    ratios = sorted(f["ours"]["peak_mb"] / f["peft"]["peak_mb"] for f in found)
    rows.append(
        {
            "what": f"peak memory of training, {what}", "unit": "memory", "target": 0.7, "ours_mb": found[0]["ours"],
            "theirs_mb": found[0]["peft"], "ratio": round(ratios[ROUNDS // 2], 3),
            "spread": [round(ratios[0], 3), round(ratios[-1], 3)], "rounds": ROUNDS,
        }
    )  # fmt: skip
    for length in (1, 8, 32):
        mixed, alone = tenants(length)
        torch.testing.assert_close(mixed(), alone(), rtol=1e-3, atol=1e-4)
        timed = alternate(alone, mixed, rounds, warm=1)
        timed["ours_ms"], timed["theirs_ms"] = timed["theirs_ms"], timed["ours_ms"]
        each = f"{length} token{'s' if length > 1 else ''} a row"
        what = f"mixed batch, {TENANTS} tenants with LoRA r8 on all experts, {each}: one after another / ours"
        rows.append({"what": what, "unit": "times faster", "target": 5.0, **timed})
    store("experts", rows)
    return rows


if __name__ == "__main__":
    if sys.argv[1:]:
        print(json.dumps(peak(SIDES[sys.argv[1]]())))
    else:
        for row in main():
            print(row)
