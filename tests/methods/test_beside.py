"""What a tenant holds beside its method: whole weights, and entries of the vocabulary."""

import pytest
import torch

import commonweight as cw
from tests.laws.subjects import stir
from tests.methods.selective.test_tokens import IDS, llama
from tests.models import answer, make

HELD = [
    {"modules_to_save": ["lm_head"]},
    {"modules_to_save": ["embed_tokens", "lm_head"]},
    {"modules_to_save": "norm|*_layernorm"},
    {"token_rows": [5, 9]},
    {"token_rows": {"embed_tokens": [5, 9], "lm_head": [4, 6, 7]}},
    {"modules_to_save": ["lm_head", "norm"], "token_rows": (3,)},
]
METHODS = [("lora", {"rank": 2}), ("ia3", {}), ("dora", {"rank": 2}), ("mos", {"rank": 2}), ("probe", {})]


@pytest.mark.parametrize("held", HELD)
@pytest.mark.parametrize("tied", [False, True])
def test_a_tenant_with_weights_of_its_own(held, tied, tmp_path):
    """Fresh it is the base; trained it is what it merges to, alone, beside others, and out of its file."""
    model = llama(tied)
    host = cw.Host(model)
    with torch.no_grad():
        base = model(IDS).logits
    tenant = host.add("t", "lora", rank=2, **held)
    other = stir(host.add("o", "lora", rank=2, seed=1), 1)
    with torch.no_grad(), host.route("t"):
        torch.testing.assert_close(model(IDS).logits, base)
    stir(tenant)
    assert tenant.count() == tenant.plan.count() > other.count()
    with torch.no_grad():
        with host.route("t"):
            alone = model(IDS).logits
        with host.route("o"):
            others = model(IDS).logits
        with host.route(["t", None, "o", "t"]):
            mixed = model(IDS).logits
    for i, want in enumerate((alone, base, others, alone)):
        torch.testing.assert_close(mixed[i], want[i], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(alone, base)
    again = cw.Host(llama(tied))
    loaded = again.load("t", host.save("t", tmp_path / "t.safetensors"))
    assert loaded.beside == tenant.beside and loaded.plan.digest() == tenant.plan.digest()
    with torch.no_grad(), again.route("t"):
        torch.testing.assert_close(again.model(IDS).logits, alone, rtol=1e-5, atol=1e-6)
    heads = {n for n in tenant.beside.sites if n == "lm_head"}
    if tied and heads:  # the table stays: no one weight says both
        with pytest.raises(cw.CommonweightError, match="tied"):
            host.merged("t")
        return
    plain = llama(tied)
    plain.load_state_dict(host.merged("t"), strict=False)
    with torch.no_grad():
        torch.testing.assert_close(plain(IDS).logits, alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("method", "options"), METHODS)
def test_beside_every_kind_of_method(method, options, tmp_path):
    """The head is held whole and rows of the table change; the method's own sites are what is left."""
    model = llama(False)
    host = cw.Host(model)
    tenant = stir(host.add("t", method, modules_to_save="lm_head", token_rows=[5], sites="*_proj|lm_head", **options))
    assert not {s.name for s in tenant.sites} & {"lm_head"}
    plain = llama(False)
    plain.load_state_dict(host.merged("t"), strict=False)
    with torch.no_grad(), host.route("t"):
        torch.testing.assert_close(model(IDS).logits, plain(IDS).logits, rtol=1e-4, atol=1e-5)
    again = cw.Host(llama(False))
    again.load("t", host.save("t", tmp_path / "t.safetensors"))
    with torch.no_grad(), host.route("t"), again.route("t"):
        torch.testing.assert_close(model(IDS).logits, again.model(IDS).logits, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("kind", "modules", "sites"),
    [
        ("gpt2", ["wte", "ln_f", "mlp"], {"transformer.wte", "transformer.ln_f", "transformer.h.0.mlp.c_fc"}),
        ("bert", ["embeddings", "pooler"], {"embeddings.word_embeddings", "embeddings.LayerNorm", "pooler.dense"}),
        ("t5", ["shared"], {"shared"}),
        ("vit", ["patch_embeddings", "embeddings"], {"embeddings.cls_token", "embeddings.patch_embeddings.projection"}),
        ("moe", ["experts"], {"model.layers.0.mlp.experts.down_proj[0]"}),
    ],
)
def test_modules_of_every_kind(kind, modules, sites):
    model, batch = make(kind)
    host = cw.Host(model)
    with torch.no_grad():
        base = answer(model, batch)
    tenant = host.add("t", "lora", rank=2, modules_to_save=modules)
    assert sites <= set(tenant.beside.copies) and not {s.name for s in tenant.sites} & set(tenant.beside.copies)
    with torch.no_grad():
        with host.route("t"):
            torch.testing.assert_close(answer(model, batch), base, rtol=1e-4, atol=1e-5)
        stir(tenant)
        plain, _ = make(kind)
        plain.load_state_dict(host.merged("t"), strict=False)
        with host.route("t"):
            alone = answer(model, batch)
        torch.testing.assert_close(alone, answer(plain, batch), rtol=1e-3, atol=1e-4)
        with host.route(["t", None, None, "t"]):
            mixed = answer(model, batch)
        torch.testing.assert_close(mixed[0], alone[0], rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(mixed[1], base[1], rtol=1e-3, atol=1e-4)


def test_training_reaches_what_is_held_and_nothing_else():
    model = llama(True)
    host = cw.Host(model)
    tenant = host.add("t", "lora", rank=2, modules_to_save=["norm"], token_rows=[5, int(IDS[0, 0])])
    before = {n: p.detach().clone() for n, p in tenant.named_parameters()}
    optimizer = torch.optim.AdamW(tenant.param_groups(lr=1e-2))
    for _ in range(2):
        with host.route("t"):
            model(IDS, labels=IDS).loss.backward()
        optimizer.step()
    assert all(p.grad is None for p in model.parameters())
    assert {n for n, p in tenant.named_parameters() if not torch.equal(p, before[n])} == {*before}
    rates = {round(g["lr"], 6) for g in tenant.param_groups(lr=1e-2)}
    assert rates == {1e-2, 1e-3}, "copies of whole weights have a tenth"


def test_what_is_held_counts_as_read():
    host = cw.Host(llama(True))
    plain, more = host.coverage("lora"), host.coverage("lora", modules_to_save=["embed_tokens", "norm"])
    tenant = host.add("t", "lora", modules_to_save=["embed_tokens", "norm"])
    assert more.read == plain.read + 61 * 32 + 32 == host.coverage("t").read
    assert "embeddings" not in more.line and tenant.count() > host.add("o", "lora").count()


def test_of_tied_weights_the_table_is_held_and_the_head_follows():
    host = cw.Host(llama(True))
    tenant = host.add("t", "lora", modules_to_save=["embed_tokens", "lm_head"])
    assert tenant.beside.copies == ("model.embed_tokens",) and "lm_head" in tenant.table
    alone = host.add("h", "lora", modules_to_save=["lm_head"])
    assert alone.beside.copies == ("lm_head",) and "model.embed_tokens" not in alone.table
    both = host.add("r", "lora", token_rows={"embed_tokens": [5], "lm_head": [5]})
    assert both.beside.rows == (("model.embed_tokens", (5,)),)


@pytest.mark.parametrize(
    ("held", "says"),
    [
        ({"modules_to_save": ["lm_haed"]}, "no module with weights is called 'lm_haed'; this model has .*lm_head"),
        ({"modules_to_save": 3}, "wanted names of modules"),
        ({"modules_to_save": [""]}, "wanted names of modules"),
        ({"token_rows": [3, 3]}, "each once"),
        ({"token_rows": ["a"]}, r"token_rows=\['a'\]; wanted numbers of entries"),
        ({"token_rows": [61]}, "names one beyond them"),
        ({"token_rows": []}, "token_rows"),
        ({"token_rows": {"emb": [3]}}, "no table or head 'emb'"),
        ({"token_rows": [3], "modules_to_save": ["embed_tokens"]}, "model.embed_tokens: whole, and by entries"),
        ({"trainable_token_indices": [3]}, "token_rows"),
    ],
)
def test_what_cannot_be_held_is_refused_by_name(held, says):
    host = cw.Host(llama(False))
    with pytest.raises(cw.CommonweightError, match=says):
        host.add("t", "lora", **held)
    assert "t" not in host


def test_a_classifiers_head_comes_with_labels_and_files_of_other_tools_have_no_place(tmp_path):
    from commonweight.adapt.classifier import Classifier

    host = cw.Host(Classifier(make("bert")[0]))
    with pytest.raises(cw.CommonweightError, match="it comes with labels="):
        host.add("t", "lora", modules_to_save=["head"])
    tenant = host.add("t", "lora", labels=2, modules_to_save=["pooler"], token_rows=[3])
    assert tenant.beside.sites == ("encoder.pooler.dense", "encoder.embeddings.word_embeddings")
    with pytest.raises(cw.CommonweightError, match="for which mlx has no place"):
        host.export("t", tmp_path / "a", "mlx")
    cw.Host(llama(False)).add("t", "lora", modules_to_save=["lm_head"])
    path = host.save("t", tmp_path / "t.safetensors")
    with pytest.raises(cw.CommonweightError, match="holds whole modules or rows of the vocabulary beside its method"):
        cw.merge.tenants([path, path], method="linear")
