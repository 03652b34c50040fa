"""PEFT's adapters on tables of embeddings and convolutions, and its trained entries: in and out."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import commonweight as cw
from tests.host.test_families import made
from tests.laws.subjects import stir
from tests.methods.selective.test_tokens import IDS, llama

peft = pytest.importorskip("peft")


def moved(model: nn.Module) -> nn.Module:
    g = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for n, p in model.named_parameters():
            if "lora_" in n or "tokens_delta" in n:
                p.add_(0.1 * torch.randn(p.shape, generator=g))
    return model.eval()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("config", [
    peft.LoraConfig(r=4, target_modules=["embed_tokens"]),
    peft.LoraConfig(r=4, target_modules=["embed_tokens", "q_proj"], use_rslora=True),
    peft.TrainableTokensConfig(token_indices=[5, 9, 11]),
])  # fmt: skip
def test_a_table_goes_in_as_peft_answers(config, tied, tmp_path):
    theirs = moved(peft.get_peft_model(llama(tied), config))
    theirs.save_pretrained(tmp_path / "a", save_embedding_layers=False)
    host = cw.Host(llama(tied))
    tenant = host.import_peft("t", tmp_path / "a")
    with torch.no_grad():
        want = theirs(IDS).logits
        with host.route("t"):
            torch.testing.assert_close(host.model(IDS).logits, want, rtol=1e-4, atol=1e-5)
    again = cw.Host(llama(tied)).load("t", host.save("t", tmp_path / "t.safetensors"))
    assert again.apart == tenant.apart == (tied and config.peft_type == "LORA")
    host.export_peft("t", tmp_path / "b")
    back = peft.PeftModel.from_pretrained(llama(tied), str(tmp_path / "b")).eval()
    with torch.no_grad():
        torch.testing.assert_close(back(IDS).logits, want, rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore")
def test_convolutions_go_in_and_out(tmp_path):
    model, batch = made("resnet")
    theirs = moved(peft.get_peft_model(model, peft.LoraConfig(r=4, target_modules=["convolution"])))
    theirs.save_pretrained(tmp_path / "a")
    with torch.no_grad():
        want = theirs(**batch).logits
    host = cw.Host(made("resnet")[0])
    assert host.import_peft("t", tmp_path / "a").method.name == "lora"
    with torch.no_grad(), host.route("t"):
        torch.testing.assert_close(host.model(**batch).logits, want, rtol=1e-4, atol=1e-5)
    stir(host["t"])
    host.export_peft("t", tmp_path / "b")
    back = peft.PeftModel.from_pretrained(made("resnet")[0], str(tmp_path / "b")).eval()
    with torch.no_grad(), host.route("t"):
        torch.testing.assert_close(back(**batch).logits, host.model(**batch).logits, rtol=1e-4, atol=1e-5)


class Grouped(nn.Module):
    def __init__(self, groups: int):
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Conv2d(8, 8, 3, padding=1, groups=groups)
        self.then = nn.Conv2d(8, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.then(self.first(x).relu())


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("groups", [2, 8])
def test_convolutions_in_groups_go_out_and_come_back(groups, tmp_path):
    """To PEFT each group has rows of its own, which read the other groups' channels by zero."""
    x = torch.randn(2, 8, 6, 6)
    host = cw.Host(Grouped(groups))
    tenant = stir(host.add("t", "lora", sites="first|then", rank=2, alphas=(("first", 3.0),), bias=True))
    host.export_peft("t", tmp_path / "a", native=True)
    theirs = peft.PeftModel.from_pretrained(Grouped(groups), str(tmp_path / "a")).eval()
    again = cw.Host(Grouped(groups))
    back = again.import_peft("t", tmp_path / "a")
    assert back.config.ranks != tenant.config.ranks
    with torch.no_grad(), host.route("t"), again.route("t"):
        torch.testing.assert_close(host.model(x), theirs(x), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(again.model(x), theirs(x), rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("groups", [2, 8])
def test_factors_that_read_other_groups_are_no_change_of_the_weight(groups, tmp_path):
    theirs = moved(peft.get_peft_model(Grouped(groups), peft.LoraConfig(r=8, target_modules=["first"])))
    theirs.save_pretrained(tmp_path / "a")
    with pytest.raises(cw.CommonweightError, match=rf"first.*a convolution in {groups} groups, where PEFT's factors"):
        cw.Host(Grouped(groups)).import_peft("t", tmp_path / "a")


def test_transposed_convolutions_have_no_adapter_there(tmp_path):
    host = cw.Host(nn.Sequential(nn.ConvTranspose1d(4, 6, 3), nn.ReLU(), nn.Conv1d(6, 2, 1)))
    host.add("t", "lora", sites="0")
    with pytest.raises(cw.CommonweightError, match="0: a transposed convolution, for which PEFT has no adapter"):
        host.export_peft("t", tmp_path / "a", native=True)
