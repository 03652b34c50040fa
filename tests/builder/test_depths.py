"""ALBERT with a module for each depth."""

import pytest
import torch
import transformers as tf

from commonweight import CommonweightError, Host, share
from tests.share.deep import answer, far, llama


@pytest.mark.parametrize("groups", [1, 2])
def test_each_depth_has_sites_of_its_own(groups, tmp_path):
    torch.manual_seed(0)
    model = tf.AlbertModel(
        tf.AlbertConfig(
            hidden_size=32, embedding_size=16, intermediate_size=64, num_hidden_layers=4, num_hidden_groups=groups,
            num_attention_heads=4, vocab_size=61, max_position_embeddings=32,
        )
    ).eval()  # fmt: skip
    apart = share.depths(model)
    assert far(answer(apart), answer(model)) == 0
    assert sum(p.numel() for p in apart.parameters()) == sum(p.numel() for p in model.parameters())
    count = [sum(s.name.endswith("attention.query") for s in Host(m).sites) for m in (model, apart)]
    assert count == [groups, 4]
    apart.save_pretrained(tmp_path / "s")
    assert far(answer(share.load(tmp_path / "s")), answer(model)) == 0


def test_another_model_is_refused():
    with pytest.raises(CommonweightError, match="LlamaForCausalLM is no ALBERT"):
        share.depths(llama())
