"""Methods that put weights together of common matrices: identities of their definitions, formulas once more."""

import pytest
import torch

from commonweight import CommonweightError, share
from commonweight.builder.settle import settle
from tests.share.deep import KINDS, answer, far, gpt2, llama
from tests.share.elsewhere import answers

SAME = {  # options with which a method gives the model itself
    "masa": {"matrices": 6, "parts": "all"}, "basis": {"rank": 128}, "structured": {"rank": 64, "first_dense": False},
    "kind": {"genes": 20, "tailors": 4, "groups": 3}, "hashed": {"compression": 1.0},
}  # fmt: skip
SMALL = {
    "masa": {"matrices": 2}, "basis": {"rank": 8}, "structured": {"rank": 8},
    "kind": {"genes": 4, "tailors": 2, "groups": 3}, "hashed": {"compression": 3.0, "chunk": 16},
}  # fmt: skip
UP, Q = "mlp.up_proj.weight", "self_attn.q_proj.weight"


def stacked(model, name):
    return torch.stack([b.get_parameter(name).detach() for b in model.model.layers])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", SAME)
def test_at_full_size_it_is_the_model_itself(method, kind):
    model = KINDS[kind]()
    small = share.share(model, method, **SAME[method])
    assert far(answer(small), answer(model)) < 1e-5


def test_masa_is_the_best_dictionary():
    """Against an SVD of the weights as columns; what is lost is what the singular values left out say."""
    model = llama()
    small = share.share(model, "masa", matrices=2)
    w = stacked(model, Q)
    u, s, v = torch.linalg.svd(w.flatten(1).T, full_matrices=False)
    want = (u[:, :2] * s[:2] @ v[:2]).T.view_as(w)
    got = torch.stack([b.self_attn.q_proj.weight.detach() for b in small.model.layers])
    assert far(got, want) < 1e-5
    assert float((got - w).square().sum()) == pytest.approx(float(s[2:].square().sum()), rel=1e-4)
    layer = small.model.layers[4].self_attn.q_proj
    assert layer.weight_pool is small.model.layers[0].self_attn.q_proj.weight_pool and layer.weight_weights.shape == (
        2,
    )
    c, D = layer.weight_weights, layer.weight_pool
    hand = c[0] * D[0] + c[1] * D[1]
    x = torch.randn(3, 32, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(layer(x), x @ hand.T, atol=1e-6)


def test_masa_s_size_and_parts():
    layout = share.layout(llama(), "masa", matrices=2, parts="qkv")
    dictionaries = 2 * (32 * 32 + 2 * 16 * 32) + 3 * 2 * 6
    rest = 6 * (32 * 32 + 3 * 32 * 64 + 2 * 32)
    assert layout.count() == dictionaries + rest
    two = share.layout(llama(), "masa", matrices=1, groups=2)
    assert {u.reads["weight"].pools[0][:11] for u in two.plan.uses if u.site[2:] == Q} == {"dictionary0", "dictionary1"}
    scratch = share.share(llama(), "masa", init="random", seed=3)
    assert 0.01 < float(scratch.model.layers[0].self_attn.q_proj.weight.detach().std()) < 0.04
    with pytest.raises(CommonweightError, match="masa: groups=7; the model has 6 layers"):
        share.layout(llama(), "masa", groups=7)


def test_basis_by_hand():
    """The higher-order SVD by an SVD of both unfoldings; rounds of least squares lose no more."""
    model = llama()
    w = stacked(model, UP)
    small = share.share(model, "basis", rank=8, rounds=0)
    u = torch.linalg.svd(w.permute(1, 0, 2).flatten(1))[0][:, :8]
    v = torch.linalg.svd(w.permute(2, 0, 1).flatten(1))[0][:, :8]
    layer = small.model.layers[3].mlp.up_proj
    assert far(layer.weight.detach(), u @ (u.T @ w[3] @ v) @ v.T) < 1e-5
    x = torch.randn(3, 32, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(layer(x), x @ layer.weight.T, atol=1e-6)
    assert layer.A is small.model.layers[0].mlp.up_proj.A and layer.M is not small.model.layers[0].mlp.up_proj.M
    lost = [(stacked_of(share.share(model, "basis", rank=8, rounds=n)) - w).square().sum() for n in (0, 3)]
    assert lost[1] <= lost[0]


def stacked_of(small):
    return torch.stack([b.mlp.up_proj.weight.detach() for b in small.model.layers])


def test_structured_is_a_truncated_svd_and_the_first_network_stays():
    model = llama()
    small = share.share(model, "structured", rank=5)
    u, s, v = torch.linalg.svd(model.model.layers[2].mlp.down_proj.weight.detach(), full_matrices=False)
    layer = small.model.layers[2].mlp.down_proj
    assert far(layer.weight.detach(), u[:, :5] * s[:5] @ v[:5]) < 1e-5
    assert far(layer.A.detach().norm(dim=1), layer.B.detach().norm(dim=0)) < 1e-5  # half of each singular value
    assert torch.equal(small.model.layers[0].mlp.down_proj.weight, model.model.layers[0].mlp.down_proj.weight)


@pytest.mark.parametrize("make", [llama, gpt2])
def test_a_guide_is_the_dense_layer_at_first_and_gone_at_last(make):
    model = make()
    small, plain = share.share(model, "structured", rank=5, guide=True), share.share(model, "structured", rank=5)
    guided = [m for m in small.modules() if hasattr(m, "pace")]
    for done, want in ((0.0, 0), (0.25, None), (0.5, 1), (1.0, 1)):
        for m in guided:
            m.pace(done)
        sides = far(answer(small), answer(model)), far(answer(small), answer(plain))
        assert min(sides) > 1e-4 if want is None else sides[want] < 1e-5
    settle(small)
    assert far(answer(small), answer(plain)) == 0
    assert sum(p.numel() for p in small.parameters()) == sum(p.numel() for p in plain.parameters())
    assert {f["form"] for f in small.config.sharing["forms"]} == {"Factored"}


def test_kind_s_gate_is_one_for_all_depths_and_chooses_a_class():
    model = llama()
    small = share.share(model, "kind", genes=4, tailors=2, groups=3)
    (gate,) = {id(p): p for n, p in small.named_parameters() if n.endswith(".g")}.values()
    assert gate.shape == (10,) and not gate.requires_grad
    with torch.no_grad():
        gate[4:] = 0
        gate[6:8] = 1
    alone = share.share(model, "kind", genes=4, tailors=2, groups=3, group=1)
    assert far(answer(small), answer(alone)) < 1e-5
    u, s, v = torch.linalg.svd(model.model.layers[1].mlp.up_proj.weight.detach(), full_matrices=False)
    at = [0, 1, 2, 3, 6, 7]
    assert far(alone.model.layers[1].mlp.up_proj.weight.detach(), u[:, at] * s[at] @ v[at]) < 1e-5
    with pytest.raises(CommonweightError, match="kind: no matrix has 98 parts"):
        share.layout(model, "kind", genes=90)
    with pytest.raises(CommonweightError, match="group=3 of 3 groups, counted from 0"):
        share.layout(model, "kind", groups=3, group=3)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "bert"])
