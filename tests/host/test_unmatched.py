"""Globs that fit no site are told, with what to write; numbers in brackets are of experts and rows."""

import warnings

import pytest

import commonweight as cw
from commonweight.core import fits
from tests.laws.subjects import stir
from tests.mixtures import mixtral
from tests.models import make


@pytest.fixture(scope="module")
def host():
    return cw.Host(make("llama")[0])


@pytest.mark.parametrize(
    ("glob", "told"),
    [
        ("q_proj", r"write '\*\.q_proj'"),
        ("layers.1", r"write '\*layers.1\*'|write '\*\.layers.1\*'"),
        ("*.up_porj", r"did you mean '\*\.up_proj', as in model.layers.0.mlp.up_proj"),
        (r".*\.q_proj$", r"did you mean '\*\.q_proj'"),  # as PEFT writes it
        ("lm_head", "fits lm_head, which the model has and the tenant does not read: name it in sites= too"),
        ("*layers.7.*", "its sites are model.layers.0.self_attn.q_proj to model.layers.1.mlp.down_proj"),
    ],
)
@pytest.mark.parametrize("method", ["lora", "dora", "sora"])
def test_an_option_that_fits_no_site_is_told(host, method, glob, told):
    with pytest.warns(UserWarning, match=rf"t: ranks names .* which fits none of the 14 sites .*({told})"):
        host.add("t", method, ranks=[[glob, 3], ["*.v_proj", 2]])
    host.remove("t")


def test_every_option_that_names_sites(host):
    for method, options in (
        ("lora", {"alphas": [["q", 3]]}),
        ("share", {"ks": [["q", 3, 3]]}),
        ("ia3", {"inputs": "q"}),
    ):
        with pytest.warns(UserWarning, match=f"{next(iter(options))} names 'q', which fits none"):
            host.add("t", method, **options)
        host.remove("t")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        host.add("t", "ia3", inputs="*.output.dense|*.down_proj")  # one pattern, for models of two makes
    host.remove("t")
    for name in cw.methods.available():
        for f in cw.methods.get(name).config.__dataclass_fields__.values():
            assert "(pattern" not in f.metadata["help"] or f.metadata["globs"], (name, f.name)


def test_a_slip_in_sites_is_told_and_a_pattern_for_many_models_is_not(host):
    with pytest.warns(UserWarning, match=r"'\*\.v_porj' does not fit|did you mean '\*\.v_proj'"):
        host.add("t", "lora", sites="*.q_proj|*.v_porj")
    host.remove("t")
    with pytest.warns(UserWarning, match=r"'embedings' fits no site .*; did you mean 'embeddings'\?"):
        host.add("t", "lora", sites="*.q_proj|embedings")
    host.remove("t")
    with pytest.warns(UserWarning, match=r"did you mean '\*\.down_proj'"):
        cw.Host(make("llama")[0], sites="*.q_proj|*.downproj")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        host.add("t", "lora", sites="*.q_proj|*.o_proj|*.out_proj|*.c_attn|*.fc1|*.w1|embeddings")
    host.remove("t")


def test_brackets_are_of_experts():
    assert fits("a.down_proj[1]", "*down_proj[1]") and fits("a.down_proj[1].A", "*.down_proj[1].*")
    assert fits("a.down_proj[12]", "*.down_proj") and not fits("a.down_proj[12]", "*down_proj[1]")
    assert fits("a.down_proj[12]", "*.down_proj[*]") and not fits("a.down_proj", "*.down_proj[*]")
    assert fits("layers.1.q", "layers.[01].q") and not fits("layers.2.q", "layers.[01].q")
    host = cw.Host(mixtral())
    one, every = "*.0.mlp.experts.down_proj[1]", "*.1.mlp.experts.gate_up_proj"
    tenant = host.add("t", "lora", rank=2, ranks=[[one, 5], [every, 3]], alphas=[[one, 1.0]])
    wide = {n: p.shape[0] for n, p in tenant.pools.items() if n.endswith(".A")}
    assert [n for n, r in wide.items() if r == 5] == ["model.layers.0.mlp.experts.down_proj[1].A"]
    assert [n for n, r in wide.items() if r == 3] == [
        f"model.layers.1.mlp.experts.gate_up_proj[{e}].A" for e in range(4)
    ]
    host.add("i", "ia3", sites="*.experts.*", inputs="*down_proj[1]")
    assert [u.site for u in host["i"].plan.uses if type(u.bind).__name__ == "ScaleInput"] == [
        f"model.layers.{i}.mlp.experts.down_proj[1]" for i in range(2)
    ]


def test_a_codec_for_the_pools_of_one_expert(tmp_path):
    host = cw.Host(mixtral())
    before = {n: p.detach().clone() for n, p in stir(host.add("t", "lora", rank=2)).pools.items()}
    host.save("t", tmp_path / "t.safetensors", codec={"*.down_proj[1].A": "int8"})
    host.remove("t")
    after = host.load("t", tmp_path / "t.safetensors").pools
    changed = {n for n, p in before.items() if not p.equal(after[n])}
    assert changed == {f"model.layers.{i}.mlp.experts.down_proj[1].A" for i in range(2)}
