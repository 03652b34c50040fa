#!/usr/bin/env bash
# mergekit's DARE does not divide by the density: what is kept is scaled by a ratio of sums, which favours small changes.
#
# Versions: mergekit 0.1.5, torch 2.13.0.
# What runs: `merge_state_dicts(..., "dare_linear", parameters={"density": 0.5, "rescale": True})` on 1,000 tensors. Each
#   differs from the base in 999 entries by 1 and in one entry by 1,000.
# Expected: as in the paper that the method names (arXiv 2311.03099): kept entries are divided by the density, so by 2 here,
#   and the mean over draws of every entry is the change itself.
# What came: kept entries are multiplied by sum|change| / sum|kept change| of that tensor: about 1.3 where the large
#   entry was kept, about 4 where it was dropped. The mean of the large entry is about 0.67 of its change, the
#   mean of the small ones about 1.33. With evenly spread changes the ratio is close to 2 and nobody notices.
# Output:
#   factors of kept entries: 1.3 to 4.4, of the paper: 2
#   mean over draws: large entry 0.65, small entries 1.35 of the change, of the paper: 1
# Who it hurts: who compares DARE merges between tools, or merges models with a few large changes (outlier channels).
# Our test: tests/merge/methods/test_against_mergekit.py (compat="mergekit") beside test_against_fusion_bench.py (the paper).
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv --without-pip "$work/venv"
python3 -m pip --python "$work/venv" install --quiet --no-compile torch==2.13.0 transformers==5.23.0 mergekit==0.1.5
HF_HUB_OFFLINE=1 TRANSFORMERS_VERBOSITY=error "$work/venv/bin/python" - <<'EOF'
import torch
from mergekit.merge_methods import merge_state_dicts

torch.manual_seed(0)
change = torch.ones(1000)
change[0] = 1000.0
draws = {f"layer{i}": change for i in range(1000)}
base = {name: torch.zeros(1000) for name in draws}
with torch.no_grad():
    merged = merge_state_dicts(
        {"base": base, "tuned": draws},
        "dare_linear",
        base="base",
        parameters={"density": 0.5, "rescale": True, "weight": {"tuned": 1.0}},
    )
factor = torch.stack([merged[name] / change for name in draws])
kept = factor[factor > 0]
large, small = factor[:, 0].mean().item(), factor[:, 1:].mean().item()
print(f"factors of kept entries: {kept.min():.1f} to {kept.max():.1f}, of the paper: 2")
print(f"mean over draws: large entry {large:.2f}, small entries {small:.2f} of the change, of the paper: 1")
raise SystemExit(not (kept.min() < 1.5 and kept.max() > 3.5 and 0.55 < large < 0.8 and 1.2 < small < 1.5))
EOF
