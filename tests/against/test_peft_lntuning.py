"""LayerNorm tuning against PEFT, which trains copies where we train differences."""

import pytest
from peft import LNTuningConfig

from tests.against.wrapped import agree
from tests.models import make


@pytest.mark.parametrize(
    "kind, targets, sites",
    [
        ("llama", ["input_layernorm", "post_attention_layernorm", "norm"], "*layernorm|*.norm"),
        ("bert", ["LayerNorm"], "*LayerNorm"),
    ],
)
def test_lntuning(kind, targets, sites):
    base = dict(make(kind)[0].named_parameters())

    def translate(site, rest, p):
        name = rest.rsplit(".", 1)[-1]
        return f"{site}.d{name[0]}", p - base[f"{site}.{name}"]

    agree(kind, LNTuningConfig(target_modules=targets), "ln_tuning_layers", translate, "lntuning", sites)
