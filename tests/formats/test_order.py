"""The header keeps the sites in the model's order, and what they are: a plan is made anew without the model."""

from __future__ import annotations

import json

import pytest
import torch

import commonweight as cw
from commonweight.core import Site
from commonweight.formats import native
from commonweight.formats.order import places, site_fields
from commonweight.merge.sources.opened import open_tenant
from tests.laws.subjects import can, small, stir
from tests.merge.sources.test_tenanted import without
from tests.models import KINDS, make


def through(sites):
    fields = site_fields(sites)
    assert [p[:3] for p in places("f", json.loads(json.dumps(fields))) or ()] == [
        (s.name, s.kind, s.bias) for s in sites
    ]
    return fields


def test_what_goes_in_comes_out():
    layers = [
        s
        for i in range(12)
        for s in (
            Site(f"h.{i}.ln", 8, 1, "norm"),
            Site(f"h.{i}.q", 8, 8),
            Site(f"h.{i}.a.k", 4, 8, bias=False),
        )
    ]
    ends = (Site("embed", 8, 3, bias=False), Site("h.11", 8, 8, "block", bias=False), Site("top", 3, 8))
    fields = through([ends[0], *layers, *ends[1:]])
    assert sorted(fields["sites"]) == ["embed", "h.{}", "h.{}.a.k", "h.{}.ln", "h.{}.q", "top"]
    assert fields["kinds"] == "lblNLL"
    assert fields["order"] == [[[0], ""], [[3, 4, 2], "0-10"], [[3, 4, 2, 1], "11"], [[5], ""]]
    gaps = [Site(f"h.{i}.{x}", 8, 8) for i in (0, 3, 4) for x in "ba"]
    assert through(gaps)["order"] == [[[1, 0], "0,3-4"]]
    assert len(through(gaps[::-1])["order"]) == 3  # downwards: an entry a layer
    through([Site("h.0.q", 8, 8), Site("h.1.q", 8, 4)])  # other widths are other keys
    assert "order" not in site_fields([Site("h.0.q", 8, 8), Site("h.1.q", 8, 8, bias=False)])


@pytest.mark.parametrize("kind", KINDS)
def test_a_plan_is_made_anew_without_the_model(kind, tmp_path):
    """bitfit and full read norms between linear layers, whose names do not tell their order."""
    host = cw.Host(make(kind)[0])
    for method in ("lora", "full", "bitfit", "loreft", "mos", "lotr", "coda", "sherl", "read", "vqt"):
        if not can(method, host):
            continue
        tenant = stir(host.add(method, method, **small(method)))
        found = open_tenant(host.save(method, tmp_path / "t.safetensors"))
        assert found.plan == tenant.plan and list(found.sites) == [s for s in tenant.sites if s.kind != "head"]


def test_a_file_of_before_is_read_by_its_names(tmp_path):
    host = cw.Host(make("llama")[0])
    stir(host.add("a", "lora", rank=2))
    path = host.save("a", tmp_path / "a.safetensors")
    without(path, "order", "kinds")
    assert open_tenant(path).plan == host["a"].plan
    there = host.load("b", path)
    assert all(torch.equal(p, host["a"].pools[n]) for n, p in there.pools.items())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"kinds": "l"}, "'kinds' is 'l'"),
        ({"kinds": "xx"}, "'kinds' is 'xx'"),
        ({"kinds": None}, "'kinds' is None"),
        ({"order": 3}, "'order' has 3"),
        ({"order": [[[0, 2], "0-1"]]}, r"'order' has \[\[0, 2\], '0-1'\]"),
        ({"order": [[[0, 1], "1-0"]]}, r"'order' has \[\[0, 1\], '1-0'\]"),
        ({"order": [[[0], "0-1"]]}, "'order' has not the names of 'sites'"),
        ({"order": [[[0, 1], "0-1"], [[0], "0"]]}, "'order' has not the names of 'sites'"),
    ],
)
def test_a_damaged_order(change, said):
    fields = site_fields([Site(f"h.{i}.{x}", 8, 8) for i in range(2) for x in "qk"])
    with pytest.raises(cw.CommonweightError, match=f"f: its header is damaged .{said}"):
        places("f", {**fields, **change})
    assert native.unpack_sites("f", fields["sites"])
