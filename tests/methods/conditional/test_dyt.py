"""DyT against its formula, written out on the model's own modules."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import commonweight as cw
from commonweight.adapt import Classifier, Complete
from commonweight.adapt.tasks.classify import Classify
from commonweight.bind.skipped import logistic
from commonweight.methods.conditional.dyt import rate
from commonweight.methods.said import Said
from tests.laws.subjects import stir
from tests.models import answer, make

SMALL = {"size": 3}
VARIANTS = [{"first": True, "scale": 0.1}]
PARTS = {"llama": "model.layers.{}.mlp", "gpt2": "transformer.h.{}.mlp", "vit": "layers.{}.mlp"}


class Dynamic(nn.Module):
    """g mlp(x) + s (W_up relu(W_down x + b_down) + b_up), all tokens computed."""

    def __init__(self, module, pools, scale, first):
        super().__init__()
        self.module, self.pools, self.scale, self.first = module, pools, scale, first

    def forward(self, x):
        p = self.pools
        g = (torch.sigmoid(x @ p["select"] + p["select_bias"]) > 0.5).float()
        if self.first:
            g[:, 0] = 1.0
        more = torch.relu(x @ p["down"].T + p["down_bias"]) @ p["up"].T + p["up_bias"]
        return g[..., None] * self.module(x) + self.scale * more


@pytest.mark.parametrize("kind", PARTS)
@pytest.mark.parametrize("first", [False, True])
def test_formula(kind, first):
    model, batch = make(kind)
    plain = copy.deepcopy(model)
    host = cw.Host(model)
    tenant = stir(host.add("t", "dyt", size=5, scale=2.0, first=first), std=0.3)
    for i in range(2):
        name = PARTS[kind].format(i)
        slots = ("select", "select_bias", "down", "down_bias", "up", "up_bias")
        pools = {k: tenant.pools[f"{name}.{k}"].detach() for k in slots}
        plain.set_submodule(name, Dynamic(plain.get_submodule(name), pools, 2.0, first))
    with torch.no_grad(), host.route("t"):
        torch.testing.assert_close(answer(model, batch), answer(plain, batch))


@pytest.mark.parametrize("kind", ["llama", "t5"])
@torch.no_grad()
def test_a_rows_first_token_is_no_padding_and_of_no_later_step(kind):
    """Padding on the left, and a text in two steps with a cache, by one tenant and in a mixed batch."""
    model, batch = make(kind)
    host = cw.Host(model)
    for i, name in enumerate("ab"):
        t = stir(host.add(name, "dyt", size=3, first=True), i, std=0.3)
        for n, p in t.pools.items():  # no gate is open but the first token's
            if "select" in n:
                p.fill_(-9.0 if n.endswith("bias") else 0.0)
    ids, mask = batch["input_ids"], torch.ones_like(batch["input_ids"])
    mask[0, :2] = 0
    answers = {} if kind == "llama" else {"decoder_input_ids": ids}
    for route in ("a", ["a", None, "b", "a"]):
        with host.route(route):
            whole = model(input_ids=ids, attention_mask=mask, **answers).logits
        with host.route("a"):
            alone = model(input_ids=ids[:1, 2:], **{k: v[:1] for k, v in answers.items()}).logits
        torch.testing.assert_close(whole[0, -alone.shape[1] :], alone[0], rtol=1e-4, atol=1e-5)
        with host.route(route):
            if answers:
                one = model(input_ids=ids, attention_mask=mask, decoder_input_ids=ids[:, :3])
                given = {"encoder_outputs": (one.encoder_last_hidden_state,), "decoder_input_ids": ids[:, 3:]}
            else:
                one = model(input_ids=ids[:, :3], attention_mask=mask[:, :3], use_cache=True)
                given = {"input_ids": ids[:, 3:]}
            two = model(**given, attention_mask=mask, past_key_values=one.past_key_values)
        torch.testing.assert_close(torch.cat([one.logits, two.logits], 1), whole, rtol=1e-4, atol=1e-5)


def test_the_noise_is_the_difference_of_two_gumbel_numbers():
    torch.manual_seed(0)
    drawn = logistic(torch.zeros(20000))
    assert abs(float(drawn.mean())) < 0.05 and abs(float(drawn.var()) - torch.pi**2 / 3) < 0.15
    for logit in (-1.0, 0.5):  # a token is kept with probability sigmoid(logit), whatever tau
        kept = (logit + drawn > 0).float().mean()
        torch.testing.assert_close(kept, torch.sigmoid(torch.tensor(logit)), atol=0.02, rtol=0)


def test_the_gradient_of_a_gate_is_that_of_its_sigmoid():
    bind, x = cw.bind.TokenSelect(tau=5.0), torch.randn(2, 3, 4)
    select, bias = torch.randn(4, requires_grad=True), torch.zeros(1, requires_grad=True)

    class Base:
        training = False

    weight = torch.randn(2, 3)
    (bind.opens(x, Base(), None, select, bias) * weight).sum().backward()
    p = torch.sigmoid((x @ select.detach()) / 5.0)
    torch.testing.assert_close(select.grad, ((weight * p * (1 - p) / 5.0)[..., None] * x).sum((0, 1)))


def test_the_rate_is_the_square_of_the_mean_over_layers_and_tokens():
    said = {"a": Said(torch.tensor([[1.0], [1.0], [0.0]]), torch.tensor([1.0, 1.0, 0.0]))}
    said["b"] = Said(torch.tensor([[1.0], [0.0]]), torch.ones(2))
    torch.testing.assert_close(rate(cw.methods.DyT(keep=0.5), said), torch.tensor(2.0 * 0.25**2))


def test_count_is_the_papers():
    """Per block 2 r d + r + d of the adapter and d + 1 of the selector."""
    sites = [cw.Site(f"layers.{i}.mlp", 768, 768, "ffn") for i in range(12)]
    assert cw.plan("dyt", sites, size=64).count() == 12 * (2 * 64 * 768 + 64 + 768 + 768 + 1)


def add_beside(layer, p):
    """The adapter alone, behind BERT's feed-forward part."""
    given = []
    layer.intermediate.register_forward_pre_hook(lambda m, args: given.append(args[0]))

    def add(module, args, y):
        return y + torch.relu(given[-1] @ p["down"].T + p["down_bias"]) @ p["up"].T + p["up_bias"]

    layer.output.dense.register_forward_hook(add)


