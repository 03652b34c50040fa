"""Models of transformers that do by themselves what others leave to torch."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
import transformers as tf
from torch import nn

import commonweight as cw
from tests.host.test_layouts import same
from tests.laws.subjects import stir

IDS = torch.randint(3, 61, (4, 16), generator=torch.Generator().manual_seed(1))


def reformer() -> Any:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "attention_head_size": 8, "hidden_size": 32, "num_attention_heads": 4, "vocab_size": 61,
        "feed_forward_size": 48,
        "axial_pos_shape": (4, 4), "axial_pos_embds_dim": (16, 16), "max_position_embeddings": 16, "is_decoder": True,
        "attn_layers": ["local", "local"], "local_attn_chunk_length": 4, "hidden_dropout_prob": 0.0,
        "local_attention_probs_dropout_prob": 0.0,
    }  # fmt: skip
    return tf.ReformerModelWithLMHead(tf.ReformerConfig(**sizes))


def test_layers_that_are_run_backwards_give_gradients_of_their_own_route():
    """A backward pass outside of the route, and within another one."""
    host = cw.Host(reformer().train())
    model = host.base.model
    t, u = stir(host.add("t", "lora", rank=2), std=0.3), stir(host.add("u", "lora", rank=2), 1, std=0.3)
    with host.route("t"):
        loss = model(IDS).logits.square().mean()
    with host.route("u"):
        model(IDS)
        loss.backward()
    assert all(p.grad is None or not p.grad.any() for p in u.parameters())
    for name, p in t.named_parameters():
        if p.grad is not None and ("query.A" in name or "value.B" in name):
            at, near = int(p.grad.abs().argmax()), []
            for step in (0.01, -0.01):
                with torch.no_grad(), host.route("t"):
                    p.data.view(-1)[at] += step
                    near.append(model(IDS).logits.square().mean())
                    p.data.view(-1)[at] -= step
            torch.testing.assert_close((near[0] - near[1]) / 0.02, p.grad.view(-1)[at], rtol=0.05, atol=1e-6)


def test_reformer_wants_training_mode_as_without_a_host():
    host = cw.Host(reformer().eval())
    host.add("t", "lora", rank=2)
    with host.route("t"), pytest.raises(AssertionError, match=r"use `model.train\(\)`"):
        host.base.model(IDS).logits.sum().backward()


def fsmt() -> Any:
    torch.manual_seed(0)
    sizes = {f"{side}_{n}": v for side in ("encoder", "decoder") for n, v in
             (("ffn_dim", 48), ("layers", 2), ("attention_heads", 4))}  # fmt: skip
    config = tf.FSMTConfig(langs=["en", "de"], src_vocab_size=61, tgt_vocab_size=61, d_model=32, **sizes)  # type: ignore[arg-type]
    model = tf.FSMTForConditionalGeneration(config).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(0, 0.2) if p.dim() > 1 else p
    return model


@pytest.mark.parametrize("given", [{}, {"use_cache": False}, {"return_dict": False}])
def test_a_model_that_answers_otherwise_with_a_cache_does_so_in_a_mixed_batch(given):
    """FSMT leaves out the mask of what comes later where it keeps a cache, which it does by default."""
    host = cw.Host(fsmt())
    stir(host.add("t", "lora", rank=2), std=0.1)
    stir(host.add("u", "lora", rank=2), 1, std=0.1)
    ids, said = IDS[:3, :7], IDS[:3, 7:12]
    same(host, lambda m: m(input_ids=ids, decoder_input_ids=said, **given)[0], ["t", None, "u"], fsmt)


class Bare(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.gain = nn.LayerNorm(8), nn.Parameter(torch.ones(8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(x) * self.gain


def test_a_method_that_finds_no_site_reads_nothing_and_is_told_so():
    host = cw.Host(Bare())
    found = host.coverage("lora")
    assert (found.read, found.total) == (0, 24) and found.line.startswith("lora reads 0.0% of the weights; left out:")
    assert host.coverage("tokens").read == 0 and host.coverage("full").share == 1
    with pytest.raises(cw.CommonweightError, match=r"this model has none of them by default; its sites are of kind"):
        host.add("t", "lora")
    with pytest.raises(cw.CommonweightError, match="matches no site"):
        host.coverage("lora", sites="*.q_proj")


def levit(stages: int = 3) -> Any:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"hidden_sizes": [16, 16, 16], "depths": [1] * stages, "key_dim": [4, 4, 4]}
    config = tf.LevitConfig(**sizes, num_labels=3, num_attention_heads=[2, 2, 2], image_size=64)
    model = tf.LevitForImageClassification(config).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.15 * torch.randn_like(p))
    return model


def test_what_a_module_keeps_between_passes_is_no_other_readers():
    """LeViT's table of attention biases, indexed once in eval mode."""
    x = torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(2))
    host = cw.Host(levit())
    model = host.base.model
    base = model(x).logits
    t, u = (stir(host.add(n, "full", sites="*attention_biases*"), i, std=3.0) for i, n in enumerate("tu"))
    with host.route("t"):
        first = model(x).logits
        first.sum().backward()
        again = model(x).logits
        again.sum().backward()  # a graph of its own
    assert torch.equal(first, again) and (first - base).abs().max() > 1e-3
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in t.parameters())
    assert torch.equal(model(x).logits, base)
    with host.route("u"):
        other = model(x).logits
    assert (other - first).abs().max() > 1e-3
    with host.route(["u", None, "t"]):
        mixed = model(x).logits
    torch.testing.assert_close(mixed, torch.stack([other[0], base[1], first[2]]), rtol=1e-4, atol=1e-5)
    assert torch.equal(model(x).logits, base)
    with torch.no_grad():
        for p in u.parameters():
            p.mul_(-2)
    with host.route("u"):
        assert (model(x).logits - other).abs().max() > 1e-4


