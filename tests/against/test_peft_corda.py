"""CorDA's start against PEFT's own."""

import peft
import pytest
import torch
from peft.tuners.lora.config import CordaConfig
from peft.tuners.lora.corda import preprocess_corda

import commonweight as cw
from tests.methods.low_rank.test_corda import SITES, batch
from tests.models import make


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
@pytest.mark.parametrize("mode", ["ipm", "kpm"])
def test_the_part_that_is_taken_out_is_that_of_peft(mode):
    """One row, whose largest entry is the only size that PEFT divides by: the product does not depend on it."""
    model, _ = make("llama")
    row = {k: v[1:2] for k, v in batch().items()}
    given = {"rows" if mode == "ipm" else "retain": [row]}
    tenant = cw.Host(model, sites=SITES).add("t", "corda", rank=3, mode=mode, **given)
    theirs = make("llama")[0]
    config = peft.LoraConfig(
        r=3, lora_alpha=3, init_lora_weights="corda", target_modules=["q_proj", "down_proj"],
        corda_config=CordaConfig(corda_method=mode),
    )  # fmt: skip
    preprocess_corda(theirs, config, run_model=lambda: theirs(**row))
    for n, p in peft.get_peft_model(theirs, config).named_parameters():
        if "lora_A" in n:
            name = n.removeprefix("base_model.model.").partition(".lora_A")[0]
            B = theirs.get_submodule(name).lora_B["default"].weight
            ours = tenant.pools[f"{name}.B"] @ tenant.pools[f"{name}.A"]
            torch.testing.assert_close(ours, B @ p, rtol=1e-2, atol=1e-3)
