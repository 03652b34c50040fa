#!/usr/bin/env bash
# transformers 5.23.0, torch 2.13.0. Run 2026-12-01.
#
# The rows of a batch are answered each by itself. RWKV that goes on from its state by one token adds the last tokens of all rows, (B, d),
# to one token of each row, (B, 1, d): the result is (B, B, d), and every row reads every other. generate() with several prompts answers
# otherwise than with each prompt alone. One row, or use_cache=False, is right.
# Output seen:
#   1 row: scores (1, 1, 97), 1.9e-06 off; generates as without a state: True
#   3 rows: scores (3, 3, 97), 7.6e+00 off; generates as without a state: False
# Exits 1 when a batch is its rows.
set -euo pipefail
at=$(mktemp -d); trap 'rm -rf "$at"' EXIT
python3 -m venv "$at/v"
"$at/v/bin/pip" install -q --disable-pip-version-check "torch==2.13.0" "transformers==5.23.0"
cat > "$at/run.py" <<'EOF'
import torch
from transformers import RwkvConfig, RwkvForCausalLM

torch.manual_seed(0)
model = RwkvForCausalLM(RwkvConfig(vocab_size=97, hidden_size=32, attention_hidden_size=32, intermediate_size=64,
                                   num_hidden_layers=2, context_length=32)).eval()
seen = []
with torch.no_grad():
    for p in model.parameters():
        if p.dim() == 2:
            p.normal_(0, 0.3)
    prompts = torch.randint(3, 97, (3, 8))
    told = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False}
    for n in (1, 3):
        ids = prompts[:n]
        whole = model(ids, use_cache=False).logits[:, -1]
        state = model(ids[:, :-1], use_cache=True).state
        step = model(ids[:, -1:], state=state, use_cache=True).logits
        off = (step[:, -1] - whole).abs().max().item()
        mask = torch.ones_like(ids)
        same = torch.equal(*(model.generate(ids, attention_mask=mask, use_cache=c, **told) for c in (True, False)))
        print(f"{n} row{'s' * (n > 1)}: scores {tuple(step.shape)}, {off:.1e} off; generates as without a state: {same}")
        seen.append((off < 1e-4, same))
raise SystemExit(0 if seen == [(True, True), (False, False)] else 1)
EOF
"$at/v/bin/python" -W ignore "$at/run.py"
