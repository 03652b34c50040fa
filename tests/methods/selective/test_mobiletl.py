"""MobileTL on inverted residual blocks: what trains, what is kept for the backward pass, and gradients."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import commonweight as cw
from commonweight.adapt import one_bit
from commonweight.core.bits import packed, unpacked
from tests.laws.subjects import stir

SMALL = {"blocks": 1}


def block(inp, out, activation):
    """Expansion, depthwise convolution, projection; a norm behind each."""
    wide = 4 * inp
    return nn.ModuleDict(
        {
            "expand": nn.Conv2d(inp, wide, 1, bias=False), "norm1": nn.BatchNorm2d(wide), "act1": activation(),
            "depth": nn.Conv2d(wide, wide, 3, padding=1, groups=wide, bias=False), "norm2": nn.BatchNorm2d(wide),
            "act2": activation(), "reduce": nn.Conv2d(wide, out, 1, bias=False), "norm3": nn.BatchNorm2d(out),
        }
    )  # fmt: skip


class Net(nn.Module):
    def __init__(self, activation=nn.Hardswish):
        super().__init__()
        self.layer = nn.ModuleList([block(8, 8, activation) for _ in range(3)])
        self.classifier = nn.Linear(8, 3)

    def forward(self, x):
        for b in self.layer:
            y = x
            for part in b.values():
                y = part(y)
            x = x + y
        return self.classifier(x.mean((2, 3)))


def net(activation=nn.Hardswish):
    torch.manual_seed(0)
    model = Net(activation).eval()
    for m in model.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.running_mean.normal_(0, 0.3)
            m.running_var.uniform_(0.5, 2)
            nn.init.normal_(m.bias, 0, 0.3)
    return model.requires_grad_(False)


class Held:
    """A tensor that a graph holds, as long as it does."""

    def __init__(self, t, live):
        self.t, self.live, self.at = t, live, t.data_ptr()
        live[self.at] = live.get(self.at, 0) + 1

    def __del__(self):
        self.live[self.at] -= 1


def kept(model, x):
    """Bytes that a forward pass keeps for the backward pass, but for the model's own numbers; and its answer."""
    own, live, size = {p.data_ptr() for p in model.parameters()}, {}, {}

    def pack(t):
        size[t.data_ptr()] = t.numel() * t.element_size()
        return Held(t, live)

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda held: held.t):
        out = model(x)
    return sum(size[at] for at, n in live.items() if n and at not in own), out


def test_what_trains_and_count():
    host = cw.Host(net())
    tenant = host.add("t", "mobiletl", blocks=2, modules_to_save=["classifier"])
    by = {}
    for n in tenant.plan.pools:
        by.setdefault(n.rpartition(".")[0], set()).add(n.rpartition(".")[2])
    assert "layer.0.expand" not in by and by.pop("classifier") == {"W", "b"}
    want = {"expand": {"dw"}, "norm1": {"db"}, "depth": {"dw"}, "norm2": {"db"}, "reduce": {"dw"}}
    assert by == {f"layer.{i}.{k}": v for i in (1, 2) for k, v in (want | {"norm3": {"dw", "db"}}).items()}
    assert tenant.bare().plan.count() == 2 * (8 * 32 + 9 * 32 + 32 * 8 + 2 * 32 + 2 * 8)


def test_formula():
    host = cw.Host(net())
    tenant = stir(host.add("t", "mobiletl", blocks=1))
    p = {n.removeprefix("layer.2."): v.detach() for n, v in tenant.pools.items()}
    x = torch.randn(2, 8, 5, 5)
    with torch.no_grad(), host.route("t"):
        got = host.model(x)
    with torch.no_grad():
        other = net()
        last = other.layer[2]
        for k in ("expand", "depth", "reduce"):
            last[k].weight += p[f"{k}.dw"].view_as(last[k].weight)
        for k in ("norm1", "norm2", "norm3"):
            last[k].bias += p[f"{k}.db"]
        last["norm3"].weight += p["norm3.dw"]
        torch.testing.assert_close(got, other(x), rtol=1e-4, atol=1e-5)


