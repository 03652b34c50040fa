"""Binds that go by a token's place in its row, beside other passes, caches and models with tokens first."""

from typing import Any

import pytest
import torch
import transformers as tf

import commonweight as cw
from commonweight.host import tokens_first
from commonweight.host.placed import by_seen
from tests.host.test_odd_models import fsmt
from tests.laws.subjects import small, stir
from tests.models import make


def hosted() -> tuple[Any, torch.Tensor]:
    model, batch = make("llama")
    host: Any = cw.Host(model)
    stir(host.add("a", "loreft", prefix=2), 1, std=0.5)
    return host, batch["input_ids"]


@torch.no_grad()
def test_a_part_by_itself_has_no_padding_of_an_earlier_pass():
    host, ids = hosted()
    mask = torch.ones_like(ids)
    mask[:, :2] = 0
    with host.route("a"):
        host.model(ids, attention_mask=mask)
        got = host.model.model(ids).last_hidden_state
        host.model(ids)
        torch.testing.assert_close(got, host.model.model(ids).last_hidden_state)
        wanted = host.model(ids, output_hidden_states=True).hidden_states[-1]
    torch.testing.assert_close(got, wanted)


METHODS = [("loreft", {"prefix": 2}), ("dyt", {"first": True})]
SIZES: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 61,
}  # fmt: skip


def gemma() -> Any:
    kinds = ["sliding_attention", "full_attention"]
    return tf.Gemma3ForCausalLM(
        tf.Gemma3TextConfig(**SIZES, head_dim=8, num_key_value_heads=2, sliding_window=4, layer_types=kinds)
    ).eval()


def mistral() -> Any:
    return tf.MistralForCausalLM(tf.MistralConfig(**SIZES, num_key_value_heads=2, sliding_window=4)).eval()


