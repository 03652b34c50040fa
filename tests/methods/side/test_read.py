"""READ against its formula, on the states that the model itself gives out."""

import pytest
import torch

import commonweight as cw
from tests.laws.subjects import stir
from tests.models import make

SMALL = {"size": 3}


def test_formula():
    model, batch = make("bert")
    host = cw.Host(model)
    tenant = stir(host.add("t", "read", size=5), std=0.3)
    p = {k: tenant.pools[f"encoder.layer.trunk.{k}"].detach() for k in ("W_in", "W_s", "b", "W_out")}
    with torch.no_grad():
        states = model(**batch, output_hidden_states=True).hidden_states
        s = torch.zeros(4, 6, 5)
        for x in states[1:]:
            s = torch.tanh(s @ p["W_s"].T + x @ p["W_in"].T + p["b"])
        with host.route("t"):
            found = model(**batch).last_hidden_state
    torch.testing.assert_close(found, states[-1] + s @ p["W_out"].T)


def test_count_does_not_grow_with_the_depth():
    def count(n):
        return cw.plan("read", [cw.Site("layers.trunk", 768, (n + 1) * 768 + 1, "trunk")], size=64).count()

    assert count(12) == count(24) == 2 * 768 * 64 + 64 * 64 + 64


def test_a_trunk_without_its_last_block_is_refused():
    host = cw.Host(make("bert")[0])
    with pytest.raises(
        cw.CommonweightError, match=r"read reads sites of kind trunk that are whole; .* name '\*.trunk'"
    ):
        host.add("t", "read", sites="*.early")
