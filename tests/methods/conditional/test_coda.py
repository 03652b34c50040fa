"""CoDA against its formula: the blocks of the plain model, called on the tokens that each row keeps."""

import math

import pytest
import torch
from torch.nn import functional as F

import commonweight as cw
from commonweight.bind.skipped import soft_top_k
from tests.laws.subjects import stir
from tests.models import answer, make

SMALL = {"size": 3}
MODEL = "bert"


def READS(site):
    return site.role != "causal"


def by_rows(model, pools, ids, lengths, reduction):
    """Row after row, without padding; the block of the plain model on the kept tokens alone."""
    out = []
    for row, n in zip(ids, lengths):
        x = model.embeddings(row[None, :n])
        for i, block in enumerate(model.encoder.layer):
            p = {k: pools[f"encoder.layer.{i}.{k}"].detach() for k in ("select", "down", "down_bias", "up", "up_bias")}
            s = F.layer_norm(x, x.shape[-1:]) @ p["select"]
            k = math.ceil(n / reduction)
            kept = sorted(s[0].argsort(descending=True)[:k].tolist())
            m = soft_top_k(s, torch.full((1, 1), float(k)), 0.03, 20)[0, kept, None]
            y = block(x[:, kept])
            y = y[0] if isinstance(y, tuple) else y
            new = x.clone()
            new[0, kept] = x[0, kept] + m * (y[0] - x[0, kept])
            x = new + 1.5 * (torch.relu(x @ p["down"].T + p["down_bias"]) @ p["up"].T + p["up_bias"])
        out.append(x[0])
    return out


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("lengths", [(6, 6, 6, 6), (6, 4, 5, 2)])
def test_formula_row_by_row(lengths, attention):
    model, batch = make("bert")
    model.set_attn_implementation(attention)
    plain = make("bert")[0]
    host = cw.Host(model)
    tenant = stir(host.add("t", "coda", size=5, scale=1.5), std=0.3)
    mask = (torch.arange(6) < torch.tensor(lengths)[:, None]).long()
    with torch.no_grad():
        with host.route("t"):
            found = model(**batch, attention_mask=mask).last_hidden_state
        for i, want in enumerate(by_rows(plain, tenant.pools, batch["input_ids"], lengths, 2.0)):
            torch.testing.assert_close(found[i, : lengths[i]], want, rtol=1e-4, atol=1e-5)


def test_half_of_the_tokens_run_through_a_block():
    model, batch = make("vit")
    host, seen = cw.Host(model), []
    host.add("t", "coda", size=4, reduction=2.0)
    model.layers[0].mlp.register_forward_hook(lambda m, a, y: seen.append(y.shape[1]))
    with torch.no_grad(), host.route("t"):
        answer(model, batch)
    assert seen == [3]  # of 4 patches and the class token, rounded up


def test_the_soft_choice_against_bisection():
    """At its last temperature e, m_t = min(1, exp((s_t + a) / e)) with the a for which the sum is k."""
    torch.manual_seed(0)
    s, k, e = torch.randn(3, 9, dtype=torch.float64), torch.full((3, 1), 3.0, dtype=torch.float64), 0.5
    low, high = torch.full((3, 1), -50.0).double(), torch.full((3, 1), 50.0).double()
    for _ in range(100):
        mid = (low + high) / 2
        much = ((s + mid) / e).exp().clamp(max=1).sum(-1, keepdim=True) > k
        low, high = torch.where(much, low, mid), torch.where(much, mid, high)
    found = soft_top_k(s, k, e, 500)
    torch.testing.assert_close(found, ((s + low) / e).exp().clamp(max=1), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.sum(-1, keepdim=True), k, rtol=1e-4, atol=1e-5)


def test_the_soft_choice_is_cut_short_as_published():
    """With 20 rounds and a temperature of 0.03 the sum is not k; which tokens are the best is right all the same."""
    torch.manual_seed(0)
    s, k = torch.randn(50, 9), torch.full((50, 1), 3.0)
    found = soft_top_k(s, k, 0.03, 20)
    assert (found.sum(-1) - 3).abs().max() > 0.05
    assert torch.equal(found.topk(3).indices.sort().values, s.topk(3).indices.sort().values)


def test_count_is_an_adapter_and_a_vector_for_each_block():
    sites = [cw.Site(f"layers.{i}", 768, 768, "block") for i in range(12)]
    assert cw.plan("coda", sites, size=64).count() == 12 * (2 * 64 * 768 + 64 + 768 + 768)


def test_a_causal_model_is_refused():
    host = cw.Host(make("llama")[0])
    with pytest.raises(
        cw.CommonweightError, match=r"coda reads sites of kind block in which a token sees the whole row"
    ):
        host.add("t", "coda")
