#!/usr/bin/env bash
# PEFT's OFT on a convolution: merging gives another model than the one that was trained and ran.
#
# Versions: peft 0.21.2, transformers 5.23.0, torch 2.13.0.
# What runs: a Conv2d with an OFT and a BOFT adapter, their numbers moved; the output with the adapter, then after
#   merge_adapter(). The difference, as a share of what the adapter changes at all.
# Expected: near 0 for both: merging is there to be exact.
# What came: BOFT merges exactly. OFT is off by more than the adapter's whole effect, with and without overlapping patches:
#   forward unfolds the input into patches, turns each, and folds them together again before the convolution runs over it;
#   merge turns the weight. Neither says anything.
# Output:
#   OFT, kernel 4 stride 4: 1.590
#   OFT, kernel 3 stride 1: 1.412
#   BOFT, kernel 4 stride 4: 0.000
#   BOFT, kernel 3 stride 1: 0.000
# Who it hurts: who fine-tunes a vision or diffusion model with OFT and merges it for serving.
# Our test: tests/against/test_peft_types.py (test_an_oft_that_turns_patches_with_one_another_is_refused).
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv --without-pip "$work/venv"
python3 -m pip --python "$work/venv" install --quiet --no-compile torch==2.13.0 transformers==5.23.0 peft==0.21.2
HF_HUB_OFFLINE=1 TRANSFORMERS_VERBOSITY=error "$work/venv/bin/python" - 2>/dev/null <<'EOF'
import torch
from peft import BOFTConfig, OFTConfig, get_peft_model
from torch import nn

shares = {}
for name, config in (
    ("OFT", OFTConfig(oft_block_size=4, target_modules=["0"])),
    ("BOFT", BOFTConfig(boft_block_size=4, target_modules=["0"])),
):
    for kernel, stride, padding in ((4, 4, 0), (3, 1, 1)):
        torch.manual_seed(0)
        base, x = nn.Sequential(nn.Conv2d(4, 8, kernel, stride, padding)), torch.randn(2, 4, 8, 8)
        model = get_peft_model(base, config).eval()
        with torch.no_grad():
            before = model(x)
            for p in model.parameters():
                if p.requires_grad:
                    p += torch.randn_like(p) * 0.3
            ran = model(x)
            model.base_model.merge_adapter()
            merged = model(x)
        share = ((merged - ran).norm() / (ran - before).norm()).item()
        shares[name, kernel] = share
        print(f"{name}, kernel {kernel} stride {stride}: {share:.3f}")
raise SystemExit(not (min(shares["OFT", 4], shares["OFT", 3]) > 1 and max(shares["BOFT", 4], shares["BOFT", 3]) < 1e-3))
EOF
