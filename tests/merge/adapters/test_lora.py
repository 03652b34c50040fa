"""LoRA in, LoRA out: the weighted sum of B A, not of A and of B."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file

import commonweight as cw
from commonweight.merge.sources.factored import Factored, Pair

SITES = {"model.q": (12, 8), "model.up": (16, 8)}
WEIGHTS, SCALES = [0.6, 0.9, -0.3], [2.0, 1.0, 0.5]


def adapters(ranks=(2, 3, 2)):
    g = torch.Generator().manual_seed(0)
    return [
        {f"{k}.lora_A.weight": torch.randn(r, i, generator=g) for k, (_, i) in SITES.items()}
        | {f"{k}.lora_B.weight": torch.randn(o, r, generator=g) for k, (o, _) in SITES.items()}
        for r in ranks
    ]


def update(adapter, site):
    return adapter[f"{site}.lora_B.weight"] @ adapter[f"{site}.lora_A.weight"]


def test_linear_is_the_weighted_sum_of_the_updates():
    given = adapters()
    out, error = cw.merge.lora(given, weights=WEIGHTS, scales=SCALES)
    for site in SITES:
        wanted = sum(w * s * update(a, site) for w, s, a in zip(WEIGHTS, SCALES, given))
        assert (update(out, site) - wanted).abs().max() < 1e-5
        assert len(out[f"{site}.lora_A.weight"]) == 7 and error[site] == 0


def test_a_rank_gives_the_best_approximation_and_its_error():
    given = adapters()
    exact, _ = cw.merge.lora(given, weights=WEIGHTS)
    out, error = cw.merge.lora(given, weights=WEIGHTS, rank=4)
    for site in SITES:
        full = update(exact, site)
        lost = (update(out, site) - full).norm() / full.norm()
        assert len(out[f"{site}.lora_A.weight"]) == 4
        assert abs(lost - error[site]) < 1e-5 and error[site] > 0.01
        assert abs(torch.linalg.svdvals(full)[4:].norm() / full.norm() - error[site]) < 1e-5


def test_peft_form_is_another_update():
    """PEFT adds A and B with square roots of the weights: cross terms between adapters come in."""
    tuner = pytest.importorskip("peft.tuners.lora.model")
    given = adapters((2, 2, 2))
    out, _ = cw.merge.lora(given, weights=WEIGHTS, scales=SCALES, compat="peft")
    right, _ = cw.merge.lora(given, weights=WEIGHTS, scales=SCALES)

    class Layer:
        lora_embedding_A = ()

        def __init__(self, site):
            self.lora_A, self.lora_B = ({
                str(i): torch.nn.Linear(1, 1, bias=False).requires_grad_(False) for i in range(3)
            } for _ in "AB")  # fmt: skip
            for i, a in enumerate(given):
                self.lora_A[str(i)].weight.data = a[f"{site}.lora_A.weight"]
                self.lora_B[str(i)].weight.data = a[f"{site}.lora_B.weight"]
            self.scaling = dict(zip("012", SCALES))

    for site in SITES:
        merge = tuner.LoraModel._generalized_task_arithmetic_weighted_adapter
        a, b = merge(None, "linear", list("012"), WEIGHTS, Layer(site), None, None)
        assert (out[f"{site}.lora_A.weight"] - a).abs().max() < 2e-6
        assert (out[f"{site}.lora_B.weight"] - b).abs().max() < 2e-6
        assert (b @ a - update(right, site)).norm() > 0.5 * update(right, site).norm()


WHOLE = [  # those which site by site would give something else
    ("ties", {"density": 0.5}), ("lines", {}), ("pcb", {"density": 0.3}), ("doge", {"steps": 3}), ("opcm", {}),
    ("emr", {"task": 1}), ("compeft", {"density": 0.3}), ("robust_signatures", {"shallow": 0.5}),
    ("layer_swap", {"bottom": 1, "top": 1}),
]  # fmt: skip
OTHERS = [("knots", {}), ("dare_linear", {"seed": 2}), ("breadcrumbs", {"density": 0.5}), ("karcher", {})]


@pytest.mark.parametrize(("name", "options"), WHOLE + OTHERS)
def test_other_methods_merge_the_full_updates_as_one_model(name, options):
    """Thresholds of the whole model and layers' numbers are those of the same merge of full state dicts."""
    given = layered(prefix="base_model.model.")
    scales = SCALES[:2]
    out, error = cw.merge.lora(given, scales=scales, method=name, rank=8, **options)
    sites = [k.removesuffix(".lora_A.weight") for k in given[0] if "lora_A" in k]
    full = [
        {f"{n.removeprefix('base_model.model.')}.weight": s * update(a, n) for n in sites}
        for s, a in zip(scales, given)
    ]
    base = None if cw.merge.get(name).base == "none" else {n: torch.zeros_like(t) for n, t in full[0].items()}
    wanted = cw.merge.merge(name, full, base, **options)
    assert len(wanted) == 4
    for site in sites:
        there = wanted[f"{site.removeprefix('base_model.model.')}.weight"]
        assert (update(out, site) - there).norm() < 1e-5 * there.norm().clamp(min=1) and error[site] < 1e-6
    assert list(out) == [f"{n}.lora_{x}.weight" for n in sorted(sites) for x in "AB"] and list(error) == sorted(sites)
    apart = {}
    for n in full[0]:
        apart |= cw.merge.merge(name, [{n: f[n]} for f in full], base and {n: base[n]}, **options)
    if (name, options) in WHOLE:
        assert max((apart[n] - t).norm() / t.norm().clamp(min=1e-9) for n, t in wanted.items()) > 1e-3


