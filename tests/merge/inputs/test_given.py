"""What a call in Python may be given: adapters and tenants are models, and are never merged by factors."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import commonweight as cw
from commonweight.merge.learning.blend import blend
from tests.laws.subjects import stir
from tests.models import make

from ..sample import gap, models

BASE, SOURCES = models(2)


@pytest.fixture
def host(tmp_path, monkeypatch):
    """A host with two tenants; a folder with its base, their files, a store, and what PEFT would have of the second."""
    monkeypatch.chdir(tmp_path)
    model = make("llama")[0]
    host = cw.Host(model)
    Path("m").mkdir()
    save_file({n: t.clone() for n, t in model.state_dict().items()}, "m/model.safetensors")
    commons = cw.Commons("store")
    for i, name in enumerate("ab"):
        stir(host.add(name, "lora", rank=2 + i), seed=i)
        host.save(name, f"{name}.safetensors")
        commons.publish(host, name)
    host.export_peft("b", "peft")
    return host


def whole(host, name):
    return {**{n: t.clone() for n, t in host.model.state_dict().items()}, **host.merged(name)}


WAYS = [  # the two tenants, in other words
    ["a.safetensors", "b.safetensors"],
    [Path("a.safetensors"), "store:b"],
    ["a.safetensors", "peft"],
    ["store:a", "peft/adapter_model.safetensors"],
    ["m+a.safetensors", "m+peft"],
    ["m/model.safetensors+store:a", "peft"],
]


@pytest.mark.parametrize("way", WAYS, ids=str)
@pytest.mark.parametrize("method", ["ties", "linear"])
def test_adapters_and_tenants_are_the_models_they_make(method, way, host):
    full = [whole(host, "a"), whole(host, "b")]
    base = {} if method == "linear" else {"base": host.model.state_dict()}
    wanted = cw.merge.merge(method, full, **base, weights=[1.0, 0.5])
    for root in ("m", host.model):
        alone = method == "linear" and all("+" in str(m) for m in way)
        out = cw.merge.merge(method, way, *(() if alone else (root,)), weights=[1.0, 0.5])
        assert gap(out, wanted) < 1e-5
        assert {n: t.dtype for n, t in out.items()} == {n: t.dtype for n, t in wanted.items()}


def test_tenants_of_a_host_and_mixtures(host):
    full = [whole(host, "a"), whole(host, "b")]
    wanted = cw.merge.ties([*full, full[0]], host.model, density=0.3)
    out = cw.merge.ties({"one": host["a"], "two": "peft", "three": full[0]}, base=host.model, density=0.3)
    assert gap(out, wanted) < 1e-5
    assert gap(cw.merge.linear([host["a"], full[1]], base=host.model), cw.merge.linear(full)) < 1e-5


def test_a_tenant_is_refused_on_other_weights(host):
    """Its file and its host say on which it was trained; without them it is told that nobody knows."""
    other = {n: t + 1 for n, t in host.model.state_dict().items()}
    for tenant in ("a.safetensors", host["a"]):
        with pytest.raises(cw.CommonweightError, match="trained on another base"):
            cw.merge.linear([tenant], base=other)
    alone = host["a"]
    alone.base = None
    with pytest.warns(UserWarning, match=r"model 0 \(the tenant a of a host\): .* that was not checked"):
        cw.merge.linear([alone], base=other)


def test_the_result_has_the_dtype_of_the_model_under_it(host):
    save_file({n: t.bfloat16() for n, t in host.model.state_dict().items()}, "m/model.safetensors")
    for call in (
        lambda: cw.merge.linear(["m+peft", "m+peft"]),
        lambda: cw.merge.linear(["peft", "m"], base="m"),
        lambda: cw.merge.ties(["peft", "m"], base="m"),
    ):
        assert {t.dtype for t in call().values()} == {torch.bfloat16}
    assert {t.dtype for t in cw.merge.linear(["m"], dtype="float16").values()} == {torch.float16}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda h: cw.merge.linear(["a.safetensors", "b.safetensors"]), r"model 0 is the tenant a.safetensors, which "
         r"changes a model: give base=, or 'MODEL\+a.safetensors'"),
        (lambda h: cw.merge.linear(["m", "store:a"]), r"model 1 is the tenant store:a, which .* 'MODEL\+store:a'"),
        (lambda h: cw.merge.linear(["peft"]), r"model 0 is the adapter peft, which .* 'MODEL\+peft'"),
        (lambda h: cw.merge.linear({"x": h["a"]}), r"model x is the tenant a of a host, .* host.merged\('a'\) over it"),
        (lambda h: cw.merge.ties(["m"], base="peft"), "base is the adapter peft, which is not a model by itself"),
        (lambda h: cw.merge.ties(["m"], base=h["a"]), "base is the tenant a of a host, which is not a model by itself"),
        (lambda h: cw.merge.linear([load_file("peft/adapter_model.safetensors")]), "model 0 has a factor of LoRA"),
        (lambda h: cw.merge.linear(["m", "m"], base="m"), "linear takes no base"),
        (lambda h: cw.merge.slerp("m", "m"), r"models is 'm'; wanted a list of models, as in \['m', ...\]"),
        (lambda h: cw.merge.linear(Path("m")), "models is 'm'; wanted a list of models"),
        (lambda h: cw.merge.linear(SOURCES, dtype="int8"), "dtype is 'int8'; wanted one of torch.float32"),
        (lambda h: cw.merge.linear(SOURCES, dtype="bf16"), "dtype is 'bf16'; wanted one of torch.float32"),
        (lambda h: cw.merge.linear(SOURCES, threads=-1), "threads is -1; wanted a whole number of at least 1"),
        (lambda h: cw.merge.linear(SOURCES, piece=0), "piece is 0; wanted a whole number of at least 1"),
        (lambda h: cw.merge.linear([{5: torch.ones(2)}]), "model 0: a key is 5; wanted tensors by their names"),
        (lambda h: cw.merge.linear([{"w": torch.ones(2, device="meta")}]), "w: model 0 has it on the meta device"),
        (lambda h: cw.merge.linear([{"w": torch.ones(2, 2).to_sparse()}]), "w: model 0 has a tensor of sparse_coo"),
        (lambda h: cw.merge.linear([{"w": torch.ones(2, dtype=torch.cfloat)}]), "a tensor of torch.complex64; wanted"),
    ],
)  # fmt: skip
def test_what_is_refused(call, message, host):
    with pytest.raises(cw.CommonweightError, match=message):
        call(host)


@pytest.mark.parametrize(
    "weights",
    [
        torch.tensor([0.7, 0.3], dtype=torch.float64),
        np.array([0.7, 0.3]),
        [np.float64(0.7), torch.tensor(0.3, dtype=torch.float64)],
        (0.7, 0.3),
    ],
)
def test_weights_of_torch_and_numpy(weights):
    wanted = cw.merge.linear(SOURCES, weights=[0.7, 0.3])
    assert gap(cw.merge.linear(SOURCES, weights=weights), wanted) == 0
    assert gap(cw.merge.ties(SOURCES, BASE, weights=np.float32(0.5)), cw.merge.ties(SOURCES, BASE, weights=0.5)) == 0


class Tied(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.embed_tokens = torch.nn.Embedding(5, 3)
        self.lm_head = torch.nn.Linear(3, 5, bias=False)
        self.lm_head.weight = self.embed_tokens.weight


def test_a_tied_module_and_a_folder_that_has_the_head_once(tmp_path):
    module, (one,) = Tied(), [{"embed_tokens.weight": torch.randn(5, 3)}]
    save_file(one, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"tie_word_embeddings": True}))
    out = cw.merge.linear([module, tmp_path])
    assert list(out) == ["embed_tokens.weight"]
    torch.testing.assert_close(
        out["embed_tokens.weight"], (module.embed_tokens.weight.detach() + one["embed_tokens.weight"]) / 2
    )
    assert set(cw.merge.linear([module, module])) == {"embed_tokens.weight", "lm_head.weight"}
    other = {"embed_tokens.weight": torch.randn(5, 3), "lm_head.weight": torch.randn(5, 3)}
    own = cw.merge.linear([other, tmp_path])  # a head that is not tied stands beside the table that is one
    torch.testing.assert_close(own["lm_head.weight"], (other["lm_head.weight"] + one["embed_tokens.weight"]) / 2)
    (tmp_path / "config.json").unlink()
    with pytest.raises(cw.CommonweightError, match=r"lm_head.weight: .* has no such tensor"):
        cw.merge.linear([other, tmp_path])
    with pytest.raises(cw.CommonweightError, match=r"lm_head.weight: .* has no such tensor"):
        cw.merge.linear(
            [{**one, "lm_head.weight": torch.ones(5, 3), "embed_tokens.weight": torch.ones(5, 3)}, tmp_path]
        )


def test_what_is_alike_by_chance_is_not_left_out():
    e, rest = torch.randn(4, 4), {"b": torch.ones(2)}
    for first, second in (("layers.0.w", "layers.1.w"), ("embed_tokens.weight", "layers.1.w"), ("w", "lm_head.weight")):
        with pytest.raises(cw.CommonweightError, match=f"{second}: model 1 has no such tensor"):
            cw.merge.linear([{first: e, second: e.clone(), **rest}, {first: torch.randn(4, 4), **rest}])


def test_a_search_and_a_learned_merge_take_them_too(host):
    full, point = [whole(host, "a"), whole(host, "b")], {"0.weights": 0.5, "1.weights": 0.25}
    wanted = cw.merge.search.merge_with("task_arithmetic", full, host.model, point, groups=1)
    found = cw.merge.search.merge_with("task_arithmetic", ["store:a", "peft"], "m", point, groups=1)
    assert gap(found, wanted) < 1e-5
    plain = cw.merge.search.merge_with("linear", ["store:a", "peft"], "m", {"0.normalize": True}, groups=1)
    assert gap(plain, cw.merge.linear(full)) < 1e-5
    made = blend(host.model, ["store:a", "peft"], "m")
    torch.testing.assert_close(made.tau, blend(host.model, full, host.model).tau, atol=1e-5, rtol=1e-4)
    with pytest.raises(cw.CommonweightError, match="base is missing"):
        blend(host.model, full, None)


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_an_extracted_adapter_goes_back_onto_its_base(kind, tmp_path):
    """GPT-2's weights lie the other way round: the factors are as PEFT has them, the model says how its weights lie."""
    model = make(kind)[0]
    base = {n: t.clone() for n, t in model.state_dict().items()}
    host = cw.Host(model)
    stir(host.add("a", "lora", rank=2))
    full = {**base, **host.merged("a")}
    folder = cw.merge.extract(full, base, tmp_path / "peft", rank=2).folder
    assert json.loads((folder / "adapter_config.json").read_text())["fan_in_fan_out"] == (kind == "gpt2")
    assert gap(cw.merge.linear([folder], base=base), full) < 1e-4
    assert gap(cw.merge.linear([folder], base=base, piece=7), full) < 1e-4
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "report.json").unlink()
    for more, message in [
        ({"init_lora_weights": "pissa"}, "'pissa': its base is another than the model; save it in PEFT"),
        ({"use_dora": True}, "the adapter has use_dora, which is not read"),
        ({"peft_type": "VERA"}, "an adapter of type VERA; LORA can be merged"),
    ]:
        (folder / "adapter_config.json").write_text(json.dumps({**config, **more}))
        with pytest.raises(cw.CommonweightError, match=message):
            cw.merge.linear([folder], base=base)
    (folder / "adapter_config.json").write_text("[]")
    with pytest.raises(cw.CommonweightError, match="holds a list; wanted a JSON object"):
        cw.merge.linear([folder], base=base)


@pytest.mark.parametrize("name", ["base_model.model._orig_mod.l", "module.base_model.model.l", "_orig_mod.l"])
def test_keys_of_a_wrapped_model_are_named(name, tmp_path):
    base = {"l.weight": torch.zeros(4, 4)}
    factors = {f"{name}.lora_{f}.weight": torch.ones(s) for f, s in (("A", (2, 4)), ("B", (4, 2)))}
    save_file(factors, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 4}))
    with pytest.raises(cw.CommonweightError, match=r"from a wrapped .* calls this base_model.model.l.lora_A.weight"):
        cw.merge.linear([tmp_path], base=base)
