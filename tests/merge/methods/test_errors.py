"""Every message: where, what came, what was wanted."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

import commonweight as cw

from ..sample import models

BASE, SOURCES = models(3)


def bad(change, i=1):
    """The three models, with one tensor of model i changed (None: taken away)."""
    out = [dict(s) for s in SOURCES]
    for name, t in change.items():
        if t is None:
            del out[i][name]
        else:
            out[i][name] = t
    return out


NAN = SOURCES[0]["conv"].clone()
NAN[0, 0, :2] = float("nan")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: cw.merge.merge("tie", SOURCES, BASE), "unknown merge method 'tie'; did you mean 'ties'"),
        (lambda: cw.merge.ties(SOURCES, BASE, densty=0.2), "unknown option of ties 'densty'; did you mean 'density'"),
        (lambda: cw.merge.ties(SOURCES, BASE, weigths=0.2), "unknown option of ties 'weigths'; did you mean 'weights'"),
        (
            lambda: cw.merge.ties(SOURCES, BASE, compat="mergkit"),
            "unknown compat of ties 'mergkit'; did you mean 'mergekit'",
        ),
        (lambda: cw.merge.ties(SOURCES, BASE, reduce="men"), "unknown reduce of ties 'men'; did you mean 'mean'"),
        (lambda: cw.merge.ties(SOURCES, BASE, density=0), "ties: density is 0; it must be > 0"),
        (lambda: cw.merge.ties(SOURCES, BASE, density=20), "ties: density is 20; it must be <= 1"),
        (lambda: cw.merge.ties(SOURCES, BASE, density="a"), "ties: density is 'a'; wanted float"),
        (lambda: cw.merge.ties(SOURCES, BASE, density=[0.2, 0.3]), "density has 2 values for 3 models"),
        (lambda: cw.merge.ties(SOURCES, BASE, density=[0.2, 0.3, 1.5]), r"density\[2\] is 1.5; it must be <= 1"),
        (lambda: cw.merge.ties(SOURCES, BASE, scale=float("nan")), "scale is nan; wanted a finite number"),
        (lambda: cw.merge.lines(SOURCES, BASE, alpha=-0.5), "lines: alpha is -0.5; it must be >= 0"),
        (lambda: cw.merge.lines(SOURCES[:1], BASE), "one model: alpha is missing"),
        (lambda: cw.merge.breadcrumbs(SOURCES, BASE, gamma=1), "gamma is 1; it must be < 1"),
        (lambda: cw.merge.della(SOURCES, BASE, density=0.05), "density 0.05 with epsilon 0.15: the chances leave"),
        (lambda: cw.merge.nearswap(SOURCES[:1], BASE), "nearswap: the option t is missing"),
        (lambda: cw.merge.emr(SOURCES, BASE, task=3), "task is 3; there are 3 models, counted from 0"),
        (lambda: cw.merge.consensus(SOURCES, BASE, users=4), "users is 4, with 3 models"),
        (lambda: cw.merge.linear(SOURCES, weights=[1, 2]), "linear: 2 weights for 3 models"),
        (lambda: cw.merge.linear(SOURCES, weights=[1, 2, -3]), "sum to zero, by which it divides"),
        (lambda: cw.merge.linear(SOURCES, weights=[1, 2, None]), r"weights\[2\] is None; wanted a finite number"),
        (lambda: cw.merge.sce(SOURCES, BASE, weights=1.0), "sce takes no weights"),
        (lambda: cw.merge.slerp(SOURCES), "slerp: 3 models given; it takes 2"),
        (lambda: cw.merge.model_stock(SOURCES[:1], BASE), "1 model given; it takes at least 2"),
        (lambda: cw.merge.ties(SOURCES), "ties: base is missing"),
        (lambda: cw.merge.linear(SOURCES, BASE), "linear takes no base"),
        (
            lambda: cw.merge.ties(bad({"conv": torch.ones(4, 3)}), BASE),
            r"conv: model 1 has shape \(4, 3\), base has \(4, 3, 5\)",
        ),
        (lambda: cw.merge.ties(bad({"conv": None}), BASE), "conv: model 1 has no such tensor, base has"),
        (lambda: cw.merge.ties(bad({"more": torch.ones(2)}), BASE), "more: model 1 has such a tensor, base has none"),
        (lambda: cw.merge.ties(bad({"conv": NAN}), BASE), "conv: model 1 has 2 numbers there that are NaN or infinite"),
        (lambda: cw.merge.ties(SOURCES, {**BASE, "conv": NAN}), "conv: base has 2 numbers there that are NaN"),
        (
            lambda: cw.merge.ties(bad({"conv": torch.ones(4, 3, 5).int()}), BASE),
            "conv: model 1 has torch.int32, base has",
        ),
        (lambda: cw.merge.linear({"x": SOURCES[0], "y": bad({"conv": None})[1]}), "conv: model y has no such tensor"),
        (
            lambda: cw.merge.linear([{"s": torch.tensor(1)}, {"s": torch.tensor(2)}]),
            "s: whole numbers that differ between",
        ),
        (lambda: cw.merge.linear([{"s": 1.0}]), "model 0: s is a float; wanted a tensor"),
        (lambda: cw.merge.linear([3]), "model 0 is a int; wanted a state dict"),
        (lambda: cw.merge.linear([]), "linear: 0 models given"),
        (lambda: cw.merge.linear(["nowhere"]), r"model 0 \(nowhere\): no such file or folder"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(cw.CommonweightError, match=message):
        call()


def test_directions_that_cancel():
    a = torch.tensor([1.0, 0.0])
    turned = [{"w": torch.stack([t.cos(), t.sin()])} for t in torch.arange(3) * 2 * torch.pi / 3]
    with pytest.raises(cw.CommonweightError, match="w: the weighted directions of the 3 models cancel"):
        cw.merge.multislerp(turned, eps=1e-4, compat="mergekit")
    assert cw.merge.multislerp(turned, eps=1e-4)["w"].abs().max() < 1e-6  # their weighted sum
    assert cw.merge.multislerp([{"w": a}, {"w": -a}])["w"].tolist() == [0, 0]


def test_an_unknown_attribute_names_the_nearest():
    with pytest.raises(AttributeError, match="did you mean 'karcher'"):
        cw.merge.karchar  # noqa: B018


def test_folders_of_safetensors(tmp_path):
    names = sorted(BASE)
    for i, state in enumerate([BASE, *SOURCES]):
        (tmp_path / str(i)).mkdir()
        half = {k: state[k].half().contiguous() for k in names}
        save_file({k: half[k] for k in names[:3]}, tmp_path / str(i) / "model-00001-of-00002.safetensors")
        save_file({k: half[k] for k in names[3:]}, tmp_path / str(i) / "model-00002-of-00002.safetensors")
    folders = [tmp_path / str(i) for i in range(4)]
    out = cw.merge.ties(folders[1:], folders[0], density=0.3)
    wanted = cw.merge.ties(
        [{k: t.half() for k, t in s.items()} for s in SOURCES], {k: t.half() for k, t in BASE.items()}, density=0.3
    )
    assert all(out[k].dtype == torch.float16 and torch.equal(out[k], wanted[k]) for k in wanted)
    assert out.keys() == wanted.keys()

    file = folders[2] / "model-00002-of-00002.safetensors"
    file.write_bytes(file.read_bytes()[:-8])
    with pytest.raises(cw.CommonweightError, match=r"model 1 \(.*2\): model-00002-of-00002.safetensors is damaged"):
        cw.merge.ties(folders[1:], folders[0])
    (tmp_path / "empty").mkdir()
    with pytest.raises(cw.CommonweightError, match="no safetensors file in this folder"):
        cw.merge.linear([tmp_path / "empty"])
    save_file({names[0]: BASE[names[0]]}, folders[3] / "again.safetensors")
    with pytest.raises(cw.CommonweightError, match=f"{names[0]} is in again.safetensors and in"):
        cw.merge.linear([folders[3]])


def test_a_module_is_its_state_dict():
    m = torch.nn.Linear(3, 2)
    assert torch.equal(cw.merge.linear([m, m])["weight"], m.weight)


def test_a_name_used_twice():
    with pytest.raises(TypeError, match="registered twice"):
        cw.merge.method("ties", paper="", equation="")(lambda tensors, base: base)
