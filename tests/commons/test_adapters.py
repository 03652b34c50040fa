"""Folders that PEFT wrote, as tenants of one common."""

import copy
import json
import re
import warnings
from itertools import pairwise

import pytest
import torch
from safetensors.torch import load_file

import commonweight as cw
from commonweight.commons import Commons, import_peft
from commonweight.formats.peft import folder
from tests.models import answer, make

peft = pytest.importorskip("peft")

DEFAULT = ("q_proj", "v_proj", "up_proj")


def write(at, seed, *, targets=DEFAULT, directions=4, kind="llama", **options):
    """A LoRA adapter by PEFT whose A and B lie in `directions` directions that all seeds have in common."""
    model = copy.deepcopy(make(kind)[0])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT's own, about transformers
        wrapped = peft.get_peft_model(model, peft.LoraConfig(**{"r": 3, "target_modules": list(targets), **options}))
    g, same = torch.Generator().manual_seed(seed), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in wrapped.parameters():
            if not p.requires_grad:
                continue
            if p.dim() == 1:
                p.add_(0.1)
            elif p.shape[0] < p.shape[1]:
                p.copy_(
                    torch.randn(p.shape[0], directions, generator=g)
                    @ torch.randn(directions, p.shape[1], generator=same)
                )
            else:
                p.copy_(
                    torch.randn(p.shape[0], directions, generator=same)
                    @ torch.randn(directions, p.shape[1], generator=g)
                )
    with torch.no_grad():
        out = answer(wrapped.eval(), make(kind)[1])
    wrapped.save_pretrained(at)
    return out


@pytest.fixture
def host():
    return cw.Host(make("llama")[0])


@pytest.fixture
def store(tmp_path):
    return Commons(tmp_path / "store")


def served(host, name):
    with torch.no_grad(), host.route(name):
        return answer(host.model, make("llama")[1])


def test_adapters_of_one_subspace_keep_their_answers_and_pay_for_the_bases_once(host, store, tmp_path):
    want = {f"a{i}": write(tmp_path / "in" / f"a{i}", i, r=(2, 3, 4)[i % 3]) for i in range(6)}
    report = import_peft(store, host, [tmp_path / "in"], keep=0.999999)
    assert len(host) == 0 and [t.name for t in report.tenants] == list(want) == list(store)
    assert max(t.error for t in report.tenants) < 1e-3 and [t.rank for t in report.tenants] == [2, 3, 4, 2, 3, 4]
    for t in report.tenants:
        assert t.before == (tmp_path / "in" / t.name / folder.TENSORS).stat().st_size
        tenant = host.load_from(store, t.name)
        assert tenant.method.name == "share" and tenant.common.frozen
        torch.testing.assert_close(served(host, t.name), want[t.name], rtol=1e-3, atol=2e-3)
        record = store.show(t.name)
        assert record.marginal_bytes == t.own and record.metrics["relative_error"] == t.error
    one, two = host["a0"], host["a1"]
    bases = [n for n in one.pools if ".basis_" in n]
    assert bases and all(one.pools[n] is two.pools[n] for n in bases)
    every = [store.manifest(n) for n in store]
    files = {r.hash: r.nbytes for m in every for k, r in m.pools.items() if ".basis_" in k}
    assert report.common == sum(files.values()) + sum({m.blueprint.hash: len(m.blueprint.text) for m in every}.values())
    assert store.nbytes == report.after


def test_a_new_adapter_grows_the_common(host, store, tmp_path):
    want = {f"a{i}": write(tmp_path / f"a{i}", i, directions=3) for i in range(3)}
    import_peft(store, host, [tmp_path / "a0", tmp_path / "a1"], keep=0.999999)
    before = host.load_from(store, "a0").pools["model.layers.0.self_attn.q_proj.basis_A"].shape
    host.remove("a0")
    want["other"] = write(tmp_path / "other", 7, directions=3, targets=("q_proj", "o_proj"), r=2)
    report = import_peft(store, host, [tmp_path / "other"], keep=0.999999)
    assert [(t.name, t.before is None) for t in report.tenants] == [("a0", True), ("a1", True), ("other", False)]
    assert store.show("a0").version == 2 and store.show("other").version == 1
    for name in ("a0", "a1", "other"):
        tenant = host.load_from(store, name)
        torch.testing.assert_close(served(host, name), want[name], rtol=1e-3, atol=2e-3)
    assert tenant.pools["model.layers.0.self_attn.q_proj.basis_A"].shape[0] >= before[0]


