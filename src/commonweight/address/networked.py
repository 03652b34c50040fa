"""Reads whose coefficients a small network makes of a code: generated weights, one network for many readers."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ..core import serial


def perceptron(x: Tensor, layers: tuple[Tensor, ...], last: bool) -> Tensor:
    """ReLU between linear layers; weights (o, i) and biases (o,) in turn. last: ReLU behind the last one too, leaky."""
    for i in range(0, len(layers), 2):
        x = F.linear(x, layers[i], layers[i + 1])
        if last:
            x = F.leaky_relu(x)
        elif i + 2 < len(layers):
            x = F.relu(x)
    return x


@serial
@dataclass(frozen=True)
class Magnitudes:
    """theta = theta_0 + sum_k h_k D_k, h = network([cos(pi g / 2), sin(pi g / 2)]) of a code g in [0, 1]^c.

    Shapes: bank (1 + k, *s), its first entry theta_0 (the bias of the network's last layer); code (c,); layers: weights
    (o, i) and biases (o,) in turn, LeakyReLU behind each, the last of k -> (*s). Linear in: bank. Cost: k products for
    each number. The encoding's norm is sqrt(c) whatever g is. Source: MIP, arXiv 2304.07645, section 3.
    """

    def __call__(self, bank: Tensor, code: Tensor, *layers: Tensor) -> Tensor:
        turned = code * (math.pi / 2)
        h = perceptron(torch.cat([turned.cos(), turned.sin()]), layers, True)
        return bank[0] + torch.tensordot(h, bank[1:], 1)


@serial
@dataclass(frozen=True)
class Routed:
    """W = sum_i p_i E_i, p = softmax(network(code)), of which the active rows (or columns) are read.

    Shapes: experts (m, *s); code (c,), entry `place` the active share of the width; layers as `Magnitudes`, ReLU
    between, the last one of m, or of n m with `each`: neuron j has weights of its own -> (*s). axis: the dimension of W
    that is the width: what lies behind the active share is zero; `neurons`: that of the n neurons. Linear in: experts.
    Cost: m products for each number. Source: Mixture-of-Supernets, arXiv 2306.04845, section 3.
    """

    place: int
    axis: int
    each: bool = False
    neurons: int = 0

    def __call__(self, experts: Tensor, code: Tensor, *layers: Tensor) -> Tensor:
        m, logits = len(experts), perceptron(code, layers, False)
        if self.each:
            p = logits.view(-1, m).softmax(-1)  # (n, m)
            shape = [m] + [n if i == self.neurons else 1 for i, n in enumerate(experts.shape[1:])]
            w = (experts * p.mT.reshape(shape)).sum(0)
        else:
            w = torch.tensordot(logits.softmax(-1), experts, 1)
        return (
            w
            if self.axis < 0
            else w
            * active(w.shape[self.axis], code[self.place])
            .view([-1 if i == self.axis else 1 for i in range(w.dim())])
            .to(w.dtype)
        )


def active(width: int, share: Tensor) -> Tensor:
    """Which of so many neurons are in use: the first round(width share)."""
    return torch.arange(width, device=share.device) < torch.round(width * share.float())
