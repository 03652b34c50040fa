"""mlx-lm's folders: ours by its published layout, and by mlx-lm itself where it is installed."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
import transformers as tf
from safetensors.torch import load_file, save_file

import commonweight as cw
from commonweight.formats import mlx
from commonweight.formats.changes import Change
from commonweight.formats.mlx import names
from tests.laws.subjects import stir
from tests.mixtures import SIZES, mixture
from tests.models import answer, make

SITES = "*.q_proj|*.down_proj"


@pytest.fixture
def host():
    return cw.Host(make("llama")[0])


def outputs(host, name):
    with torch.no_grad(), host.route(name):
        return answer(host.model, make("llama")[1])


def folder(tmp_path, kind="lora", change=None, **options):
    """As mlx_lm.lora writes it, and the weights' change by hand."""
    g, tensors, deltas = torch.Generator().manual_seed(3), {}, {}
    for i in range(2):
        for name, out, inp in (("self_attn.q_proj", 32, 32), ("mlp.down_proj", 32, 64)):
            at = f"model.layers.{i}.{name}"
            a, b = torch.randn(inp, 3, generator=g), torch.randn(3, out, generator=g)
            tensors |= {f"{at}.lora_a": a, f"{at}.lora_b": b}
            deltas[at] = 4 * (a @ b).T
            if kind == "dora":
                tensors[f"{at}.m"] = torch.rand(out, generator=g) + 0.5
    at = tmp_path / "a"
    at.mkdir()
    (change or (lambda t: None))(tensors)
    save_file(tensors, at / mlx.TENSORS)
    parameters = {"rank": 3, "scale": 4.0, "dropout": 0.1, "keys": ["self_attn.q_proj", "mlp.down_proj"], **options}
    config = {"fine_tune_type": kind, "num_layers": 2, "lora_parameters": parameters}
    (at / mlx.CONFIG).write_text(json.dumps(config))
    return at, deltas, tensors


def test_lora_changes_the_weights_as_its_layout_says(host, tmp_path):
    at, deltas, _ = folder(tmp_path)
    tenant = host.load_adapter(at, "m")
    assert (tenant.method.name, tenant.config.rank, tenant.config.alpha, tenant.config.dropout) == ("lora", 3, 12, 0.1)
    merged = host.merged("m")
    assert len(merged) == 4
    for name, delta in deltas.items():
        torch.testing.assert_close(merged[f"{name}.weight"], host.weight(name) + delta)


def test_dora_changes_the_weights_as_its_layout_says(host, tmp_path):
    at, deltas, tensors = folder(tmp_path, "dora")
    host.load_adapter(at / mlx.TENSORS, "m")  # a file of the folder stands for it
    for name, delta in deltas.items():
        w = host.weight(name) + delta
        w = tensors[f"{name}.m"][:, None] * w / w.norm(dim=1, keepdim=True)
        torch.testing.assert_close(host.merged("m")[f"{name}.weight"], w, rtol=1e-5, atol=1e-5)


def test_an_adapter_of_the_body_fits_the_model_with_a_head(host, tmp_path):
    at, _, tensors = folder(tmp_path)
    save_file({k.removeprefix("model."): v for k, v in tensors.items()}, at / mlx.TENSORS)
    assert len(host.load_adapter(at, "m").plan.uses) == 4


def test_an_embedding(host, tmp_path):
    g = torch.Generator().manual_seed(3)
    a, b = torch.randn(host.model.config.vocab_size, 3, generator=g), torch.randn(3, 32, generator=g)  # type: ignore
    at, *_ = folder(tmp_path)
    save_file({"model.embed_tokens.lora_a": a, "model.embed_tokens.lora_b": b}, at / mlx.TENSORS)
    host.load_adapter(at, "m")
    old = dict(host.model.named_parameters())["model.embed_tokens.weight"]
    torch.testing.assert_close(host.merged("m")["model.embed_tokens.weight"], old + 4 * a @ b)


