"""The model as one tenant: what its module offers acts as the tenant, or refuses by name."""

from __future__ import annotations

import copy
import inspect
import pickle
import threading

import pytest
import torch
import transformers as tf
from torch import nn

import commonweight as cw
from commonweight.host.acting import REFUSED
from tests.laws.subjects import stir
from tests.models import answer, make, shallow

HOW = {"max_new_tokens": 4, "do_sample": False}


def two(**more):
    model, batch = make("llama")
    model.eval()
    host = cw.Host(model, **more)
    for i, n in enumerate("ab"):
        stir(host.add(n, "lora", rank=4), i, 0.5)
    return host, model, batch


def test_generate_writes_as_the_tenant():
    host, model, batch = two()
    want = {}
    for n in ("a", "b", None):
        with host.route(n):
            want[n] = model.generate(**batch, **HOW)
    assert torch.equal(host.module("a").generate(**batch, **HOW), want["a"])
    both = host.module(["a", "b"])
    who = torch.tensor([host["a"].number, host["b"].number, -1, host["a"].number])
    mixed = both.generate(**batch, **HOW, tenants=who)
    for row, n in enumerate(["a", "b", None, "a"]):
        assert torch.equal(mixed[row], want[n][row])
    with pytest.raises(cw.CommonweightError, match="runs 2 tenants: a batch needs `tenants`"):
        both.generate(**batch, **HOW)
    assert both.num_parameters() == model.num_parameters(), "what needs no pass needs no tenants"


def test_parts_of_the_model_act_as_the_tenant():
    host, model, batch = two()
    module = host.module("a")
    with torch.no_grad():
        with host.route("a"):
            want = model.model(**batch).last_hidden_state
        for part in (module.model, module.base_model, module.get_decoder()):
            assert torch.equal(part(**batch).last_hidden_state, want)
            assert isinstance(part, tf.LlamaModel)
        x = torch.randn(1, 3, 32)
        layer = module.model.layers[0].mlp.gate_proj
        with host.route("a"):
            assert torch.equal(layer(x), model.model.layers[0].mlp.gate_proj(x))
    assert module.config is model.config and module.device == model.device


def test_a_weight_that_others_multiply_by_is_the_tenants():
    host, model, _ = two(sites="*.q_proj|lm_head")
    module = host.module("a")
    x = torch.randn(2, 32)
    with host.route("a"):
        want = model.lm_head(x)
    got = nn.functional.linear(x, module.get_output_embeddings().weight)
    torch.testing.assert_close(got, want)
    got.square().sum().backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in host["a"].parameters())
    assert module.model.norm.weight is model.model.norm.weight
    with pytest.raises(cw.CommonweightError, match="differs from tenant to tenant"):
        host.module(["a", "b"]).lm_head.weight  # noqa: B018


def test_save_pretrained_writes_the_model_as_the_tenant(tmp_path):
    host, model, batch = two()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    host.module("a").save_pretrained(tmp_path / "m")
    again = type(model).from_pretrained(tmp_path / "m").eval()
    with torch.no_grad(), host.route("a"):
        torch.testing.assert_close(answer(again, batch), answer(model, batch), rtol=1e-4, atol=1e-5)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


@pytest.mark.parametrize("what", ["several", "no change of weights", "no model of transformers", "state_dict"])
def test_save_pretrained_refuses_what_it_cannot_write(tmp_path, what):
    host, _, _ = two()
    stir(host.add("r", "loreft"))
    plain = cw.Host(nn.Sequential(nn.Linear(4, 4)), sites="*")
    plain.add("a", "lora")
    module, more, says = {
        "several": (host.module(["a", "b"]), {}, "one model holds one tenant"),
        "no change of weights": (host.module("r"), {}, "does not change a weight"),
        "no model of transformers": (plain.module("a"), {}, "is not a transformers model"),
        "state_dict": (host.module("a"), {"state_dict": {}}, "leave it out"),
    }[what]
    with pytest.raises(cw.CommonweightError, match=says):
        module.save_pretrained(tmp_path / "m", **more)
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_functions_that_write_the_base_are_refused_by_name(name):
    host, model, _ = two()
    if not hasattr(model, name):
        pytest.skip("not a function of this model")
    with pytest.raises(cw.CommonweightError, match=f"{name} of a tenant's module: "):
        getattr(host.module("a"), name)("x")


