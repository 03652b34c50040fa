"""PEFT's adapters on tables of embeddings and convolutions, and its trained entries: in and out."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import commonweight as cw
from tests.host.test_families import made
from tests.laws.subjects import stir
from tests.methods.test_tokens import IDS, llama

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
def test_a_change_that_follows_its_table_cannot_be_said_by_an_adapter(tmp_path):
    host = cw.Host(llama(True))
    host.add("t", "lora", sites="embeddings")
    with pytest.raises(cw.CommonweightError, match="the head is tied to it"):
        host.export_peft("t", tmp_path / "a", native=True)


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
