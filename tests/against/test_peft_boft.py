"""BOFT against PEFT, whose many-factor path wants a CUDA extension: its one function is stood in for."""

import pytest
import torch
from peft import BOFTConfig
from peft.tuners.boft import layer

from tests.against.wrapped import agree


class Extension:
    """forward((N, D, H, H)) gives N block-diagonal matrices."""

    def forward(self, blocks):
        return [torch.stack([torch.block_diag(*row) for row in blocks])]


def compare(kind, targets, factors, theirs, ours):
    config = BOFTConfig(target_modules=targets, boft_n_butterfly_factor=factors, **theirs)
    agree(
        kind, config, "boft_", lambda site, rest, p: (f"{site}.{rest[0]}", p.squeeze(-1) if rest[0] == "s" else p),
        "boft", "|".join(f"*.{t}" for t in targets), factors=factors, **ours,
    )  # fmt: skip


@pytest.mark.parametrize("kind, targets", [("llama", ["q_proj", "v_proj", "down_proj"]), ("bert", ["query", "value"])])
@pytest.mark.parametrize("factors", [1, 2, 3])
@pytest.mark.parametrize(
    "theirs, ours",
    [({"boft_block_size": 4}, {"block_size": 4}), ({"boft_block_size": 0, "boft_block_num": 4}, {"blocks": 4})],
)
def test_boft(monkeypatch, kind, targets, factors, theirs, ours):
    monkeypatch.setattr(layer, "_FBD_CUDA", Extension())
    compare(kind, targets, factors, theirs, ours)


def test_without_the_extension(monkeypatch):
    monkeypatch.setattr(layer, "get_fbd_cuda", lambda: None)
    compare("bert", ["key", "value"], 1, {"boft_block_size": 8}, {"block_size": 8})
