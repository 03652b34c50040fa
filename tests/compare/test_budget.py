"""The search for a config: inside the budget, and nothing larger would be."""

import pytest

import commonweight as cw
from commonweight.compare import fit, parse_budget
from commonweight.compare.size import nbytes, stored
from commonweight.methods import get, plan, resolve

SHAPES = (("query", 64, 64), ("value", 64, 64), ("attn_out", 64, 64), ("up", 256, 64), ("down", 64, 256))
SITES = [
    site
    for i in range(3)
    for site in (
        *(cw.Site(f"layers.{i}.{role}", out, inp, "linear", role) for role, out, inp in SHAPES),
        cw.Site(f"layers.{i}.norm", 64, 1, "norm"),
        cw.Site(f"layers.{i}", 64, 64, "block", "", False),
        cw.Site(f"layers.{i}.mlp", 64, 64, "ffn", "", False),
        cw.Site(f"layers.{i}.attn", 64, 64, "attention", "", False),
        cw.Site(f"layers.{i}.attn.prefix", 64, 16, "prefix", "", False),
        cw.Site(f"layers.{i}.attn.aside", 4, 64, "aside", "", False),
    )
] + [
    cw.Site("embed.prompt", 64, 64, "prompt", "", False),
    cw.Site("embed.positions", 64, 1, "positions", "", False),
    cw.Site("layers.0.mixer.state", 128, 16, "state", "", False),
    cw.Site("embed", 64, 512, "embedding", "", False),
    cw.Site("layers.trunk", 64, 4 * 64 + 1, "trunk", "whole", False),
    cw.Site("layers.early", 64, 3 * 64 + 1, "trunk", "early", False),
    cw.Site("layers.queries", 64, 3 * 64, "queries", "", False),
]
EXPERTS = [cw.Site(f"layers.{i}.experts.up[{e}]", 64, 64, "expert", "up", False) for i in range(3) for e in range(4)]


def sites(method):
    if get(method).kinds == ("expert",):
        return EXPERTS
    mine = [s for s in SITES if s.kind in get(method).kinds]
    return [s for s in mine if s.role in get(method).roles] or mine


@pytest.mark.parametrize(
    "text, size", [("4KB", 4096), ("1.5 MB", 3 << 19), ("700", 700), ("2kib", 2048), ("1G", 1 << 30)]
)
def test_budgets(text, size):
    assert parse_budget(text) == size


@pytest.mark.parametrize("text", ["", "KB", "4 XB", "0", "-1KB", "1e3", "4KB,", "0.0MB", "nan"])
def test_budgets_that_nobody_can_read(text):
    with pytest.raises(cw.CommonweightError, match="wanted a size above zero, such as 4KB"):
        parse_budget(text)


@pytest.mark.parametrize("budget", ["2KB", "20KB", "200KB"])
@pytest.mark.parametrize("method", cw.methods.available())
def test_what_is_found_is_inside_and_costs_what_it_says(method, budget):
    found = fit(method, sites(method), parse_budget(budget))
    assert found.within == (found.nbytes <= parse_budget(budget))
    if get(method).compact is None and get(method).ends is None:
        made = cw.plan(method, sites(method), **found.options)
        assert found.nbytes == made.nbytes and found.count == made.count()
    assert 0 <= found.own <= found.nbytes


@pytest.mark.parametrize("method", cw.methods.available())
def test_a_larger_budget_never_gives_less(method):
    sizes = [fit(method, sites(method), 1 << k) for k in (8, 13, 18)]
    assert [f.nbytes for f in sizes] == sorted(f.nbytes for f in sizes)


@pytest.mark.parametrize("method", ["lora", "mos", "lora-xs", "uni-lora", "intrinsic", "vera"])
def test_the_next_size_would_not_fit(method):
    budget, name = 60_000, get(method).sizes[0]
    found = fit(method, sites(method), budget)
    larger = {**found.options, name: found.options[name] + 1}
    try:
        assert plan(method, sites(method), **larger).nbytes > budget >= found.nbytes
    except cw.CommonweightError:
        pass  # there is no larger one


def test_a_method_that_shrinks_as_its_option_grows():
    small, large = (fit("randlora", sites("randlora"), b) for b in (24_000, 400_000))
    assert small.options["rank"] > large.options["rank"] and small.nbytes < large.nbytes


@pytest.mark.parametrize("method", ["fish", "sct", "neft", "two-stage", "sparse-adapter"])
def test_a_share_is_searched_in_steps_of_a_fifth(method):
    budget, name = 40_000, get(method).sizes[0]
    found = fit(method, sites(method), budget)
    assert found.within and 0 < found.options[name] < 1
    assert fit(method, sites(method), 1 << 60).options[name] == 1
    after = {name: min(1.0, float(f"{found.options[name] * 2**0.25:.3g}"))}
    assert nbytes(stored(get(method), sites(method), after)) > budget


