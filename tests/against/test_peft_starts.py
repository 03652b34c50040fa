"""LoRA that begins otherwise, and AdaLoRA: begun and trained by PEFT and opened here, and the other way round."""

from __future__ import annotations

import copy
import json
from importlib import import_module

import pytest
import torch
from safetensors.torch import load_file, save_file

import commonweight as cw
from tests.laws.subjects import stir
from tests.models import answer, make

peft = pytest.importorskip("peft")
pytestmark = pytest.mark.filterwarnings("ignore")

TARGETS = ["q_proj", "down_proj"]
SITES = "*.q_proj|*.down_proj"
DATA = ("corda", "lora_ga")  # whose start comes from rows and is taken out of the base once


def rows(seed=3):
    ids = torch.randint(5, 40, (4, 6), generator=torch.Generator().manual_seed(seed))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}


def stirred(model, std=0.1):
    g = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(std * torch.randn(p.shape, generator=g))
    return model.eval()


def of(model, batch):
    with torch.no_grad():
        return answer(model, batch)


def here(folder, method, model=None, **options):
    """(the tenant, what it answers) from a plain base."""
    host = cw.Host(make("llama")[0] if model is None else model)
    tenant = host.import_peft("t", folder, **options)
    assert tenant.method.name == method
    with host.route("t"):
        return tenant, of(host.model, make("llama")[1])


def there(folder):
    """What PEFT answers with a folder, from a plain base."""
    return of(peft.PeftModel.from_pretrained(make("llama")[0], folder).eval(), make("llama")[1])


def same(got, want, std=1e-5):
    assert (want - of(*make("llama"))).abs().max() > 1e-3, "the adapter does nothing"
    torch.testing.assert_close(got, want, rtol=1e-5, atol=std)


def said(folder):
    return json.loads((folder / "adapter_config.json").read_text())


def begun(init, **options):
    """PEFT's model whose LoRA begins from rows, before training."""
    base = make("llama")[0]
    config = peft.LoraConfig(**{"r": 2, "lora_alpha": 4, "target_modules": TARGETS, **options}, init_lora_weights=init)
    if init == "corda":
        one = {k: v[:1] for k, v in rows().items()}
        config.corda_config = import_module("peft.tuners.lora.config").CordaConfig()
        import_module("peft.tuners.lora.corda").preprocess_corda(base, config, run_model=lambda: base(**one))
    elif init == "lora_ga":
        config.lora_ga_config = import_module("peft.tuners.lora.config").LoraGAConfig()
        step = import_module("peft.tuners.lora.loraga").preprocess_loraga
        step(base, config, lambda: (50 * base(**rows()).loss).backward())
    return peft.get_peft_model(base, config)


def saved(init, folder, **options):
    """What PEFT answers after training. Folders: start, end (as trained) and whole (converted by PEFT)."""
    model = begun(init, **options)
    model.peft_config["default"].init_lora_weights = True  # as PEFT's guide has it
    model.save_pretrained(folder / "start")
    model.peft_config["default"].init_lora_weights = init
    want = of(stirred(model), make("llama")[1])
    model.save_pretrained(folder / "end")
    model.save_pretrained(folder / "whole", path_initial_model_for_weight_conversion=str(folder / "start"))
    return want


@pytest.mark.parametrize("init", [*DATA, "pissa_niter_4", "olora"])
def test_what_peft_converted_is_a_lora_of_twice_the_rank(init, tmp_path):
    want = saved(init, tmp_path)
    tenant, got = here(tmp_path / "whole", "lora")
    assert tenant.config.rank == 4
    same(got, want)
    same(there(tmp_path / "whole"), want)


