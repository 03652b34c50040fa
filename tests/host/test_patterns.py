"""What ``...`` and ``!`` mean in a pattern of sites, and adapters at tables that a head is tied to."""

import warnings
from typing import Any

import pytest
import torch

import commonweight as cw
from tests.laws.subjects import stir
from tests.models import answer, make


@pytest.fixture(scope="module")
def host():
    return cw.Host(make("llama")[0])


def read(host: Any, method: str, sites: Any = None, **options: Any) -> set[str]:
    try:
        return {*host.add("t", method, sites=sites, **options).table}
    finally:
        if "t" in host:
            host.remove("t")


@pytest.mark.parametrize("method", ["lora", "ia3", "bitfit", "lntuning"])
def test_three_dots_are_what_a_method_reads_by_itself(method):
    host = cw.Host(make("bert")[0])
    own = read(host, method)
    first = {n for n in own if ".layer.0." in n}
    assert first and own - first
    assert read(host, method, "...") == own
    assert read(host, method, "!*.layer.0.*") == read(host, method, "... | ! *.layer.0.*") == own - first


def test_three_dots_and_more(host):
    own = read(host, "ia3")
    assert read(host, "ia3", "...|heads") == own | {"lm_head"}
    assert read(host, "lora", "...|embeddings|heads|!*.mlp.*") == {
        n for n in read(host, "lora", "*") if ".mlp." not in n
    }
    assert read(host, "lora", "language|!*.o_proj|!*.mlp.*") == {
        f"model.layers.{i}.self_attn.{n}_proj" for i in (0, 1) for n in "qkv"
    }
    assert host.coverage("lora", sites="...|embeddings|heads").share > 0.9


def test_what_a_hint_says_to_write_is_taken_as_it_is(host):
    hint = host.coverage("lora").line.partition("sites='")[2].partition("'")[0]
    assert hint == "...|embeddings|heads"
    assert read(host, "lora", hint) == read(host, "lora") | {"model.embed_tokens", "lm_head"}


def test_a_hosts_own_pattern():
    for method in ("lora", "ia3", "loreft"):
        bare = cw.Host(make("llama")[0])
        own = read(bare, method)
        less = cw.Host(make("llama")[0], sites="!*.layers.0.*")
        assert read(less, method) == {n for n in own if ".layers.0." not in n}
        more = cw.Host(make("llama")[0], sites="...|heads")
        assert read(more, method) == own | ({"lm_head"} if method != "loreft" else set())
        assert read(more, "lora", "...|!*.mlp.*") == {n for n in read(more, "lora") if ".mlp." not in n}


@pytest.mark.parametrize(
    ("pattern", "told"),
    [
        ("!*", r"leaves no site: '\*' after '!' takes away all 14"),
        ("!*.nowhere", r"the pattern '\*\.nowhere' matches no site"),
        ("!", "the pattern '' matches no site"),
        ("*.q_proj|!*.self_attn.*", "leaves no site"),
    ],
)
def test_a_pattern_that_leaves_nothing_or_takes_away_what_no_model_has(host, pattern, told):
    with pytest.raises(cw.CommonweightError, match=told):
        read(host, "lora", pattern)


def test_a_pattern_that_takes_away_what_a_method_does_not_read_is_told(host):
    with pytest.warns(UserWarning, match=r"takes away none of the 2 sites that loreft reads; the first is .*, block"):
        assert read(host, "loreft", "!*.mlp.*")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read(host, "lora", "...|!*.mlp.*")


@pytest.mark.parametrize("method", ["bottleneck", "loretta-adp", "polyhistor", "snnk", "scalearn"])
@torch.no_grad()
def test_an_adapter_behind_a_table_leaves_the_head_that_is_tied_to_it(method):
    """It changes what the table gives, and no weight that another reads."""
    answers = []
    for tied in (True, False):
        model, batch = make("llama")
        model.lm_head.weight = model.model.embed_tokens.weight if tied else torch.nn.Parameter(
            model.model.embed_tokens.weight.clone()
        )  # fmt: skip
        host: Any = cw.Host(model)
        for i, n in enumerate("tu"):
            stir(host.add(n, method, sites="embeddings"), i, std=0.3)
        assert {*host["t"].table} == {"model.embed_tokens"}
        for route in ("t", ["t", None, "u", "t"]):
            with host.route(route):
                answers.append(answer(model, batch))
    torch.testing.assert_close(answers[0], answers[2])
    torch.testing.assert_close(answers[1], answers[3])
    torch.testing.assert_close(answers[1][0], answers[0][0])
