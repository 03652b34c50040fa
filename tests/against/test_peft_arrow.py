"""Arrow against PEFT's, over three LoRA tenants that PEFT reads from the folders that we write."""

import copy
import warnings

import pytest
import torch

import commonweight as cw
from tests.laws.subjects import stir
from tests.models import answer, make

peft = pytest.importorskip("peft")


def test_same_answers(tmp_path):
    model, batch = make("llama")
    host = cw.Host(copy.deepcopy(model))
    for i, n in enumerate("abc"):
        t = stir(host.add(n, "lora", rank=2, alpha=4.0, seed=i, sites="*.q_proj|*.up_proj|*.down_proj"), i, 0.3)
        with torch.no_grad():
            for k, p in t.pools.items():  # one direction stands out, so that PEFT's 15 power iterations end at it
                if k.endswith(".A"):
                    p[1] *= 0.05
        host.export_peft(n, tmp_path / n)
    host.add("t", "arrow", over=["a", "b", "c"], active=2, temperature=0.7)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT's own, about transformers
        config = peft.ArrowConfig(top_k=2, router_temperature=0.7, rng_seed=0)
        theirs = peft.create_arrow_model(model, [str(tmp_path / n) for n in "abc"], config).eval()
    with torch.no_grad():
        want, plain = answer(theirs, batch), answer(host.model, batch)
        with host.route("t"):
            got = answer(host.model, batch)
    assert (want - plain).abs().max() > 1e-2, "the adapters move nothing"
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
