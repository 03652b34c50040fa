"""Prompts of encoder-decoders, and of encoders whose tokens PEFT weighs otherwise, against PEFT's own models."""

import copy
import json

import pytest
import torch

import commonweight as cw
from tests.host.kinds import made, padded
from tests.laws.subjects import stir
from tests.models import VOCAB

peft = pytest.importorskip("peft")
pytestmark = pytest.mark.filterwarnings("ignore")
KEPT = dict(max_new_tokens=4, min_new_tokens=4, do_sample=False)
METHODS = {
    "prompt-tuning": lambda n: peft.PromptTuningConfig(
        task_type="SEQ_2_SEQ_LM", num_virtual_tokens=3, num_transformer_submodules=n
    ),
    "p-tuning": lambda n: peft.PromptEncoderConfig(
        task_type="SEQ_2_SEQ_LM", num_virtual_tokens=3, num_transformer_submodules=n, encoder_hidden_size=6
    ),
}


def rows():
    ids = torch.randint(3, VOCAB, (3, 8), generator=torch.Generator().manual_seed(1))
    return padded(ids, [8, 5, 7]), ids[:, :4].contiguous()


@pytest.mark.parametrize("stacks", [None, 1])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["T5", "MBart"])
def test_prompts_both_ways(name, method, stacks, tmp_path):
    """PEFT's default is twice as many rows, of which it reads the first half."""
    model, (batch, labels) = made(name), rows()
    there = peft.get_peft_model(copy.deepcopy(model), METHODS[method](stacks))
    with torch.no_grad():
        for p in there.parameters():
            p.add_(torch.randn_like(p) if p.requires_grad else 0)
    there.eval().save_pretrained(tmp_path / "a")
    plain, host = copy.deepcopy(model), cw.Host(model)
    tenant = host.import_peft("t", tmp_path / "a")
    assert tenant.method.name == method and tenant.config.tokens == 3
    host.export_peft("t", tmp_path / "b", native=True)
    again = peft.PeftModel.from_pretrained(plain, tmp_path / "b").eval()
    with torch.no_grad():
        want = there(**batch, labels=labels)
        assert (want.logits - again.get_base_model()(**batch, labels=labels).logits).abs().max() > 0.01
        with host.route("t"):
            got = model(**batch, labels=labels)
        torch.testing.assert_close(got.logits, want.logits, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(got.loss, want.loss, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(again(**batch, labels=labels).logits, want.logits, rtol=1e-4, atol=1e-4)
    with host.route(["t", None, "t"]):
        mixed = model.generate(**batch, **KEPT)
    assert torch.equal(mixed[[0, 2]], there.generate(**batch, **KEPT)[[0, 2]])


def test_what_peft_makes_something_else_of(tmp_path):
    """It gives Marian's encoder rows without their scale, and a classifier of an encoder-decoder vectors, which it does
    not take; a mean over a row is one of the prompt's places too."""
    model = made("Marian")
    there = peft.get_peft_model(copy.deepcopy(model), METHODS["prompt-tuning"](1))
    there.save_pretrained(tmp_path / "a")
    host = cw.Host(model)
    with pytest.raises(cw.CommonweightError, match=r"multiplies the vectors of its tokens by 5.657, .* train it again"):
        host.import_peft("t", tmp_path / "a")
    stir(host.add("mine", "prompt-tuning", tokens=3))
    with pytest.raises(cw.CommonweightError, match=r"and PEFT gives it the rows without that"):
        host.export_peft("mine", tmp_path / "b", native=True)
    host = cw.Host(made("Bart", "ForSequenceClassification"))
    stir(host.add("mine", "prompt-tuning", tokens=3))
    with pytest.raises(cw.CommonweightError, match="PEFT's SEQ_CLS gives vectors to the whole model"):
        host.export_peft("mine", tmp_path / "b", native=True)
    model = made("ModernBert", "ForSequenceClassification")
    model.config.classifier_pooling = "mean"
    host = cw.Host(model)
    stir(host.add("mine", "prompt-tuning", tokens=3, leads=True))
    with pytest.raises(cw.CommonweightError, match="in PEFT's SEQ_CLS the mean that the model's head reads"):
        host.export_peft("mine", tmp_path / "b", native=True)


def test_a_file_of_an_encoder_decoder_for_another_base(tmp_path):
    there = peft.get_peft_model(made("T5"), METHODS["prompt-tuning"](None))
    there.save_pretrained(tmp_path / "a")
    assert json.loads((tmp_path / "a" / "adapter_config.json").read_text())["num_transformer_submodules"] == 2
    with pytest.raises(cw.CommonweightError, match="num_transformer_submodules is 2, as of an encoder-decoder"):
        cw.Host(made("ModernBert")).import_peft("t", tmp_path / "a")
