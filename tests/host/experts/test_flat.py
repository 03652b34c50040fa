"""DBRX: experts that lie one above the other in matrices of two dimensions, which another module reads."""

from __future__ import annotations

import pytest
import torch

import commonweight as cw
from tests.laws.subjects import stir
from tests.mixtures import mixture
from tests.models import answer

MLP = "transformer.blocks.{}.ffn.experts.mlp."


def test_a_low_rank_change_is_that_of_each_experts_own_matrix():
    host = cw.Host(mixture("dbrx")[0])
    stir(tenant := host.add("t", "lora", rank=3, alpha=6, sites="*.experts.*"))
    merged, pools = host.merged("t"), tenant.pools
    for slot, turned in (("w1", False), ("v1", False), ("w2", True)):
        name = MLP.format(1) + slot
        before, after = host.model.get_parameter(name), merged[name]
        assert after.shape == before.shape == (4 * 24, 32)
        for e in range(4):
            change = 2.0 * pools[f"{name}[{e}].B"] @ pools[f"{name}[{e}].A"]
            want = before[e * 24 : (e + 1) * 24] + (change.T if turned else change)
            torch.testing.assert_close(after[e * 24 : (e + 1) * 24], want, rtol=1e-4, atol=1e-5)


def test_gradients_of_a_mixed_batch_are_those_of_changed_weights():
    """Written out: experts by a loop, with weights that are made of the factors."""
    model, batch = mixture("dbrx")
    host = cw.Host(model)
    names = ("a", "b")
    for i, name in enumerate(names):
        stir(host.add(name, "lora", rank=2, alpha=2, sites="*.blocks.1.*.experts.*"), i)
    block = host.model.transformer.blocks[1].ffn.experts
    seen = {}
    handle = block.register_forward_hook(lambda m, args, y: seen.update(args=args, y=y))
    with host.route(["a", None, "b", "a"]):
        answer(host.model, batch)
    handle.remove()
    hidden, index, weights = (t.detach() for t in seen["args"])
    g = torch.randn(hidden.shape, generator=torch.Generator().manual_seed(0))
    seen["y"].backward(g)
    got = {(n, k): p.grad for n in names for k, p in host[n].pools.items()}
    copies = {(n, k): p.detach().clone().requires_grad_() for n in names for k, p in host[n].pools.items()}

    def weight(name, slot, e):
        w = getattr(block.mlp, slot)[e * 24 : (e + 1) * 24]
        if name is None:
            return w
        at = f"{MLP.format(1)}{slot}[{e}]"
        change = copies[name, f"{at}.B"] @ copies[name, f"{at}.A"]
        return w + (change.T if slot == "w2" else change)

    rows = []
    for i, name in enumerate(["a", None, "b", "a"]):
        for t in range(6):
            at, y = i * 6 + t, torch.zeros(32)
            for e, share in zip(index[at].tolist(), weights[at]):
                w1, v1, w2 = (weight(name, slot, e) for slot in ("w1", "v1", "w2"))
                x = hidden[i, t]
                y = y + share * (torch.nn.functional.silu(x @ w1.T) * (x @ v1.T)) @ w2
            rows.append(y)
    want = torch.stack(rows).view_as(hidden)
    torch.testing.assert_close(seen["y"], want, rtol=1e-4, atol=1e-5)
    want.backward(g)
    for key, p in copies.items():
        if p.grad is not None:
            torch.testing.assert_close(got[key], p.grad, rtol=1e-3, atol=1e-5)


def test_most_of_the_model_is_read_and_generation_and_files_work(tmp_path):
    model, batch = mixture("dbrx")
    host = cw.Host(model)
    assert host.coverage().share > 0.85
    for i, method in enumerate(("lora", "full", "mos")):
        stir(host.add(method, method, sites="*.experts.*", **({"rank": 4} if method == "lora" else {})), i, std=0.05)
    ids = batch["input_ids"]
    with host.route(["lora", None, "full", "mos"]):
        together = host.model.generate(ids, max_new_tokens=4, do_sample=False)
    for i, name in enumerate(("lora", None, "full", "mos")):
        with host.route(name):
            one = host.model.generate(ids[i : i + 1], max_new_tokens=4, do_sample=False)[0]
        assert torch.equal(together[i][: len(one)], one)
    other = cw.Host(mixture("dbrx")[0])
    other.load("again", host.save("mos", tmp_path / "t.safetensors"))
    answers = []
    for h, name in ((host, "mos"), (other, "again")):
        with torch.no_grad(), h.route(name):
            answers.append(answer(h.model, batch))
    torch.testing.assert_close(*answers)
    with pytest.raises(cw.CommonweightError, match="past the module that holds them, where PEFT stops"):
        host.export_peft("lora", tmp_path / "peft")
    assert not (tmp_path / "peft").exists()
