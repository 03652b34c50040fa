"""DAS: adapters in the places of blocks, which are not called; and the search for those blocks."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import commonweight as cw
from commonweight.adapt import adapt, open_host
from commonweight.core.schedule import Moment
from commonweight.methods.conditional.das import DAS, Search
from tests.adapt import tiny
from tests.laws.subjects import stir
from tests.models import answer, make

SMALL = {"size": 3, "skip": 1, "every": 2}
VARIANTS = [{"skipped": ("*.0",)}]
REACHED = {"size": 3, "skipped": ("*.0",)}
BLOCKS = {
    "llama": "model.layers",
    "gpt2": "transformer.h",
    "bert": "encoder.layer",
    "vit": "layers",
    "moe": "model.layers",
}


class Adapter(nn.Module):
    def __init__(self, p):
        super().__init__()
        self.p = p

    def forward(self, x, *_, **__):
        z = F.layer_norm(x, x.shape[-1:], eps=1e-5) * self.p["norm"] + self.p["norm_bias"]
        return x + torch.relu(z @ self.p["down"].T + self.p["down_bias"]) @ self.p["up"].T + self.p["up_bias"]


def calls(model, name):
    seen = []
    for part in model.get_submodule(name).children():
        part.register_forward_hook(lambda *_: seen.append(1))
    return seen


def checkpointed(call):
    return lambda self, x, **kwargs: checkpoint(lambda x: call(self, x, **kwargs), x, use_reentrant=False)


@pytest.mark.parametrize("kind", BLOCKS)
def test_formula_and_the_block_is_not_called(kind):
    model, batch = make(kind)
    name, plain = f"{BLOCKS[kind]}.1", copy.deepcopy(model)
    host = cw.Host(model)
    tenant = stir(host.add("t", "das", size=5, skipped=(name,)), std=0.3)
    pools = {n.rpartition(".")[2]: p.detach() for n, p in tenant.pools.items()}
    plain.set_submodule(name, Adapter(pools))
    seen = calls(model, name)
    with torch.no_grad():
        want = answer(plain, batch)
        with host.route("t"):
            torch.testing.assert_close(answer(model, batch), want)  # the pass that shows what the block gives
            assert seen
            seen.clear()
            torch.testing.assert_close(answer(model, batch), want)
            assert not seen
        with host.route(["t", None, "t", None]):
            torch.testing.assert_close(answer(model, batch)[::2], want[::2], rtol=1e-4, atol=1e-5)
        assert seen
    host.close()
    assert "forward" not in model.get_submodule(name).__dict__


def test_a_copy_leaves_it_out_by_itself():
    model, batch = make("llama")
    host = cw.Host(model)
    stir(host.add("t", "das", size=5, skipped=("*.1",)), std=0.3)
    with torch.no_grad(), host.route("t"):
        want = answer(model, batch)
    other = copy.deepcopy(host)
    host.close()
    seen = calls(other.model, "model.layers.1")
    with torch.no_grad():
        with other.route("t"):
            torch.testing.assert_close(answer(other.model, batch), want)
        assert not seen
        torch.testing.assert_close(answer(other.model, batch), answer(model, batch))
    assert seen


def test_a_shallow_copy_runs_its_own_layers():
    model, batch = make("llama")
    host = cw.Host(model)
    host.add("t", "das", size=5, skipped=("*.1",))
    with torch.no_grad(), host.route("t"):
        answer(model, batch)
    block = model.model.layers[1]
    other = copy.copy(block)
    other._modules = {n: copy.deepcopy(m) for n, m in block._modules.items()}
    seen = calls(model, "model.layers.1")
    model.model.layers[1] = other
    with torch.no_grad():
        want = answer(make("llama")[0], batch)
        torch.testing.assert_close(answer(model, batch), want)
    assert not seen
    model.model.layers[1] = block


def test_it_is_left_out_in_training_too():
    model, batch = make("llama")
    host = cw.Host(model)
    tenant = host.add("t", "das", size=5, skipped=("*.0", "*.1"))
    with host.route("t"):
        answer(model, batch)
        seen = calls(model, "model.layers.1")
        answer(model, batch).square().sum().backward()
    assert not seen and all(p.grad.any() for p in tenant.parameters())


@pytest.mark.parametrize("kind", ["bert", "t5"])
def test_dropout_after_it_is_the_same_whether_it_is_called_or_not(kind):
    """The first pass calls it to see what it gives; T5's first block is called in each."""
    model, batch = make(kind)
    host = cw.Host(model.train())
    tenant = stir(host.add("t", "das", size=5, skipped=("*.0",)), std=0.3)
    found = []
    for _ in range(3):
        torch.manual_seed(0)
        with host.route("t"):
            y = answer(model, batch)
        found.append((torch.rand(1), *torch.autograd.grad(y.square().sum(), list(tenant.parameters()))))
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))
    if kind == "bert":  # the block takes no numbers that those after it would have had
        host.close()
        pools = {n.rpartition(".")[2]: p.detach() for n, p in tenant.pools.items()}
        model.encoder.layer[0] = Adapter(pools)
        torch.manual_seed(0)
        answer(model, batch)
        assert torch.equal(torch.rand(1), found[0][0])


