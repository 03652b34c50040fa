"""dpo, orpo, kto and grpo through TRL: the tenant learns, the base is there once and stays as it is."""

import copy
import gc
import importlib.util

import pytest
import torch
import transformers

import commonweight as cw
from commonweight import CommonweightError
from commonweight.adapt import adapt, evaluate, open_host
from commonweight.adapt.base import tokenizer_of
from commonweight.adapt.rewards import rewards, to_call
from commonweight.adapt.tasks import Marked, Pairs, Prompts
from tests.adapt import tiny
from tests.models import make

needs_trl = pytest.mark.skipif(importlib.util.find_spec("trl") is None, reason="trl is not installed")
quiet = pytest.mark.filterwarnings("ignore")  # TRL's own

PAIRS = [{"prompt": f"w{i % 5}", "chosen": " w30 w31", "rejected": f" w{10 + i % 7}"} for i in range(8)]
CHATS = [{k: [{"role": "user" if k == "prompt" else "assistant", "content": v.strip()}] for k, v in r.items()}
         for r in PAIRS]  # fmt: skip
MARKED = [
    {"prompt": r["prompt"], "completion": r[k], "label": k == "chosen"} for r in PAIRS for k in ("chosen", "rejected")
]


def likes(prompts, completions, **_):
    return [float(len(str(c).split("w3"))) for c in completions]


def host_of(llama, template=False):
    host = open_host(llama, "lm", dtype="float32")
    if template:
        tokenizer_of(host.model).chat_template = tiny.CHAT
    return host


def bases(host):
    """Models of the base's class that there are."""
    return {id(m) for m in gc.get_objects() if type(m) is type(host.model) and "embed_tokens" in repr(m)}


@needs_trl
@quiet
@pytest.mark.parametrize(
    "task,rows,more",
    [
        ("dpo", PAIRS, {}),
        ("dpo", CHATS, {"optimizer": "muon"}),
        ("orpo", PAIRS, {"gradient_checkpointing": True, "bf16": True}),
        ("kto", MARKED, {}),
        ("grpo", [{"prompt": r["prompt"]} for r in PAIRS],
         {"reward": likes, "generations": 4, "completion_length": 4, "batch_size": 8, "beta": 0.1}),
    ],
)  # fmt: skip
def test_a_tenant_is_trained_on_the_only_base_there_is(llama, monkeypatch, task, rows, more):
    host = host_of(llama, template=rows is CHATS)
    before = {n: p.clone() for n, p in host.model.named_parameters()}
    config = copy.deepcopy(host.model.config.to_dict())
    gc.collect()
    there = bases(host)
    assert id(host.model) in there

    def second(*_, **__):
        raise AssertionError("a second base was loaded")

    monkeypatch.setattr(transformers.LlamaForCausalLM, "from_pretrained", second)
    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", second)
    seen = []
    how = {"batch_size": 4, "epochs": 3, "lr": 2e-2, "dev_rows": rows, **more}
    result = adapt(host, "t", rows, task=task, method="lora", options={"rank": 2}, progress=seen.append, **how)
    gc.collect()
    assert bases(host) == there
    assert all(torch.equal(p, before[n]) for n, p in host.model.named_parameters())
    assert host.model.config.to_dict() == config
    assert any(p.abs().sum() > 0 for n, p in result.tenant.named_parameters() if n.endswith("B"))
    name = "reward" if task == "grpo" else "accuracy"
    plain = evaluate(host, None, rows, task, reward=more.get("reward"), completion_length=4)
    assert result.metrics[name] >= plain[name] and result.steps == len(result.curve) == len(seen)
    if task != "grpo":
        assert result.metrics["margin"] > plain["margin"]
    assert not host.model.training


@needs_trl
@quiet
def test_dpo_starts_at_the_reference(llama):
    """A fresh tenant is the base: the loss is log 2 where the reference is the base without it."""
    result = adapt(host_of(llama), "t", PAIRS, task="dpo", method="lora", epochs=1, batch_size=8)
    assert result.curve[0]["loss"] == pytest.approx(0.693147, abs=1e-5)


