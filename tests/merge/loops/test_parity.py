"""A method and its loop are the same to the bit, whatever the format, the number of models and the pieces."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import commonweight as cw
from commonweight.merge.loops import load, merging, rounds
from commonweight.merge.stream import engine, grid

SHAPES = {"a.0.w": (90, 111), "a.1.w": (64, 64), "a.1.cube": (3, 5, 7), "b": (77,), "s": ()}
CASES: list[tuple[str, dict]] = [
    ("linear", {}),
    ("linear", {"weights": (0.3, -1.5, 0.4), "normalize": False}),
    ("task_arithmetic", {"weights": (0.3, 0.7, 0.0), "scale": 0.3}),
    ("lines", {"alpha": 0.4}),
    ("lines", {"weights": (0.3, 0.7, 1.1)}),
    ("ties", {}),
    ("ties", {"weights": (0.3, 0.7, 1.1), "density": (0.5, 1.0, 0.01), "reduce": "sum"}),
    ("ties", {"compat": "mergekit", "weights": (0.3, -0.7, 0.0)}),
    ("ties", {"compat": "peft", "scale": 0.5}),
    ("ties", {"compat": "official"}),
    ("breadcrumbs", {}),
    ("breadcrumbs", {"weights": (0.3, 0.7, 1.1), "normalize": True, "density": 0.5, "gamma": 0.1}),
    ("breadcrumbs_ties", {"weights": (0.3, 0.7, 1.1)}),
    ("breadcrumbs_ties", {"compat": "mergekit", "density": 1.0, "gamma": 0.0}),
    ("dare_linear", {"density": 0.3}),
    ("dare_linear", {"density": (0.5, 1.0, 0.001), "rescale": False, "seed": 7}),
    ("dare_linear", {"density": 0.3, "compat": "mergekit"}),
    ("dare_ties", {"weights": (0.3, 0.7, 1.1)}),
    ("dare_ties", {"compat": "peft", "scale": 0.3}),
    ("della", {}),
    ("della", {"compat": "mergekit", "density": (0.5, 0.4, 1.0)}),
    ("della_linear", {"weights": (0.3, 0.7, 1.1), "rescale": False}),
    ("sce", {}),
    ("sce", {"compat": "mergekit"}),
    ("pcb", {}),
    ("pcb", {"variant": "nlp", "weights": (0.3, 0.7, 1.1), "density": 0.4}),
]


def near(dtype: torch.dtype, n: int, seed: int = 0):
    """(base, n models): equal magnitudes, zeros, minus zeros and entries that are the base's among the numbers."""
    g = torch.Generator().manual_seed(seed)
    base = {k: (0.02 * torch.randn(s, generator=g)).to(dtype) for k, s in SHAPES.items()}
    out = []
    for _ in range(n):
        state = {k: (b.float() + 0.002 * torch.randn(b.shape, generator=g)).to(dtype) for k, b in base.items()}
        for k, x in state.items():
            x.view(-1)[::13] = base[k].view(-1)[::13]
            x.view(-1)[5::17] = -0.0
        out.append(state)
    for b in base.values():
        b.view(-1)[5::34] = -0.0
    return base, out


def bits(state):
    return {k: x.contiguous().view(torch.int32 if x.dtype == torch.float32 else torch.int16) for k, x in state.items()}


def run(method, models, base, options):
    made = cw.merge.get(method)
    return bits(made(models, **({} if made.base == "none" else {"base": base}), **options))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize(("method", "options"), CASES, ids=lambda x: x if isinstance(x, str) else " ".join(map(str, x)))
def test_the_loop_gives_the_methods_own_bits(method, options, dtype, loops, monkeypatch):
    base, models = near(dtype, 3)
    monkeypatch.setenv(load.SWITCH, "off")
    want = run(method, models, base, options)
    monkeypatch.setenv(load.SWITCH, "on")
    monkeypatch.setattr(grid, "LEAST", 1 << 11)  # several pieces a tensor
    monkeypatch.setattr(grid, "TOTAL", 1 << 12)
    made = []
    real = merging.merge
    monkeypatch.setattr(merging, "merge", lambda *a: made.append(real(*a)) or made[-1])
    got = run(method, models, base, {**options, "piece": 3000})
    assert made and all(x is not None for x in made)
    if method in ("sce", "lines") or options.get("compat") == "mergekit":  # their sums depend on the pieces
        monkeypatch.setenv(load.SWITCH, "off")
        want = run(method, models, base, {**options, "piece": 3000})
    for name in want:
        assert torch.equal(got[name], want[name]), name


