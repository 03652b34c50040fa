"""Folders that other people's tools load: in a process that has no commonweight."""

import json

import pytest
from safetensors import safe_open

from commonweight import CommonweightError, share
from tests import apart
from tests.share.deep import KINDS, answer, bert, far, llama, qwen
from tests.share.elsewhere import answers

OPTIONS = {"strict": {}, "relaxed": {"relax": 4, "share_norms": False, "order": "sequence"}}
FORMS = {
    "llama": ("remote-code", "peft", "unrolled"), "qwen": ("remote-code", "unrolled"),
    "gpt2": ("remote-code", "unrolled"), "bert": ("remote-code", "peft", "albert", "unrolled"),
}  # fmt: skip


def size(folder):
    return sum(p.stat().st_size for p in folder.rglob("*.safetensors"))


def names(folder):
    with safe_open(next(folder.rglob("model.safetensors")), "pt") as f:
        return list(f.keys())


def test_every_form_loads_without_commonweight(tmp_path):
    jobs, want, unique = {}, {}, {}
    for kind, forms in FORMS.items():
        auto = "AutoModel" if kind == "bert" else "AutoModelForCausalLM"
        for label, options in OPTIONS.items():
            small = share.share(KINDS[kind](), "recursive", loops=2, **options)
            for form in forms:
                name = f"{kind} {label} {form}"
                folder = tmp_path / name.replace(" ", "-")
                if form == "albert" and options:
                    with pytest.raises(CommonweightError, match="form=albert repeats whole layers"):
                        share.save(small, folder, form)
                    assert not folder.exists()
                    continue
                share.save(small, folder, form)
                numbers = sum(p.numel() for p in small.parameters())
                if form == "remote-code":
                    assert size(folder) < 4 * numbers + 160 * len(names(folder))
                jobs[name] = (
                    auto,
                    str(folder / "adapter" if form == "peft" else folder),
                    form == "remote-code",
                    "float32",
                )
                want[name], unique[name] = answer(small), len(list(small.parameters()))
    got = answers(tmp_path, jobs)
    for name, (found, tensors) in got.items():
        assert far(found, want[name]) < (1e-5 if "unrolled" in name else 1e-7), name
        if "remote" in name:
            assert tensors == unique[name], name
    assert len(got) == 21


def test_remote_code_is_refused_without_the_flag(tmp_path, monkeypatch):
    """With model_type llama it would load as an ordinary model, what lacks filled at random."""
    from transformers import AutoModelForCausalLM

    share.save(share.share(llama(), "recursive"), tmp_path / "s")
    with pytest.raises(ValueError, match=r"trust_remote_code|custom code"):
        AutoModelForCausalLM.from_pretrained(tmp_path / "s", trust_remote_code=False)
    config = json.loads((tmp_path / "s" / "config.json").read_text())
    assert config["model_type"] == "shared_llama" and config["sharing"]["method"] == "recursive"
    code = (tmp_path / "s" / "modeling_shared_llama.py").read_text()
    assert "commonweight" not in [line.split()[1] for line in code.splitlines() if line.startswith(("import", "from"))]
    assert len(code.splitlines()) < 165


def test_save_pretrained_writes_the_same_folder(tmp_path):
    small = share.share(llama(), "recursive")
    small.save_pretrained(tmp_path / "a")
    share.save(small, tmp_path / "b")
    assert {p.name for p in (tmp_path / "a").iterdir()} == {p.name for p in (tmp_path / "b").iterdir()}
    assert names(tmp_path / "a") == names(tmp_path / "b")


def test_refusals(tmp_path):
    small = share.share(qwen(), "recursive")
    with pytest.raises(CommonweightError, match="layer_replication reads llama, mistral and bert layouts, not qwen3"):
        share.save(small, tmp_path / "s", "peft")
    with pytest.raises(CommonweightError, match="form=albert holds a BertModel, this is a Qwen3ForCausalLM"):
        share.save(small, tmp_path / "s", "albert")
    with pytest.raises(CommonweightError, match="unknown form 'pft'; did you mean 'peft'"):
        share.save(small, tmp_path / "s", "pft")
    with pytest.raises(CommonweightError, match="LlamaForCausalLM is no shared model; make one with"):
        share.save(llama(), tmp_path / "s")
    with pytest.raises(CommonweightError, match="form=albert runs layers in a cycle or a sequence, not as"):
        share.save(share.share(bert(), "recursive", order="middle_cycle"), tmp_path / "s", "albert")
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "mine").write_text("")
    with pytest.raises(CommonweightError, match="it is there already; choose another folder"):
        share.save(small, tmp_path / "s")
    assert [p.name for p in tmp_path.iterdir()] == ["s"]


def test_opening_a_shared_model_loads_no_method(tmp_path):
    """Or its first token waits for a hundred of them."""
    share.save(share.share(llama(), "recursive"), tmp_path / "s")
    code = (
        "import sys; from commonweight import share; share.load(sys.argv[1]);"
        "print([m for m in sys.modules if m in ('commonweight.methods', 'commonweight.host.host')])"
    )
    done = apart.run("-c", code, tmp_path / "s")
    assert done.stdout.strip() == "[]", done
