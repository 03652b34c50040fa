"""(IA)3 against PEFT."""

import pytest
from peft import IA3Config

from tests.against.wrapped import agree


@pytest.mark.parametrize(
    "kind, targets, feedforward, sites",
    [
        ("llama", ["k_proj", "v_proj", "down_proj"], ["down_proj"], "*.k_proj|*.v_proj|*.down_proj"),
        ("bert", ["key", "value", "output.dense"], ["output.dense"], "*.key|*.value|*.output.dense"),
    ],
)
def test_ia3(kind, targets, feedforward, sites):
    config = IA3Config(target_modules=targets, feedforward_modules=feedforward)
    inputs = "*.down_proj|*.output.dense"
    agree(kind, config, "ia3_", lambda site, rest, p: (f"{site}.l", p.flatten()), "ia3", sites, inputs=inputs)


def test_default_inputs_are_pefts_feedforward_modules():
    config = IA3Config(target_modules=["c_attn", "mlp.c_proj"], feedforward_modules=["mlp.c_proj"], fan_in_fan_out=True)
    agree("gpt2", config, "ia3_", lambda site, rest, p: (f"{site}.l", p.flatten()), "ia3", "*.c_attn|*.mlp.c_proj")
