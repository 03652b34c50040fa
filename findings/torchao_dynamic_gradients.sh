#!/usr/bin/env bash
# LoRA on a base with dynamic activation quantisation trains on wrong gradients.
#
# Versions: torchao 0.18.0, peft 0.21.2, transformers 5.23.0, torch 2.13.0.
# What runs: one backward pass of LoRA on all linear layers of a small random Llama, twice: on weights in int8
#   (Int8WeightOnlyConfig), and on the same weights in int8 with inputs rounded as they come
#   (Int8DynamicActivationInt8WeightConfig).
# Expected: nearly the same gradients; the answers of the two differ by half a percent.
# What came: a layer that rounds its input hands no gradient to it, so that the layers below get what comes past it
#   alone, along the residuals. Nothing is said. With LoRA on q_proj and v_proj alone nothing has a gradient at all.
# Output:
#   relative difference of the answers: 0.005
#   relative difference of the gradients: 0.31
# Who it hurts: who trains adapters on such a base.
# Our test: tests/host/test_quantised.py (every method has the gradients of the dequantised base).
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile torch==2.13.0 torchao==0.18.0 peft==0.21.2 transformers==5.23.0 accelerate
cd "$work"
"$work/venv/bin/python" - 2>/dev/null <<'EOF'
import torch
from peft import LoraConfig, get_peft_model
from torchao.quantization import Int8DynamicActivationInt8WeightConfig, Int8WeightOnlyConfig
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, TorchAoConfig

torch.manual_seed(0)
sizes = dict(vocab_size=64, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4)
LlamaForCausalLM(LlamaConfig(**sizes)).save_pretrained("base")
ids = torch.randint(0, 64, (2, 8))


def step(config):
    how = {"quantization_config": TorchAoConfig(config), "device_map": "cpu", "dtype": torch.float32}
    model = AutoModelForCausalLM.from_pretrained("base", **how)
    torch.manual_seed(1)
    model = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False))
    out = model(ids, labels=ids)
    out.loss.backward()
    wanted = [p for n, p in model.named_parameters() if "lora" in n]
    return out.logits.detach(), torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in wanted])


(y, g), (y8, g8) = step(Int8WeightOnlyConfig()), step(Int8DynamicActivationInt8WeightConfig())
answers, gradients = ((y8 - y).norm() / y.norm()).item(), ((g8 - g).norm() / g.norm()).item()
print(f"relative difference of the answers: {answers:.2g}")
print(f"relative difference of the gradients: {gradients:.2g}")
raise SystemExit(answers > 0.05 or gradients < 0.2)
EOF
