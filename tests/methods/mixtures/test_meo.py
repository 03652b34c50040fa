"""MEO against its formula: row by row without padding, expert by expert with whole matrices."""

import math
from statistics import variance

import pytest
import torch
from torch.nn import functional as F

import commonweight as cw
from tests.laws.subjects import stir
from tests.models import make

SMALL = {"rank": 2, "experts": 3}
SOFT = {**SMALL, "active": 3}
REACHED = {**SMALL, "active": 3}
VARIANTS = [{"noisy": False}]
MODEL = "bert"
NAME = "encoder.layer.0.intermediate.dense"
LENGTHS = 6, 3, 5, 4


def case(**options):
    """(host, tenant, batch padded on the right)."""
    model, batch = make("bert")
    host = cw.Host(model, sites=f"{NAME}|*.output.dense")
    tenant = stir(host.add("t", "meo", rank=2, experts=4, alpha=6.0, **options), std=0.5)
    mask = (torch.arange(batch["input_ids"].shape[1]) < torch.tensor(LENGTHS)[:, None]).long()
    return host, tenant, {**batch, "attention_mask": mask}


def given(host, route, batch):
    """(what the site is given, what it answers)."""
    seen = {}
    layer = host.model.get_submodule(NAME)
    handle = layer.register_forward_hook(lambda m, args, y: seen.update(x=args[0].detach(), y=y.detach()))
    with torch.no_grad(), host.route(route):
        host.model(**batch)
    handle.remove()
    return seen["x"], seen["y"]


def gates(z, k):
    """Of one row, by hand: e^z of the k largest over their sum."""
    order = sorted(range(len(z)), key=lambda i: -float(z[i]))[:k]
    total = sum(math.exp(z[i]) for i in order)
    return [math.exp(z[i]) / total if i in order else 0.0 for i in range(len(z))]


def test_formula():
    host, tenant, batch = case()
    x, got = given(host, "t", batch)
    layer = host.model.get_submodule(NAME)
    A, B, R = (tenant.pools[f"{NAME}.{k}"].detach() for k in ("A", "B", "router"))
    experts = [layer.weight + 3.0 * B[:, 2 * e : 2 * e + 2] @ A[2 * e : 2 * e + 2] for e in range(4)]
    chosen = set()
    for row, n in enumerate(LENGTHS):
        tokens = x[row, :n]
        g = gates(R @ (sum(tokens) / n), 2)
        chosen.add(tuple(i for i, v in enumerate(g) if v))
        want = sum(w * F.linear(tokens, one, layer.bias) for w, one in zip(g, experts))
        torch.testing.assert_close(got[row, :n], want, rtol=1e-4, atol=1e-5)
    assert len(chosen) > 1, "all rows take the same experts"
    assert (got - F.linear(x, layer.weight, layer.bias)).abs().max() > 0.1


def test_padding_counts_for_nothing():
    host, _, batch = case()
    _, padded = given(host, "t", batch)
    for row, n in enumerate(LENGTHS):
        _, alone = given(host, "t", {k: v[row : row + 1, :n] for k, v in batch.items()})
        torch.testing.assert_close(padded[row, :n], alone[0], rtol=1e-4, atol=1e-5)


