"""What many tenants cost, from the plan: against the arithmetic by hand, and against a real store."""

import json
import math
from pathlib import Path

import pytest
import torch
import transformers as tf

import commonweight as cw
from commonweight.commons.cost import cost
from commonweight.formats.codecs import get
from commonweight.host.shapes import sites_of
from tests.laws.subjects import stir
from tests.methods.test_widths import SAID, Model
from tests.models import make

ROOT = Path(__file__).parents[2]
SITES = [
    cw.Site(f"layers.{i}.{n}", 256, 512, "linear", r) for i in range(4) for n, r in (("q", "query"), ("v", "value"))
]


def test_by_hand():
    lotr = cost("lotr", SITES, {"rank": 8})
    assert lotr.common == 4 * 2 * 8 * (256 + 512) and lotr.private == 4 * 8 * 64
    assert lotr.trainable == (lotr.common + lotr.private) // 4 and lotr.own == 8 * 64
    assert lotr.total(1000) == lotr.common + 1000 * lotr.private
    lora = cost("lora", SITES, {"rank": 16}, get("bfloat16"))
    assert lora.common == 0 and lora.private == 2 * 8 * 16 * (256 + 512)
    assert cost("intrinsic", SITES, {"dim": 100}).private == 400, "what comes from the seed costs nothing"
    bank = cost("vb-lora", SITES, {"rank": 4, "num_vectors": 256, "vector_length": 256})
    assert bank.common == 4 * 256 * 256 and bank.private == 8 * 4 * 3 * 2 * (4 + 1), "two logits and two bytes each"


def test_a_method_whose_tenants_would_own_nothing_is_counted_without_a_common():
    plain, core = cost("mos", SITES), cost("mos", SITES, {"core": "scale"})
    assert plain.common == 0 and plain.private == 4 * cw.plan("mos", SITES).count()
    assert core.private == 4 * 8 * 8 and core.common == plain.private


def test_sites_whose_widths_do_not_fit_are_left_out(recwarn):
    """By default, as a host does; where most do not fit, both refuse."""
    host, known = cw.Host(Model()), cw.methods.available()
    same = [n for n in SAID if known[n].depthwise and known[n].wants is None and known[n].keeps is None]
    assert {"mos", "gralora", "road", "kadaptation"} <= {*same}
    for name in same:
        tenant = host.add("t", name)
        assert cost(name, host.sites).trainable == tenant.count(), name
        assert name != "mos" or len(tenant.sites) == 4 < len(host.sites)
        host.remove("t")
    few = cw.Host(torch.nn.Sequential(torch.nn.Linear(64, 6), torch.nn.Linear(6, 64)))
    with pytest.raises(cw.CommonweightError, match="width 6 of B is not a multiple of shards=4"):
        cost("mos", few.sites)


@pytest.mark.parametrize("codec", [None, "bfloat16", "int8", "int4"])
def test_it_is_what_a_store_holds(tmp_path, codec):
    """Per tenant within the manifest and the headers of the pools' files."""
    host, c = cw.Host(make("llama")[0]), cw.Commons(tmp_path / "store")
    options = {"rank": 8}
    for i, name in enumerate("ab"):
        stir(host.add(name, "lotr", **options, common="tasks"), i)
    for name in "ab":
        c.publish(host, name, codec=codec)
    want = cost("lotr", host.sites, options, codec and get(codec))
    for record in c.list():
        assert want.private <= record.marginal_bytes <= want.private + 6000
        assert want.common <= record.nbytes - record.marginal_bytes <= want.common + 6000


def test_a_codec_whose_size_depends_on_the_values():
    with pytest.raises(cw.CommonweightError, match="codec compeft: its size depends on what was trained"):
        cost("lora", SITES, {}, get("compeft"))


def test_sites_from_a_config_are_those_of_a_host(tmp_path):
    model = make("llama")[0]
    model.config.save_pretrained(tmp_path)
    inner = cw.Host(tf.AutoModel.from_config(model.config))
    assert sites_of(tmp_path) == list(inner.sites)
    llama = [s for s in sites_of("llama-3.1-8b") if s.kind == "linear"]
    assert len(llama) == 32 * 7 and sum(math.prod(s[1:3]) for s in llama) == 32 * (
        2 * 4096 * 4096 + 2 * 1024 * 4096 + 3 * 4096 * 14336
    )
    assert not torch.cuda.is_initialized()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (None, "no config.json there; wanted a model's folder, or one of llama-3.1-8b"),
        ("{}", "config.json cannot be read"),
        ('{"model_type": "nonsense"}', "config.json cannot be read"),
        ("[", "config.json cannot be read"),
    ],
)
def test_a_folder_that_is_no_model(tmp_path, config, message):
    if config is not None:
        (tmp_path / "config.json").write_text(config)
    with pytest.raises(cw.CommonweightError, match=message):
        sites_of(tmp_path)


def test_a_name_that_is_no_model():
    with pytest.raises(cw.CommonweightError, match=r"unknown model 'llama-3\.1-8'; did you mean 'llama-3.1-8b'"):
        sites_of("llama-3.1-8")


def test_the_documented_table_is_the_commands():
    """docs/plan.md tells what docs/results/ten_thousand.json holds, and that is what the plans say today."""
    stored = json.loads((ROOT / "docs/results/ten_thousand.json").read_text())
    sites, text = sites_of(stored["model"]), (ROOT / "docs/plan.md").read_text()
    for row in stored["rows"][:-1]:
        name, *options = row["label"].split()
        given = {k: int(v) if v.isdigit() else v for k, v in (o.split("=") for o in options)}
        now = cost(name, sites, given)
        assert now._asdict().items() <= row.items() and now.total(stored["tenants"]) == row["total"]
        cells = (f"{row['common']:,}", f"{row['private']:,}", f"{row['total'] / 1e9:,.2f} GB", f"{row['ratio']:.3%}")
        assert f"| `{row['label']}` | {' | '.join(cells)} |" in text
