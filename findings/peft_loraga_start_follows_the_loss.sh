#!/usr/bin/env bash
# peft 0.21.2, torch 2.13.0, transformers 5.23.0. Run 2026-11-29.
#
# LoRA-GA (arXiv 2407.05000, section 3) begins with A = c V^T and B = c U, c = d_out^(1/4) / sqrt(gamma), for the singular
# vectors of a gradient G = U S V^T: the start does not depend on how large the gradient is, and A and B are alike.
# peft's LoraConfig(init_lora_weights="lora_ga"), scale "stable", multiplies B by S as well, and leaves A without c. So the
# same rows with a loss of 100 times the size (a sum in place of a mean, a scaled loss) begin with a B 100 times as large.
# Output seen, lengths of a row of A and a column of B:
#   loss x 1:   row of A 1.000, column of B 5.401e-02
#   loss x 100: row of A 1.000, column of B 5.401e+00
#   paper: both 0.707, whatever the loss
# Exits 1 when the start no longer follows the loss.
set -euo pipefail
at=$(mktemp -d); trap 'rm -rf "$at"' EXIT
python3 -m venv "$at/v"
"$at/v/bin/pip" install -q --disable-pip-version-check "torch==2.13.0" "transformers==5.23.0" "peft==0.21.2"
cat > "$at/run.py" <<'EOF'
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import LoraGAConfig, preprocess_loraga
from transformers import LlamaConfig, LlamaForCausalLM

R, GAMMA, WIDTH = 4, 16, 64


def start(times):
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(
        hidden_size=WIDTH, intermediate_size=128, num_hidden_layers=1, num_attention_heads=4, vocab_size=100))
    ids = torch.randint(0, 100, (8, 16))
    config = LoraConfig(r=R, lora_alpha=R, target_modules=["o_proj"], init_lora_weights="lora_ga",
                        lora_ga_config=LoraGAConfig(scale="stable", stable_gamma=GAMMA))
    preprocess_loraga(model, config, lambda: (times * model(input_ids=ids, labels=ids).loss).backward())
    layer = get_peft_model(model, config).base_model.model.model.layers[0].self_attn.o_proj
    rows = layer.lora_A["default"].weight.norm(dim=1).mean().item()
    columns = layer.lora_B["default"].weight.norm(dim=0).mean().item()
    return rows, columns


small, large = start(1.0), start(100.0)
print(f"loss x 1:   row of A {small[0]:.3f}, column of B {small[1]:.3e}")
print(f"loss x 100: row of A {large[0]:.3f}, column of B {large[1]:.3e}")
print(f"paper: both {WIDTH ** 0.25 / GAMMA ** 0.5:.3f}, whatever the loss")
raise SystemExit(0 if 90 < large[1] / small[1] < 110 and abs(small[0] - 1) < 1e-3 else 1)
EOF
"$at/v/bin/python" -W ignore "$at/run.py"
