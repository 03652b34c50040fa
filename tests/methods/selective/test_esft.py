"""ESFT: the experts that tokens go to, counted a second time from the router's own answers."""

import pytest
import torch

import commonweight as cw
from commonweight.methods.selective.esft import enough, expert
from tests.mixtures import mixtral, mixture
from tests.models import make

SMALL = {"start": "random", "threshold": 0.5}
MODEL = "moe"


def READS(site):
    return site.kind == "expert"


def rows(n=4, pad=0):
    g = torch.Generator().manual_seed(3)
    mask = torch.ones(n, 9, dtype=torch.int64)
    if pad:
        mask[0, -pad:] = 0
    return {"input_ids": torch.randint(5, 40, (n, 9), generator=g), "attention_mask": mask}


def test_shares_are_those_of_the_router():
    torch.manual_seed(0)
    model = mixtral().eval()
    host = cw.Host(model, sites="*.experts.*")
    batch = rows(pad=4)
    with torch.no_grad():
        logits = model(**batch, output_router_logits=True).router_logits
    tenant = host.add("t", "esft", rows=[batch], threshold=0.5)
    real = batch["attention_mask"].bool().reshape(-1)
    for layer, found in enumerate(logits):
        chosen = found[real].topk(2).indices
        shares = {i: float((chosen == i).sum()) / chosen.numel() for i in range(4)}
        want, total = set(), 0.0
        for i in sorted(shares, key=lambda i: -shares[i]):
            if total >= 0.5:
                break
            want.add(i)
            total += shares[i]
        mine = {expert(u.site)[1] for u in tenant.plan.uses if f".{layer}." in u.site}
        assert mine == want
    assert not [n for n in tenant.pools if "experts" not in n]


def test_the_one_that_crosses_is_in():
    shares = {0: 0.15, 1: 0.05, 2: 0.6, 3: 0.2}
    assert enough(shares, 0.2) == [2] and enough(shares, 0.61) == [2, 3] and enough(shares, 1.0) == [2, 3, 0, 1]
    assert enough({0: 0.0, 1: 0.0}, 0.2) == [0, 1]


@pytest.mark.parametrize("kind", ["mixtral", "qwen2_moe", "gpt_oss"])
def test_gates_are_means_of_the_weights_of_answers(kind):
    """Of the model's own routers: probabilities of the chosen experts, made to sum to 1 (Mixtral), or not (Qwen2); or a
    softmax over the chosen ones alone (gpt-oss)."""
    model = mixture(kind)[0].eval()
    host = cw.Host(model, sites="*.experts.*")
    batch = rows(pad=4)
    with torch.no_grad():
        logits = model(**batch, output_router_logits=True).router_logits
    real = batch["attention_mask"].bool().reshape(-1)
    tenant = host.add("t", "esft", rows=[batch], score="gate", threshold=0.25)
    for layer, found in enumerate(logits):
        top = found[real].topk(2)
        weights = (top.values if kind == "gpt_oss" else found[real]).softmax(-1)
        weights = weights if kind == "gpt_oss" else weights.gather(1, top.indices)
        if kind == "mixtral":
            weights = weights / weights.sum(-1, keepdim=True)
        gates = torch.zeros(len(top.indices), 4).scatter(1, top.indices, weights).mean(0)
        assert (abs(gates.sum() - 1) < 1e-5) == (kind != "qwen2_moe")
        want = enough(dict(enumerate(gates.tolist())), 0.25)
        assert {expert(u.site)[1] for u in tenant.plan.uses if f".{layer}." in u.site} == {*want}


def test_names_of_experts():
    assert expert("l.0.mlp.experts.gate_up_proj[3]") == ("l.0.mlp.experts", 3)
    assert expert("l.0.mlp.experts.12.up_proj") == ("l.0.mlp.experts", 12)
    with pytest.raises(cw.CommonweightError, match="does not say which expert"):
        expert("l.0.mlp.up_proj")


def test_what_is_asked_for():
    host = cw.Host(make("moe")[0], sites="*.experts.*")
    with pytest.raises(cw.CommonweightError, match="esft begins from data: the share of a layer's routes"):
        host.add("t", "esft")
    with pytest.raises(cw.CommonweightError, match="no rows to take statistics of"):
        host.add("t", "esft", rows=[])
    with pytest.raises(cw.CommonweightError, match="with 0 chosen sites"):
        host.add("t", "esft", start="given")


class Listed(torch.nn.Module):
    """A mixture whose experts are modules: tokens go to experts by their numbers."""

    def __init__(self):
        super().__init__()
        self.layers = torch.nn.ModuleList([torch.nn.ModuleDict({"experts": torch.nn.ModuleList()})])
        self.layers[0]["experts"].extend(torch.nn.Linear(4, 4) for _ in range(3))

    def forward(self, x, to):
        y = torch.zeros_like(x)
        for e, one in enumerate(self.layers[0]["experts"]):
            y[to == e] = one(x[to == e])
        return y


def test_experts_that_are_modules_and_those_that_say_nothing():
    to = torch.tensor([[0, 2, 2, 2], [2, 0, 2, 0]])
    host = cw.Host(Listed(), sites="*.experts.*")
    for threshold, chosen in ((0.6, ["2"]), (0.7, ["0", "2"])):
        tenant = host.add("t", "esft", rows=[{"x": torch.ones(2, 4, 4), "to": to}], threshold=threshold)
        assert [u.site for u in tenant.plan.uses] == [f"layers.0.experts.{e}" for e in chosen]
        host.remove("t")
    with pytest.raises(cw.CommonweightError, match="is not told with which weights the answers"):
        host.add("t", "esft", rows=[{"x": torch.ones(2, 4, 4), "to": to}], score="gate")
    host = cw.Host(mixture("llama4")[0], sites="*.experts.*")
    with pytest.raises(cw.CommonweightError, match="is not told by indices which experts a token goes to"):
        host.add("t", "esft", rows=[rows()])


def test_routes_are_shares_of_a_layer_and_not_of_an_expert():
    """The released script divides by a sum over axis 0, the layers: a layer's shares then have any sum, and what is
    chosen need not be the share that was asked for, or not the largest. The
    released score files are shares of a layer."""
    routes = torch.tensor([[60.0, 30, 10, 0], [5, 5, 30, 60], [25, 25, 25, 25]])
    ours, official = routes / routes.sum(1, keepdim=True), routes / routes.sum(0)
    torch.testing.assert_close(ours.sum(1), torch.ones(3))
    assert (official.sum(1) - 1).abs().max() > 0.3
    for share, layer, chosen, theirs in zip(ours, official, ([0], [3], [0, 1]), ([0], [3], [1])):
        mine = enough(dict(enumerate(share.tolist())), 0.4)
        assert mine == chosen and share[mine].sum() >= 0.4
        assert enough(dict(enumerate(layer.tolist())), 0.4) == theirs
