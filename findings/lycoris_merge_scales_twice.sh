#!/usr/bin/env bash
# LyCORIS merges LoHa and LoKr with alpha / rank applied twice: the merged model is not the one that ran with the adapter.
#
# Versions: lycoris-lora 4.1.3, torch 2.13.0.
# What runs: a network of rank 2 and alpha 1 on a linear layer, its numbers moved; the layer's output with the network applied
#   (apply_to), then after restore() and merge_to(1.0). Both less the base's output are the adapter's part.
# Expected: the same output, as for LoRA: merging is there to be exact.
# What came: the merged part is alpha / rank = 0.5 times the other, for LoHa and LoKr. At alpha = rank nothing is seen; at
#   the usual alpha of 1 and rank 16 a sixteenth is left. get_weight() scales already, and get_diff_weight() scales again.
# Output:
#   lora: merged / applied = 1.000
#   loha: merged / applied = 0.500
#   lokr: merged / applied = 0.500
# Who it hurts: who merges a LoHa or LoKr into a checkpoint, or extracts one from a merge.
# Our test: tests/formats/test_kohya.py (test_lycoris_itself_gives_the_same, against the applied network).
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv --without-pip "$work/venv"
python3 -m pip --python "$work/venv" install --quiet --no-compile torch==2.13.0 lycoris-lora==4.1.3
"$work/venv/bin/python" - 2>/dev/null <<'EOF'
import logging

import torch
from lycoris import LycorisNetwork, create_lycoris
from torch import nn

logging.disable(logging.WARNING)
ratios = []
for algorithm in ("lora", "loha", "lokr"):
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(64, 64, bias=False)), torch.randn(4, 64)
    with torch.no_grad():
        base = model(x)
        LycorisNetwork.apply_preset({"target_module": ["Linear"]})
        network = create_lycoris(model, 1.0, linear_dim=2, linear_alpha=1, algo=algorithm, factor=2)
        network.apply_to()
        for p in network.parameters():
            p += torch.randn_like(p) * 0.1
        applied = model(x) - base
        network.restore()
        network.merge_to(1.0)
        merged = model(x) - base
    ratios.append((merged.norm() / applied.norm()).item())
    print(f"{algorithm}: merged / applied = {ratios[-1]:.3f}")
raise SystemExit([round(r, 3) for r in ratios] != [1.0, 0.5, 0.5])
EOF
