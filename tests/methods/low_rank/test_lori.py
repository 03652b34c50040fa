"""LoRI against its formula, written out with a mask."""

import copy

import pytest
import torch

import commonweight as cw
from commonweight.methods.low_rank.lori import LoRI, largest, sparsify
from tests.laws.subjects import stir
from tests.models import make

SMALL = {"rank": 4, "sparsity": 0.8}
VARIANTS = [{"sparsity": 0.0}, {"alpha": 3.0, "dropout": 0.1}]
NAME = "model.layers.1.mlp.up_proj"


def test_formula():
    model, _ = make("llama")
    host = cw.Host(model)
    tenant = stir(host.add("t", "lori", rank=4, alpha=6.0, sparsity=0.9))
    A, values, places = (tenant.pools[f"{NAME}.{k}"].detach() for k in ("A", "B", "places"))
    B = torch.zeros(64, 4)
    for place, value in zip(places.tolist(), values, strict=True):
        B[place // 4, place % 4] = value
    assert (B != 0).sum() == len(set(places.tolist())) == round(0.1 * 64 * 4)
    torch.testing.assert_close(host.merged("t")[f"{NAME}.weight"], host.weight(NAME) + 1.5 * B @ A)


def test_dense_is_lora_with_a_frozen():
    model, _ = make("llama")
    host = cw.Host(model)
    tenant = stir(host.add("t", "lori", rank=4, alpha=6.0, sparsity=0.0))
    assert {n.rpartition(".")[2] for n, _ in tenant.named_parameters()} == {"B"}
    A, B = (tenant.pools[f"{NAME}.{k}"].detach() for k in "AB")
    torch.testing.assert_close(host.merged("t")[f"{NAME}.weight"], host.weight(NAME) + 1.5 * B @ A)


def test_count_is_the_papers():
    sites = [cw.Site(f"layers.{i}.q_proj", 4096, 4096) for i in range(32)]
    lora, dense = cw.plan("lora", sites, rank=32), cw.plan("lori", sites, rank=32, sparsity=0.0)
    assert 2 * dense.count() == lora.count()
    sparse = cw.plan("lori", sites, rank=32)
    assert sparse.count() == 32 * round(0.1 * 4096 * 32)
    assert sparse.nbytes == 4 * sparse.count()
    assert 1 - sparse.count() / lora.count() == pytest.approx(0.95, abs=1e-4)


def test_the_largest_entries_over_all_matrices():
    dense = {
        "a": torch.tensor([[1.0, -5.0], [0.5, 2.0]]),
        "b": torch.tensor([[0.1, 0.2], [-4.0, 0.3]]),
        "c": torch.zeros(2, 1),
    }
    assert {k: v.tolist() for k, v in largest(dense, 0.7).items()} == {"a": [1, 3], "b": [2]}


@pytest.mark.parametrize("keep", [False, True])
def test_sparsify_keeps_the_largest_of_a_dense_tenant(keep, tmp_path):
    model, _ = make("llama")
    host = cw.Host(model)
    dense = stir(host.add("dense", "lori", rank=4, sparsity=0.0, seed=3))
    sparse = sparsify(host, "dense", "sparse", 0.9, keep)
    every = torch.cat([p.detach().reshape(-1) for p in dense.parameters()])
    assert sparse.count() == int(0.1 * every.numel())
    assert torch.equal(sparse.pools[f"{NAME}.A"], dense.pools[f"{NAME}.A"])
    edge = every.abs().sort(descending=True).values[sparse.count() - 1]
    B = dense.pools[f"{NAME}.B"].detach()
    if not keep:
        assert all((p == 0).all() for p in sparse.parameters())
        with torch.no_grad():
            for name, p in sparse.named_parameters():
                p.copy_(dense.pools[name].reshape(-1)[sparse.pools[f"{name[:-2]}.places"].long()])
    want = host.weight(NAME) + 2.0 * torch.where(B.abs() >= edge, B, 0.0) @ dense.pools[f"{NAME}.A"]
    torch.testing.assert_close(host.merged("sparse")[f"{NAME}.weight"], want)
    again = cw.Host(copy.deepcopy(make("llama")[0])).load("u", host.save("sparse", tmp_path / "s.safetensors"))
    assert all(torch.equal(again.pools[n], t) for n, t in sparse.pools.items())


def test_errors():
    model, _ = make("llama")
    host = cw.Host(model)
    host.add("t", "lori", rank=4)
    with pytest.raises(
        cw.CommonweightError, match=r"lori: t: a mask is taken from a trained dense LoRI tenant; add one"
    ):
        sparsify(host, "t", "u")
    with pytest.raises(
        cw.CommonweightError, match=r"mask='given' with 0 kept sites; let sparsify\(\) make such a config"
    ):
        LoRI(mask="given")