def test_fewer_directions_fewer_bytes_more_error(host, tmp_path):
    for i in range(4):
        write(tmp_path / "in" / f"a{i}", i, directions=16)
    reports = [import_peft(Commons(tmp_path / f"s{k}"), host, [tmp_path / "in"], k=k) for k in (2, 6, 12)]
    for a, b in pairwise(reports):
        assert a.after < b.after and all(x.error > y.error for x, y in zip(a.tenants, b.tenants))
    coded = import_peft(Commons(tmp_path / "coded"), host, [tmp_path / "in"], k=12, codec="bfloat16")
    assert coded.after < 0.7 * reports[2].after
    assert all(abs(a.error - b.error) < 1e-2 for a, b in zip(coded.tenants, reports[2].tenants))


def test_keep_is_kept(host, store, tmp_path):
    for i in range(4):
        write(tmp_path / "in" / f"a{i}", i, directions=16)
    report = import_peft(store, host, [tmp_path / "in"], keep=0.8)
    assert 0.05 < sum(t.error**2 for t in report.tenants) / 4 <= 0.2


def test_a_trained_head_stays_with_a_tenant_that_is_expressed_anew(tmp_path, store):
    host = cw.Host(cw.Classifier(make("bert")[0]))
    tenant = host.add("t", "share", k=4, rank=2, common="adapters", labels=["no", "yes"])
    with torch.no_grad():
        for p in tenant.parameters():
            p.add_(0.1 * torch.randn_like(p))
    head = {n: t.detach().clone() for n, t in tenant.pools.items() if n.startswith("head")}
    assert head
    store.publish(host, "t")
    host.remove("t")
    del tenant
    write(tmp_path / "a", 1, kind="bert", targets=("query", "value"))
    import_peft(store, host, [tmp_path / "a"], keep=0.999999)
    again = host.load_from(store, "t")
    assert again.labels == ("no", "yes") and all(torch.equal(again.pools[n], t) for n, t in head.items())


def refused(store, host, folders, says, **options):
    names = list(store)
    with pytest.raises(cw.CommonweightError, match=says):
        import_peft(store, host, folders, **options)
    assert list(store) == names and not len(host)


def test_what_is_refused(host, store, tmp_path):
    (tmp_path / "empty").mkdir()
    refused(store, host, [], "no adapters were named")
    refused(store, host, [tmp_path / "nowhere"], "nowhere: no such folder; wanted a PEFT adapter, or a folder of them")
    refused(store, host, [tmp_path / "empty"], "empty: holds no adapter_config.json, and no folder in it does")
    write(tmp_path / "a", 1)
    write(tmp_path / "dora", 1, use_dora=True)
    refused(
        store, host, [tmp_path / "a", tmp_path / "dora"],
        r"dora: dora at model.layers.0.self_attn.q_proj \(Magnitude\) is not a product of two factors",
    )  # fmt: skip
    write(tmp_path / "more" / "a", 2)
    refused(store, host, [tmp_path / "a", tmp_path / "more"], "another adapter is called 'a' too")
    write(tmp_path / "qwen", 1, kind="bert", targets=("query",))
    refused(store, host, [tmp_path / "a", tmp_path / "qwen"], f"^{re.escape(str(tmp_path / 'qwen'))}")
    refused(store, host, [tmp_path / "a"], "wanted adapters, 0 < keep <= 1", keep=0.0)
    config = json.loads((tmp_path / "a" / folder.CONFIG).read_text())
    for name, base in (("a", "one/model"), ("b", "another/model")):
        write(tmp_path / "named" / name, 1)
        (tmp_path / "named" / name / folder.CONFIG).write_text(json.dumps({**config, "base_model_name_or_path": base}))
    refused(store, host, [tmp_path / "named"], "b: its base is another/model, that of .*a is one/model; import them ap")


def test_a_common_that_is_not_shares(host, store, tmp_path):
    host.add("t", "lotr", rank=2, common="adapters")
    write(tmp_path / "a", 1)
    with pytest.raises(cw.CommonweightError, match="the host has tenants of a common 'adapters'; remove them first"):
        import_peft(store, host, [tmp_path / "a"])
    store.publish(host, "t")
    host.remove("t")
    refused(
        store, host, [tmp_path / "a"], "t: a tenant of lotr has the common 'adapters' in this store; choose another"
    )
    assert import_peft(store, host, [tmp_path / "a"], common="mine").tenants[0].name == "a"


def test_one_adapter_costs_what_it_costs(host, store, tmp_path):
    """Nothing is in common with one alone: the report says so, and does not flatter."""
    write(tmp_path / "a", 1, directions=16)
    report = import_peft(store, host, [tmp_path / "a"], keep=1.0)
    numbers = sum(t.numel() for t in load_file(tmp_path / "a" / folder.TENSORS).values())
    assert report.after > 4 * numbers and report.tenants[0].error < 1e-5
