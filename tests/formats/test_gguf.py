"""llama.cpp's LoRA files: by the layout of convert_lora_to_gguf.py, and by the gguf package where it is installed."""

from __future__ import annotations

import json
import struct

import pytest
import torch
from safetensors.torch import save_file

import commonweight as cw
from commonweight.formats import mlx
from commonweight.formats.gguf import About, container, names
from tests.laws.subjects import stir
from tests.mixtures import mixture
from tests.models import make

SITES = "*.q_proj|*.k_proj|*.down_proj"
LYING = "gpt_oss", "llama4"  # mixtures with experts of (E, inp, out), whose router is called so
EXPERTS = "experts.gate_up_proj", "experts.down_proj"
KEYS = {"general.architecture": "llama", "general.type": "adapter", "adapter.type": "lora", "adapter.lora.alpha": 6.0}


def home_of(kind):
    return "feed_forward" if kind == "llama4" else "mlp"


@pytest.fixture
def host():
    return cw.Host(make("llama")[0])


def factors(i=0):
    """{llama.cpp's name: (A, B)} of a tiny Llama of 4 heads and 2 key heads."""
    g = torch.Generator().manual_seed(5 + i)
    return {
        f"blk.{i}.{n}.weight": (torch.randn(3, inp, generator=g), torch.randn(out, 3, generator=g))
        for n, out, inp in (("attn_q", 32, 32), ("attn_k", 16, 32), ("ffn_down", 32, 64))
    }


def file(tmp_path, keys=KEYS, change=None):
    tensors = {}
    for name, (a, b) in factors().items():
        tensors |= {f"{name}.lora_a": a, f"{name}.lora_b": b}
    (change or (lambda t: None))(tensors)
    path = tmp_path / "a.gguf"
    path.write_bytes(container.write(keys, tensors))
    return path


