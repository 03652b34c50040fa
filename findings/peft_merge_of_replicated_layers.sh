#!/usr/bin/env bash
# Merging a LoRA with `layer_replication` gives another model: copies share their base weight, and each merge lands in all.
#
# Versions: peft 0.21.2, transformers 5.23.0, torch 2.13.0.
# What runs: LoRA with `layer_replication=[[0, 2], [0, 2]]` (four layers from two), random LoRA weights, then
#   `merge_and_unload()`. The same without replication, for comparison.
# Expected: the merged model answers as the unmerged one, or merging is refused.
# What came: layers 0 and 2 hold one weight tensor. Merging adds both layers' updates to it, so both layers get the sum. The
#   logits differ by 81 percent of what the adapter changes at all. No warning, no error.
# Output:
#   plain LoRA: merged differs by 0.0% of the adapter's effect
#   with layer_replication: merged differs by 81% of the adapter's effect
# Who it hurts: who trains a deeper model on shared layers and ships it merged.
# Our test: tests/against/test_peft_sweep.py (such a folder is refused: "layers of the base were copied").
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv --without-pip "$work/venv"
python3 -m pip --python "$work/venv" install --quiet --no-compile torch==2.13.0 transformers==5.23.0 peft==0.21.2
HF_HUB_OFFLINE=1 TRANSFORMERS_VERBOSITY=error "$work/venv/bin/python" - <<'EOF'
import warnings

import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

ids = torch.tensor([[5, 6, 7]])


def off(**more):
    """Difference of merged and unmerged logits, over the difference that the adapter makes."""
    torch.manual_seed(0)
    base = LlamaForCausalLM(
        LlamaConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, vocab_size=64)
    )
    model = get_peft_model(base, LoraConfig(r=4, target_modules=["q_proj", "v_proj"], **more)).eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_" in name:
                p.copy_(torch.randn_like(p) * 0.5)
        want = model(input_ids=ids).logits
        with model.disable_adapter():
            effect = (model(input_ids=ids).logits - want).abs().max()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            merged = model.merge_and_unload()
        return ((merged(input_ids=ids).logits - want).abs().max() / effect).item()


plain, replicated = off(), off(layer_replication=[[0, 2], [0, 2]])
print(f"plain LoRA: merged differs by {plain:.1%} of the adapter's effect")
print(f"with layer_replication: merged differs by {replicated:.0%} of the adapter's effect")
raise SystemExit(not (plain < 1e-3 and replicated > 0.2))
EOF