def test_every_method_with_steps_is_among_the_cases():
    assert {m.name for m in cw.merge.available().values() if m.steps} == {name for name, _ in CASES}


@pytest.mark.parametrize("n", [1, 2, 7])
@pytest.mark.parametrize("method", ["linear", "ties", "breadcrumbs", "dare_ties", "della", "sce", "pcb"])
def test_any_number_of_models(method, n, loops, monkeypatch):
    base, models = near(torch.bfloat16, n)
    got = run(method, models, base, {})
    monkeypatch.setenv(load.SWITCH, "off")
    want = run(method, models, base, {})
    assert all(torch.equal(got[k], want[k]) for k in want)


def test_a_survey_sees_the_same(loops, monkeypatch):
    """Also where its sample is smaller than the data, and through all of its rounds."""
    from commonweight.merge.maths import select

    monkeypatch.setattr(select, "_FEW", 64)
    monkeypatch.setattr(select, "_SAMPLE", 1 << 10)
    monkeypatch.setattr(rounds, "_MANY", 100)
    found = []
    for how in ("off", "on"):
        monkeypatch.setenv(load.SWITCH, how)
        for method in ("ties", "breadcrumbs", "pcb", "sce"):
            base, models = near(torch.bfloat16, 2)
            found.append(run(method, models, base, {"piece": 4000}))
    for a, b in zip(found[:4], found[4:]):
        assert all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize(
    ("dtype", "out"), [(torch.float16, torch.float32), (torch.float32, torch.bfloat16), (torch.bfloat16, torch.float16)]
)
def test_formats_of_inputs_and_result_may_differ(dtype, out, loops, monkeypatch):
    base, models = near(dtype, 3)
    models[1] = {k: x.float() for k, x in models[1].items()}
    got = run("ties", models, base, {"dtype": out})
    monkeypatch.setenv(load.SWITCH, "off")
    want = run("ties", models, base, {"dtype": out})
    assert all(torch.equal(got[k], want[k]) for k in want)


def test_every_number_of_sixteen_bits_is_read_and_written_as_torch_does(loops, monkeypatch):
    every = torch.arange(-(1 << 15), 1 << 15).to(torch.int16)
    for dtype in (torch.bfloat16, torch.float16):
        x = every.view(dtype)
        x = x[x.isfinite()]
        assert torch.equal(cw.merge.linear([{"x": x}], dtype=torch.float32)["x"], x.float())
    g = torch.Generator().manual_seed(0)
    wide = torch.randn(100_000, generator=g) * 10.0 ** torch.randint(-9, 4, (100_000,), generator=g)
    for dtype in (torch.bfloat16, torch.float16):
        got = cw.merge.linear([{"x": wide}], dtype=dtype)["x"]
        assert torch.equal(got.view(torch.int16), wide.to(dtype).view(torch.int16))