def layered(prefix=""):
    """Updates that grow with depth: what is large in one layer is small in the whole model."""
    g = torch.Generator().manual_seed(4)
    out = []
    for r in (2, 4):
        out.append({})
        for i in range(4):
            site = f"{prefix}model.layers.{i}.self_attn.q_proj"
            out[-1][f"{site}.lora_A.weight"] = torch.randn(r, 8, generator=g)
            out[-1][f"{site}.lora_B.weight"] = (1 + 2 * i) * torch.randn(8, r, generator=g)
    return out


def test_what_a_rank_leaves_out_of_another_method_is_stated():
    given = layered()
    whole, _ = cw.merge.lora(given, method="ties", rank=8)
    short, error = cw.merge.lora(given, method="ties")
    assert max(error.values()) > 0.05 and error["model.layers.0.self_attn.q_proj"] == 0  # all of it was trimmed
    for site in error:
        full = update(whole, site)
        assert len(short[f"{site}.lora_A.weight"]) == 4
        assert abs((update(short, site) - full).norm() / full.norm().clamp(min=1e-9) - error[site]) < 1e-5


def test_updates_are_made_as_they_are_read():
    """Any elements, whole rows or not."""
    a, b = torch.randn(3, 7), torch.randn(5, 3)
    source, whole = Factored("x", {"w": Pair(a, b, 0.5)}), 0.5 * (b @ a)
    assert source.shapes == {"w": (5, 7)} and torch.allclose(source.read("w"), whole)
    for start in range(35):
        for count in range(1, 36 - start):
            assert torch.allclose(source.flat("w", start, count), whole.view(-1)[start : start + count], atol=1e-6)


def test_no_more_than_the_sites_at_work_is_held(monkeypatch):
    """Updates are made as they are read, and go when they are brought to their rank."""
    from commonweight.merge.adapters import lora as ours

    most, held = 0, ours._Whole.write

    def write(self, *args):
        nonlocal most
        held(self, *args)
        most = max(most, len(self._flat))

    monkeypatch.setattr(ours._Whole, "write", write)
    cw.merge.lora(layered(), method="knots")  # which takes whole matrices, one at a time
    assert most == 1


def changed(i=1, **tensors):
    out = adapters()
    for key, t in tensors.items():
        key = key.replace("__", ".")
        if t is None:
            del out[i][key]
        else:
            out[i][key] = t
    return out


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: cw.merge.lora([]), "no adapters given"),
        (lambda: cw.merge.lora(adapters(), weights=[1.0]), r"weights are \[1.0\] for 3 adapters"),
        (lambda: cw.merge.lora(adapters(), rank=0), "rank is 0"),
        (lambda: cw.merge.lora(adapters(), method="tie"), "unknown merge method 'tie'"),
        (lambda: cw.merge.lora(adapters(), density=0.5), "method 'linear' takes no options here"),
        (lambda: cw.merge.lora(adapters(), compat="mergekit"), "unknown compat 'mergekit'"),
        (lambda: cw.merge.lora(adapters(), compat="peft", rank=2), "compat='peft' is the form of method='linear'"),
        (lambda: cw.merge.lora(adapters(), compat="peft"), r"the ranks \[2, 3, 2\] differ"),
        (lambda: cw.merge.lora(changed(bias=torch.ones(2))), "bias: adapter 1 has this beside"),
        (lambda: cw.merge.lora(changed(model__q__lora_B__weight=None)), "adapter 1 has no such tensor, but its A"),
        (lambda: cw.merge.lora(changed(model__q__lora_A__weight=torch.ones(2, 8))), "wanted .r, d_in., .d_out, r."),
        (lambda: cw.merge.lora(changed(model__q__lora_A__weight=torch.ones(3, 9))), "another shape than adapter 0"),
        (
            lambda: cw.merge.lora(changed(model__q__lora_A__weight=None, model__q__lora_B__weight=None)),
            "model.q: not in both adapter 0 and adapter 1",
        ),
        (lambda: cw.merge.lora(changed(model__q__lora_A__weight=torch.full((3, 8), torch.nan))), "adapter 1 has NaN"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(cw.CommonweightError, match=message):
        call()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("alora_invocation_tokens", [1, 2]),
        ("use_qalora", True),
        ("kasa_config", {"beta": 1}),
        ("use_bdlora", {"nblocks": 2}),
        ("monteclora_config", {"x": 1}),
        ("arrow_config", {"x": 1}),
        ("velora_config", {"num_groups": 1}),
        ("target_parameters", ["w"]),
        ("layer_replication", [[0, 1]]),
        ("of_a_later_peft", 1),
    ],
)
def test_an_adapter_that_is_no_plain_lora(key, value, tmp_path):
    base = {"l.weight": torch.zeros(4, 4)}
    factors = {
        "base_model.model.l.lora_A.weight": torch.ones(2, 4),
        "base_model.model.l.lora_B.weight": torch.ones(4, 2),
    }
    save_file(factors, tmp_path / "adapter_model.safetensors")
    plain = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "bias": "none", "eva_config": {"rho": 2}, "revision": None}
    for more in ({key: None}, {key: False}):
        (tmp_path / "adapter_config.json").write_text(json.dumps({**plain, **more}))
        assert torch.equal(cw.merge.linear([tmp_path], base=base)["l.weight"], torch.full((4, 4), 4.0))
    (tmp_path / "adapter_config.json").write_text(json.dumps({**plain, key: value}))
    with pytest.raises(cw.CommonweightError, match=f"the adapter has {key}, which is not read; merge it into"):
        cw.merge.linear([tmp_path], base=base)
