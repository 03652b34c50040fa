#!/usr/bin/env bash
# torch 2.13.0 on a CPU. Run 2026-11-29.
#
# AdamW(fused=True) walks a parameter, its gradient and its moments by their places in memory. Where one of them lies in another order
# (a moment that a checkpoint brought back contiguous, a gradient that was cut out of a summed flat buffer), numbers that do not belong
# together are paired, without an error. The plain optimiser gives the right step for the same tensors.
# Output seen (a parameter of 4 by 6, column after column, lr 0.1):
#   gradient with the parameter's strides: True; fused and plain step differ by 0.0e+00
#   gradient with the parameter's strides: False; fused and plain step differ by 2.0e-01
# Exits 1 when both agree whatever the strides.
set -euo pipefail
at=$(mktemp -d); trap 'rm -rf "$at"' EXIT
python3 -m venv "$at/v"
"$at/v/bin/pip" install -q --disable-pip-version-check "torch==2.13.0"
cat > "$at/run.py" <<'EOF'
import torch


def step(fused, turned):
    torch.manual_seed(0)
    p = torch.nn.Parameter(torch.randn(6, 4).T)  # (4, 6), column after column
    g = torch.randn(4, 6)
    p.grad = g.T.contiguous().T if turned else g
    torch.optim.AdamW([p], lr=0.1, fused=fused).step()
    return p.detach()


off = {}
for turned in (True, False):
    off[turned] = (step(True, turned) - step(False, turned)).abs().max().item()
    print(f"gradient with the parameter's strides: {turned}; fused and plain step differ by {off[turned]:.1e}")
raise SystemExit(0 if off[True] < 1e-5 and off[False] > 0.05 else 1)
EOF
"$at/v/bin/python" -W ignore "$at/run.py"