def test_a_checkpoint_around_the_block_in_its_first_pass(monkeypatch):
    """What it computes again in backward saves as many tensors, although the block is not called any more."""
    found = []
    for kept in (False, True):
        model, batch = make("llama")
        host = cw.Host(model)
        tenant = stir(host.add("t", "das", size=5, skipped=("*.1",)), std=0.3)
        if kept:
            kind = type(model.model.layers[1])
            monkeypatch.setattr(kind, "__call__", checkpointed(kind.__call__))
        with host.route("t"):
            answer(model, batch).square().sum().backward()
        found.append([p.grad for p in tenant.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_a_block_whose_answer_others_read_is_called():
    """T5's first block makes the positions of all; the second gives no more than it was given."""
    model, batch = make("t5")
    plain = copy.deepcopy(model)
    host = cw.Host(model)
    tenant = stir(host.add("t", "das", size=5, skipped=("encoder.block.0",)), std=0.3)
    p = {n.rpartition(".")[2]: v.detach() for n, v in tenant.pools.items()}
    plain.encoder.block[0].register_forward_hook(lambda m, a, y: (Adapter(p)(a[0]), *y[1:]))
    with torch.no_grad(), host.route("t"):
        for _ in range(2):
            torch.testing.assert_close(answer(model, batch), answer(plain, batch))


def test_generation_with_a_cache():
    """The first block counts the cache's tokens: it is called and its answer left. The second one is not called."""
    model, batch = make("llama")
    host = cw.Host(model)
    stir(host.add("t", "das", size=4, skipped=("*.0", "*.1")), std=0.3)
    stir(host.add("u", "das", size=4, skipped=("*.1",)), 1, std=0.3)
    told = dict(do_sample=False, max_new_tokens=5, min_new_tokens=5)
    for name in ("t", "u"):
        with host.route(name):
            plain = model.generate(**batch, use_cache=False, **told)
            seen = calls(model, "model.layers.1")
            assert torch.equal(model.generate(**batch, use_cache=True, **told), plain) and not seen
    with host.route(["t", "u", None, "t"]):
        assert torch.equal(model.generate(**batch, **told), model.generate(**batch, use_cache=False, **told))


def test_count_is_the_papers():
    sites = [cw.Site(f"layers.{i}", 768, 768, "block") for i in range(12)]
    one = 2 * 288 * 768 + 288 + 768 + 2 * 768
    assert cw.plan("das", sites).count() == 12 * one
    assert cw.plan("das", sites, skipped=("layers.1", "layers.7")).count() == 2 * one


def names(n):
    return tuple(f"layers.{i}" for i in range(n))


def shut(edit):
    return {n.removesuffix(".open") for n, v in edit.values.items() if v == 0}


def test_a_look_moves_the_scores_of_the_blocks_that_were_left_out():
    way = Search(DAS(skip=2, every=5, search=0.5, warm=0.2), names(6), 1)
    a, asked, losses = torch.linspace(-1, 1, 6, dtype=torch.float64), [], [0.5, 1.0, 2.0]

    def loss(values):
        asked.append([i for i, b in enumerate(names(6)) if values[f"{b}.open"] == 0])
        return losses[len(asked) - 1]

    state, edit = way.after(Moment(15, 50, {}, {}, {}, loss), {"a": a})
    assert [len(s) for s in asked] == [2, 2, 2] and len({*map(tuple, asked)}) == 3
    rewards, want = [math.exp(-v) for v in losses], a.clone()
    for mine, r in zip(asked, rewards):
        for i in mine:
            p = 1 / (1 + math.exp(-a[i].item()))
            want[i] += (r - sum(rewards) / 3) * p * (1 - p)
    torch.testing.assert_close(state["a"], want)
    assert len(shut(edit)) == 2 and edit.resting == {f"{b}.{k}" for b in {*names(6)} - shut(edit) for k in (
        "norm", "norm_bias", "down", "down_bias", "up", "up_bias")}  # fmt: skip
    assert way.after(Moment(10, 50, {}, {}, {}, None), state)[0] is state  # not yet
    assert way.after(Moment(14, 50, {}, {}, {}, None), state)[0] is state


def test_after_the_search_the_largest_scores_stay_out():
    way = Search(DAS(skip=2, every=100, search=0.5), names(6), 1)
    state = {"a": torch.tensor([0.0, 3.0, 1.0, -1.0, 2.0, 0.0], dtype=torch.float64)}
    drawn = {frozenset(shut(way.after(Moment(i, 50, {}, {}, {}), state)[1])) for i in range(1, 25)}
    assert len(drawn) > 3 and not way.settled(24, 50)
    assert shut(way.after(Moment(25, 50, {}, {}, {}), state)[1]) == {"layers.1", "layers.4"} and way.settled(25, 50)
    assert not way.after(Moment(26, 50, {}, {}, {}), state)[1].values


def test_a_trained_tenant_holds_the_adapters_of_what_is_left_out(bert):
    host, how = open_host(bert, dtype="float32"), {"size": 3, "skip": 1, "every": 2, "search": 0.5}
    tenant = adapt(host, "t", tiny.rows(24), method="das", options=how, batch_size=4, epochs=2, lr=5e-3).tenant
    assert len(tenant.config.skipped) == 1 and not any(n.endswith(".open") for n in tenant.pools)
    assert sum(u.site == tenant.config.skipped[0] for u in tenant.plan.uses) == 1


def test_what_cannot_be_left_out_is_said():
    host = cw.Host(make("llama")[0])
    with pytest.raises(
        cw.CommonweightError, match=r"skipped=\('\*.7',\) names none of the 2 blocks, such as model.lay"
    ):
        host.add("t", "das", skipped=("*.7",))
    with pytest.raises(cw.CommonweightError, match="das: skip=3, and there are 2 blocks; choose fewer"):
        host.add("t", "das", skip=3)