@pytest.mark.parametrize(
    ("init", "options", "method"),
    [
        ("corda", {}, "corda"),
        ("lora_ga", {}, "lora-ga"),
        ("lora_ga", {"use_rslora": True}, "lora-ga"),
        ("lora_ga", {"rank_pattern": {"q_proj": 3}, "alpha_pattern": {"down_proj": 5}}, "lora"),
        ("pissa_niter_4", {}, "lora"),
        ("pissa_niter_4", {"use_dora": True}, "dora"),
        ("olora", {}, "lora"),
    ],
)
def test_an_unconverted_one_opens_with_its_start(init, options, method, tmp_path):
    want = saved(init, tmp_path, **options) if "use_dora" not in options else None
    if want is None:  # which PEFT does not convert
        model = begun(init, **options)
        model.save_pretrained(tmp_path / "start")
        want = of(stirred(model, 0.03), make("llama")[1])
        model.save_pretrained(tmp_path / "end")
    if init != "olora":
        with pytest.raises(
            cw.CommonweightError, match=r"moved the base weights .* or give start= \(--start\), the folder of"
        ):
            here(tmp_path / "end", method)
    tenant, got = here(tmp_path / "end", method, start=tmp_path / "start")
    same(got, want)
    host = cw.Host(make("llama")[0])
    same(of_tenant(host, host.load_adapter(tmp_path / "end", start=tmp_path / "start")), want)
    if method in ("corda", "lora-ga"):  # its own file has the start too
        host.save("end", tmp_path / "t.cw")
        again = cw.Host(make("llama")[0])
        same(of_tenant(again, again.load("t", tmp_path / "t.cw")), want)
        assert tenant.config.rank == 2


def of_tenant(host, tenant):
    with host.route(tenant.name):
        return of(host.model, make("llama")[1])


def test_what_peft_makes_of_an_unconverted_folder_itself(tmp_path):
    """It cannot open CorDA's, and opens LoRA-GA's on a base that has not lost the start: another model, in silence."""
    want = {init: saved(init, tmp_path / init) for init in DATA}
    with pytest.raises(ValueError, match="`eigens` attribute not found"):
        there(tmp_path / "corda" / "end")
    assert (there(tmp_path / "lora_ga" / "end") - want["lora_ga"]).abs().max() > 0.01


def test_a_start_that_is_none(tmp_path):
    saved("lora_ga", tmp_path)
    saved("lora_ga", tmp_path / "other", lora_alpha=6)
    for folder, start, why in (
        ("whole", "start", r"init_lora_weights=True took nothing out of the base .* leave start out"),
        ("end", "other/start", r"start: its ranks, alphas or sites are other .* scale 3; the adapter: 4 sites, rank 2"),
        ("end", "none", r"start: .*none"),
        ("end", "end", r"start: its factors are the adapter's own"),
    ):
        with pytest.raises(cw.CommonweightError, match=why):
            here(tmp_path / folder, "lora", start=tmp_path / start)
    peft.get_peft_model(
        make("llama")[0], peft.IA3Config(target_modules=TARGETS, feedforward_modules=[])
    ).save_pretrained(tmp_path / "ia3")
    with pytest.raises(cw.CommonweightError, match=r"peft_type IA3 took nothing out of the base"):
        here(tmp_path / "ia3", "ia3", start=tmp_path / "start")
    host = cw.Host(make("llama")[0])
    stir(host.add("a", "lora"))
    host.save("a", tmp_path / "a.cw")
    with pytest.raises(cw.CommonweightError, match=r"start is for folders of PEFT; this is .*; leave it out"):
        host.load_adapter(tmp_path / "a.cw", "b", start=tmp_path / "start")


@pytest.mark.parametrize(("method", "options"), [("corda", {}), ("lora-ga", {}), ("olora", {"native": False})])
def test_ours_is_written_as_peft_converts_it(method, options, tmp_path):
    host = cw.Host(make("llama")[0], sites=SITES)
    given = {} if method == "olora" else {"rows": [rows()]}
    stir(host.add("t", method, rank=2, alpha=3.0, **given), std=0.05)
    host.export_peft("t", tmp_path / "a", **options)
    assert said(tmp_path / "a")["r"] == 4 and said(tmp_path / "a")["init_lora_weights"] is True
    want = of_tenant(host, host["t"])
    same(there(tmp_path / "a"), want)
    same(here(tmp_path / "a", "lora")[1], want)


