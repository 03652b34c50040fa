"""A model that is changed under its host is followed, or its tenants are refused by name."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import commonweight as cw
from tests.host.past import Packed, blocks, hosted, routed
from tests.laws.subjects import stir
from tests.models import VOCAB, answer, make

X = torch.randn(3, 5, 16, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def grown():
    """A host with a tenant at the head, whose vocabulary then grew; the batch; what the tenant answered before."""
    model, batch = make("llama")
    host = cw.Host(model)
    for i, name in enumerate("ab"):
        stir(host.add(name, "lora", rank=2, sites="lm_head|*.q_proj", seed=i), i)
    with torch.no_grad(), host.route("a"):
        before = answer(model, batch)
    model.resize_token_embeddings(VOCAB + 8, mean_resizing=False)
    return host, batch, before


def ask(host, batch, readers):
    with torch.no_grad(), host.route(readers):
        return answer(host.model, batch)


def test_a_head_with_more_words_keeps_its_tenants(grown):
    host, batch, before = grown
    base, found = ask(host, batch, None), ask(host, batch, "a")
    torch.testing.assert_close(found[..., :VOCAB], before)
    assert not torch.allclose(found[..., :VOCAB], base[..., :VOCAB])
    mixed = ask(host, batch, ["a", None, "b", "a"])
    torch.testing.assert_close(mixed[0], found[0])
    torch.testing.assert_close(mixed[1], base[1])
    assert not any(p.requires_grad for p in host.model.parameters())


def test_it_is_merged_saved_and_exported_as_it_was_made(grown, tmp_path):
    host, batch, before = grown
    like, _ = make("llama")
    like.resize_token_embeddings(VOCAB + 8, mean_resizing=False)
    like.load_state_dict(host.model.state_dict())
    like.load_state_dict(host.merged("a"), strict=False)
    with torch.no_grad():
        torch.testing.assert_close(answer(like, batch)[..., :VOCAB], ask(host, batch, "a")[..., :VOCAB])
    host.export_peft("a", tmp_path / "out")
    old = cw.Host(make("llama")[0])
    old.load("a", host.save("a", tmp_path / "a"), check_base=False)
    torch.testing.assert_close(ask(old, batch, "a"), before)


def test_a_head_with_fewer_words_refuses_its_tenants_by_name(grown):
    host, batch, _ = grown
    host.model.resize_token_embeddings(VOCAB - 8, mean_resizing=False)
    for act in (lambda: ask(host, batch, "a"), lambda: ask(host, batch, ["b"] * 4), lambda: host.merged("a")):
        with pytest.raises(cw.CommonweightError, match=r"lm_head was linear \(61, 32\) and is now linear \(53, 32\)"):
            act()
    stir(host.add("new", "lora", rank=2, sites="lm_head"))
    batch = {"input_ids": batch["input_ids"] % 50}
    assert ask(host, batch, "new").shape[-1] == VOCAB - 8
    host.model.resize_token_embeddings(VOCAB, mean_resizing=False)
    assert ask(host, batch, "a").shape[-1] == VOCAB, "what was put back serves again"


def test_a_layer_that_is_replaced_by_its_like_is_hooked():
    host = hosted(blocks())
    host.model.layers[1].up = new = nn.Linear(16, 32)
    like = blocks()
    like.layers[1].up.load_state_dict(new.state_dict())
    torch.testing.assert_close(routed(host, "a", X), routed(hosted(like), "a", X))
    assert not new.weight.requires_grad
    host.close()
    assert all(p.requires_grad and not m._forward_hooks for m in host.model.modules() for p in m.parameters())


def test_a_whole_block_that_is_replaced():
    host = hosted(blocks())
    host.model.layers[2] = other = blocks(seed=5).layers[2]
    like = blocks()
    like.layers[2] = other.__class__("called").eval()
    like.layers[2].load_state_dict(other.state_dict())
    torch.testing.assert_close(routed(host, "a", X), routed(hosted(like), "a", X))


def test_layers_that_are_packed_under_the_host():
    host = hosted(blocks())
    for at in (1, 3):
        host.model.layers[at].up = Packed(host.model.layers[at].up)
    base = routed(host, None, X)
    assert not torch.allclose(routed(host, "a", X), base)


def test_layers_that_are_gone_and_layers_that_came():
    host = hosted(blocks())
    host.model.layers[3] = nn.Identity()
    with pytest.raises(cw.CommonweightError, match=r"layers\.3\.\w+ is no longer in the model.*tenant 'a'"):
        routed(host, "a", X)
    stir(host.add("new", "lora", rank=2))
    assert not any(s.name.startswith("layers.3.") for s in host["new"].sites)
    host.model.layers[3] = blocks().layers[3]
    assert not torch.equal(routed(host, "a", X), routed(host, None, X))


def test_an_unchanged_model_is_not_looked_through_again(monkeypatch):
    host = hosted(blocks())
    monkeypatch.setattr(cw.host.hooked.experts, "discover", None)
    routed(host, "a", X)
