"""Activated LoRA against PEFT: outputs, generation, gradients, files both ways."""

import json

import pytest
import torch

import commonweight as cw
from tests.against.peft_pair import copy_in, layers, peft, same_answers, same_gradients, twins
from tests.host.test_invoked import CALL, INV, texts
from tests.models import make

HOW = {"alora_invocation_tokens": list(INV), "task_type": "CAUSAL_LM"}

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")


@pytest.fixture
def both():
    wrapped, host, tenant, _ = twins(
        peft.LoraConfig(r=4, lora_alpha=6, **HOW), "lora", rank=4, alpha=6.0, alora_invocation_tokens=list(INV)
    )
    theirs = {
        f"{site}.{k}": getattr(m, f"lora_{k}")["default"].weight
        for site, m in layers(wrapped, "lora_A").items()
        for k in "AB"
    }
    copy_in(tenant, theirs)
    return (wrapped, host, tenant, {"input_ids": texts()}), theirs


def test_same_logits_and_gradients(both):
    same_answers(both[0])
    same_gradients(both[0], lambda: both[1])


@torch.no_grad()
@pytest.mark.parametrize("side", ["left", "right"])
def test_same_generation(both, side):
    (wrapped, host, _, _), ids = both[0], texts()
    fill = torch.zeros(4, 2, dtype=torch.long)
    ids = torch.cat([fill, ids] if side == "left" else [ids, fill], 1)
    given = {"input_ids": ids, "attention_mask": (ids != 0).long(), **CALL}
    more = {"return_dict_in_generate": True, "output_logits": True}
    theirs = wrapped.generate(**given, **more)
    with host.route("t"):
        ours = host.model.generate(**given, **more)
    for x, y in zip(ours.logits, theirs.logits):
        torch.testing.assert_close(x, y, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_files_in_and_out(both, tmp_path):
    wrapped, host, _, batch = both[0]
    want = wrapped(**batch).logits
    wrapped.save_pretrained(tmp_path / "theirs")
    host.import_peft("in", tmp_path / "theirs")
    with host.route("in"):
        torch.testing.assert_close(host.model(**batch).logits, want)
    host.export_peft("in", tmp_path / "ours")
    said = json.loads((tmp_path / "ours" / "adapter_config.json").read_text())
    assert said["alora_invocation_tokens"] == list(INV) and said["task_type"] == "CAUSAL_LM"
    again = peft.PeftModel.from_pretrained(make("llama")[0], tmp_path / "ours").eval()
    torch.testing.assert_close(again(**batch).logits, want)


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        ({"alora_invocation_tokens": "x"}, "alora_invocation_tokens is 'x'; wanted a list of token ids"),
        ({"init_lora_weights": "olora"}, "an activated LoRA is read at linear layers alone"),
    ],
)
def test_damaged_or_mixed(both, tmp_path, edit, says):
    both[0][0].save_pretrained(tmp_path)
    file = tmp_path / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **edit}))
    with pytest.raises(cw.CommonweightError, match=says):
        both[0][1].import_peft("in", tmp_path)