def test_eva_by_peft(tmp_path):
    """With ranks that PEFT shared out by the rows."""
    options = {"r": 4, "lora_alpha": 6, "target_modules": [*TARGETS, "o_proj"], "init_lora_weights": "eva"}
    model = peft.get_peft_model(make("llama")[0], peft.LoraConfig(**options, eva_config=peft.EvaConfig(rho=2.0)))
    one = {k: v for k, v in rows().items() if k != "labels"}
    peft.initialize_lora_eva_weights(model, dataloader=[one], show_progress_bar=False)
    want = of(stirred(model), make("llama")[1])
    model.save_pretrained(tmp_path / "a")
    tenant, got = here(tmp_path / "a", "eva")
    same(got, want)
    ranks = {n.rpartition(".lora_A")[0].removeprefix("base_model.model."): len(t) for n, t in factors(tmp_path / "a")}
    assert dict(tenant.config.ranks) == ranks and len({*ranks.values()}) > 1
    assert (tenant.config.rank, tenant.config.alpha, tenant.config.rho) == (4, 6, 2)


def factors(folder):
    return [(n, t) for n, t in load_file(folder / "adapter_model.safetensors").items() if "lora_A" in n]


def test_eva_of_two_scales_is_a_lora(tmp_path):
    options = {"r": 3, "target_modules": TARGETS, "init_lora_weights": "eva", "rank_pattern": {"q_proj": 2}}
    model = stirred(peft.get_peft_model(make("llama")[0], peft.LoraConfig(**options)))
    model.save_pretrained(tmp_path / "a")
    same(here(tmp_path / "a", "lora")[1], of(model, make("llama")[1]))


def test_eva_by_us(tmp_path):
    host = cw.Host(make("llama")[0], sites=SITES)
    tenant = stir(host.add("t", "eva", rank=4, alpha=7.0, rho=1.5, rows=[rows()]), std=0.05)
    host.export_peft("t", tmp_path / "a")
    told = said(tmp_path / "a")
    assert told["init_lora_weights"] == "eva" and (told["r"], told["lora_alpha"]) == (4, 7)
    same(there(tmp_path / "a"), of_tenant(host, tenant))
    assert here(tmp_path / "a", "eva")[0].config == tenant.config
    assert len({r for _, r in tenant.config.ranks}) > 1


def test_adalora_trained_by_peft(tmp_path):
    config = peft.AdaLoraConfig(
        init_r=4, target_r=2, lora_alpha=6, lora_dropout=0.1, target_modules=TARGETS, total_step=20, tinit=2, tfinal=5,
        deltaT=2, beta1=0.8, orth_reg_weight=0.3,
    )  # fmt: skip
    model = peft.get_peft_model(make("llama")[0], config).eval()
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.05)
    for step in range(1, 19):
        model(**rows(step)).loss.backward()
        optimizer.step()
        model.base_model.update_and_allocate(step)
        optimizer.zero_grad()
    want = of(model, make("llama")[1])
    model.save_pretrained(tmp_path / "a")
    tenant, got = here(tmp_path / "a", "adalora")
    same(got, want)
    same(there(tmp_path / "a"), want)
    c = tenant.config
    assert (c.rank, c.target, c.alpha, c.dropout, c.every, c.beta1, c.beta2) == (4, 2, 6, 0.1, 2, 0.8, 0.85)
    assert (c.begin, c.end, c.orthogonal) == (0.1, 0.25, 0.3)
    assert sum(len(p) for n, p in tenant.pools.items() if n.endswith(".d")) == 2 * 4


def test_adalora_by_us(tmp_path):
    host = cw.Host(make("llama")[0], sites=SITES)
    tenant = stir(host.add("t", "adalora", rank=4, target=2, every=3, beta2=0.7), std=0.3)
    with torch.no_grad():
        for i, s in enumerate(host.sites):
            tenant.pools[f"{s.name}.d"][torch.tensor([[1, 3], [0], [], [0, 1, 2, 3]][i], dtype=torch.long)] = 0
    host.export_peft("t", tmp_path / "a")
    want, told = of_tenant(host, tenant), said(tmp_path / "a")
    assert told["peft_type"] == "ADALORA"
    assert told["rank_pattern"]["model.layers.0.self_attn.q_proj.lora_E"] == [True, False, True, False]
    same(there(tmp_path / "a"), want)
    again, got = here(tmp_path / "a", "adalora")
    same(got, want)
    assert [len(again.pools[f"{s.name}.A"]) for s in host.sites if f"{s.name}.A" in again.pools] == [2, 3, 4]
    host.save("t", tmp_path / "t.cw")
    small = cw.Host(make("llama")[0])
    small.load("u", tmp_path / "t.cw")
    small.export_peft("u", tmp_path / "b")  # of the kept directions alone
    same(there(tmp_path / "b"), want)
    assert here(tmp_path / "b", "adalora")[0].config == again.config


