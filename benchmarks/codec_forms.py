"""How the 4-bit codec was chosen: the error of other forms on one trained tenant of each method of `codecs`.

Error: norm of what the form changed over the norm of what training changed, all trained pools together.

    python -m benchmarks.codec_forms [FOLDER]        FOLDER: as for benchmarks.codecs
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import torch
from torch import Tensor

from commonweight.adapt import open_host
from commonweight.formats.codecs import absmax

from .codecs import METHODS, trained
from .harness import store
from .shapes import minilm_folder

# Quantiles of a normal distribution, as QLoRA (arXiv 2305.14314, appendix E) lists them
NF4 = [-1.0, -0.6962, -0.5251, -0.3949, -0.2844, -0.1848, -0.0911, 0.0, 0.0796, 0.1609, 0.2461, 0.3379, 0.4407, 0.5626,
       0.7230, 1.0]  # fmt: skip


def whole(value: Tensor, first: Tensor | None, group: int, fractions: tuple[float, ...]) -> Tensor:
    was, absmax.GROUP = absmax.GROUP, group
    try:
        stored = absmax._encode(value, first, 7, fractions)
        return absmax._decode(stored, tuple(value.shape), first, 7)
    finally:
        absmax.GROUP = was


def nf4(value: Tensor, first: Tensor, group: int) -> Tensor:
    change = (value - first).flatten()
    rows = torch.nn.functional.pad(change, (0, -len(change) % group)).reshape(-1, group)
    scale = rows.abs().amax(1, keepdim=True).bfloat16().float().clamp(min=1e-30)
    levels = torch.tensor(NF4)
    near = levels[(rows / scale)[..., None].sub(levels).abs().argmin(-1)] * scale
    return first + near.flatten()[: len(change)].reshape(value.shape)


FORMS = {
    **{f"clipped, groups of {g}": lambda v, f, g=g: whole(v, f, g, absmax.CLIPPED) for g in (32, 64, 128)},
    "largest, groups of 64": lambda v, f: whole(v, f, 64, (1.0,)),
    "NF4 levels, groups of 64": lambda v, f: nf4(v, f, 64),
    "clipped, groups of 64, of the value itself": lambda v, f: whole(v, None, 64, absmax.CLIPPED),
}


@torch.no_grad()
def main(kept: Path | None = None) -> list[dict]:
    host, rows = open_host(minilm_folder()), []
    with tempfile.TemporaryDirectory() as tmp:
        for method, (options, _) in METHODS.items():
            tenant = host.load("t", trained(host, method, "trec", 0, kept or Path(tmp)))
            fresh = host.add("fresh", method, seed=0, labels=tenant.labels, **options)
            pairs = [(p.detach(), fresh.pools[n].detach()) for n, p in tenant.named_parameters()]
            by_training = sum((v - f).double().square().sum().item() for v, f in pairs)
            for what, form in FORMS.items():
                off = sum((form(v, f) - v).double().square().sum().item() for v, f in pairs)
                rows.append({"what": what, "method": method, "error": round((off / by_training) ** 0.5, 4)})
            host.remove("t"), host.remove("fresh")
    store("codec_forms", rows)
    return rows


if __name__ == "__main__":
    rows = main(Path(sys.argv[1]) if len(sys.argv) > 1 else None)
    print(f"| form | {' | '.join(METHODS)} |\n| --- |{' ---: |' * len(METHODS)}")
    for what in FORMS:
        errors = [f"{100 * r['error']:.1f} %" for r in rows if r["what"] == what]
        print(f"| {what} | {' | '.join(errors)} |")
