#!/usr/bin/env bash
# transformers 5.23.0, hqq 0.2.8, torch 2.13.0. Run 2026-11-29.
#
# transformers still has HqqConfig, documents it, checks that hqq is installed and new enough, and marks the quantiser as one that
# can be trained on and saved. Yet loading any model with it ends in NotImplementedError, before a weight is read: the loader of
# transformers 5 asks each quantiser for its operation on a weight, and this one has none. A bitsandbytes config of the same model
# loads. What works is hqq's own HQQLinear, put in the place of the layers after loading.
# Output seen:
#   HqqConfig: NotImplementedError: QuantizationMethod.HQQ is not available yet and will be supported soon.
#   the library itself: HQQLinear, an answer of shape (1, 2, 128)
# Exits 1 when that changes.
set -euo pipefail
at=$(mktemp -d); trap 'rm -rf "$at"' EXIT
python3 -m venv "$at/v"
"$at/v/bin/pip" install -q --disable-pip-version-check "torch==2.13.0" "transformers==5.23.0" "accelerate==1.15.0" setuptools wheel
"$at/v/bin/pip" install -q --disable-pip-version-check --no-build-isolation "hqq==0.2.8"
cat > "$at/run.py" <<'EOF'
import sys
import tempfile

import torch
from hqq.core.quantize import BaseQuantizeConfig, HQQLinear
from transformers import AutoModelForCausalLM, HqqConfig, LlamaConfig, LlamaForCausalLM

config = LlamaConfig(
    vocab_size=64, hidden_size=64, intermediate_size=128, num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=2
)
with tempfile.TemporaryDirectory() as folder:
    LlamaForCausalLM(config).save_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    try:
        AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, quantization_config=HqqConfig(nbits=4, group_size=64))
        refused = ""
    except NotImplementedError as e:
        refused = f"NotImplementedError: {e}"
print("HqqConfig:", refused or "loads")
mlp = model.model.layers[0].mlp
mlp.up_proj = HQQLinear(mlp.up_proj, BaseQuantizeConfig(nbits=4, group_size=64), compute_dtype=torch.float32, device="cpu")
y = mlp.up_proj(torch.randn(1, 2, 64))
print(f"the library itself: {type(mlp.up_proj).__name__}, an answer of shape {tuple(y.shape)}")
sys.exit(0 if refused and y.shape == (1, 2, 128) else 1)
EOF
"$at/v/bin/python" -W ignore "$at/run.py" 2>/dev/null