@pytest.mark.parametrize(
    "change, options, message",
    [
        (lambda t: t.pop("model.layers.0.self_attn.q_proj.lora_b"), {}, "q_proj: has one factor of two"),
        (lambda t: t.update({"model.layers.0.self_attn.q_proj.lora_a": torch.ones(32, 2)}), {}, "are not a low-rank"),
        (
            lambda t: t.update({"model.layers.0.self_attn.q_proj.lora_a": torch.ones(8, 3)}),
            {},
            "made for another model",
        ),
        (lambda t: t.update({"model.norm.weight": torch.ones(32)}), {}, "model.norm.weight is no tensor"),
        (
            lambda t: t.update({"a.lora_a": torch.ones(2, 1), "a.lora_b": torch.ones(1, 2)}),
            {},
            "a: this base has no such",
        ),
        (lambda t: t["model.layers.0.self_attn.q_proj.lora_a"].fill_(float("nan")), {}, "NaN"),
        (None, {"scale": None}, "scale is None; wanted a number"),
        (None, {"dropout": 2}, "dropout is 2.0"),
    ],
)
def test_what_is_wrong_is_told(host, tmp_path, change, options, message):
    at, *_ = folder(tmp_path, change=change, **options)
    with pytest.raises(cw.CommonweightError, match=message) as e:
        host.load_adapter(at, "m")
    assert str(at) in str(e.value) and "m" not in host


def test_another_model_is_named_as_such(host, tmp_path):
    at, *_ = folder(tmp_path)
    save_file({"h.0.x.lora_a": torch.ones(4, 1), "h.0.x.lora_b": torch.ones(1, 4)}, at / mlx.TENSORS)
    with pytest.raises(cw.CommonweightError, match=r"made for another model: none of its 1 layers .* h\.0\.x"):
        host.load_adapter(at, "m")


@pytest.mark.parametrize("method", ["lora", "dora", "lora-xs", "mos"])
def test_what_is_written_comes_back(host, tmp_path, method):
    stir(host.add("t", method, rank=2, sites=SITES))
    host.load_adapter(host.export("t", tmp_path / "out", "mlx"), "back")
    torch.testing.assert_close(outputs(host, "back"), outputs(host, "t"), rtol=1e-5, atol=1e-5)


def test_one_rank_for_all_and_the_layers_keys(host, tmp_path):
    stir(host.add("t", "lora", rank=2, ranks=(("*.layers.0.*", 5),), sites=SITES))
    at = host.export("t", tmp_path / "out", "mlx")
    told = json.loads((at / mlx.CONFIG).read_text())
    assert told["lora_parameters"] == {
        "rank": 5, "scale": 1.0, "dropout": 0.0, "keys": ["mlp.down_proj", "self_attn.q_proj"]
    }  # fmt: skip
    assert told["num_layers"] == 2
    tensors = load_file(at / mlx.TENSORS)
    assert tensors["model.layers.1.mlp.down_proj.lora_a"].shape == (64, 5)
    assert not tensors["model.layers.1.mlp.down_proj.lora_a"][:, 2:].any()


def test_what_has_no_factors_is_written_only_when_an_error_is_allowed(host, tmp_path):
    stir(host.add("t", "full", sites="*.q_proj"))
    with pytest.raises(cw.CommonweightError, match=r"full is no product .* tolerance"):
        host.export("t", tmp_path / "out", "mlx")
    assert not (tmp_path / "out").exists()
    host.load_adapter(host.export("t", tmp_path / "out", "mlx", tolerance=0.01), "back")
    error = (outputs(host, "back") - outputs(host, "t")).norm() / (outputs(host, "t") - outputs(host, None)).norm()
    assert error < 0.05


def test_a_bias_has_no_place(tmp_path):
    host = cw.Host(make("qwen")[0])
    stir(host.add("t", "lora", rank=2, bias=True, sites="*.q_proj"))
    with pytest.raises(cw.CommonweightError, match=r"changes its bias, which mlx-lm's LoRA cannot"):
        host.export("t", tmp_path / "out", "mlx")


