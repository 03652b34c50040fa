#!/usr/bin/env bash
# torch 2.13.0 (CPU). Run 2026-11-29.
#
# scaled_dot_product_attention answers queries of NaN with zeros on a CPU, where its flash kernel runs (no mask, or is_causal=True).
# The plain kernel, and any call with a mask, answer NaN, as every other product does. So a model whose query projection has gone
# to NaN, in training or by a broken file, has finite logits as long as no row is padded, and a check of the logits or of the loss
# for finite numbers finds nothing.
# Output seen:
#   causal: every number finite True, largest 0.0
#   masked: every number finite False
#   plain kernel: every number finite False
#   a Llama whose q_proj is NaN: finite logits True, finite loss True; with a padded row: finite logits False
# Exits 1 when the flash kernel answers NaN too.
set -euo pipefail
at=$(mktemp -d); trap 'rm -rf "$at"' EXIT
python3 -m venv "$at/v"
"$at/v/bin/pip" install -q --disable-pip-version-check "torch==2.13.0" "transformers==5.23.0"
cat > "$at/run.py" <<'EOF'
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention as attend
from transformers import LlamaConfig, LlamaForCausalLM

torch.manual_seed(0)
k, v = torch.randn(2, 1, 4, 9, 8)
q = torch.full_like(k, float("nan"))


def finite(x):
    return bool(torch.isfinite(x).all())


causal = attend(q, k, v, is_causal=True)
print(f"causal: every number finite {finite(causal)}, largest {causal.abs().max().item()}")
masked = attend(q, k, v, attn_mask=torch.ones(9, 9, dtype=torch.bool).tril())
print(f"masked: every number finite {finite(masked)}")
with sdpa_kernel(SDPBackend.MATH):
    plain = attend(q, k, v, is_causal=True)
print(f"plain kernel: every number finite {finite(plain)}")

model = LlamaForCausalLM(LlamaConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, vocab_size=50))
with torch.no_grad():
    model.model.layers[0].self_attn.q_proj.weight.fill_(float("nan"))
ids = torch.arange(5, 15)[None].repeat(2, 1)
out = model(ids, labels=ids)
padded = model(ids, attention_mask=torch.tensor([[1] * 10, [0] * 3 + [1] * 7])).logits
print(f"a Llama whose q_proj is NaN: finite logits {finite(out.logits)}, finite loss {finite(out.loss)}; "
      f"with a padded row: finite logits {finite(padded)}")
raise SystemExit(0 if finite(causal) and not finite(masked) and not finite(plain) and finite(out.logits) else 1)
EOF
"$at/v/bin/python" -W ignore "$at/run.py"