@needs_trl
@quiet
@pytest.mark.parametrize("invoked", [False, True], ids=["lora", "activated"])
def test_trl_past_the_route_trains_the_tenant(llama, tmp_path, invoked):
    """TRL's trainers replace the forward by the backbone and a product with the head: both are the tenant's."""
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    host = host_of(llama)
    more = {"invocation": tokenizer_of(host.model)("w2 w3", add_special_tokens=False)["input_ids"]} if invoked else {}
    last = "model.layers.1.mlp.down_proj" if invoked else "lm_head"
    tenant = host.add("t", "lora", rank=2, sites=f"*.q_proj|{last}", **more)
    torch.nn.init.normal_(tenant.pools[f"{last}.B"])
    args = SFTConfig(
        output_dir=str(tmp_path), per_device_train_batch_size=2, max_steps=1, report_to=[], use_cpu=True, bf16=False,
        disable_tqdm=True, activation_checkpointing=False, max_length=16,
    )  # fmt: skip
    data = Dataset.from_list([{"text": "w1 w2 w3 w8"}, {"text": "w4 w5 w6"}])
    trainer = SFTTrainer(
        model=host.module("t"), args=args, train_dataset=data, processing_class=tokenizer_of(host.model)
    )
    batch = next(iter(trainer.get_train_dataloader()))
    loss = trainer.compute_loss(trainer.model, dict(batch))
    with host.route("t"):
        want = host.model(**batch).loss
    torch.testing.assert_close(loss, want)
    got = torch.autograd.grad(loss, [*tenant.parameters()])
    for a, b in zip(got, torch.autograd.grad(want, [*tenant.parameters()])):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


def test_a_backbone_that_is_called_in_the_models_place_is_the_tenants(llama):
    """As TRL does it: a tenant that acts from some tokens on finds them, and a head of its own is refused by name."""
    host = host_of(llama)
    ids = torch.tensor([[4, 5, 6, 7, 8], [6, 4, 7, 6, 5]])
    tenant = host.add("t", "lora", rank=2, invocation=[6, 7], sites="*.q_proj|*.down_proj")
    host.add("h", "lora", rank=2, invocation=[6, 7], sites="lm_head")
    with torch.no_grad():
        for p in tenant.parameters():
            p.normal_()
        module = host.module("t")
        hidden = module.base_model(input_ids=ids, use_cache=False).last_hidden_state
        again = module.model(ids, use_cache=False).last_hidden_state
        with host.route("t"):
            want = host.model(input_ids=ids).logits
        with host.route(None):
            base = host.model(input_ids=ids).logits
    torch.testing.assert_close(hidden @ module.lm_head.weight.T, want)
    assert torch.equal(hidden, again) and torch.equal(want[1], base[1]) and not torch.allclose(want[0], base[0])
    with pytest.raises(CommonweightError, match=r"lm_head: somebody multiplies by its weight.*without this site"):
        _ = host.module("h").lm_head.weight


def test_the_reference_is_the_host_without_a_tenant():
    model, batch = make("llama")
    plain = model(**batch).logits
    host = cw.Host(model)
    tenant = host.add("t", "lora", rank=2)
    with torch.no_grad():
        for p in tenant.parameters():
            p.fill_(0.1)
    reference = host.module(None)
    assert reference.base is host.module("t").base
    assert not any(p.requires_grad for p in reference.parameters())
    assert torch.equal(reference(**batch).logits, plain)
    with host.route("t"):
        assert torch.equal(reference(**batch).logits, plain) and not torch.equal(model(**batch).logits, plain)


def tokenizer(llama, template=None):
    found = tokenizer_of(host_of(llama).model)
    found.chat_template = template
    return found