def test_the_places_of_chosen_numbers_count():
    assert fit("fish", sites("fish"), 1 << 60, {"ratio": 0.01}).nbytes == 8 * sum(
        round(0.01 * s.out * s.inp) for s in sites("fish")
    )


def test_what_only_training_tells_is_counted_whole():
    found = fit("diff-pruning", sites("diff-pruning"), 1 << 20)
    assert not found.within and found.nbytes > 8 * sum(s.out * s.inp for s in sites("diff-pruning"))


def test_the_other_options_move_only_when_they_must():
    assert fit("mos", sites("mos"), 40_000).options == {"budget": 3}
    assert fit("mos", sites("mos"), 14_000).options == {"private": 0, "budget": 1}


def test_given_options_are_left_alone():
    assert fit("vb-lora", sites("vb-lora"), 30_000, {"rank": 2}).options["rank"] == 2
    assert fit("lora", sites("lora"), 1 << 20, {"rank": 3}).options == {"rank": 3}


def test_a_budget_that_nothing_meets_names_the_smallest():
    found = fit("lora", sites("lora"), 100)
    assert (
        not found.within
        and found.options == {"rank": 1}
        and found.nbytes == 4 * sum(s.out + s.inp for s in sites("lora"))
    )


def test_fixed_methods_are_what_they_are():
    assert fit("bitfit", sites("bitfit"), 1 << 20).options == {} and fit("bitfit", sites("bitfit"), 1).within is False


def test_what_is_wrong_with_every_config_is_said():
    odd = [cw.Site("q", 7, 7)]
    with pytest.raises(cw.CommonweightError, match=r"^mos: q: width 7 of A is not a multiple of shards=4"):
        fit("mos", odd, 1 << 20)
    with pytest.raises(cw.CommonweightError, match="unknown method 'lorra'; did you mean 'lora'"):
        fit("lorra", odd, 1 << 20)


@pytest.mark.parametrize("method", ["lora", "lora-xs", "vb-lora", "mos"])
def test_the_bytes_of_a_codec_are_those_that_a_file_has(method, tmp_path):
    from torch import nn

    model = nn.ModuleDict({s.name.replace(".", "_"): nn.Linear(s.inp, s.out) for s in sites(method)[:5]})
    host = cw.Host(model, sites=lambda name, _: True)
    options = {"lora-xs": {"rank": 8}, "vb-lora": {"num_vectors": 40}}.get(method, {})
    tenant = host.add("t", method, **options)
    empty = None
    for codec in (None, "bfloat16", "int8", "int4"):
        host.save("t", tmp_path / "t.safetensors", codec=codec)
        over = (tmp_path / "t.safetensors").stat().st_size - nbytes(tenant.plan, codec)
        empty = over if empty is None else empty
        assert abs(over - empty) < 300, "the header alone differs"


MOVING = ["adalora", "alora", "increlora", "triadaptlora", "eva"]


@pytest.mark.parametrize("method", MOVING)
def test_ranks_that_move_are_counted_where_they_cost_most(method):
    """Sites of 64 x 256 and of 64 x 64: all directions go to the wide ones, as far as these can have them."""
    found, mine = get(method), sites(method)
    name, mean = found.sizes[0], 3
    _, config = resolve(method, {name: mean})
    ranks = dict(found.stored(config, mine).ranks)
    wide = [s.name for s in mine if s.out + s.inp == 320]
    most = {"adalora": 12, "eva": 2 * mean}.get(method, 64)
    left = mean * len(mine)
    assert sum(ranks.values()) == left and max(ranks.values()) <= most
    assert sum(ranks[n] for n in wide) == min(left, most * len(wide))
    size = nbytes(stored(found, mine, {name: mean}))
    assert size > nbytes(stored(found, mine, {name: mean - 1}))
    even = {**config.__dict__, "ranks": tuple((s.name, mean) for s in mine)}
    assert size > nbytes(plan(type(config)(**even), mine))
    config = type(config)(**even)
    assert found.stored(config, mine) == config  # what it was left with stays


@pytest.mark.parametrize("method", ["lora-sb", "lora-ga", "corda", "salora"])
def test_what_begins_from_rows_is_counted_with_its_start(method):
    """The start lies in the file, since nothing makes it again."""
    options = {"safe": 8, "task": 8} if method == "salora" else {}
    begun = nbytes(stored(get(method), sites(method), {"rank": 2, **options}))
    drawn = nbytes(stored(get(method), sites(method), {"rank": 2, "start": "random", **options}))
    assert begun == nbytes(plan(method, sites(method), rank=2, start="given", **options)) > drawn
