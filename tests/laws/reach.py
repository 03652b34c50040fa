"""A small model with every kind of site, in its less common forms too."""

from __future__ import annotations

import torch
from torch import Tensor, nn

B, T, VOCAB = 4, 6, 64

# kind of site -> the sites of it in `Model`
SITES = {
    "conv": "blocks.*.conv",
    "grouped conv": "blocks.*.deep",
    "depthwise conv": "blocks.*.each",
    "patches": "patch",
    "volume": "volume",
    "transposed conv": "blocks.*.up",
    "transposed grouped conv": "grow",
    "embedding": "table",
    "scaled embedding": "scaled",
    "bounded embedding": "bounded",
    "parameter": "blocks.*.A_log|blocks.*.gain",
}


class Scaled(nn.Embedding):
    embed_scale: Tensor

    def __init__(self, n: int, d: int, scale: float, **options: int):
        super().__init__(n, d, **options)
        self.register_buffer("embed_scale", torch.tensor(scale), persistent=False)

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) * self.embed_scale


class Block(nn.Module):
    """A convolution in time, one for each channel pair, and two parameters of its own."""

    def __init__(self, d: int):
        super().__init__()
        self.conv = nn.Conv1d(d, d, 3, padding=2, padding_mode="circular", dilation=2)
        self.deep = nn.Conv1d(d, d, 3, padding="same", groups=2, bias=False)
        self.each = nn.Conv1d(d, d, 8, padding=4, groups=d)
        self.up = nn.ConvTranspose1d(d, d, 3, stride=2, padding=2, output_padding=1, dilation=2)
        self.A_log = nn.Parameter(torch.randn(d, 4))
        self.gain = nn.Parameter(torch.ones(d) + 0.1 * torch.randn(d))

    def forward(self, x: Tensor) -> Tensor:
        y = self.each(self.deep(self.conv(x.mT).relu()))[..., :-1]
        y = self.up(y)[..., : 2 * y.shape[-1] : 2].mT
        return x + y * self.A_log.exp().sum(1).tanh() * self.gain


class Model(nn.Module):
    def __init__(self, d: int = 16):
        super().__init__()
        self.table = nn.Embedding(VOCAB, d, padding_idx=0)
        self.scaled = Scaled(VOCAB, d, 3.0, padding_idx=0)
        self.bounded = nn.Embedding(VOCAB, d, max_norm=1.0)
        nn.init.uniform_(self.bounded.weight, -0.1, 0.1)  # torch writes what is too long into the weight itself
        self.patch = nn.Conv2d(4, d, 2, stride=2)
        self.volume = nn.Conv3d(4, d, (1, 2, 2), stride=(2, 1, 1), padding=(0, 1, 0))
        self.grow = nn.ConvTranspose2d(4, d, (2, 4), stride=2, output_padding=1, groups=2)
        self.blocks = nn.ModuleList(Block(d) for _ in range(2))
        self.head = nn.Linear(d, 8)

    def forward(self, ids: Tensor, image: Tensor) -> Tensor:
        x = self.table(ids) + self.scaled(ids) + self.bounded(ids)
        x = (
            x
            + self.patch(image).flatten(2).mT[:, :1]
            + self.grow(image).mean((2, 3))[:, None]
            + self.volume(image.unflatten(2, (2, 2))).mean((2, 3, 4))[:, None]
        )
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def make(seed: int = 0) -> tuple[nn.Module, dict[str, Tensor]]:
    torch.manual_seed(seed)
    model = Model().double().eval()
    return model, {"ids": torch.randint(0, VOCAB, (B, T)), "image": torch.randn(B, 4, 4, 4, dtype=torch.float64)}