@pytest.mark.parametrize("method", ["linear", "ties", "sce", "della", "pcb"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_are_told_as_without_loops(method, bad, loops, monkeypatch):
    base, models = near(torch.bfloat16, 2)
    models[1]["a.1.w"][3, 5] = bad
    said = []
    for how in ("on", "off"):
        monkeypatch.setenv(load.SWITCH, how)
        with pytest.raises(cw.CommonweightError) as e:
            run(method, models, base, {})
        said.append(str(e.value))
    assert said[0] == said[1] and "has 1 number there" in said[0]


def test_a_result_that_does_not_fit_is_told_as_without_loops(loops):
    x = {"w": torch.full((70,), 60000.0)}
    with pytest.raises(cw.CommonweightError, match="does not fit float16"):
        cw.merge.linear([x, x], weights=(1.0, 1.0), normalize=False, dtype=torch.float16)


@pytest.mark.parametrize("method", ["ties", "dare_ties", "pcb"])
def test_threads_change_nothing(method, loops, monkeypatch):
    monkeypatch.setattr(grid, "SPAN", 1000)
    monkeypatch.setattr(engine, "BATCH", 5000)
    base, models = near(torch.bfloat16, 3)
    one, four = (run(method, models, base, {"threads": t, "piece": 700}) for t in (1, 4))
    assert all(torch.equal(one[k], four[k]) for k in one)


def test_what_no_loop_serves_is_left_to_the_method(loops):
    """Weights that cancel need float64; ranks along a dimension that is not the last have no loop."""
    from commonweight.merge.registry.steps import Drop, Merge

    dtypes = [torch.bfloat16]
    assert not merging.serves(Merge("elect", (1.0, -1.0)), (4, 4), dtypes)
    assert not merging.serves(Merge("onto", (1.0,)), (4, 4), [torch.float64])
    left = Drop((0.5,), 0, epsilon=0.1, rising=True)
    assert not merging.serves(Merge("onto", (1.0,), left), (4, 4, 4), dtypes)
    assert rounds.look({}, object(), [torch.zeros(3, dtype=torch.float64)], 1, None, 3) is None  # type: ignore[arg-type]


@pytest.mark.parametrize("most", [1, 300, 1 << 20, 1 << 32])
def test_numbers_are_counted_as_numpy_does(most, loops):
    numbers = np.random.default_rng(0).integers(0, most, 20_000).astype(np.uint32)
    want = np.unique(numbers, return_counts=True)
    got = rounds.runs(loops, numbers.copy())
    assert all(np.array_equal(a, b) for a, b in zip(got, want))


@pytest.mark.parametrize("most", [1, 300, 1 << 20, 1 << 32])
def test_numbers_of_some_ranks_are_those_of_the_order(most, loops):
    from commonweight.merge.maths import select

    g = np.random.default_rng(0)
    parts = [g.integers(0, most, n).astype(np.uint32) for n in (1, 3000, 0, 70_000)]
    order = np.sort(np.concatenate(parts))
    for ranks in ([1], [1, 1, len(order)], [7, 800, 800, 40_000, 40_001, len(order)]):
        told = np.array(ranks)
        assert select.chosen(parts, told).tolist() == order[told - 1].tolist()
        assert rounds.chosen(loops, parts, told.copy()).tolist() == order[told - 1].tolist()


@pytest.mark.parametrize("scale", [1.0, 30.0, 1e4])
@pytest.mark.parametrize("variant", ["official", "nlp"])
def test_scores_of_any_size(scale, variant, loops, monkeypatch):
    """Those of small task vectors come from the loop that uses them; a tanh of large ones from NumPy."""
    base, models = near(torch.bfloat16, 2)
    models = [{k: b + (scale * (m[k].float() - b.float())).bfloat16() for k, b in base.items()} for m in models]
    got = run("pcb", models, base, {"variant": variant, "piece": 3000})
    monkeypatch.setenv(load.SWITCH, "off")
    want = run("pcb", models, base, {"variant": variant})
    assert all(torch.equal(got[k], want[k]) for k in want)


def test_marks_of_a_piece_that_was_made_twice_are_right(loops):
    """Scores that are too large are seen after the digests' sums were begun."""
    from commonweight.merge.registry.steps import Compete

    g = torch.Generator().manual_seed(0)
    raw = [0.3 * torch.randn(5000, generator=g) for _ in range(3)]
    steps = Compete(((0.0, 1.5),) * 2, ((0.0, 1.0),) * 2, (1.0, 1.0), 1.0)
    made = merging.merge(loops, steps, raw, None, (5000,), torch.float32, True)  # type: ignore[arg-type]
    assert made is not None
    for x, sums in zip([*raw, made[0]], made[1]):
        words = x.view(torch.int64)[: 4 * 512].view(4, 512)
        assert np.array_equal(sums.rows, words.sum(1).numpy()) and np.array_equal(sums.columns, words.sum(0).numpy())


def test_powers_of_two_do_not_depend_on_the_place():
    from commonweight.merge.maths.parts import exp2

    x = torch.linspace(-9, 9, 1000)
    whole = exp2(x.clone())
    assert all(torch.equal(exp2(x[:n].clone()), whole[:n]) for n in (0, 1, 63, 64, 65, 999))
    assert torch.allclose(whole.double(), torch.exp2(x.double()), rtol=1e-6)