@pytest.mark.parametrize("together", [False, True], ids=["head apart", "tied"])
@pytest.mark.parametrize(("method", "sites"), [("lora", SITES), ("dora", SITES), ("lora", "*embed_tokens|*.q_proj")])
def test_mlx_lm_itself_gives_the_same(tmp_path, method, sites, together):
    core = pytest.importorskip("mlx.core")
    llama = pytest.importorskip("mlx_lm.models.llama")
    utils, flat = pytest.importorskip("mlx_lm.tuner.utils"), pytest.importorskip("mlx.utils")
    model, batch = make("llama")
    config: Any = model.config
    if together:
        config.tie_word_embeddings = True
        model.lm_head.weight = model.model.embed_tokens.weight
    theirs = llama.Model(
        llama.ModelArgs(
            model_type="llama", hidden_size=32, num_hidden_layers=2, intermediate_size=64, num_attention_heads=4,
            num_key_value_heads=2, rms_norm_eps=config.rms_norm_eps, vocab_size=config.vocab_size,
            rope_theta=config.rope_parameters["rope_theta"], tie_word_embeddings=together,
        )
    )  # fmt: skip
    theirs.load_weights(
        [
            (k, core.array(v.detach().numpy()))
            for k, v in model.state_dict().items()
            if not (together and k.startswith("lm_head"))
        ]
    )
    host = cw.Host(model)
    stir(host.add("t", method, rank=2, sites=sites))
    utils.load_adapters(theirs, str(host.export("t", tmp_path / "out", "mlx")))
    theirs.eval()
    got = torch.tensor(theirs(core.array(batch["input_ids"].numpy())).tolist())
    torch.testing.assert_close(got, outputs(host, "t"), rtol=1e-3, atol=1e-3)
    theirs.freeze()
    theirs.apply_to_modules(lambda n, m: m.unfreeze(keys=["lora_a", "lora_b", "m"], recurse=False))
    trained = dict(flat.tree_flatten(theirs.trainable_parameters()))
    core.save_safetensors(str(tmp_path / "out" / mlx.TENSORS), trained)  # what it trained and saves is read here
    host.load_adapter(tmp_path / "out", "back")
    torch.testing.assert_close(outputs(host, "back"), outputs(host, "t"), rtol=1e-4, atol=1e-4)


def tied(kind="llama"):
    """A host whose head reads the table's weight."""
    model: Any = make(kind)[0]
    model.config.tie_word_embeddings = True
    model.lm_head.weight = model.model.embed_tokens.weight
    return cw.Host(model)


@pytest.mark.parametrize("make_host", [lambda: cw.Host(make("llama")[0]), tied], ids=["apart", "tied"])
def test_a_table_of_embeddings_comes_back(tmp_path, make_host):
    host = make_host()
    stir(host.add("t", "lora", rank=2, sites="*embed_tokens|*.q_proj"))
    at = host.export("t", tmp_path / "out", "mlx")
    tensors, host_b = load_file(at / mlx.TENSORS), make_host()
    assert tensors["model.embed_tokens.lora_a"].shape == (61, 2)  # LoRAEmbedding's: (vocabulary, r), (r, width)
    assert tensors["model.embed_tokens.lora_b"].shape == (2, 32) and not any("lm_head" in k for k in tensors)
    assert "model.embed_tokens" in json.loads((at / mlx.CONFIG).read_text())["lora_parameters"]["keys"]
    host_b.load_adapter(at, "t")
    torch.testing.assert_close(outputs(host_b, "t"), outputs(host, "t"), rtol=1e-5, atol=1e-5)


def test_a_weight_that_mlx_lm_has_once_changes_as_one_or_not_at_all(tmp_path):
    host = tied()
    stir(host.add("head", "lora", rank=2, sites="lm_head"))
    with pytest.raises(cw.CommonweightError, match="lm_head read the same weight, which mlx-lm has once"):
        host.export("head", tmp_path / "out", "mlx")


