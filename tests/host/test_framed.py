"""Longformer's attention asks with tokens before rows; what runs beside it reads the rows that the block was given."""

import pytest
import torch
from transformers import LongformerConfig, LongformerModel

import commonweight as cw
from tests.laws.subjects import stir


@pytest.mark.parametrize("method", ["apt-prompts", "parallel", "vl-pet"])
@pytest.mark.parametrize("rows", [3, 8])  # of eight tokens: as many, which only their order tells from each other
def test_rows_of_a_batch_are_those_alone(method, rows):
    torch.manual_seed(0)
    model = LongformerModel(
        LongformerConfig(
            vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
            attention_window=4, max_position_embeddings=66, sep_token_id=2,
        )
    ).eval()  # fmt: skip
    host = cw.Host(model)
    for seed, name in enumerate("ab"):
        stir(host.add(name, method), seed, 0.3)
    x = torch.randint(3, 50, (rows, 8))
    who = [("a", "b", None)[i % 3] for i in range(rows)]

    @torch.no_grad()
    def out(readers, ids):
        with host.route(readers):
            return model(input_ids=ids)[0]

    alone = torch.cat([out(w, x[i : i + 1]) for i, w in enumerate(who)])
    torch.testing.assert_close(out(who, x), alone, atol=2e-6, rtol=0)
    torch.testing.assert_close(out("a", x)[::3], alone[::3], atol=2e-6, rtol=0)
    assert (alone - out(None, x)).abs().amax((1, 2))[0] > 1e-2
