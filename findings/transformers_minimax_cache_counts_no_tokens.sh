#!/usr/bin/env bash
# transformers 5.23.0, torch 2.13.0. Run 2026-12-01.
#
# A pass that continues a cache gives the scores of a pass over the whole row. MiniMax's cache says how long it is by its first layer, which
# in every released model has a state and counts no tokens: get_seq_length() is 0 however much it holds. A call without position_ids then
# numbers its tokens from 0 again, and the layers with attention turn them to the wrong places. generate counts by itself and is right.
# With an attention layer first the same call is right too.
# Output seen:
#   linear_attention first: 8 tokens in the cache, which says 0; the next one's scores are 1.0e+00 off, with position_ids 7.2e-07
#   full_attention first: 8 tokens in the cache, which says 8; the next one's scores are 1.2e-06 off, with position_ids 1.2e-06
# Exits 1 when the cache counts its tokens.
set -euo pipefail
at=$(mktemp -d); trap 'rm -rf "$at"' EXIT
python3 -m venv "$at/v"
"$at/v/bin/pip" install -q --disable-pip-version-check "torch==2.13.0" "transformers==5.23.0"
cat > "$at/run.py" <<'EOF'
import torch
from transformers import MiniMaxConfig, MiniMaxForCausalLM

KINDS, N = ["linear_attention", "full_attention"], 8
off = {}
for kinds in (KINDS, KINDS[::-1]):
    torch.manual_seed(0)
    model = MiniMaxForCausalLM(MiniMaxConfig(
        vocab_size=97, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, num_local_experts=4, num_experts_per_tok=2, block_size=4, layer_types=kinds)).eval()
    ids = torch.randint(3, 97, (1, N + 1))
    with torch.no_grad():
        for p in model.parameters():
            if p.dim() > 1:
                p.normal_(0, 0.2)
        whole = model(ids).logits[:, -1]
        for told in ({}, {"position_ids": torch.tensor([[N]])}):
            cache = model(ids[:, :N], use_cache=True).past_key_values
            length = cache.get_seq_length()
            next_one = model(ids[:, N:], past_key_values=cache, **told).logits[:, -1]
            off[kinds[0], bool(told)] = (next_one - whole).abs().max().item()
    print(f"{kinds[0]} first: {N} tokens in the cache, which says {length}; the next one's scores are "
          f"{off[kinds[0], False]:.1e} off, with position_ids {off[kinds[0], True]:.1e}")
bad = off.pop(("linear_attention", False))
raise SystemExit(0 if bad > 1e-2 and max(off.values()) < 1e-4 else 1)
EOF
"$at/v/bin/python" -W ignore "$at/run.py"