def test_written_out_it_answers_the_same(kind, tmp_path):
    from commonweight.share.folders.unrolled import plain

    for method, options in SMALL.items():
        small = share.share(KINDS[kind](), method, **options)
        out = plain(small)
        assert far(answer(out), answer(small)) < 1e-5 and not hasattr(out.config, "sharing")


def test_folders_load_without_commonweight(tmp_path):
    jobs, want = {}, {}
    for kind in ("llama", "gpt2"):
        for method, options in SMALL.items():
            name = f"{kind}-{method}"
            small = share.share(KINDS[kind](), method, **options)
            share.save(small, tmp_path / name)
            jobs[name] = ("AutoModelForCausalLM", str(tmp_path / name), True, "float32")
            want[name] = answer(small), len(list(small.parameters()))
    for method, options in (
        ("structured", {"rank": 5, "guide": True}), ("shared_diff", {}), ("product_keys", {"n": 8, "width": 8}),
    ):  # fmt: skip
        small = share.share(llama(), method, **options)
        share.save(small, tmp_path / method)
        jobs[method] = ("AutoModelForCausalLM", str(tmp_path / method), True, "float32")
        want[method] = answer(small), len(list(small.parameters()))
    for name, (got, tensors) in answers(tmp_path, jobs).items():
        assert far(got, want[name][0]) < 1e-6 and tensors == want[name][1], name


def test_peft_refuses_them(tmp_path):
    for method, options in SMALL.items():
        with pytest.raises(CommonweightError, match="form=peft: PEFT has nothing for"):
            share.save(share.share(llama(), method, **options), tmp_path / method, "peft")
