"""Names of PEFT and transformers: understood where they mean the same, else told what is meant here."""

import pytest

import commonweight as cw
from commonweight.adapt import Recipe
from commonweight.core import build, parse, peers
from commonweight.methods import available, get
from tests.models import make


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [("LORA", "lora"), ("VBLORA", "vb-lora"), ("LN_TUNING", "lntuning"), ("RANDLORA", "randlora"), ("IA3", "ia3"),
     ("UniLoRA", "uni-lora"), ("lora_xs", "lora-xs")],
)  # fmt: skip
def test_methods(theirs, ours):
    assert get(theirs).name == ours


@pytest.mark.parametrize("name", sorted(peers.NEAREST))
def test_methods_that_are_not_here_name_some_that_are(name):
    if peers.method(name, available()) in available():
        return
    with pytest.raises(cw.CommonweightError, match="this library does not have it; nearest here: ") as e:
        get(name.upper().replace("-", "_"))
    quoted = str(e.value).partition("nearest")[2].split("'")[1::2]
    assert any(q in available() for q in quoted)


def test_options():
    lora = available()["lora"].config
    assert build(lora, {"r": 4, "lora_alpha": 16, "lora_dropout": 0.1}) == lora(rank=4, alpha=16.0, dropout=0.1)
    assert parse(lora, ["r=4", "lora-alpha=16", "use_rslora=true"]) == {"rank": 4, "alpha": 16.0, "rslora": True}
    assert parse(lora, ["rank=4", "r=5"]) == {"rank": 5}
    with pytest.raises(cw.CommonweightError, match="LoRA: rank is given twice, once as r; give one"):
        build(lora, {"rank": 4, "r": 5})
    recipe = build(Recipe, {"num_train_epochs": 2.0, "learning_rate": 1e-4, "per_device_train_batch_size": 4,
                            "gradient_accumulation_steps": 2, "gradient_checkpointing": True})  # fmt: skip
    assert (recipe.epochs, recipe.lr, recipe.batch_size, recipe.accumulate) == (2, 1e-4, 4, 2)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("target_modules", r"layers are chosen by sites, globs over their names: --sites"),
        ("task_type", "a task is --task classify, lm or embed"),
        ("use_dora", "--method dora"),
        ("learning_rate", "it is a number of the training: --lr"),
        ("per_device_train_batch_size", "it is a number of the training: --batch-size"),
        ("modules_to_save", "--modules-to-save embed_tokens,lm_head, .* own head comes with labels"),
        ("trainable_token_indices", "--token-rows 5,7"),
        ("rnk", "unknown option of LoRA 'rnk'; did you mean 'rank'"),
    ],
)
def test_what_is_no_option_of_a_method(name, told):
    lora = available()["lora"].config
    for look in (lambda: build(lora, {name: 1}), lambda: parse(lora, [f"{name}=1"])):
        with pytest.raises(cw.CommonweightError, match=told):
            look()


def test_every_alias_leads_somewhere():
    known = {f for m in available().values() for f in m.config.__dataclass_fields__}
    flags = {"sites", "resume", "out", "dtype", "task", "method", "model", "data", "dev", "eval", "text_column",
             "token_rows"}  # fmt: skip
    assert {*peers.OPTIONS.values()} <= known | flags | {*Recipe.__dataclass_fields__}
    assert {*peers.TRAINING} - {"dtype"} <= {*Recipe.__dataclass_fields__}


def test_host_add():
    host = cw.Host(make("llama")[0])
    tenant = host.add("t", "LORA", r=4, lora_alpha=4)
    assert tenant.config.rank == 4 and tenant.config.alpha == 4
    with pytest.raises(cw.CommonweightError, match="layers are chosen by sites"):
        host.add("u", "lora", target_modules=["q_proj"])
    with pytest.raises(cw.CommonweightError, match=r"'QLORA': this library does not have it; nearest here: 'lora'"):
        host.add("u", "QLORA")
    for name, (here, options) in peers.MEANS.items():
        tenant = host.add("u", name.upper().replace("-", "_"), r=4)
        assert tenant.method.name == here and all(getattr(tenant.config, k) == v for k, v in options.items())
        host.remove("u")


def test_methods_over_tenants_say_what_they_are():
    assert peers.OVER == tuple(cw.methods.OVER.available())
    with pytest.raises(cw.CommonweightError, match=r"psec weighs other tenants, .* over=\[NAMES\]"):
        cw.methods.get("psec")


def test_lifelong_methods_say_what_they_are():
    assert set(peers.STREAMS) == {*cw.lifelong.available()} - {*cw.methods.available()}
    with pytest.raises(
        cw.CommonweightError, match=r"l2p learns tasks one after another, .* --stream tasks.yaml --meth"
    ):
        cw.methods.get("l2p")
