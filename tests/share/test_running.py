"""A shared model is an ordinary model of transformers."""

import pytest
import torch
import transformers as tf

from commonweight import Host, share
from commonweight.share.folders.unrolled import plain
from tests.share.deep import IDS, KINDS, answer, far, gpt2, llama, qwen


@pytest.fixture
def small():
    return share.share(llama(), "recursive", loops=2, relax=2)


def test_the_original_stays_as_it_is():
    model = llama()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    small = share.share(model, "recursive", relax=2)
    with torch.no_grad():
        for p in small.parameters():
            p.add_(1.0)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert model.config.num_hidden_layers == 6 and not hasattr(model.config, "sharing")


@pytest.mark.parametrize("make", [llama, qwen, gpt2])
def test_generate_with_a_cache_is_generate_without(make):
    small = share.share(make(), "recursive", loops=3, relax=2)
    assert [m.layer_idx for m in small.modules() if type(m).__name__.endswith("Attention")] == list(range(6))
    how = dict(max_new_tokens=8, do_sample=False, pad_token_id=0)
    assert torch.equal(small.generate(IDS, **how), small.generate(IDS, **how, use_cache=False))
    out = small(IDS, use_cache=True)
    assert len(out.past_key_values) == 6


def test_attentions_agree(small):
    small.set_attn_implementation("sdpa")
    a = answer(small)
    small.set_attn_implementation("eager")
    assert far(a, answer(small)) < 1e-5
    small.set_attn_implementation("sdpa")


def test_gradients_of_a_unit_are_the_sum_over_its_depths(small):
    """Also with activations computed once more."""
    model = llama()
    strict, apart = share.share(model, "recursive", loops=2, init="lower"), share.share(model, "recursive", loops=1)
    with torch.no_grad():
        for d in range(6):
            for (_, p), (_, q) in zip(
                apart.model.layers[d].named_parameters(), strict.model.layers[d].named_parameters()
            ):
                p.copy_(q)
    apart(IDS, labels=IDS).loss.backward()
    want = sum(apart.model.layers[d].mlp.up_proj.weight.grad for d in (1, 4))
    for again in (False, True):
        strict.zero_grad()
        if again:
            strict.activation_checkpointing_enable()
            strict.train()
        strict(IDS, labels=IDS).loss.backward()
        assert torch.allclose(strict.model.layers[4].mlp.up_proj.weight.grad, want, atol=1e-6)


def test_trainer_trains_and_saves(small, tmp_path):
    rows = [{"input_ids": r, "labels": r} for r in IDS.repeat(4, 1)]
    args = tf.TrainingArguments(
        output_dir=str(tmp_path), max_steps=4, save_steps=4, per_device_train_batch_size=2, report_to=[], use_cpu=True,
        disable_tqdm=True, learning_rate=1e-2, logging_strategy="no",
    )  # fmt: skip
    before = small(IDS, labels=IDS).loss.item()
    tf.Trainer(small, args, train_dataset=rows).train()
    assert small.eval()(IDS, labels=IDS).loss.item() < before
    assert len({id(b.mlp.up_proj.weight) for b in small.model.layers}) == 3
    again = share.load(tmp_path / "checkpoint-4")
    assert far(answer(again), answer(small)) == 0


TIED = {
    "recursive": {"loops": 2}, "masa": {"matrices": 2}, "hashed": {"chunk": 8, "compression": 2.0}, "mobillama": {},
    "subformer": {"relax": 2}, "basis": {"rank": 8}, "product_keys": {"n": 8, "width": 8, "k": 4},
}  # fmt: skip


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("method", TIED)
def test_continuous_batching_answers_as_generate(method):
    """Prompts of several lengths in one batch."""
    small = share.share(llama(), method, **TIED[method])
    how = dict(max_new_tokens=5, do_sample=False, pad_token_id=0)
    prompts = [IDS[0, :n].tolist() for n in (3, 7)] + [IDS[1].tolist()]
    want = [small.generate(torch.tensor([p]), **how, eos_token_id=None)[0, len(p) :].tolist() for p in prompts]
    found = small.generate_batch(
        prompts, generation_config=tf.GenerationConfig(**how, eos_token_id=-1),
        continuous_batching_config=tf.ContinuousBatchingConfig(num_blocks=16, page_size=32, max_batch_tokens=64),
    )  # fmt: skip
    assert [found[f"req_{i}"].generated_tokens for i in range(3)] == want


@pytest.mark.parametrize("kind", KINDS)
def test_adapters_of_a_host_are_each_depths_own(kind):
    small = share.share(KINDS[kind](), "recursive", loops=2)
    host = Host(small)
    tenant = host.add("t", "lora", rank=2)
    depths = {s.name for s in host.sites if s.kind == "linear"}
    assert len(depths) % 6 == 0 and len(depths) > 6
    with torch.no_grad():
        plain = answer(small)
        for n, p in tenant.named_parameters():
            if n.endswith(".B"):
                p.normal_()
    with host.route("t"):
        assert far(answer(small), plain) > 1e-3
    assert far(answer(small), plain) == 0


@pytest.mark.parametrize("kind", ["llama", "gpt2", "bert"])
@pytest.mark.parametrize("method", ["lora", "dora", "oft", "pissa", "ia3", "full"])
def test_a_tenant_on_relaxed_layers_is_that_on_the_unrolled_model(kind, method):
    """What a layer computes with is W + B A, for methods that read it too; gradients as well."""
    small = share.share(KINDS[kind](), "recursive", loops=2, relax=8)
    answers, gradients = [], []
    for model in (small, plain(small)):
        host = Host(model)
        tenant = host.add("t", method)
        g = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for _, p in sorted(tenant.named_parameters()):
                p.add_(0.05 * torch.randn(p.shape, generator=g))
        with host.route("t"):
            answers.append(answer(model))
            out = model(IDS)
            (out.logits if "logits" in out else out.last_hidden_state).square().sum().backward()
        gradients.append([p.grad for _, p in sorted(tenant.named_parameters())])
    assert far(*answers) < 1e-5
    assert all(torch.allclose(a, b, rtol=1e-3, atol=1e-3) for a, b in zip(*gradients))
