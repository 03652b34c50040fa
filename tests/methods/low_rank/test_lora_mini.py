"""LoRA-Mini against the product of four matrices."""

import pytest
import torch

import commonweight as cw
from tests.laws.subjects import stir
from tests.models import make

SMALL = {"rank": 3, "width": 5}


def test_formula():
    host = cw.Host(make("llama")[0], sites="*.q_proj")
    tenant = stir(host.add("t", "lora-mini", rank=3, width=5, alpha=6))
    for site in host.sites:
        p = {k: tenant.pools[f"{site.name}.{k}"].detach() for k in ("A_out", "A_in", "B_in", "B_out")}
        want = host.weight(site.name) + 2 * p["B_out"] @ p["B_in"].T @ p["A_in"] @ p["A_out"]
        torch.testing.assert_close(host.merged("t")[f"{site.name}.weight"], want, rtol=1e-4, atol=1e-5)


def test_count_does_not_depend_on_the_widths():
    plan = cw.plan("lora-mini", [cw.Site("q", 4096, 1024), cw.Site("k", 64, 64)], rank=4, width=16)
    assert plan.count() == 2 * 2 * 4 * 16 and plan.nbytes == 4 * plan.count()


def test_narrower_than_its_rank():
    with pytest.raises(cw.CommonweightError, match="width=2 is less than rank=8"):
        cw.plan("lora-mini", [cw.Site("q", 8, 8)], width=2)