def answered(host: Any, route: Any, cache: str | None) -> torch.Tensor:
    """Scores of what is generated, a row padded on the left."""
    ids = torch.randint(3, 60, (3, 5), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[1, :3] = 0
    how = {"max_new_tokens": 4, "do_sample": False, "eos_token_id": None, "pad_token_id": 0, "output_logits": True}
    with host.route(route):
        found = host.model.generate(
            ids, attention_mask=mask, cache_implementation=cache, return_dict_in_generate=True, **how
        )
    return torch.stack(found.logits, 1)


def bloom() -> Any:
    torch.manual_seed(0)
    return tf.BloomForCausalLM(tf.BloomConfig(hidden_size=32, n_layer=2, n_head=4, vocab_size=61)).eval()


def mpt() -> Any:
    torch.manual_seed(0)
    return tf.MptForCausalLM(tf.MptConfig(d_model=32, n_layers=2, n_heads=4, vocab_size=61, max_seq_len=32)).eval()


@pytest.mark.parametrize("method, options", METHODS)
@pytest.mark.parametrize(
    "kind", ["llama", "llama-eager", "gpt2", "gemma", "bloom"]
)  # whose mask is as long as its cache
@torch.no_grad()
def test_a_static_cache_tells_places_by_what_a_token_sees(kind, method, options):
    own = {"gemma": gemma, "bloom": bloom}
    model = own[kind]() if kind in own else make(kind.removesuffix("-eager"))[0]
    if kind == "llama-eager":
        model.set_attn_implementation("eager")
    host: Any = cw.Host(model)
    stir(host.add("a", method, **options), 1, std=0.5)
    for route in ("a", ["a", None, "a"]):
        torch.testing.assert_close(answered(host, route, "static"), answered(host, route, None), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method, options", METHODS)
@torch.no_grad()
def test_a_mask_that_does_not_say_which_tokens_are_padding_is_refused(method, options):
    """A window hides tokens that are no padding."""
    host: Any = cw.Host(mistral())
    host.add("b", method, **options)
    with pytest.raises(
        cw.CommonweightError, match=r"goes by a token's place .* windows generate without a static cache"
    ):
        answered(host, "b", "static")


def test_a_mask_that_holds_more_than_what_is_seen_is_none():
    x, mask = torch.zeros(2, 3, 4), torch.zeros(2, 1, 3, 3)
    assert by_seen(mask, x, 0, False) is not None
    assert by_seen(mask - 0.5, x, 0, False) is None and by_seen(mask, x, 0, True) is None
    assert by_seen(mask, x, 1, False) is None and by_seen(mask, x, -1, False) is None
    assert by_seen({"sliding_attention": mask}, x, 0, True) is None


@torch.no_grad()
def test_gates_of_a_part_by_itself_know_no_padding_of_an_earlier_pass():
    model, batch = make("llama")
    ids = batch["input_ids"]
    host: Any = cw.Host(model)
    stir(host.add("a", "dyt"), 1, std=0.5)
    mask = torch.ones_like(ids)
    mask[:, :2] = 0
    with host.route("a"):
        wanted = host.model.model(ids).last_hidden_state
        host.model(ids, attention_mask=mask)
        torch.testing.assert_close(host.model.model(ids).last_hidden_state, wanted)


@torch.no_grad()
def test_padding_of_texts_among_which_a_model_chooses():
    sizes: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    host: Any = cw.Host(tf.BertForMultipleChoice(tf.BertConfig(vocab_size=64, intermediate_size=48, **sizes)).eval())
    stir(host.add("a", "loreft", prefix=2), 1, std=0.5)
    ids = torch.randint(2, 60, (2, 3, 5), generator=torch.Generator().manual_seed(0))
    padded, place = torch.cat([ids[..., :2], ids], -1), torch.tensor([0, 0, *range(5)]).expand(2, 3, 7)
    mask = torch.ones_like(padded)
    mask[..., :2] = 0
    type_ids = torch.zeros_like(padded)
    with host.route("a"):  # the pooler reads the first column
        blocks = {"output_hidden_states": True}
        wanted = host.model(ids, **blocks).hidden_states[-1]
        got = host.model(padded, attention_mask=mask, position_ids=place, token_type_ids=type_ids, **blocks)
    torch.testing.assert_close(got.hidden_states[-1][:, 2:], wanted)


def fsmt_scores(host: Any, route: Any, ids: torch.Tensor) -> torch.Tensor:
    with host.route(route):
        mask = torch.ones_like(ids)
        return host.model(ids, attention_mask=mask, decoder_input_ids=ids, use_cache=False).logits


def xlnet(**options: Any) -> Any:
    torch.manual_seed(0)
    config = tf.XLNetConfig(vocab_size=64, d_model=32, n_layer=2, n_head=4, d_inner=48, **options)
    return tf.XLNetModel(config).eval()


def xlnet_states(host: Any, route: Any, ids: torch.Tensor) -> torch.Tensor:
    with host.route(route):
        return host.model(ids, attention_mask=torch.ones_like(ids).float()).last_hidden_state


FIRST: dict[str, Any] = {"fsmt": (fsmt, fsmt_scores), "xlnet": (xlnet, xlnet_states)}
BY_ROWS = [*METHODS, ("lora", {"rank": 2}), *((m, small(m)) for m in ("lst", "meo", "mp", "styleinject", "das"))]


@pytest.mark.parametrize("rows", [4, 8])
@pytest.mark.parametrize(  # XLNet's feed-forward part adds and norms by itself: no gates there
    "kind, method, options", [(k, m, o) for k in FIRST for m, o in BY_ROWS if (k, m) != ("xlnet", "dyt")]
)
def test_whoever_reads_where_tokens_come_first_sees_rows(kind, method, options, rows):
    """With as many rows as tokens, where no shape tells, and with fewer: of one tenant and of several."""
    made, scores = FIRST[kind]
    host: Any = cw.Host(made())
    for i, n in enumerate("au"):
        stir(host.add(n, method, **options), i, std=0.3)
    ids = torch.randint(4, 60, (rows, 8), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        got, mixed = scores(host, "a", ids), scores(host, ["a", None, "u", "a"] * (rows // 4), ids)
        for i in range(0, rows, 3):
            alone = scores(host, "a", ids[i : i + 1])[0]
            torch.testing.assert_close(got[i], alone, rtol=1e-4, atol=1e-5)
            if i % 4 in (0, 3):
                torch.testing.assert_close(mixed[i], alone, rtol=1e-4, atol=1e-5)
    parameters = [*host["a"].parameters()]
    each = [scores(host, "a", ids[i : i + 1]).square().sum() for i in range(rows)]
    wanted = torch.autograd.grad(sum(each), parameters, allow_unused=True)
    found = torch.autograd.grad(scores(host, "a", ids).square().sum(), parameters, allow_unused=True)
    for a, b in zip(found, wanted):
        if b is not None:
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4 * float(b.abs().max() + 1))


@pytest.mark.parametrize("kind", FIRST)
@torch.no_grad()
def test_a_block_with_tokens_first_that_some_tokens_skip_is_refused(kind):
    made, scores = FIRST[kind]
    host: Any = cw.Host(made())
    stir(host.add("a", "coda", **small("coda")), std=0.3)
    ids = torch.arange(4, 28).view(4, 6)
    with pytest.raises(
        cw.CommonweightError, match=r"layers?.0: some tokens of a row skip this block, which is given tok"
    ):
        scores(host, "a", ids)


@torch.no_grad()
def test_a_memory_of_xlnets_holds_all_rows_and_is_left_out_reader_by_reader():
    host: Any = cw.Host(xlnet())
    stir(host.add("a", "full", sites="*.rel_attn.q"), std=0.3)
    ids = torch.arange(4, 28).view(4, 6)
    mixed = xlnet_states(host, ["a", None, "a", None], ids)
    for i, route in enumerate(["a", None]):
        torch.testing.assert_close(mixed[i], xlnet_states(host, route, ids)[i], rtol=1e-4, atol=1e-5)
    with host.route("a"):
        mems = host.model(ids).mems
    assert mems is not None
    with host.route(["a", None, "a", None]), pytest.raises(cw.CommonweightError, match="mems holds all rows at once"):
        host.model(ids, mems=mems)


@pytest.mark.parametrize("method, options", [("loreft", {"prefix": 2}), ("lst", small("lst")), ("meo", small("meo"))])
@torch.no_grad()
def test_xlnets_other_mask_which_says_what_is_padding(method, options):
    host: Any = cw.Host(xlnet())
    stir(host.add("a", method, **options), 1, std=0.3)
    ids, pad = torch.randint(1, 64, (2, 6)), torch.zeros(2, 6)
    pad[0, :2] = 1
    with host.route("a"):
        wanted = host.model(ids, attention_mask=1 - pad).last_hidden_state
        got = host.model(ids, input_mask=pad).last_hidden_state
        unmasked = host.model(ids).last_hidden_state
    torch.testing.assert_close(got[pad == 0], wanted[pad == 0])
    assert not torch.allclose(got[pad == 0], unmasked[pad == 0], atol=1e-3)


@torch.no_grad()
def test_tokens_first_that_nobody_said_are_refused(monkeypatch):
    monkeypatch.setattr(tokens_first, "_ALL", set())
    host: Any = cw.Host(xlnet())
    host.add("a", "loreft", prefix=2)
    for route in ("a", ["a", None, "a", "a"]):
        with host.route(route), pytest.raises(cw.CommonweightError, match=r"layer.0: .*\(6, .* in a pass of .* row"):
            host.model(torch.ones(4, 6, dtype=torch.long))


@pytest.mark.parametrize("method, options", [("das", {"skip": 1, "every": 2}), ("lst", {}), ("read", {})])
@torch.no_grad()
def test_a_second_stream_of_xlnets_is_refused_where_it_would_not_be_followed(method, options):
    """As it generates: what it answers comes of the second stream."""
    torch.manual_seed(0)
    config = tf.XLNetConfig(vocab_size=64, d_model=32, n_layer=2, n_head=4, d_inner=48)
    host: Any = cw.Host(tf.XLNetLMHeadModel(config).eval())
    stir(host.add("a", method, **options), 1, std=0.3)
    ids, last = torch.randint(1, 64, (4, 6)), torch.zeros(4, 1, 6)
    last[:, 0, 5] = 1
    for route in ("a", ["a", None, "a", None]):
        with host.route(route), pytest.raises(cw.CommonweightError, match="two streams of states"):
            host.model(ids, target_mapping=last)
        with host.route(route):
            assert host.model(ids).logits.isfinite().all()


@pytest.mark.parametrize("make_one", ["bloom", "mpt"])
def test_a_part_that_is_given_what_it_is_added_to_ends_before_that(make_one):
    """A token that skips the feed-forward part keeps the stream; an adapter beside it sees the part's own output."""
    host: Any = cw.Host(globals()[make_one]())
    tenant = host.add("a", "dyt")
    for name, p in tenant.pools.items():
        if name.endswith("select_bias"):
            p.data.fill_(-50.0)
    bare = globals()[make_one]()
    for name, p in bare.named_parameters():
        if "dense_4h_to_h" in name or "down_proj" in name:
            p.data.zero_()
    ids = torch.randint(1, 61, (2, 5))
    for grad in (False, True):
        with torch.set_grad_enabled(grad), host.route("a"):
            found = host.model(ids, use_cache=False).logits
        torch.testing.assert_close(found, bare(ids, use_cache=False).logits, rtol=1e-4, atol=1e-5)