def rows(w, heads):
    """How llama.cpp's converter turns a Llama's query and key rows."""
    return w.reshape(heads, 2, w.shape[0] // heads // 2, *w.shape[1:]).swapaxes(1, 2).reshape(w.shape)


def test_rows_of_query_and_key_come_back_into_the_models_order(host, tmp_path):
    host.load_adapter(file(tmp_path), "t")
    merged = host.merged("t")
    assert len(merged) == 3
    for name, (a, b) in factors().items():
        leaf = {"attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "ffn_down": "mlp.down_proj"}[
            name.split(".")[2]
        ]
        delta = merged[f"model.layers.0.{leaf}.weight"] - host.weight(f"model.layers.0.{leaf}")
        heads = {"attn_q": 4, "attn_k": 2}.get(name.split(".")[2])
        want = 2 * b @ a
        torch.testing.assert_close(delta if heads is None else rows(delta, heads), want, rtol=1e-4, atol=1e-5)


def test_a_scale_of_one_where_alpha_is_not_there(host, tmp_path):
    keys = {k: v for k, v in KEYS.items() if "alpha" not in k}
    tenant = host.load_adapter(file(tmp_path, keys), "t")
    assert (tenant.config.rank, tenant.config.alpha) == (3, 3)


@pytest.mark.parametrize("kind", ["llama", "qwen", "gpt2", "bert"])
@pytest.mark.parametrize("method", ["lora", "lora-xs", "vera"])
def test_what_is_written_comes_back(tmp_path, kind, method):
    host = cw.Host(make(kind)[0])
    stir(host.add("t", method, rank=2))
    host.load_adapter(host.export("t", tmp_path / "t.gguf", "gguf"), "back")
    a, b = host.merged("t"), host.merged("back")
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(b[name], a[name], rtol=1e-5, atol=1e-6)


def test_other_ranks_have_their_scales_in_the_factors(host, tmp_path):
    stir(host.add("t", "lora", rank=2, ranks=(("*.layers.0.*", 5),), sites=SITES))
    path = host.export("t", tmp_path / "t.gguf", "gguf")
    told = container.read(path)
    assert told.keys["adapter.lora.alpha"] == 0 and told.tensors["blk.0.attn_q.weight.lora_a"].shape == (5, 32)
    host.load_adapter(path, "back")
    for name, w in host.merged("t").items():
        torch.testing.assert_close(host.merged("back")[name], w, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "keys, change, message",
    [
        ({**KEYS, "general.architecture": "qwen2"}, None, "its architecture is 'qwen2', this base is 'llama'"),
        ({**KEYS, "general.type": "model"}, None, "general.type 'model'"),
        ({**KEYS, "adapter.lora.alpha": "x"}, None, "adapter.lora.alpha is 'x'"),
        ({**KEYS, "adapter.alora.invocation_tokens": "x"}, None, "is .x.; wanted a list of token ids"),
        (KEYS, lambda t: t.pop("blk.0.attn_q.weight.lora_b"), "attn_q.weight: has one factor of two"),
        (KEYS, lambda t: t.update({"blk.9.attn_q.weight.lora_a": torch.ones(1, 32), "blk.9.attn_q.weight.lora_b":
            torch.ones(32, 1)}), "blk.9.attn_q.weight: this base has no such layer"),
        (KEYS, lambda t: t.update({"blk.0.ffn_down.weight.lora_a": torch.ones(3, 60)}), r"\(32, 60\), this base has"),
        (KEYS, lambda t: t.update({"blk.0.attn_q.weight.lora_b": torch.ones(12, 3)}), "12 rows are not 4 heads"),
        (KEYS, lambda t: t.update({"x": torch.ones(2)}), "x is no factor of a LoRA"),
        (KEYS, lambda t: t["blk.0.attn_q.weight.lora_a"].fill_(float("inf")), "NaN or infinity"),
        (KEYS, lambda t: t.clear(), "holds no adapter"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_told(host, tmp_path, keys, change, message):
    path = file(tmp_path, keys, change)
    with pytest.raises(cw.CommonweightError, match=message) as e:
        host.load_adapter(path, "t")
    assert str(path) in str(e.value) and "t" not in host


def test_damage_is_told_wherever_it_is(host, tmp_path):
    path = file(tmp_path)
    data = path.read_bytes()
    for n in range(0, len(data) - 40, 97):
        path.write_bytes(data[:n])
        with pytest.raises(cw.CommonweightError):
            host.load_adapter(path, "t", format="gguf")
    for at in (8, 16, 24, 32):  # counts and lengths that go past the end
        path.write_bytes(data[:at] + struct.pack("<Q", 1 << 62) + data[at + 8 :])
        with pytest.raises(cw.CommonweightError):
            host.load_adapter(path, "t")


def test_norms_are_left_out_as_llama_cpp_leaves_them_out(host, tmp_path):
    path = file(tmp_path, change=lambda t: t.update({"blk.0.attn_norm.weight": torch.ones(32)}))
    with pytest.warns(UserWarning, match=r"1 vectors of norms \(blk.0.attn_norm.weight"):
        host.load_adapter(path, "t")


def test_experts_come_one_by_one(tmp_path):
    host = cw.Host(make("moe")[0])
    config = host.model.config
    about = About(config.model_type, config.num_attention_heads, config.num_key_value_heads)  # type: ignore[union-attr]
    site = next(s for s in host.base.every if s.name.endswith("experts.down_proj[0]"))
    n = sum(s.name.startswith(site.name[:-2]) for s in host.base.every)
    g = torch.Generator().manual_seed(0)
    a, b = torch.randn(n, 2, site.inp, generator=g), torch.randn(n, site.out, 2, generator=g)
    path = tmp_path / "e.gguf"
    tensors = {"blk.0.ffn_down_exps.weight.lora_a": a, "blk.0.ffn_down_exps.weight.lora_b": b}
    path.write_bytes(container.write({**KEYS, "general.architecture": about.architecture.name}, tensors))
    host.load_adapter(path, "t")
    key = site.name[:-3]
    delta = host.merged("t")[key] - dict(host.model.named_parameters())[key]
    torch.testing.assert_close(delta, 3 * b @ a, rtol=1e-4, atol=1e-4)


def test_an_embedding_has_its_first_factor_the_other_way_round(host, tmp_path):
    g, old = torch.Generator().manual_seed(3), dict(host.model.named_parameters())["model.embed_tokens.weight"]
    a, b = torch.randn(len(old), 3, generator=g), torch.randn(32, 3, generator=g)
    path = tmp_path / "e.gguf"
    path.write_bytes(container.write(KEYS, {"token_embd.weight.lora_a": a, "token_embd.weight.lora_b": b}))
    host.load_adapter(path, "t")
    torch.testing.assert_close(host.merged("t")["model.embed_tokens.weight"], old + 2 * a @ b.T)


def test_a_table_of_embeddings_comes_back(host, tmp_path):
    stir(host.add("t", "lora", rank=2, sites="*embed_tokens|*.q_proj"))
    path = host.export("t", tmp_path / "t.gguf", "gguf")
    told = container.read(path).tensors
    # as llama-adapter.cpp checks it: ne[1] of lora_a is the vocabulary, ne[1] of lora_b the width
    assert told["token_embd.weight.lora_a"].shape == (61, 2) and told["token_embd.weight.lora_b"].shape == (32, 2)
    host.load_adapter(path, "back")
    for name, w in host.merged("t").items():
        torch.testing.assert_close(host.merged("back")[name], w, rtol=1e-5, atol=1e-6)


def test_a_table_that_is_the_head_too_is_refused(tmp_path):
    host = cw.Host(make("gpt2")[0])
    stir(host.add("t", "lora", rank=2, sites="*wte"))
    with pytest.raises(cw.CommonweightError, match=r"wte: the head is tied to this table, and llama\.cpp stops"):
        host.export("t", tmp_path / "t.gguf", "gguf")


def test_an_activated_lora_comes_back(host, tmp_path):
    stir(host.add("t", "lora", rank=2, sites=SITES, invocation=(5, 6)))
    path = host.export("t", tmp_path / "t.gguf", "gguf")
    assert container.read(path).keys["adapter.alora.invocation_tokens"] == [5, 6]
    back = host.load_adapter(path, "back")
    assert back.config.invocation == (5, 6)
    ids = torch.tensor([[9, 5, 6, 8, 7]])
    with torch.no_grad():
        logits = []
        for name in ("t", "back"):
            with host.route(name):
                logits.append(host.model(input_ids=ids).logits)
    torch.testing.assert_close(*logits, rtol=1e-5, atol=1e-5)
    with pytest.raises(cw.CommonweightError, match=r"an activated LoRA \(invocation\), for which mlx has no word"):
        host.export("t", tmp_path / "m", "mlx")


def test_what_llama_cpp_cannot_say_is_refused(host, tmp_path):
    stir(host.add("d", "dora", rank=2, sites="*.q_proj"))
    with pytest.raises(cw.CommonweightError, match=r"dora is no product of two factors .* gguf"):
        host.export("d", tmp_path / "d", "gguf")
    host.export("d", tmp_path / "d", "gguf", tolerance=0.3)
    with pytest.raises(cw.CommonweightError, match="is there already"):
        host.export("d", tmp_path / "d", "gguf", tolerance=0.3)
    with pytest.raises(
        cw.CommonweightError, match="made for another model: its architecture is 'llama', this base is 'bert'"
    ):
        cw.Host(make("bert")[0]).load_adapter(tmp_path / "d")
    stir(host.add("h", "lora", rank=2, sites="lm_head"))
    host.model.config.tie_word_embeddings = True  # type: ignore[union-attr]
    with pytest.raises(cw.CommonweightError, match="lm_head: is tied to the embedding"):
        host.export("h", tmp_path / "h", "gguf")
    vit = cw.Host(make("vit")[0])
    stir(vit.add("t", "lora", rank=2))
    with pytest.raises(cw.CommonweightError, match=r"model_type 'vit': what llama\.cpp calls its layers is not known"):
        vit.export("t", tmp_path / "v", "gguf")


def test_the_gguf_package_reads_what_is_written(host, tmp_path):
    gguf = pytest.importorskip("gguf")
    stir(host.add("t", "lora", rank=2, sites=SITES))
    path = host.export("t", tmp_path / "t.gguf", "gguf")
    theirs, mine = gguf.GGUFReader(path), container.read(path)
    assert {t.name: torch.tensor(t.data).shape for t in theirs.tensors} == {n: t.shape for n, t in mine.tensors.items()}
    for t in theirs.tensors:
        assert torch.equal(torch.tensor(t.data), mine.tensors[t.name])
    assert theirs.fields["general.architecture"].contents() == "llama"
    assert theirs.fields["adapter.lora.alpha"].contents() == 2.0


def test_the_gguf_package_reads_where_an_activated_lora_begins(host, tmp_path):
    gguf = pytest.importorskip("gguf")
    stir(host.add("t", "lora", rank=2, sites=SITES, invocation=(5, 6)))
    fields = gguf.GGUFReader(host.export("t", tmp_path / "t.gguf", "gguf")).fields
    found = fields[gguf.Keys.Adapter.ALORA_INVOCATION_TOKENS]
    assert found.types == [gguf.GGUFValueType.ARRAY, gguf.GGUFValueType.UINT32] and found.contents() == [5, 6]


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q8_0"])
def test_types_that_the_gguf_package_writes_are_read(host, tmp_path, kind):
    gguf = pytest.importorskip("gguf")
    path, to = tmp_path / "t.gguf", getattr(gguf.GGMLQuantizationType, kind)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", 32.0)
    g = torch.Generator().manual_seed(2)
    a, b = torch.randn(32, 64, generator=g), torch.randn(32, 32, generator=g)
    for end, t in (("lora_a", a), ("lora_b", b)):
        raw = gguf.quants.quantize(t.numpy(), to)
        writer.add_tensor(f"blk.1.ffn_down.weight.{end}", raw, raw_dtype=to)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    host.load_adapter(path, "t")
    name = "model.layers.1.mlp.down_proj"
    delta = host.merged("t")[f"{name}.weight"] - host.weight(name)
    assert (delta - b @ a).norm() < {"F32": 1e-5, "F16": 1e-2, "BF16": 1e-2, "Q8_0": 2e-2}[kind] * (b @ a).norm()


def test_every_name_of_the_table_is_one_of_the_gguf_package():
    gguf = pytest.importorskip("gguf")
    by_name = {v: k for k, v in gguf.MODEL_ARCH_NAMES.items()}
    for kind, arch in names.ARCHITECTURES.items():
        theirs = gguf.get_tensor_name_map(by_name[arch.name], 4)
        homes = {"bert": "encoder.layer.2.", "gpt2": "transformer.h.2."}
        for ours, name in arch.layers.items():
            assert theirs.get_name(f"{homes.get(kind, 'model.layers.2.')}{ours}") == f"blk.2.{name}", (kind, ours)


MIXED = "*.experts.*|*.mlp.gate|*.router|*shared_expert*|*.q_proj"


@pytest.mark.parametrize("kind", ["mixtral", "olmoe", "qwen2_moe", "qwen3_moe", "gpt_oss", "llama4"])
@pytest.mark.parametrize("ranks", [(), (("model.layers.0.mlp.experts.down_proj[1]", 3),)], ids=["one rank", "another"])
def test_experts_and_routers_of_a_mixture_are_written(tmp_path, kind, ranks):
    host = cw.Host(mixture(kind)[0])
    stir(host.add("t", "lora", rank=2, alpha=6, ranks=tuple((n.replace("mlp", home_of(kind)), r) for n, r in ranks),
        sites=MIXED))  # fmt: skip
    path = host.export("t", tmp_path / "t.gguf", "gguf")
    told = container.read(path)
    alpha, old, new = told.keys["adapter.lora.alpha"], dict(host.model.named_parameters()), host.merged("t")
    assert bool(alpha) is (not ranks and kind != "qwen2_moe")  # whose shared expert has a gate of rank 1
    for i in range(2):
        home = f"model.layers.{i}.{home_of(kind)}"
        leaf = "router.weight" if kind in LYING else "gate.weight"
        gate_up, down, router = (new[k] - old[k] for k in (f"{home}.{n}" for n in (*EXPERTS, leaf)))
        if kind in LYING:  # (E, inp, out) in the model, which conversion/gpt_oss.py and llama4.py transpose
            gate_up, down = gate_up.mT, down.mT
        gate, up = (gate_up[:, ::2], gate_up[:, 1::2]) if kind == "gpt_oss" else gate_up.chunk(2, 1)
        wanted = {"gate_exps": gate, "up_exps": up, "down_exps": down, "gate_inp": router}
        for name, want in wanted.items():
            a, b = (told.tensors[f"blk.{i}.ffn_{name}.weight.lora_{f}"] for f in "ab")
            # llama-adapter.cpp: ne[0] of a and ne[1] of b are the weight's, ne[1] of a is ne[0] of b; build_lora_mm_id
            # then adds scale b[e] (a[e] x) for a token of expert e
            assert a.shape[:-2] == b.shape[:-2] == want.shape[:-2]
            scale = alpha / b.shape[-1] if alpha else 1.0
            torch.testing.assert_close(scale * b @ a, want, rtol=1e-4, atol=1e-5)
    back = host.load_adapter(path, "back")
    assert back.config.rank == 2
    for name, w in new.items():
        torch.testing.assert_close(host.merged("back")[name], w, rtol=1e-5, atol=1e-5)


def test_glm_has_a_dense_layer_and_shared_experts(tmp_path):
    host = cw.Host(mixture("glm4_moe")[0])
    stir(host.add("t", "lora", rank=2, sites="*.experts.*|*.mlp.*_proj|*shared_experts*|*.o_proj|*.1.mlp.gate"))
    path = host.export("t", tmp_path / "t.gguf", "gguf")
    there = {k.removesuffix(".weight.lora_a") for k in container.read(path).tensors if k.endswith("_a")}
    assert {f"blk.0.ffn_{n}" for n in ("gate", "up", "down")} | {"blk.0.attn_output", "blk.1.attn_output"} <= there
    assert {f"blk.1.ffn_{n}" for n in ("gate_exps", "up_exps", "down_exps", "gate_inp", "gate_shexp")} <= there
    host.load_adapter(path, "back")
    for name, w in host.merged("t").items():
        torch.testing.assert_close(host.merged("back")[name], w, rtol=1e-5, atol=1e-5)


def test_mixtures_of_unknown_names_are_refused(tmp_path):
    host = cw.Host(mixture("gpt_oss")[0])
    host.model.config.model_type = "gpt_x"  # type: ignore[union-attr]
    stir(host.add("t", "lora", rank=2, sites="*.experts.*"))
    for format in ("gguf", "mlx"):
        message = f"experts.gate_up_proj: what {format} calls .* of model_type .gpt_x. is not known"
        with pytest.raises(cw.CommonweightError, match=message):
            host.export("t", tmp_path / "t", format)


def test_the_gguf_package_reads_experts(tmp_path):
    gguf = pytest.importorskip("gguf")
    host = cw.Host(mixture("qwen2_moe")[0])
    stir(host.add("t", "lora", rank=2, sites=MIXED))
    path = host.export("t", tmp_path / "t.gguf", "gguf")
    mine, names = container.read(path).tensors, gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN2MOE, 2)
    theirs = {t.name: t for t in gguf.GGUFReader(path).tensors}
    assert theirs.keys() == mine.keys()
    assert [*theirs["blk.0.ffn_gate_exps.weight.lora_a"].shape] == [32, 2, 4]  # ne
    assert [*theirs["blk.0.ffn_gate_exps.weight.lora_b"].shape] == [2, 24, 4]
    for name, t in theirs.items():
        assert torch.equal(torch.tensor(t.data), mine[name])
    for ours in ("experts.gate_proj", "experts.up_proj", "experts.down_proj", "gate", "shared_expert_gate"):
        assert f"{names.get_name(f'model.layers.0.mlp.{ours}')}.weight.lora_a" in theirs


@pytest.mark.parametrize("how", [{}, {"tolerance": 0.01}])
@pytest.mark.parametrize("format", ["gguf", "mlx"])
def test_what_changes_no_weight_has_no_nearest_one(how, format, tmp_path):
    host = cw.Host(make("llama")[0])
    host.add("t", "lst")
    with pytest.raises(cw.CommonweightError, match=f"lst does not change a weight there, .* {format} .* own file"):
        host.export("t", tmp_path / "t", format, **how)
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("site", ["*.q_a_proj", "*.kv_a_proj_with_mqa", "*.kv_b_proj", "lm_head"])
def test_what_llama_cpp_would_serve_in_part(tmp_path, site):
    host = cw.Host(mixture("deepseek_v3")[0])
    stir(host.add("t", "lora", rank=2, sites=f"{site}|*shared_experts*"))
    with pytest.raises(
        cw.CommonweightError, match=r": llama.cpp puts no LoRA on this layer of a deepseek_v3, .*mlp.*host.save"
    ):
        host.export("t", tmp_path / "t.gguf", "gguf")
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("format", ["gguf", "mlx"])
def test_gate_and_up_that_were_trained_apart_come_in_turns(tmp_path, format):
    """mlx-lm and llama.cpp may give gate and up an A each; in gpt-oss their rows alternate."""
    host = cw.Host(mixture("gpt_oss")[0])
    g = torch.Generator().manual_seed(0)
    E, d, n = 4, 32, 48
    low = {k: (torch.randn(E, 2, d, generator=g), torch.randn(E, n, 2, generator=g)) for k in ("gate", "up")}
    if format == "gguf":
        path = tmp_path / "e.gguf"
        tensors = {f"blk.1.ffn_{k}_exps.weight.lora_{f}": t for k, p in low.items() for f, t in zip("ab", p)}
        path.write_bytes(container.write({**KEYS, "general.architecture": "gpt-oss"}, tensors))
        scale = 3.0
    else:
        path, scale = tmp_path, 4.0
        tensors = {f"model.layers.1.mlp.experts.{k}_proj.lora_{f}": t for k, p in low.items() for f, t in zip("ab", p)}
        save_file({k: t.clone() for k, t in tensors.items()}, path / mlx.TENSORS)
        told = {"rank": 2, "scale": scale, "dropout": 0.0, "keys": []}
        text = json.dumps({"fine_tune_type": "lora", "num_layers": 2, "lora_parameters": told})
        (path / mlx.CONFIG).write_text(text)
    host.load_adapter(path, "t")
    key = "model.layers.1.mlp.experts.gate_up_proj"
    delta = (host.merged("t")[key] - dict(host.model.named_parameters())[key]).mT
    for k, rows in (("gate", delta[:, ::2]), ("up", delta[:, 1::2])):
        torch.testing.assert_close(rows, scale * low[k][1] @ low[k][0], rtol=1e-4, atol=1e-4)


def test_deepseek_has_its_feed_forward_parts_and_what_attention_gives(tmp_path):
    host = cw.Host(mixture("deepseek_v3")[0])
    stir(host.add("t", "lora", rank=2, sites="*.mlp.*|*.o_proj"))
    path = host.export("t", tmp_path / "t.gguf", "gguf")
    told = container.read(path)
    assert told.keys["general.architecture"] == "deepseek2"
    there = {k.removesuffix(".weight.lora_a") for k in told.tensors if k.endswith("_a")}
    experts = (f"blk.1.ffn_{n}_{w}" for n in ("gate", "up", "down") for w in ("exps", "shexp"))
    dense = (f"blk.0.ffn_{n}" for n in ("gate", "up", "down"))
    assert there == {*experts, *dense, "blk.1.ffn_gate_inp", "blk.0.attn_output", "blk.1.attn_output"}
    host.load_adapter(path, "back")
    for name, w in host.merged("t").items():
        torch.testing.assert_close(host.merged("back")[name], w, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "turned"),
    # undo_permute of conversion/llama.py; False in llama4.py; glm.py: "we don't need to permute Q/K here"
    [("mixtral", True), ("llama4", False), ("gpt_oss", False), ("glm4_moe", False), ("qwen3_moe", False)],
)
def test_rows_of_query_and_key_are_turned_where_the_converter_turns_the_bases(tmp_path, kind, turned):
    host = cw.Host(mixture(kind)[0])
    stir(host.add("t", "lora", rank=2, sites="*.q_proj|*.k_proj"))
    told = container.read(host.export("t", tmp_path / "t.gguf", "gguf")).tensors
    for leaf, heads in (("q", 4), ("k", 2)):
        a, b = (told[f"blk.1.attn_{leaf}.weight.lora_{f}"] for f in "ab")
        key = f"model.layers.1.self_attn.{leaf}_proj.weight"
        delta = host.merged("t")[key] - dict(host.model.named_parameters())[key]
        torch.testing.assert_close(b @ a, rows(delta, heads) if turned else delta, rtol=1e-4, atol=1e-5)