def test_adalora_that_was_not_trained(tmp_path):
    host = cw.Host(make("llama")[0], sites=SITES)
    host.add("t", "adalora", rank=3, target=3, begin=0.9, end=0.1)
    host.export_peft("t", tmp_path / "a")
    assert said(tmp_path / "a")["rank_pattern"] is None
    assert torch.equal(there(tmp_path / "a"), of(*make("llama")))
    tenant, _ = here(tmp_path / "a", "adalora")
    assert {len(p) for n, p in tenant.pools.items() if n.endswith(".A")} == {3}


def test_adalora_with_biases_or_a_tolerance_goes_through_peft(tmp_path):
    config = peft.AdaLoraConfig(init_r=3, target_modules=["query"], total_step=9, bias="all")
    model = stirred(peft.get_peft_model(make("bert")[0], config))
    model.save_pretrained(tmp_path / "a")
    host = cw.Host(make("bert")[0])
    assert host.import_peft("t", tmp_path / "a").method.name == "lora"
    with host.route("t"):
        torch.testing.assert_close(of(host.model, make("bert")[1]), of(model, make("bert")[1]), rtol=1e-5, atol=1e-5)
    assert host.import_peft("u", tmp_path / "a", tolerance=0.1).method.name == "lora"


def test_a_wrong_adalora_is_told(tmp_path):
    model = peft.get_peft_model(make("llama")[0], peft.AdaLoraConfig(init_r=3, target_modules=TARGETS, total_step=9))
    model.save_pretrained(tmp_path / "a")
    config, file = said(tmp_path / "a"), tmp_path / "a" / "adapter_model.safetensors"
    (tmp_path / "a" / "adapter_config.json").write_text(json.dumps({**config, "init_r": 2}))
    with pytest.raises(cw.CommonweightError, match=r"lora_A has 3 directions, adapter_config.json says init_r=2"):
        here(tmp_path / "a", "adalora")
    (tmp_path / "a" / "adapter_config.json").write_text(json.dumps(config))
    none = {n: t[:, :0].clone() if n.endswith("lora_B") else t[:0].clone() for n, t in load_file(file).items()}
    save_file(none, file)
    with pytest.raises(cw.CommonweightError, match=r"no direction is left at any site"):
        here(tmp_path / "a", "adalora")


def test_lora_fa_both_ways(tmp_path):
    """PEFT's is an optimizer that freezes A: the file is that of a LoRA."""
    make_optimizer = import_module("peft.optimizers").create_lorafa_optimizer
    model = peft.get_peft_model(make("llama")[0], peft.LoraConfig(r=3, lora_alpha=6, target_modules=TARGETS)).eval()
    optimizer = make_optimizer(model, r=3, lora_alpha=6, lr=0.05)
    for step in range(5):
        model(**rows(step)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(tmp_path / "a")
    same(here(tmp_path / "a", "lora")[1], of(model, make("llama")[1]))

    host = cw.Host(make("llama")[0], sites=SITES)
    tenant = stir(host.add("t", "lora-fa", rank=3, alpha=6.0), std=0.1)
    host.export_peft("t", tmp_path / "b")
    assert json.loads((tmp_path / "b" / "report.json").read_text())["native"]
    assert (said(tmp_path / "b")["r"], said(tmp_path / "b")["lora_alpha"]) == (3, 6)
    for name, A in factors(tmp_path / "b"):
        site = name.removeprefix("base_model.model.").partition(".lora_A")[0]
        assert torch.equal(A, tenant.pools[f"{site}.A"])
    same(there(tmp_path / "b"), of_tenant(host, tenant))
    more = peft.PeftModel.from_pretrained(make("llama")[0], tmp_path / "b", is_trainable=True)
    before = copy.deepcopy(dict(more.named_parameters()))
    optimizer = make_optimizer(more, r=3, lora_alpha=6, lr=0.05)
    more(**rows()).loss.backward()
    optimizer.step()
    moved = {n for n, p in more.named_parameters() if not torch.equal(p, before[n])}
    assert moved and all("lora_B" in n for n in moved)