def test_other_running_statistics_are_a_scale_and_a_shift():
    """What a tenant with a mean and a variance of its own would say, said by dw and db."""
    model = net()
    host, other = cw.Host(model), net()
    tenant = host.add("t", "mobiletl", blocks=1)
    norm, theirs = model.layer[2]["norm3"], other.layer[2]["norm3"]
    theirs.running_mean.normal_(0, 1)
    theirs.running_var.uniform_(0.1, 3)
    with torch.no_grad():
        s = ((norm.running_var + norm.eps) / (theirs.running_var + norm.eps)).sqrt()
        db = norm.weight * (norm.running_mean - theirs.running_mean) / (theirs.running_var + norm.eps).sqrt()
        tenant.pools["layer.2.norm3.dw"].copy_(norm.weight * s - norm.weight)
        tenant.pools["layer.2.norm3.db"].copy_(db)
        x = torch.randn(2, 8, 5, 5)
        with host.route("t"):
            torch.testing.assert_close(model(x), other(x), rtol=1e-4, atol=1e-5)


def test_bits_are_packed():
    mask = torch.rand(3, 7) > 0.5
    assert packed(mask).shape == (3,) and torch.equal(unpacked(packed(mask), mask.shape), mask)


@pytest.mark.parametrize(
    ("activation", "slope"),
    [
        (nn.ReLU, lambda x: x > 0), (nn.ReLU6, lambda x: (x > 0) & (x < 6)), (nn.Hardswish, lambda x: x > 0),
        (lambda: nn.ReLU6(inplace=True), lambda x: (x > 0) & (x < 6)),
    ],
)  # fmt: skip
def test_an_activation_answers_as_before_and_its_slope_is_a_bit(activation, slope):
    module, x = nn.Sequential(activation()), 5 * torch.randn(4, 33)
    own, g = (x * 1).requires_grad_(), torch.randn(4, 33)
    with one_bit(module):
        y = module(own * 1)
        y.backward(g)
    assert torch.equal(y, activation()(x.clone()))
    torch.testing.assert_close(own.grad, g * slope(x))
    assert "forward" not in module[0].__dict__


def test_less_is_kept_and_relu6_has_its_gradients():
    x = torch.randn(4, 8, 16, 16)
    for activation in (nn.ReLU6, nn.Hardswish):
        model, found = net(activation), {}
        host = cw.Host(model)
        for method in ("full", "mobiletl"):
            tenant = host.add(method, method, sites="layer.2.*")
            with host.route(method):
                found[method], out = kept(model, x)
                if method == "mobiletl":
                    plain = torch.autograd.grad(
                        F.cross_entropy(out, torch.tensor([0, 1, 2, 0])), [*tenant.parameters()]
                    )
                    with one_bit(model):
                        found["one bit"], out = kept(model, x)
        loss = F.cross_entropy(out, torch.tensor([0, 1, 2, 0]))
        grads = torch.autograd.grad(loss, [*tenant.parameters()])
        if activation is nn.ReLU6:
            torch.testing.assert_close(grads, plain)
        assert found["one bit"] < 0.55 * found["full"] and found["mobiletl"] < 0.8 * found["full"], found


def test_without_numbers_all_is_a_block():
    sites = [cw.Site("up", 8, 4), cw.Site("norm", 8, 1, "norm"), cw.Site("down", 4, 8), cw.Site("end", 4, 1, "norm")]
    assert cw.plan("mobiletl", sites).count() == (32 + 8) + 8 + (32 + 4) + 8
    numbered = [cw.Site(f"blocks.{i}.{j}.conv", 4, 4, "conv") for i in range(2) for j in range(2)]
    assert {u.site for u in cw.plan("mobiletl", [*sites, *numbered], blocks=1).uses} == {"blocks.1.1.conv"}
