#!/usr/bin/env bash
# transformers 5.23.0, torch 2.13.0. Run 2026-11-29.
#
# A cache may change the time of an answer, not the answer. FSMT (the WMT19 translation models) makes its causal mask, and the mask of the
# decoder's padding, only where use_cache is false. It is true by default, so a plain forward pass over several target tokens, as in
# scoring or with teacher forcing in eval mode, lets each token see what comes after it.
# Output seen:
#   use_cache=False: the last target moves the first one's logits by 0.0e+00
#   use_cache=True: the last target moves the first one's logits by 4.2e-01
# Exits 1 when a cache leaves the masks on.
set -euo pipefail
at=$(mktemp -d); trap 'rm -rf "$at"' EXIT
python3 -m venv "$at/v"
"$at/v/bin/pip" install -q --disable-pip-version-check "torch==2.13.0" "transformers==5.23.0"
cat > "$at/run.py" <<'EOF'
import torch
from transformers import FSMTConfig, FSMTForConditionalGeneration

torch.manual_seed(0)
model = FSMTForConditionalGeneration(FSMTConfig(
    langs=["en", "de"], src_vocab_size=60, tgt_vocab_size=60, d_model=32, encoder_layers=1, decoder_layers=1,
    encoder_attention_heads=4, decoder_attention_heads=4, encoder_ffn_dim=64, decoder_ffn_dim=64, init_std=0.2)).eval()
ids = torch.arange(4, 12)[None]
targets = torch.arange(20, 28)[None]
other = targets.clone()
other[0, -1] = 50
moved = {}
with torch.no_grad():
    for cache in (False, True):
        a, b = (model(ids, decoder_input_ids=t, use_cache=cache).logits[0, 0] for t in (targets, other))
        moved[cache] = (a - b).abs().max().item()
        print(f"use_cache={cache}: the last target moves the first one's logits by {moved[cache]:.1e}")
raise SystemExit(0 if moved[False] < 1e-6 and moved[True] > 1e-3 else 1)
EOF
"$at/v/bin/python" -W ignore "$at/run.py"
