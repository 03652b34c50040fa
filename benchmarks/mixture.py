"""A training step with eight low-rank experts at every site, of which a token takes two.

Against the same in plain PyTorch, a loop over experts that each get the tokens that chose them, as the official codes
of MoLA and its kin write it; and against one LoRA of the same rank in all. python -m benchmarks.mixture
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

import commonweight as cw

from .harness import DEVICE, alternate, store
from .shapes import TARGETS, batch, llama, loss

BATCHES, EXPERTS, RANK, TOP, NEW = ((4, 64), (16, 64)), 8, 4, 2, 8


class Loop(nn.Module):
    """A frozen layer and its experts."""

    def __init__(self, layer: nn.Linear):
        super().__init__()
        self.layer = layer.requires_grad_(False)
        self.router = nn.Linear(layer.in_features, EXPERTS, bias=False)
        self.A = nn.ModuleList(nn.Linear(layer.in_features, RANK, bias=False) for _ in range(EXPERTS))
        self.B = nn.ModuleList(nn.Linear(RANK, layer.out_features, bias=False) for _ in range(EXPERTS))
        for b in self.B:
            nn.init.zeros_(b.weight)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        p, at = self.router(rows).float().softmax(-1).topk(TOP, -1)
        p = (p / p.sum(-1, keepdim=True)).to(x.dtype)
        update = torch.zeros(len(rows), self.layer.out_features, dtype=x.dtype, device=x.device)
        for e in range(EXPERTS):
            token, which = torch.where(at == e)
            update[token] += p[token, which, None] * self.B[e](self.A[e](rows[token])) * 2.0
        return self.layer(x) + update.view(*x.shape[:-1], -1)


def looped() -> nn.Module:
    model = llama().train().requires_grad_(False)
    for name, module in [*model.named_modules()]:
        if name.rpartition(".")[2] in TARGETS["llama-8x512"] and isinstance(module, nn.Linear):
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, Loop(module).to(DEVICE))
    return model


def theirs(rows: int, length: int) -> Callable[[], None]:
    model = looped()
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)
    data = batch("llama-8x512", rows, length)

    def step() -> None:
        loss(model(**data)).backward()
        optimiser.step()
        optimiser.zero_grad()

    return step


def ours(rows: int, length: int, method: str, **options) -> Callable[[], None]:
    host = cw.Host(llama().train())
    tenant = host.add("t", method, **options)
    optimiser = torch.optim.AdamW(tenant.parameters(), lr=1e-4)
    data = batch("llama-8x512", rows, length)

    def step() -> None:
        with host.route("t"):
            loss(host.model(**data)).backward()
        optimiser.step()
        optimiser.zero_grad()

    return step


def decoding(tenants: int = 32) -> tuple[Callable[[], Tensor], Callable[[], Tensor]]:
    """(NEW tokens of each tenant alone, in turn; one mixed batch of them)."""
    host, names = cw.Host(llama().eval()), [f"t{i}" for i in range(tenants)]
    for i, n in enumerate(names):
        host.add(n, "mola", rank=RANK, experts=(EXPERTS,), active=TOP, seed=i)
        with torch.no_grad():
            for p in host[n].parameters():
                p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(i)).to(p.device) / 50)
    ids = torch.randint(5, 4000, (tenants, 1), generator=torch.Generator().manual_seed(0)).to(DEVICE)

    def tokens(ids: Tensor) -> Tensor:
        return host.model.generate(ids, max_new_tokens=NEW, min_new_tokens=NEW, do_sample=False)  # type: ignore[operator]

    def mixed() -> Tensor:
        with host.route(names):
            return tokens(ids)

    def alone() -> Tensor:
        out = []
        for i, n in enumerate(names):
            with host.route(n):
                out.append(tokens(ids[i : i + 1]))
        return torch.cat(out)

    assert torch.equal(mixed(), alone())
    return alone, mixed


def turned(timed: dict) -> dict:
    return {**timed, "ours_ms": timed["theirs_ms"], "theirs_ms": timed["ours_ms"]}


def main(rounds: int = 9) -> list[dict]:
    rows = []
    for shape in BATCHES:
        what = f"{EXPERTS} experts of rank {RANK}, top {TOP}, llama-8x512, {shape[0]}x{shape[1]}"
        mine = ours(*shape, "mola", rank=RANK, experts=(EXPERTS,), active=TOP)
        rows += [
            {"what": f"training step, {what}: loop over experts / ours", "unit": "times faster", "target": 3.0,
             **turned(alternate(theirs(*shape), mine, rounds))},
            {"what": f"training step, {what}: ours / one LoRA r32", "unit": "time", "target": 1.25,
             **alternate(mine, ours(*shape, "lora", rank=EXPERTS * RANK), rounds)},
        ]  # fmt: skip
    what = f"{NEW} tokens of each of 32 tenants with {EXPERTS} experts: one after another / mixed batch"
    timed = turned(alternate(*decoding(), 5, 1))
    rows.append({"what": what, "unit": "times faster", "target": 6.0, **timed})
    store("mixture", rows)
    return rows


if __name__ == "__main__":
    for row in main():
        print(row)