def answers(host: cw.Host, x: Any) -> dict[Any, Any]:
    """Of LeViT: by each reader's name."""
    for i, name in enumerate("tu"):
        stir(host.add(name, "full", sites="*attention_biases*"), i, std=3.0)
    want = {}
    for name in (None, "t", "u"):
        with torch.no_grad(), host.route(name):
            want[name] = host.base.model(x).logits
    assert all((want[a] - want[b]).abs().max() > 1e-3 for a, b in ("tu", (None, "t"), (None, "u")))
    return want


def test_what_a_compiled_module_keeps_is_no_other_readers():
    x = torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(2))
    host = cw.Host(levit(stages=1))  # with a table of each kind; a compiler traces each stage for seconds
    want, model = answers(host, x), host.base.model
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    for name in ("t", "u", None, "u", "t", None):
        with torch.no_grad(), host.route(name):
            torch.testing.assert_close(compiled(x).logits, want[name], rtol=1e-4, atol=1e-5)
        with torch.no_grad():
            torch.testing.assert_close(model(x).logits, want[None], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("names", ["tu", (None, "t")], ids=str)
def test_what_a_module_keeps_is_no_other_threads(names):
    x = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(2))
    host = cw.Host(levit())
    want, wrong = answers(host, x), []

    def work(name: str | None) -> None:
        for _ in range(60):
            with torch.no_grad(), host.route(name):
                got = host.base.model(x).logits
            if not torch.allclose(got, want[name], rtol=1e-4, atol=1e-5):
                wrong.append(name)

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor(2) as pool:
            [*pool.map(work, names)]
    finally:
        sys.setswitchinterval(before)
    assert not wrong
    host.close()
    assert not any("forward" in vars(m) for m in host.base.model.modules())


def test_what_an_object_of_a_module_keeps_is_no_other_readers():
    """Texts by their embeddings, as OmDet-Turbo has them."""

    class Store:
        def __init__(self):
            self.cache: dict[str, torch.Tensor] = {}

    class Reads(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.layers = nn.ModuleList(nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8)) for _ in range(2))
            self.language_cache_class = Store()

        def forward(self, x):
            if "text" not in self.language_cache_class.cache:
                self.language_cache_class.cache["text"] = self.layers[0](torch.ones(1, 8))
            return self.layers[1](x + self.language_cache_class.cache["text"])

    host = cw.Host(Reads())
    model, x = host.base.model, torch.ones(1, 8)
    base = model(x)
    stir(host.add("t", "lora", rank=2, sites="layers.0.*"), std=0.5)
    for _ in range(2):
        with host.route("t"):
            alone = model(x)
            assert (alone - base).abs().max() > 1e-3
        assert torch.equal(model(x), base)
        with host.route(["t", None, "t"]):  # of one text for all rows: reader by reader
            torch.testing.assert_close(model(x.expand(3, -1)), torch.cat([alone, base, alone]))


def test_what_a_module_keeps_of_other_things_stays():
    class Reads(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.layers = nn.ModuleList(nn.Sequential(nn.Linear(8, 8)) for _ in range(2))
            self.cache_config, self.kv_cache = {"scale": 2.0}, dict[str, torch.Tensor]()

        def forward(self, x):
            past = self.kv_cache.get("past", 0)
            self.kv_cache["past"] = x.detach() + past
            return self.layers[1](self.cache_config["scale"] * self.layers[0](x) + past)

    host, x = cw.Host(Reads()), torch.ones(1, 8)
    host.add("t", "lora", rank=2, sites="*")
    fresh = Reads()
    want = [fresh(x), fresh(x)]
    with host.route("t"):  # not trained: the base's answers
        assert all(torch.equal(host.base.model(x), w) for w in want)
