#!/usr/bin/env bash
# transformers 5.23.0, torch 2.13.0. Run 2026-11-29.
#
# A model with rope_type "longrope" (Phi-3's and Phi-4's long contexts) has two sets of frequencies: one for texts within the length it
# was first trained on, one beyond. transformers chooses by the largest position of the whole forward pass, for all rows at once. So a short
# row answers otherwise when a long one stands in its batch, with a correct attention mask. The same holds for packed rows and for continuous batching.
# Output seen (largest difference of the short row's logits, alone against beside a long row):
#   longrope: 5.4e+00
#   default: 5.0e-06
# Exits 1 when the rows of a longrope model no longer change each other.
set -euo pipefail
at=$(mktemp -d); trap 'rm -rf "$at"' EXIT
python3 -m venv "$at/v"
"$at/v/bin/pip" install -q --disable-pip-version-check "torch==2.13.0" "transformers==5.23.0"
cat > "$at/run.py" <<'EOF'
import torch
from transformers import Phi3Config, Phi3ForCausalLM

FIRST = 32  # the length within which the short frequencies hold


def difference(rope):
    torch.manual_seed(0)
    model = Phi3ForCausalLM(Phi3Config(
        hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=4, vocab_size=100,
        max_position_embeddings=128, original_max_position_embeddings=FIRST, pad_token_id=0, bos_token_id=None,
        eos_token_id=None, rope_parameters=rope,
        initializer_range=0.2)).eval()
    short, long = torch.randint(1, 100, (1, 8)), torch.randint(1, 100, (1, 60))
    batch = torch.zeros(2, 60, dtype=torch.long)
    batch[0, :8], batch[1] = short, long
    mask = torch.ones_like(batch)
    mask[0, 8:] = 0
    with torch.no_grad():
        alone = model(input_ids=short).logits
        beside = model(input_ids=batch, attention_mask=mask).logits[:1, :8]
    return (alone - beside).abs().max().item()


n = 64 // 4 // 2
found = {
    "longrope": difference({"rope_type": "longrope", "rope_theta": 10000.0, "short_factor": [1.0] * n, "long_factor": [4.0] * n,
                            "original_max_position_embeddings": FIRST, "factor": 4.0}),
    "default": difference({"rope_type": "default", "rope_theta": 10000.0}),
}
for kind, off in found.items():
    print(f"{kind}: {off:.1e}")
raise SystemExit(0 if found["longrope"] > 1e-3 and found["default"] < 1e-4 else 1)
EOF
"$at/v/bin/python" -W ignore "$at/run.py"