@pytest.mark.parametrize(
    "kind,row,said",
    [
        (Pairs, {"prompt": "w1", "chosen": "w2", "rejected": "w2"}, "row 1: 'chosen' and 'rejected' are the same"),
        (Pairs, {"prompt": "w1", "chosen": "", "rejected": "w2"}, "'chosen' is empty"),
        (
            Pairs,
            {"prompt": "w1", "chosen": "w2"},
            "no rejected column among .* no flag names it: call",
        ),
        (Pairs, {"prompt": "w1", "chosen": "w2", "rejected": None}, "'rejected' is missing"),
        (Pairs, {"chosen": "w2 w4", "rejected": "w3 w4"}, "must begin alike and then differ"),
        (Pairs, {"prompt": [{"role": "user", "content": "w1"}], "chosen": "w2", "rejected": "w3"}, "no chat template"),
        (Marked, {"prompt": "w1", "completion": "w2", "label": "maybe"}, "wanted true or false"),
        (Marked, {"prompt": "w1", "completion": "w2"}, "no label column"),
        (Prompts, {"prompt": "w1"}, "needs a reward"),
    ],
)
def test_rows_are_looked_at_first(llama, kind, row, said):
    with pytest.raises(CommonweightError, match=said):
        kind(tokenizer(llama), 16).examples([row])


def test_the_usual_forms(llama):
    task = Pairs(tokenizer(llama, tiny.CHAT), 16)
    whole = [{"role": "user", "content": "w1"}, {"role": "assistant", "content": "w2"}]
    (made,) = task.examples([{"chosen": whole, "rejected": [whole[0], {"role": "assistant", "content": "w3"}]}])
    assert made["prompt"] == [whole[0]] and made["chosen"] == [whole[1]]
    assert made["good_ids"][-2:] == [6, 3] and made["good_labels"][:2] == [-100, -100]
    (made,) = task.examples([{"chosen": "w1 w2 w3", "rejected": "w1 w2 w4"}])
    assert (made["prompt"], made["chosen"], made["rejected"]) == ("w1 w2", " w3", " w4")
    with pytest.raises(CommonweightError, match="mix texts and messages"):
        task.examples([{"prompt": "w1", "chosen": [whole[1]], "rejected": "w3"}])
    made = Marked(tokenizer(llama), 16).examples(
        [{"question": "w1", "answer": "w2", "label": v} for v in ("True", "0", 1)]
    )
    assert [e["label"] for e in made] == [True, False, True]
    cut = Pairs(tokenizer(llama), 3, truncation_side="left")
    (made,) = cut.examples([{"prompt": "w0 w1 w2", "chosen": " w3 w4", "rejected": " w5"}])
    assert made["good_ids"] == [7, 8, 3] and "2 answers cut off before the last 3 tokens" in cut.note


def test_rewards(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text("def short(prompts, completions, **columns):\n    return [-len(c) for c in completions]\n")
    short = to_call(f"{file}:short")
    assert rewards(short, [{"prompt": "a", "x": 1}], ["abc"]) == [-3.0]
    chat = [{"prompt": [{"role": "user", "content": "a"}], "x": 2}]
    assert rewards(lambda prompts, completions, x: [c[0]["content"] == "b" for c in completions], chat, ["b"]) == [1.0]
    assert to_call("operator:add")(1, 2) == 3
    for wrong, said in (
        ("mine", "wanted module:function"),
        (f"{file}:long", "no function long"),
        ("no.such:f", "cannot be"),
    ):
        with pytest.raises(CommonweightError, match=said):
            to_call(wrong)
    with pytest.raises(CommonweightError, match="gave 0 numbers for 1"):
        rewards(lambda **_: [], [{"prompt": "a"}], ["b"])


@needs_trl
@quiet
def test_fewer_prompts_than_a_step_has_are_repeated(llama):
    how = {"reward": likes, "batch_size": 8, "generations": 2, "completion_length": 2}
    prompts = [{"prompt": r["prompt"]} for r in PAIRS[:3]]
    for accumulate in (1, 2):
        result = adapt(host_of(llama), "t", prompts, task="grpo", method="lora", epochs=2, accumulate=accumulate, **how)
        assert result.steps == len(result.curve) == 2


@needs_trl
@quiet
def test_what_does_not_go(llama):
    with pytest.raises(CommonweightError, match="make it a multiple of generations"):
        adapt(host_of(llama), "t", PAIRS, task="grpo", method="lora", reward=likes, batch_size=5, generations=4)
    with pytest.raises(CommonweightError, match="start it without resume"):
        adapt(host_of(llama), "t", PAIRS, task="dpo", method="lora", resume=True)