MIXED = "*.experts.*|*.mlp.gate|*shared_expert*|*.q_proj"
MIXTURES = ["mixtral", "olmoe", "qwen2_moe", "qwen3_moe"]


def mixed(kind, rank=2):
    host = cw.Host(mixture(kind)[0])
    stir(host.add("t", "lora", rank=rank, ranks=(("model.layers.0.mlp.experts.down_proj[1]", 3),), sites=MIXED))
    return host


@pytest.mark.parametrize("kind", MIXTURES)
def test_experts_and_routers_of_a_mixture_are_written(tmp_path, kind):
    host = mixed(kind)
    at = host.export("t", tmp_path / "out", "mlx")
    tensors, old, new = load_file(at / mlx.TENSORS), dict(host.model.named_parameters()), host.merged("t")
    theirs = "block_sparse_moe" if kind == "mixtral" else "mlp"
    keys = json.loads((at / mlx.CONFIG).read_text())["lora_parameters"]["keys"]
    assert {f"{theirs}.gate", *(f"{theirs}.switch_mlp.{n}_proj" for n in ("gate", "up", "down"))} <= {*keys}
    for i in range(2):
        home = f"model.layers.{i}"
        names = (f"{home}.mlp.{n}" for n in ("experts.gate_up_proj", "experts.down_proj", "gate.weight"))
        gate_up, down, router = (new[k] - old[k] for k in names)
        for name, want in zip(("gate", "up", "down"), (*gate_up.chunk(2, 1), down)):
            a, b = (tensors[f"{home}.{theirs}.switch_mlp.{name}_proj.lora_{f}"] for f in "ab")
            E, out, inp = want.shape
            assert a.shape == (E, 3, inp) and b.shape == (E, out, 3)
            # LoRASwitchLinear of mlx_lm/tuner/lora.py: (x a[e]^T) b[e]^T, and the scale is 1
            x = torch.randn(E, 5, inp, generator=torch.Generator().manual_seed(0))
            torch.testing.assert_close(x @ a.mT @ b.mT, x @ want.mT, rtol=1e-4, atol=1e-4)
        a, b = (tensors[f"{home}.{theirs}.gate.lora_{f}"] for f in "ab")
        torch.testing.assert_close((a @ b).T, router, rtol=1e-4, atol=1e-5)
    host.load_adapter(at, "back")
    for name, w in new.items():
        torch.testing.assert_close(host.merged("back")[name], w, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", [*MIXTURES, "deepseek_v3", "glm4_moe"])
def test_mlx_lm_itself_gives_the_same_of_a_mixture(tmp_path, kind):
    core = pytest.importorskip("mlx.core")
    module, utils = pytest.importorskip(f"mlx_lm.models.{kind}"), pytest.importorskip("mlx_lm.tuner.utils")
    batch = mixture(kind)[1]
    if kind in MIXTURES:
        host = mixed(kind)
    else:
        host = cw.Host(mixture(kind)[0])
        stir(host.add("t", "lora", rank=2, sites="*.experts.*|*shared_experts*|*.o_proj"))
    config: Any = host.model.config
    told = {**config.to_dict(), "rope_theta": config.rope_parameters["rope_theta"], "rope_scaling": None}
    told |= {"scoring_func": "sigmoid", "topk_method": "noaux_tc"} if kind not in MIXTURES else {}
    told.setdefault("partial_rotary_factor", config.rope_parameters.get("partial_rotary_factor", 1.0))
    told["num_experts"] = told["num_local_experts"] = 4  # one name in transformers, either in mlx-lm
    theirs = module.Model(module.ModelArgs.from_dict(told))
    weights = {}
    for k, v in mixture(kind)[0].state_dict().items():
        home, _, leaf = k.partition(".experts.")
        halves = {"gate_up_proj": ("gate_proj", "up_proj"), "down_proj": ("down_proj",)}.get(leaf)
        whole = {k: v} if halves is None else {
            f"{home}.switch_mlp.{n}.weight": w for n, w in zip(halves, v.chunk(len(halves), 1))
        }  # fmt: skip
        weights |= {n.replace(".mlp.", ".block_sparse_moe.") if kind == "mixtral" else n: w for n, w in whole.items()}
    weights = {k: core.array(v.detach().numpy()) for k, v in weights.items()}
    theirs.load_weights([*(weights if kind in MIXTURES else theirs.sanitize(weights)).items()])
    utils.load_adapters(theirs, str(host.export("t", tmp_path / "out", "mlx")))
    theirs.eval()
    got = torch.tensor(theirs(core.array(batch["input_ids"].numpy())).tolist())
    with torch.no_grad(), host.route("t"):
        torch.testing.assert_close(got, answer(host.model, batch), rtol=1e-3, atol=1e-3)


def llama4():
    """Four layers, of which the last has no rotations: mlx-lm looks at the cache of the fourth."""
    sizes = {**SIZES, "num_hidden_layers": 4}
    config = tf.Llama4TextConfig(
        intermediate_size=24, intermediate_size_mlp=48, num_local_experts=4, num_experts_per_tok=1, head_dim=8,
        interleave_moe_layer_step=2, attn_temperature_tuning=False, **sizes,
    )  # fmt: skip
    torch.manual_seed(0)
    return tf.Llama4ForCausalLM(config).eval()


def gpt_oss():
    config: Any = mixture("gpt_oss")[0].config
    config.layer_types = ["sliding_attention", "full_attention"]  # mlx-lm looks for one of each
    torch.manual_seed(0)
    return tf.GptOssForCausalLM(config).eval()


@pytest.mark.parametrize("make_model", [gpt_oss, llama4])
def test_mlx_lm_itself_gives_the_same_where_gate_and_up_lie_otherwise(tmp_path, make_model):
    """gpt-oss has them in turns, both have (E, inp, out); mlx-lm's own `sanitize` takes the base's weights apart."""
    core = pytest.importorskip("mlx.core")
    utils = pytest.importorskip("mlx_lm.tuner.utils")
    kind = make_model.__name__
    module = pytest.importorskip(f"mlx_lm.models.{kind}")
    host = cw.Host(make_model())
    with torch.no_grad():
        for n, p in host.model.named_parameters():
            if "experts" in n or "router" in n:
                p.normal_(0, 0.2)
    weights = {k: core.array(v.detach().numpy()) for k, v in host.model.state_dict().items()}
    stir(host.add("t", "lora", rank=2, sites="*.experts.*|*.router|*.q_proj|*.o_proj|*_expert.*|*.0.*.up_proj"))
    config: Any = host.model.config
    rope = config.rope_parameters
    told = {**config.to_dict(), "rope_theta": rope["rope_theta"]}
    told["rope_scaling"] = None if rope["rope_type"] == "default" else rope
    if kind == "llama4":
        text = {**told, "attn_temperature_tuning": 0}
        told = {"model_type": kind, "text_config": text}
        weights = {f"language_model.{k}": v for k, v in weights.items()}
    else:  # the packed form of the hub: (E, out, inp)
        weights = {k: v.swapaxes(1, 2) if k.endswith(("gate_up_proj", "down_proj")) else v for k, v in weights.items()}
        weights = {f"{k}.weight" if k.endswith(("experts.gate_up_proj", "experts.down_proj")) else k: v
                   for k, v in weights.items()}  # fmt: skip
    theirs = module.Model(module.ModelArgs.from_dict(told))
    theirs.load_weights([*theirs.sanitize(weights).items()])
    theirs.eval()
    batch = mixture("gpt_oss")[1]
    ids = core.array(batch["input_ids"].numpy())
    plain = torch.tensor(theirs(ids).tolist())
    torch.testing.assert_close(plain, outputs_of(host, None, batch), rtol=1e-3, atol=1e-3)
    utils.load_adapters(theirs, str(host.export("t", tmp_path / "out", "mlx")))
    theirs.eval()
    got, want = torch.tensor(theirs(ids).tolist()), outputs_of(host, "t", batch)
    assert (want - plain).abs().max() > 0.1
    torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-3)