def test_its_class_has_the_models_name_and_signature():
    host, model, _ = two()
    module = host.module("a")
    assert type(module).__name__ == "LlamaForCausalLM"
    assert inspect.signature(type(module).forward) == inspect.signature(type(model).forward)
    assert "tenants" in inspect.signature(host.module(["a", "b"]).forward).parameters


@pytest.mark.parametrize("again", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["copy", "pickle"])
def test_a_copy_runs_the_copy(again):
    host, _, batch = two()
    module = host.module("a")
    with torch.no_grad():
        want = answer(module, batch)
        other = again(module)
        stir(host["a"], 9, 1.0)
        assert torch.equal(answer(other, batch), want)
        assert not torch.equal(answer(module, batch), want)


def trained(tmp_path, kind=tf.Trainer, args=tf.TrainingArguments, **more):
    host, _, batch = two()
    rows = [{"input_ids": r, "labels": r} for r in batch["input_ids"]]
    settings = args(
        output_dir=str(tmp_path), report_to=[], use_cpu=True, disable_tqdm=True, per_device_train_batch_size=2,
        max_steps=2, eval_steps=1, save_steps=1, eval_strategy="steps", save_strategy="steps",
        load_best_model_at_end=True, **more,
    )  # fmt: skip
    seen = []
    trainer = kind(
        model=host.module("a"), args=settings, train_dataset=rows, eval_dataset=rows,
        compute_metrics=lambda p: seen.append(p.predictions) or {"mine": 1.0},
    )  # fmt: skip
    before = [p.detach().clone() for p in host["a"].parameters()]
    trainer.train()
    assert any(not torch.equal(p, q) for p, q in zip(host["a"].parameters(), before))
    return host, trainer, seen


@pytest.mark.filterwarnings("ignore")
def test_trainer_evaluates_and_keeps_the_best(tmp_path):
    _, trainer, seen = trained(tmp_path)
    found = trainer.evaluate()
    assert found["eval_mine"] == 1.0 and found["eval_loss"] > 0 and seen


@pytest.mark.filterwarnings("ignore")
def test_trainer_reports_the_loss_of_the_model_itself(tmp_path):
    """Trainer knows by the class's name over how many tokens a loss is a mean (findings/)."""
    host, trainer, _ = trained(tmp_path)
    rows = torch.stack([r["input_ids"] for r in trainer.eval_dataset])
    with torch.no_grad(), host.route("a"):
        want = host.model.eval()(input_ids=rows, labels=rows).loss.item()
    assert trainer.evaluate()["eval_loss"] == pytest.approx(want, rel=1e-5)


@pytest.mark.filterwarnings("ignore")
def test_label_smoothing_shifts_labels_as_for_the_model_itself(tmp_path):
    """Trainer knows by the class's name whether labels are shifted."""
    host, trainer, _ = trained(tmp_path, label_smoothing_factor=0.1)
    ids = make("llama")[1]["input_ids"]
    inputs = {"input_ids": ids, "labels": ids}
    with host.route("a"):
        want = trainer.compute_loss(host.model, dict(inputs))
    torch.testing.assert_close(trainer.compute_loss(trainer.model, dict(inputs)), want)


@pytest.mark.filterwarnings("ignore")
def test_a_seq2seq_trainer_generates_as_the_tenant(tmp_path):
    host, trainer, seen = trained(
        tmp_path, tf.Seq2SeqTrainer, tf.Seq2SeqTrainingArguments, predict_with_generate=True, generation_max_length=8
    )
    trainer.evaluate()
    ids = make("llama")[1]["input_ids"]
    with host.route("a"):
        want = host.model.generate(ids, max_length=8)
    got = torch.tensor(seen[-1])[:, : want.shape[1]]
    assert torch.equal(got[:, ids.shape[1] :], want[:, ids.shape[1] :])


