"""Packed rows attend row by row: the same numbers as under a mask, and only where the mask is no more than rows."""

import pytest
import torch
import transformers as tf
from torch import nn

from commonweight import Host
from commonweight.adapt import by_row
from tests.models import make


def block_mask(*rows):
    """rows: of each sequence the lengths of its rows."""
    return torch.stack([torch.block_diag(*[torch.ones(n, n).tril() for n in one]) for one in rows])[:, None].bool()


def test_rows_are_read_from_the_mask():
    mask = block_mask((3, 1, 1, 4), (9,), (1, 8))
    assert by_row.rows_of(mask) == [(3, False), (2, True), (4, False), (9, False), (1, True), (8, False)]
    causal = torch.ones(1, 1, 6, 6).tril().bool()
    padded = causal & (torch.arange(6) < 4)
    window = causal & ~torch.ones(1, 1, 6, 6).tril(-3).bool()
    both_ways = torch.ones(1, 1, 6, 6).bool()
    prefix = causal | (torch.arange(6) < 2)
    torn = causal.clone()
    torn[0, 0, 4, 2] = False
    for other in (padded, window, both_ways, prefix, torn, causal.float(), causal[..., :3], torch.zeros_like(causal)):
        assert by_row.rows_of(other) is None


@pytest.mark.parametrize("heads", [4, 2])
@pytest.mark.parametrize("scaling", [None, 0.3])
def test_outputs_and_gradients_are_those_under_the_mask(heads, scaling):
    mask, found = block_mask((3, 1, 1, 4), (5, 4)), []
    for attend in (by_row.attend, tf.AttentionInterface()["sdpa"]):
        module = nn.Module()
        module.num_key_value_groups, module.is_causal = 4 // heads, True  # type: ignore[assignment]
        g = torch.Generator().manual_seed(0)
        q, k, v = (torch.randn(2, h, 9, 8, generator=g, dtype=torch.float64) for h in (4, heads, heads))
        q, k, v = (t.requires_grad_() for t in (q, k, v))
        y, _ = attend(module, q, k, v, mask, scaling=scaling)
        y.cos().sum().backward()
        found.append((y, q.grad, k.grad, v.grad))
    for a, b in zip(*found):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("kind", ["llama", "qwen", "gpt2", "moe"])
def test_a_model_runs_by_rows_within_and_as_before_after(kind, monkeypatch):
    model, _ = make(kind)
    host = Host(model)
    ids, places = torch.randint(3, 61, (2, 9)), torch.tensor([[0, 1, 2, 0, 1, 2, 3, 0, 0], [*range(9)]])
    batch = {"input_ids": ids, "position_ids": places, "use_cache": False}
    want, ran = host.model(**batch).logits, []
    rows_of = by_row.rows_of
    monkeypatch.setattr(by_row, "rows_of", lambda mask: ran.append(rows_of(mask)) or ran[-1])
    with by_row.by_row(host.model):
        got = host.model(**batch).logits
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-4)
    assert ran == [[(3, False), (4, False), (2, True), (9, False)]]
    torch.testing.assert_close(host.model(**batch).logits, want, atol=0, rtol=0)
    assert len(ran) == 1


def test_another_attention_stays():
    model, _ = make("llama")
    model.set_attn_implementation("eager")
    with by_row.by_row(model):
        assert model.config._attn_implementation == "eager"
