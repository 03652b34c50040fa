"""Widths that an option does not fit: left out by default, and said; refused where a pattern names them."""

import warnings

import pytest
import torch
from torch import nn

import commonweight as cw
from commonweight.core.errors import CommonweightError

METHODS = [m for m in cw.methods.available().values() if {"linear", "conv"} & {*m.kinds}]
SAID = [m.name for m in METHODS if m.unfit is not None]


class Block(nn.Module):
    """Two layers of usual widths, and a layer and convolutions of widths with few divisors."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(128, 128), nn.Linear(128, 128)
        self.odd, self.back = nn.Linear(128, 15), nn.Linear(15, 128)
        self.patch, self.apart = nn.Conv1d(15, 15, 7, padding=3), nn.Conv1d(15, 15, 3, padding=1, groups=15)

    def forward(self, x):
        y = self.odd(self.two(self.one(x).relu()))
        return x + self.back(self.apart(self.patch(y.mT)).mT)


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList(Block() for _ in range(2))

    def forward(self, x):
        for b in self.blocks:
            x = b(x)
        return x


@pytest.fixture(scope="module")
def host():
    return cw.Host(Model())


def test_no_method_refuses_its_default_sites_for_their_widths(host):
    for m in METHODS:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=f"{m.name}: .*left out")
            try:
                host.add(m.name, m.name)
            except CommonweightError as e:
                assert "exclude the site" not in str(e) and "multiple" not in str(e), m.name
            else:
                host.remove(m.name)
    assert {"mos", "gralora", "kadaptation", "road", "oft", "boft", "compacter", "fourierft", "waveft"} <= {*SAID}


def test_what_is_left_out_is_said(host):
    with pytest.warns(UserWarning, match=r"mos: 4 sites, .*odd \(15, 128\), .*do not fit shards=4; say another"):
        tenant = host.add("m", "mos")
    assert {s.name.rsplit(".")[-1] for s in tenant.sites} == {"one", "two"}
    for found in (host.coverage("m"), host.coverage("mos")):
        assert "convolutions whose widths do not fit shards=4" in found.line
        assert "for them say another shards" in found.line and "*.odd" not in str(found)
    host.remove("m")
    assert len(host.add("m", "mos", shards=1).sites) == 12
    host.remove("m")


def test_convolutions_are_left_out_without_a_warning():
    host = cw.Host(nn.Sequential(nn.Conv2d(3, 8, 7), nn.Conv2d(8, 8, 3)))
    assert [s.name for s in host.add("m", "mos").sites] == ["1"]


def test_a_site_that_is_named_is_refused(host):
    for name, said in (("mos", "shards"), ("gralora", "blocks"), ("kadaptation", "terms"), ("road", "group_size")):
        with pytest.raises(CommonweightError, match=rf"{said}.*exclude"):
            host.add("m", name, sites="*.odd")
    with pytest.raises(CommonweightError, match=r"shards=3; choose"):  # none fits: the plan says why
        cw.Host(nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64))).add("m", "mos", shards=3)


def test_what_is_said_to_fit_is_what_a_plan_takes(host):
    every = [s for s in host.sites if s.kind in ("linear", "conv")]
    for name in SAID:
        m, config = cw.methods.resolve(name, {})
        for s in every:
            try:
                m.plan([s._replace(role="down")], config)
                taken = True
            except CommonweightError:
                taken = False
            assert taken == (m.unfit(config, s) == "") or m.asks(config), (name, s)


def test_most_of_a_model_is_not_left_out():
    host = cw.Host(nn.Sequential(nn.Sequential(nn.Linear(64, 6), nn.Linear(6, 64)), nn.Linear(64, 64)))
    with pytest.raises(CommonweightError, match="shards=4; choose"):
        host.add("m", "mos")