def test_pools_that_were_replaced_are_not_passed_over():
    model, batch = make("llama")
    host = cw.Host(model)
    stir(host.add("a", "lora"))
    module = host.module("a")
    others = {n: torch.zeros_like(p) for n, p in module.named_parameters() if n.startswith("pools.")}
    with pytest.raises(cw.CommonweightError, match="was replaced"):
        torch.func.functional_call(module, others, (), batch)
    module(**batch)
    module.load_state_dict({n: p.clone() for n, p in module.state_dict().items()}, assign=True)
    with pytest.raises(cw.CommonweightError, match="was replaced"):
        module(**batch)


def test_a_closed_host_answers_as_nobody():
    model, batch = make("llama")
    host = cw.Host(model)
    for n in "ab":
        stir(host.add(n, "lora"))
    modules = host.module("a"), host.module(["a", "b"])
    host.close()
    for m in modules:
        with pytest.raises(cw.CommonweightError, match="has been removed"):
            m(**batch)
    with pytest.raises(cw.CommonweightError, match="this host was closed"):
        host.add("c", "lora")
    cw.Host(model).add("c", "lora")


def test_training_mode_leaves_the_statistics_of_batch_norms():
    torch.manual_seed(0)
    model = tf.ResNetModel(tf.ResNetConfig(embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1], layer_type="basic"))
    host = cw.Host(model.eval())
    host.add("t", "lora", rank=2)
    before = {n: b.clone() for n, b in model.named_buffers()}
    x = torch.randn(3, 3, 16, 16)
    with torch.no_grad():
        want = host.module("t")(pixel_values=x).last_hidden_state
        module = host.module("t").train()
        assert module.training and model.embedder.training
        torch.testing.assert_close(module(pixel_values=x).last_hidden_state, want)
    assert before and all(torch.equal(b, before[n]) for n, b in model.named_buffers())


def test_unfreezing_a_module_leaves_the_base_frozen():
    host, model, _ = two()
    module = host.module("a").requires_grad_(False)
    assert not any(p.requires_grad for p in host["a"].pools.values())
    module.requires_grad_(True)
    assert all(p.requires_grad for p in host["a"].parameters())
    assert not any(p.requires_grad for p in model.parameters())


def test_closing_a_host_leaves_the_model_as_it_was():
    model, batch = make("llama")
    before, want = set(model.__dict__), answer(model, batch)
    host = cw.Host(model)
    stir(host.add("a", "lora"))
    assert set(model.__dict__) > before
    host.close()
    assert set(model.__dict__) == before
    assert torch.equal(answer(model, batch), want)
    assert "generate" not in model.__dict__ and model.generate.__self__ is model


def test_a_batch_that_cannot_begin_leaves_nothing_open():
    """Without `tenants` it is refused; the model answers as the base afterwards, in other threads too."""
    model, batch = make("llama")
    host = cw.Host(model)
    with torch.no_grad():
        wanted = model(**batch).logits
        stir(host.add("a", "lora")), stir(host.add("b", "lora"))
        module = host.module(["a", "b"])
        with pytest.raises(cw.CommonweightError, match="a batch needs `tenants`"):
            module(**batch)
        assert model(**batch).logits.equal(wanted)
        found = []
        thread = threading.Thread(target=lambda: found.append(model(**batch).logits))
        thread.start()
        thread.join()
        assert found[0].equal(wanted) and not host.base.current.open and host.base.current.thread.module is None


@pytest.mark.parametrize("wrap", [lambda m: torch.compile(m, backend="eager"), torch.nn.DataParallel])
def test_a_module_of_a_model_in_a_wrapper(wrap):
    model, batch = shallow("llama")
    host = cw.Host(wrap(model))
    stir(host.add("a", "lora"))
    with torch.no_grad():
        with host.route("a"):
            wanted = model(**batch).logits
        torch.testing.assert_close(host.module("a")(**batch).logits, wanted)
    base = host.module(None)
    host.close()
    with torch.no_grad():
        assert not base(**batch).logits.equal(wanted)