def outputs_of(host, name, batch):
    with torch.no_grad(), host.route(name):
        return answer(host.model, batch)


@pytest.mark.parametrize("make_model", [gpt_oss, llama4])
def test_gate_and_up_that_lie_otherwise_come_back(tmp_path, make_model):
    host = cw.Host(make_model())
    stir(host.add("t", "lora", rank=2, sites="*.experts.*|*.router|*.q_proj"))
    at = host.export("t", tmp_path / "out", "mlx")
    home = "model.layers.1.mlp" if make_model is gpt_oss else "language_model.model.layers.1.feed_forward"
    tensors, change = load_file(at / mlx.TENSORS), host.merged("t")
    key = f"{home.removeprefix('language_model.')}.experts.gate_up_proj"
    delta = (change[key] - dict(host.model.named_parameters())[key]).mT
    gate = delta[:, ::2] if make_model is gpt_oss else delta.chunk(2, 1)[0]
    a, b = (tensors[f"{home}.experts.gate_proj.lora_{f}"] for f in "ab")
    torch.testing.assert_close(b @ a, gate, rtol=1e-4, atol=1e-5)
    assert f"{home}.router.lora_a" in tensors
    host.load_adapter(at, "back")
    for name, w in change.items():
        torch.testing.assert_close(host.merged("back")[name], w, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["deepseek_v3", "glm4_moe"])
