"""Small modules that do what others do to a host: read weights past their modules, pack them, leave layers out."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import commonweight as cw
from tests.laws.subjects import stir


class Product(torch.autograd.Function):
    """As fused kernels are: whoever hands it a weight gets a gradient for that tensor alone."""

    @staticmethod
    def forward(ctx, x, w):
        ctx.save_for_backward(x, w)
        return x @ w.T

    @staticmethod
    def backward(ctx, g):
        x, w = ctx.saved_tensors
        return g @ w, g.flatten(0, -2).T @ x.flatten(0, -2)


class Attention(nn.Module):
    """way: how the fused projection is read. "called" is as usual; the others read its weight past it."""

    def __init__(self, way: str):
        super().__init__()
        self.way, self.qkv, self.proj = way, nn.Linear(16, 48, bias=way in ("called", "columns")), nn.Linear(16, 16)
        self.q_bias = nn.Parameter(torch.randn(16))

    def forward(self, x: Tensor) -> Tensor:
        if self.way == "called":
            y = self.qkv(x)
        elif self.way == "linear":  # with a bias that is put together
            zero = torch.zeros_like(self.q_bias)
            y = F.linear(input=x, weight=self.qkv.weight, bias=torch.cat([self.q_bias, zero, zero]))
        elif self.way == "matmul":
            y = x @ self.qkv.weight.T
        elif self.way == "columns":  # as Mamba's time steps, whose bias is added elsewhere
            y = (self.qkv.weight @ x.mT).mT + self.qkv.bias
        elif self.way == "cast":  # as routers do, which score in float32
            y = F.linear(x.type(torch.float32), self.qkv.weight.type(torch.float32))
        elif self.way == "forward":  # the module's own function, past its hooks
            y = self.qkv.forward(x)
        else:
            y = Product.apply(x, self.qkv.weight)
        q, k, v = y.chunk(3, -1)
        return self.proj((q @ k.mT).softmax(-1) @ v)


class Blocks(nn.Module):
    def __init__(self, *layers: nn.Module):
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = x + layer(x)
        return x


class Packed(nn.Module):
    """A linear layer that is no nn.Linear: int8 codes and a scale for each row."""

    def __init__(self, linear: nn.Linear):
        super().__init__()
        self.in_features, self.out_features, self.bias = linear.in_features, linear.out_features, linear.bias
        scale = linear.weight.detach().abs().amax(1, keepdim=True) / 127
        self.register_buffer("scale", scale)
        self.register_buffer("codes", (linear.weight.detach() / scale).round().to(torch.int8))

    def numbers(self) -> Tensor:
        return self.codes * self.scale

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.numbers().to(x.dtype), self.bias)


class MLP(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(16, 32), nn.Linear(32, 16)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.up(x).relu())


def blocks(way: str = "called", seed: int = 0, pairs: int = 2) -> Blocks:
    torch.manual_seed(seed)
    return Blocks(*(part for _ in range(pairs) for part in (Attention(way), MLP()))).eval()


def packed(seed: int = 0) -> Blocks:
    model = blocks(seed=seed)
    for mlp in (model.layers[1], model.layers[3]):
        mlp.up, mlp.down = Packed(mlp.up), Packed(mlp.down)
    return model


def hosted(model: nn.Module, method: str = "lora", **options) -> cw.Host:
    host = cw.Host(model)
    options = {"rank": 3, **options} if method == "lora" else options
    for i, name in enumerate("ab"):
        stir(host.add(name, method, seed=i, **options), i)
    return host


def routed(host: cw.Host, readers, x: Tensor) -> Tensor:
    with torch.no_grad(), host.route(readers):
        return host.model(x)


def merged(host: cw.Host, name: str, like: nn.Module, x: Tensor) -> Tensor:
    """What an ordinary model with the tenant's merged weights answers."""
    like.load_state_dict(host.merged(name), strict=False)
    with torch.no_grad():
        return like(x)