def test_the_complete_pass_is_all_gates_open():
    """By hand: both passes' cross entropies, and what the complete one says against the gated one's."""
    model, batch = make("bert")
    host = cw.Host(Classifier(model))
    tenant = stir(host.add("t", "dyt", size=3, labels=3, complete=True), std=0.3)
    batch = {**batch, "labels": torch.tensor([0, 1, 2, 0])}
    task = Complete(Classify(None, 16, ("a", "b", "c")), host)
    loss = task.loss(host.module("t"), batch)
    with host.route("t"):
        gated = host.model(**batch).logits
    plain = copy.deepcopy(model)
    for i, layer in enumerate(plain.encoder.layer):
        slots = ("down", "up", "down_bias", "up_bias")
        add_beside(layer, {k: tenant.pools[f"encoder.encoder.layer.{i}.ffn.{k}"] for k in slots})
    ids, mask = batch["input_ids"], torch.ones_like(batch["input_ids"])
    features = plain(input_ids=ids, attention_mask=mask).last_hidden_state.mean(1)
    head = {k: tenant.pools[f"head.{k}"] for k in "Wb"}
    complete = features @ head["W"].T + head["b"]
    q, p = complete.detach().softmax(-1), gated.softmax(-1)
    want = F.cross_entropy(gated, batch["labels"]) + F.cross_entropy(complete, batch["labels"])
    want = want + (q * (q / p).log()).sum(-1).mean()
    torch.testing.assert_close(loss, want, rtol=1e-4, atol=1e-5)
    names = [n for n in tenant.pools if not n.startswith("head")]
    pools = [tenant.pools[n] for n in names]
    found = torch.autograd.grad(loss, pools, allow_unused=True)
    for n, a, b in zip(names, found, torch.autograd.grad(want, pools, allow_unused=True)):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5, msg=n)
    with torch.no_grad(), host.route("t"), host.complete():
        torch.testing.assert_close(host.model(**batch).logits, complete, rtol=1e-4, atol=1e-5)
