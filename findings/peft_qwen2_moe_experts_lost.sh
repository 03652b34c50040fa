#!/usr/bin/env bash
# PEFT loads a LoRA on experts that was saved with transformers 4 as nothing for Qwen2-MoE, and rightly for Qwen3-MoE.
#
# Versions: peft 0.21.2, transformers 5.23.0, torch 2.13.0.
# What runs: an adapter folder in the form of transformers 4, with LoRA factors for the linear layers of each expert (and
#   for Qwen2-MoE zeros for its shared expert, so that no key is missing); `PeftModel.from_pretrained` on both models.
# Expected: the experts of transformers 5 are fused into one tensor; PEFT converts the keys, or says that it cannot.
# What came: Qwen3-MoE answers otherwise than the base. Qwen2-MoE answers as the base to the bit: the keys of its experts are
#   dropped, and none of the warnings names one.
# Output:
#   Qwen3MoeForCausalLM: the adapter has an effect True
#   Qwen2MoeForCausalLM: the adapter has an effect False; warnings about its keys: 0
# Who it hurts: who serves older adapters of mixtures of experts after an upgrade.
# Our test: tests/against/test_peft_experts.py (read as what they are, against merging by hand).
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv --without-pip "$work/venv"
python3 -m pip --python "$work/venv" install --quiet --no-compile torch==2.13.0 transformers==5.23.0 peft==0.21.2
cd "$work"
HF_HUB_OFFLINE=1 TRANSFORMERS_VERBOSITY=error "$work/venv/bin/python" - <<'EOF'
import json
import warnings
from pathlib import Path

import torch
import transformers as tf
from peft import PeftModel
from safetensors.torch import save_file

common = dict(
    hidden_size=32, intermediate_size=64, moe_intermediate_size=16, num_experts=4, num_experts_per_tok=2,
    num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, vocab_size=64,
)  # fmt: skip
shapes = {"gate_proj": (16, 32), "up_proj": (16, 32), "down_proj": (32, 16)}
ids = torch.tensor([[5, 6, 7]])


def loaded(kind, config, shared):
    torch.manual_seed(0)
    tensors = {}
    for layer in range(2):
        for part in [*(f"experts.{e}" for e in range(4)), *(["shared_expert"] if shared else [])]:
            for name, (out, into) in shapes.items():
                key, size = f"base_model.model.model.layers.{layer}.mlp.{part}.{name}", float(part != "shared_expert")
                tensors[f"{key}.lora_A.weight"] = torch.randn(4, into) * size
                tensors[f"{key}.lora_B.weight"] = torch.randn(out, 4) * size
    folder = Path(kind.__name__)
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 4, "lora_alpha": 8, "target_modules": list(shapes)}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    base = kind(config).eval()
    with torch.no_grad(), warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        want = base(input_ids=ids).logits
        got = PeftModel.from_pretrained(base, folder).eval()(input_ids=ids).logits
    keys = sum("adapter keys" in str(w.message) or "experts" in str(w.message) for w in said)
    return not torch.equal(got, want), keys


new, _ = loaded(tf.Qwen3MoeForCausalLM, tf.Qwen3MoeConfig(head_dim=8, **common), shared=False)
old, keys = loaded(
    tf.Qwen2MoeForCausalLM, tf.Qwen2MoeConfig(shared_expert_intermediate_size=16, **common), shared=True
)
print("Qwen3MoeForCausalLM: the adapter has an effect", new)
print(f"Qwen2MoeForCausalLM: the adapter has an effect {old}; warnings about its keys: {keys}")
raise SystemExit((new, old, keys) != (True, False, 0))
EOF