def test_experts_whose_router_is_no_layer_there(tmp_path, kind):
    host = cw.Host(mixture(kind)[0])
    stir(host.add("t", "lora", rank=2, sites="*.experts.*|*shared_experts*|*.o_proj"))
    at = host.export("t", tmp_path / "out", "mlx")
    tensors = load_file(at / mlx.TENSORS)
    assert {f"model.layers.1.mlp.switch_mlp.{n}_proj.lora_a" for n in ("gate", "up", "down")} <= tensors.keys()
    assert "model.layers.1.mlp.shared_experts.up_proj.lora_a" in tensors
    host.load_adapter(at, "back")
    for name, w in host.merged("t").items():
        torch.testing.assert_close(host.merged("back")[name], w, rtol=1e-5, atol=1e-5)
    stir(host.add("r", "lora", rank=2, sites="*.1.mlp.gate"))
    with pytest.raises(cw.CommonweightError, match=r"mlx-lm's router of model_type .* is no linear layer"):
        host.export("r", tmp_path / "r", "mlx")
    if kind == "deepseek_v3":
        stir(host.add("k", "lora", rank=2, sites="*.kv_b_proj"))
        with pytest.raises(cw.CommonweightError, match=r"kv_b_proj: mlx-lm has two layers for each head"):
            host.export("k", tmp_path / "k", "mlx")


def test_a_layer_for_each_expert_has_no_name_there():
    with pytest.raises(cw.CommonweightError, match=r"experts\.3\.up_proj: a layer of one expert, and mlx-lm keeps all"):
        mlx.write({"model.layers.0.mlp.experts.3.up_proj": Change(torch.ones(1, 4), torch.ones(4, 1))}, 1)


def test_the_language_of_a_model_of_more_senses_is_named_as_there():
    ours, theirs = "model.language_model.layers.0.mlp.up_proj", "language_model.model.layers.0.mlp.up_proj"
    assert names.name_of(ours, "llama") == theirs and names.back_in(theirs, "model.language_model.") == ours
    assert names.back_in("language_model.lm_head", "model.") == "lm_head"
    assert names.back_in("model.layers.0.mlp.up_proj", "model.") == "model.layers.0.mlp.up_proj"
