"""What routers say reaches a loss: of the tenant's own tokens, whoever else is in the batch."""

from functools import partial

import pytest
import torch
from torch.utils.checkpoint import checkpoint

import commonweight as cw
from tests.laws.subjects import stir
from tests.models import make

MOLORA = {"rank": 2, "experts": 3, "balance": 0.5, "small": 0.1}


@pytest.fixture
def host():
    host = cw.Host(make("llama")[0])
    stir(host.add("a", "molora", **MOLORA), 1)
    stir(host.add("b", "molora", **MOLORA), 2)
    stir(host.add("c", "dynmole", rank=2, experts=4, balance=0.3, entropy=0.3), 3)
    stir(host.add("d", "lora", rank=2), 4)
    return host


def rows(host, lengths=(7, 4, 5, 6), pad=0):
    """Rows of several lengths, padded on the right (and further, by `pad`)."""
    longest = max(lengths) + pad
    ids = torch.randint(1, 50, (len(lengths), longest), generator=torch.Generator().manual_seed(0))
    mask = (torch.arange(longest) < torch.tensor(lengths)[:, None]).long()
    return {"input_ids": ids, "attention_mask": mask}


def heard(host, route, batch, names):
    """(each tenant's loss, the gradients of its pools)."""
    with host.listening() as found, host.route(route):
        host.model(**batch)
    out = {}
    for n in names:
        loss, mine = found.loss(host[n]), dict(host[n].named_parameters())
        grads = torch.autograd.grad(loss, [*mine.values()], allow_unused=True, retain_graph=True)
        out[n] = loss.detach(), dict(zip(mine, grads))
    return out


@pytest.mark.parametrize("route", [["a", "b", "c", "a"], ["b", None, "a", "d"], ["c", "b", "b", "c"]])
def test_a_mixed_batch_gives_each_tenant_what_it_has_alone(host, route):
    batch = rows(host, pad=3)
    names = {n for n in route if n not in (None, "d")}
    mixed = heard(host, route, batch, names)
    for n in names:
        mine = [i for i, r in enumerate(route) if r == n]
        width = int(batch["attention_mask"][mine].sum(1).max())
        loss, grads = heard(host, n, {k: v[mine, :width] for k, v in batch.items()}, [n])[n]
        torch.testing.assert_close(mixed[n][0], loss, rtol=1e-5, atol=1e-6)
        assert any(g is not None and g.abs().max() > 1e-5 for g in grads.values())
        for k, g in grads.items():
            other = mixed[n][1][k]
            assert (g is None) == (other is None), k
            if g is not None:
                torch.testing.assert_close(other, g, rtol=1e-4, atol=1e-6)


def test_a_route_of_tokens(host):
    """Two rows packed into one, and by the reader of every token."""
    batch = rows(host, (5, 5))
    del batch["attention_mask"]
    numbers = torch.tensor([[host["a"].number] * 5, [host["b"].number] * 3 + [-1] * 2])
    got = heard(host, numbers, batch, ["a", "b"])
    with host.listening() as found, host.route("a"):
        host.model(input_ids=batch["input_ids"][:1])
    torch.testing.assert_close(got["a"][0], found.loss(host["a"]).detach())
    assert len(found.said(host["a"])["model.layers.0.self_attn.q_proj"].logits) == 5
    assert float(got["b"][0]) != pytest.approx(float(got["a"][0]))


def test_a_mask_that_comes_by_place(host):
    batch = rows(host)
    named = heard(host, "a", batch, ["a"])["a"][0]
    with host.listening() as found, host.route("a"):
        host.model(batch["input_ids"], batch["attention_mask"])
    torch.testing.assert_close(found.loss(host["a"]).detach(), named)


def test_with_checkpoints(host):
    batch = rows(host)
    plain = heard(host, "a", batch, ["a"])["a"]
    for layer in host.model.model.layers:
        layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)
    with host.listening() as found, host.route("a"):
        host.model(**batch, use_cache=False)
    found.loss(host["a"]).backward()
    torch.testing.assert_close(found.loss(host["a"]).detach(), plain[0])
    for k, p in host["a"].named_parameters():
        if plain[1][k] is not None:
            torch.testing.assert_close(p.grad, plain[1][k], rtol=1e-4, atol=1e-6)


def test_a_pass_without_gradients_is_told(host):
    """As the first pass of a checkpoint with use_reentrant=True is one."""
    with host.listening() as found, host.route("a"), torch.no_grad():
        host.model(**rows(host))
    assert not found.parts
    with pytest.raises(cw.CommonweightError, match="use_reentrant=False"):
        found.loss(host["a"])


def test_nobody_listens(host):
    batch = rows(host)
    with host.listening() as found:
        pass
    with host.route("a"):
        host.model(**batch)
    assert not found.parts
    with host.listening() as found, host.route("d"):
        host.model(**batch)
    assert float(found.loss(host["d"])) == 0


def test_parts_of_a_fused_projection():
    model, batch = make("llama")
    host = cw.Host(model, sites="*.q_proj*", fused={"*.q_proj": 2})
    stir(host.add("a", "molora", **MOLORA), 1)
    with host.listening() as found, host.route("a"):
        model(**batch)
    said = found.said(host["a"])
    assert len(said) == 2 * sum("q_proj" in n for n, _ in model.named_modules() if n.endswith("q_proj"))
    assert float(found.loss(host["a"]).detach()) > 0