def test_padded_rows_of_a_mixed_batch_are_as_alone():
    host, _, batch = case()
    stir(host.add("u", "meo", rank=2, experts=4, alpha=6.0), 1, 0.5)
    _, mixed = given(host, ["t", "u", None, "u"], batch)
    for row, name in enumerate(["t", "u", None, "u"]):
        _, alone = given(host, name, {k: v[row : row + 1, : LENGTHS[row]] for k, v in batch.items()})
        torch.testing.assert_close(mixed[row, : LENGTHS[row]], alone[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("k", [2, 4])
def test_loss(k):
    """Site by site: gates of the rows and, of fewer than all experts, a smooth load."""
    host, tenant, batch = case(active=k, balance=0.5)
    host.model.train()
    torch.manual_seed(0)
    with host.listening() as heard, host.route("t"):
        host.model(**batch)
    want = 0.0
    for site, (said, real) in heard.said(tenant).items():
        assert site and real.tolist() == [1.0] * 4, "a row speaks once, whatever its padding"
        took, load = [0.0] * 4, [0.0] * 4
        for row in said.detach():
            clean, z, size = row[:4].tolist(), row[4:8].tolist(), row[8:].tolist()
            for e, g in enumerate(gates(z, k)):
                took[e] += g
                if k == 4:
                    load[e] += 1
                    continue
                bar = sorted((z[o] for o in range(4) if o != e), reverse=True)[k - 1]
                load[e] += 0.5 * (1 + math.erf((clean[e] - bar) / size[e] / math.sqrt(2)))
        want += 0.5 * sum(variance(t) / ((sum(t) / 4) ** 2 + 1e-10) for t in (took, load))
    assert want > 0.1 and float(heard.loss(tenant).detach()) == pytest.approx(want, rel=1e-4)


def test_noise_is_of_training_and_of_the_size_learnt():
    host, tenant, batch = case()
    sizes = []
    for mode in (False, True):
        host.model.train(mode)
        for m in host.model.modules():
            if isinstance(m, torch.nn.Dropout):
                m.p = 0.0
        with host.listening() as heard, host.route("t"):
            x = {}
            handle = host.model.get_submodule(NAME).register_forward_hook(lambda m, a, y: x.update(x=a[0]))  # noqa: B023
            host.model(**batch)
            handle.remove()
        sizes.append((heard.said(tenant)[NAME].logits, x["x"]))
    assert sizes[0][0].shape == (4, 4) and sizes[1][0].shape == (4, 12)
    first = sizes[1][1][1, : LENGTHS[1]].mean(0)
    want = torch.log1p(torch.exp(tenant.pools[f"{NAME}.noise"] @ first)) + 0.01
    torch.testing.assert_close(sizes[1][0][1, 8:], want, rtol=1e-4, atol=1e-5)
    assert (sizes[1][0][:, 4:8] - sizes[1][0][:, :4]).abs().min() > 0


def test_count():
    assert cw.plan("meo", [cw.Site("q", 48, 32)], rank=2, experts=3).count() == 3 * (2 * (48 + 32) + 2 * 32)


def test_causal_blocks_are_refused():
    with pytest.raises(cw.CommonweightError, match=r"no token sees a later one.*would tell it what comes after it"):
        cw.Host(make("llama")[0]).add("t", "meo")


def test_of_an_encoder_and_a_decoder_the_encoder_has_it():
    host = cw.Host(make("t5")[0])
    tenant = host.add("t", "meo", **SMALL)
    assert tenant.plan.uses and all(u.site.startswith("encoder.") for u in tenant.plan.uses)
    with pytest.raises(cw.CommonweightError, match="name sites of an encoder"):
        host.add("u", "meo", sites="*.q", **SMALL)


def test_a_part_of_the_model_is_no_row():
    host, _, batch = case()
    with host.route("t"), pytest.raises(cw.CommonweightError, match="call the model, not a part of it"):
        host.model.get_submodule(NAME)(torch.zeros(4, 6, 32))
    odd = batch["attention_mask"][:, None, None, :].expand(-1, 1, batch["input_ids"].shape[1], -1).bool()
    with host.route("t"), pytest.raises(cw.CommonweightError, match="which tokens are padding"):
        host.model(batch["input_ids"], attention_mask=odd)
    numbers = torch.full(batch["input_ids"].shape, host["t"].number)
    with host.route(numbers), pytest.raises(cw.CommonweightError, match="per row"):
        host.model(**batch)


def test_a_checkpoint_and_a_mixed_batch_give_the_same_gradients():
    host, tenant, batch = case(noisy=False)
    stir(host.add("u", "meo", rank=2, experts=4, noisy=False), 1, 0.5)
    layers = host.model.encoder.layer

    def found(rows, route):
        with host.listening() as heard, host.route(route):
            out = host.model(**{k: v[rows] for k, v in batch.items()}).last_hidden_state
        mine = out if isinstance(route, str) else out[:2]
        real = batch["attention_mask"][rows][: len(mine), :, None]
        loss = (mine * real).square().sum() + heard.loss(tenant)
        return loss, [g.clone() for g in torch.autograd.grad(loss, [*tenant.parameters()], retain_graph=False)]

    loss, plain = found(slice(0, 2), "t")
    host.model.train()
    for m in host.model.modules():
        if isinstance(m, torch.nn.Dropout):
            m.p = 0.0
    host.model.activation_checkpointing_enable({"use_reentrant": False})
    assert all(layer.gradient_checkpointing for layer in layers)
    for rows, route in ((slice(0, 2), "t"), (slice(0, 4), ["t", "t", "u", None])):
        again, grads = found(rows, route)
        torch.testing.assert_close(again, loss, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(grads, plain, rtol=1e-3, atol=1e-4)
