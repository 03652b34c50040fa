"""Searches: the exhaustive answer, the same trials for the same seed, and adapters whose sizes are searched."""

from itertools import product

import pytest
import torch
from torch.nn import functional as F

from commonweight import CommonweightError, share
from commonweight.share import searching
from commonweight.share.methods import autopeft
from tests.share.deep import KINDS, answer, bert, far, llama
from tests.share.methods.healing import falls

TOY = {"a": range(5), "b": (0.0, 1.0, 2.0, 3.0)}


def toy(choice):
    return choice["a"] + choice["b"], -((choice["a"] - 3) ** 2) + choice["b"]


def exhaustive():
    points = {(a, b): toy({"a": a, "b": b}) for a, b in product(*TOY.values())}
    better = lambda p, q: p[0] <= q[0] and p[1] >= q[1] and p != q  # noqa: E731
    return {k for k, p in points.items() if not any(better(q, p) for q in points.values())}


@pytest.mark.parametrize("engine", ["tpe", "nsga2"])
def test_the_front_is_that_of_trying_everything(engine):
    found = searching.search(TOY, toy, trials=150, directions=("minimize", "maximize"), engine=engine)
    got = {(c["a"], c["b"]): v for c, v in found.front}
    best = {toy({"a": a, "b": b}) for a, b in exhaustive()}
    assert set(got.values()) == best


def test_the_same_seed_asks_the_same_and_the_volume_never_falls():
    runs = [searching.search(TOY, toy, trials=12, directions=("minimize", "maximize"), seed=3) for _ in range(2)]
    assert runs[0].trials == runs[1].trials
    volumes = [runs[0].hypervolume((9.0, -12.0), n) for n in range(13)]
    assert volumes[0] == 0 and volumes == sorted(volumes) and volumes[-1] > 0
    one = searching.search({"a": range(5)}, lambda c: (c["a"] - 2) ** 2, trials=20, directions=("minimize",))
    assert one.best == {"a": 2}
    with pytest.raises(CommonweightError, match="2 measures have no best; see front"):
        _ = runs[0].best


def test_a_volume_by_hand():
    found = searching.Found([({}, (1.0, 2.0)), ({}, (2.0, 3.0)), ({}, (3.0, 1.0))], [], (True, False))
    assert found.hypervolume((4.0, 0.0)) == pytest.approx((4 - 1) * 2 + (4 - 2) * 1)


def test_a_gaussian_process_and_words():
    asked = []
    space = {"size": range(6), "kind": ("x", "y")}
    found = searching.search(
        space, lambda c: asked.append(c) or (c["size"], c["size"] * (2 if c["kind"] == "y" else 1)), trials=14,
        directions=("minimize", "maximize"), engine="gp", first=[{"size": 5, "kind": "y"}],
    )  # fmt: skip
    assert asked[0] == {"size": 5, "kind": "y"} and {c["kind"] for c, _ in found.trials} == {"x", "y"}
    assert len(asked) == len({tuple(c.values()) for c in asked})  # none was measured twice
    with pytest.raises(CommonweightError, match="space: kind has no values"):
        searching.search({"kind": ()}, len, trials=1)


@pytest.mark.parametrize("kind", KINDS)
def test_fresh_adapters_are_the_model_itself_and_alone_train(kind, tmp_path):
    model = KINDS[kind]()
    small = share.share(model, "autopeft", serial=2, parallel=1, leave_out=(0, 3))
    assert far(answer(small), answer(model)) == 0
    share.save(small, tmp_path / "s")
    for one in (small, share.load(tmp_path / "s")):
        blocks = one.get_submodule(share.anatomy(model).path)
        got = {n: p.numel() for n, p in blocks.named_parameters() if p.requires_grad}
        assert {n.partition(".")[0] for n in got} == {"1", "2", "4", "5"}
        assert sum(got.values()) == 4 * sum(2 * 32 * r + r + 32 for r in (8, 16))  # 32 // 4 and 32 // 2 wide


@pytest.mark.parametrize("make", [llama, bert])
def test_adapters_by_the_formula(make):
    model = make()
    small = share.share(model, "autopeft", serial=2, parallel=1)
    blocks = small.get_submodule(share.anatomy(model).path)
    g = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in blocks.parameters():
            if p.requires_grad:
                p.add_(0.1 * torch.randn(p.shape, generator=g))
    x = torch.randn(2, 5, 32)

    def net(h, m, pre):
        hidden = F.relu(h @ getattr(m, f"{pre}down").T + getattr(m, f"{pre}down_bias"))
        return hidden @ getattr(m, f"{pre}up").T + getattr(m, f"{pre}up_bias")

    with torch.no_grad():
        if make is llama:
            mlp, plain = blocks[1].mlp, model.model.layers[1].mlp
            z = plain(x)
            assert far(mlp(x), z + net(z, mlp, "") + net(x, mlp, "side_")) < 1e-5
        else:
            ours, plain = blocks[1], model.encoder.layer[1]
            z = plain.output.dense(plain.intermediate(x))
            want = plain.output.LayerNorm(z + net(z, ours.output.dense, "") + net(x, ours.output, "side_") + x)
            assert far(ours.output(ours.intermediate(x), x), want) < 1e-5


def test_sizes_and_layers_are_searched():
    """Parameters against a score that wants two layers: what the search says is what is built."""
    model = llama(2)
    space = autopeft.space(2)

    def measure(choice):
        try:
            layout = share.layout(model, "autopeft", **autopeft.options(choice))
        except CommonweightError:
            return 0.0, -1.0
        return layout.plan.count(), float(2 - choice["layer0"] - choice["layer1"])

    found = searching.search(space, measure, trials=60, directions=("minimize", "maximize"), engine="nsga2")
    choice, (count, _) = max(found.front, key=lambda one: one[1][1])
    small = share.share(model, "autopeft", **autopeft.options(choice))
    assert sum(p.numel() for p in small.model.layers.parameters() if p.requires_grad) == count
    with pytest.raises(CommonweightError, match="autopeft: no adapter is left: width 32"):
        share.share(model, "autopeft", serial=10, parallel=10)
    with pytest.raises(CommonweightError, match="leave_out names layer 2; the model has 2"):
        share.share(model, "autopeft", leave_out=(2,))


def test_adapters_are_healed(tmp_path):
    falls("autopeft", {"serial": 1, "parallel": 1}, tmp_path)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"directions": ("up",)}, "wanted at least one of each, minimize or maximize"),
        ({"trials": 0}, "trials=0"),
        ({"engine": "x"}, "unknown engine 'x'"),
        ({"first": [{"a": 9}]}, "first: a=9 is not in the space"),
        ({"first": [{"c": 1}]}, "first: c=1 is not in the space"),
        ({}, "measure gave 2 numbers for 1 directions"),
    ],
)
def test_what_cannot_be_searched(more, message):
    with pytest.raises(CommonweightError, match=message):
        searching.search(TOY, toy, **{"trials": 2, **more})


def test_codes_that_are_not_there_are_not_drawn():
    for draw in (share.sampling.gammas, lambda m: share.sampling.shares(m, (0.5,))):
        with pytest.raises(CommonweightError, match=r"reads \d+ codes; wanted a model of mip or supernet"):
            draw(share.share(llama(2), "qfa", group=8, rank=2))
