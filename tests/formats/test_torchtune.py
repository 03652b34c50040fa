"""torchtune's adapter checkpoints: by their layout, and by torchtune itself where it is installed."""

from __future__ import annotations

import json
import zipfile
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import commonweight as cw
from tests.models import answer, make

PARTS = {"attn.q_proj": (32, 32), "attn.k_proj": (16, 32), "attn.output_proj": (32, 32), "mlp.w2": (32, 64)}
OURS = {"attn.q_proj": "self_attn.q_proj", "attn.k_proj": "self_attn.k_proj", "attn.output_proj": "self_attn.o_proj",
        "mlp.w2": "mlp.down_proj"}  # fmt: skip


def tensors(dora=False):
    g, out = torch.Generator().manual_seed(3), {}
    for name, (d, inp) in PARTS.items():
        out[f"layers.1.{name}.lora_a.weight"] = torch.randn(3, inp, generator=g)
        out[f"layers.1.{name}.lora_b.weight"] = torch.randn(d, 3, generator=g)
        if dora:
            out[f"layers.1.{name}.magnitude"] = torch.rand(d, generator=g) + 0.5
    return out


def to_transformers(w, heads):
    """As torchtune's tune_to_hf turns rows of query and key."""
    return w.view(heads, w.shape[0] // heads // 2, 2, *w.shape[1:]).transpose(1, 2).reshape(w.shape)


@pytest.fixture
def host():
    return cw.Host(make("llama")[0])


@pytest.mark.parametrize("dora", [False, True])
def test_rows_of_query_and_key_come_in_the_models_order(host, tmp_path, dora):
    path, given = tmp_path / "adapter_0.pt", tensors(dora)
    torch.save(given, path)
    host.load_adapter(path, "t", alpha=6)
    for name, ours in OURS.items():
        at = f"layers.1.{name}"
        B, m = given[f"{at}.lora_b.weight"], given.get(f"{at}.magnitude")
        heads = {"attn.q_proj": 4, "attn.k_proj": 2}.get(name)
        if heads:
            B, m = to_transformers(B, heads), None if m is None else to_transformers(m, heads)
        w = host.weight(f"model.layers.1.{ours}") + 2 * B @ given[f"{at}.lora_a.weight"]
        w = w if m is None else m[:, None] * w / w.norm(dim=1, keepdim=True)
        torch.testing.assert_close(host.merged("t")[f"model.layers.1.{ours}.weight"], w, rtol=1e-5, atol=1e-5)


def test_a_qwens_rows_stay_and_alpha_lies_beside(tmp_path):
    host, given = cw.Host(make("qwen")[0]), tensors()
    torch.save(given, tmp_path / "adapter_model.pt")
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 3, "lora_alpha": 12}))
    host.load_adapter(tmp_path, "t")
    q = "model.layers.1.self_attn.q_proj"
    w = host.weight(q) + 4 * given["layers.1.attn.q_proj.lora_b.weight"] @ given["layers.1.attn.q_proj.lora_a.weight"]
    torch.testing.assert_close(host.merged("t")[f"{q}.weight"], w)


def test_the_same_tensors_as_safetensors(host, tmp_path):
    save_file(tensors(), tmp_path / "a.safetensors")
    with pytest.raises(cw.CommonweightError, match=r"does not say its alpha, .* give alpha="):
        host.load_adapter(tmp_path / "a.safetensors", "t")
    assert len(host.load_adapter(tmp_path / "a.safetensors", "t", alpha=3).plan.uses) == 4


class Bomb:
    def __reduce__(self):
        return exec, ("raise SystemExit(7)",)


def test_nothing_is_unpickled(host, tmp_path):
    path = tmp_path / "a.pt"
    torch.save({"layers.0.attn.q_proj.lora_a.weight": Bomb()}, path)
    with pytest.raises(cw.CommonweightError, match="a pickle can run any code and is not read"):
        host.load_adapter(path, "t", alpha=1)
    torch.save(tensors(), path)
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(tmp_path / "b.pt", "w", zipfile.ZIP_DEFLATED) as new:
        for item in old.infolist():
            new.writestr(item.filename, old.read(item))
    with pytest.raises(cw.CommonweightError, match="is compressed"):
        host.load_adapter(tmp_path / "b.pt", "t", alpha=1)
    path.write_bytes(path.read_bytes()[:400])
    with pytest.raises(cw.CommonweightError):
        host.load_adapter(path, "t", alpha=1)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda t: t.pop("layers.1.mlp.w2.lora_b.weight"), "mlp.w2: has one factor of two"),
        (lambda t: t.update({"layers.1.mlp.w9.lora_a.weight": torch.ones(1, 2), "layers.1.mlp.w9.lora_b.weight":
            torch.ones(2, 1)}), "w9 is no layer of a language model"),
        (lambda t: t.update({"step": torch.ones(1)}), "step is no tensor of torchtune's"),
        (lambda t: t.update({"layers.1.mlp.w2.lora_a.weight": torch.ones(3, 60)}), "made for another model"),
        (lambda t: t.clear(), "holds no adapter"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_told(host, tmp_path, change, message):
    given = tensors()
    change(given)
    torch.save(given, tmp_path / "a.pt")
    with pytest.raises(cw.CommonweightError, match=message) as e:
        host.load_adapter(tmp_path / "a.pt", "t", alpha=1)
    assert "a.pt" in str(e.value) and "t" not in host


def test_a_model_that_torchtune_keeps_in_another_way_is_refused(tmp_path):
    torch.save(tensors(), tmp_path / "a.pt")
    with pytest.raises(cw.CommonweightError, match="torchtune's layout of 'gpt2' is not known here"):
        cw.Host(make("gpt2")[0]).load_adapter(tmp_path / "a.pt", "t", alpha=1)


@pytest.mark.parametrize("dora", [False, True])
def test_torchtune_itself_gives_the_same(tmp_path, dora):
    tune = pytest.importorskip("torchtune.models.llama3", exc_type=ImportError)
    convert = pytest.importorskip("torchtune.models.convert_weights", exc_type=ImportError)
    get_adapter_params = pytest.importorskip("torchtune.modules.peft", exc_type=ImportError).get_adapter_params
    model, batch = make("llama")
    config: Any = model.config
    theirs = tune.lora_llama3(
        ["q_proj", "k_proj", "output_proj"], apply_lora_to_mlp=True, vocab_size=config.vocab_size,
        num_layers=2, num_heads=4, num_kv_heads=2, embed_dim=32, intermediate_dim=64, max_seq_len=64, rope_base=10000,
        norm_eps=config.rms_norm_eps,
        lora_rank=3, lora_alpha=6, use_dora=dora,
    )  # fmt: skip
    weights = convert.hf_to_tune(model.state_dict(), num_heads=4, num_kv_heads=2, dim=32)
    theirs.load_state_dict(weights, strict=False)
    g = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, p in get_adapter_params(theirs).items():
            p.copy_(torch.rand(p.shape, generator=g) * 0.3 + ("magnitude" in name))
        want = theirs.eval()(batch["input_ids"])
    torch.save({k: v.detach() for k, v in get_adapter_params(theirs).items()}, tmp_path / "adapter_0.pt")
    host = cw.Host(model)
    host.load_adapter(tmp_path / "adapter_0.pt", "t", alpha=6)
    with torch.no_grad(), host.route("t"):
        torch.testing.assert_close(answer(model, batch), want, rtol=1e-3, atol=1e-3)
