"""Activated LoRA: a tenant that acts from the last occurrence of some tokens on."""

import copy
import re

import pytest
import torch
import transformers as tf

import commonweight as cw
from commonweight.host.invoked import NEVER, last
from tests.laws.subjects import stir
from tests.models import make

INV = (5, 6)
SITES = "*_proj"
CALL = {"max_new_tokens": 5, "eos_token_id": None, "do_sample": False}


def texts() -> torch.Tensor:
    """Four rows of nine tokens: begun at 3, twice (the last at 6), never, at the end."""
    ids = torch.randint(7, 60, (4, 9), generator=torch.Generator().manual_seed(1))
    for row, at in ((0, 3), (1, 1), (1, 6), (3, 7)):
        ids[row, at : at + 2] = torch.tensor(INV)
    return ids


@pytest.fixture(scope="module")
def host() -> cw.Host:
    host = cw.Host(make("llama")[0])
    stir(host.add("a", "lora", rank=3, invocation=INV, sites=SITES, dropout=0.5))
    stir(host.add("other", "lora", rank=3, invocation=(9,), sites=SITES))
    stir(host.add("l", "lora", rank=3, sites=SITES))
    return host


@torch.no_grad()
def said(host, readers, ids, **more):
    with host.route(readers):
        return host.model(input_ids=ids, **more).logits


def test_where_the_last_occurrence_begins():
    assert last(texts(), INV).tolist() == [3, 6, NEVER, 7]
    assert last(texts()[:, :1], INV).tolist() == [NEVER] * 4


@torch.no_grad()
def test_formula():
    """Every layer by the definition: its own output, and B A x where the text has begun."""
    host, ids = cw.Host(make("llama")[0]), texts()
    tenant = stir(host.add("t", "lora", rank=2, alpha=3.0, invocation=INV, sites=SITES))
    plain = make("llama")[0]
    begun = torch.arange(9) >= torch.tensor([3, 6, 99, 7])[:, None]

    def by_definition(name):
        A, B = tenant.pools[f"{name}.A"], tenant.pools[f"{name}.B"]
        return lambda m, args, y: y + 1.5 * begun[..., None] * (args[0] @ A.T @ B.T)

    for site in tenant.sites:
        plain.get_submodule(site.name).register_forward_hook(by_definition(site.name))
    torch.testing.assert_close(said(host, "t", ids), plain(input_ids=ids).logits)


def test_what_stands_before_is_the_bases(host):
    ids = texts()
    base, ours = said(host, None, ids), said(host, "a", ids)
    for row, start in enumerate((3, 6, 9, 7)):
        assert torch.equal(ours[row, :start], base[row, :start])
        assert (ours[row, start:] - base[row, start:]).abs().sum() > 0 or start == 9


def test_the_bases_cache_is_the_tenants(host):
    """What aLoRA is for: the base has read a text; the tenant goes on from its cache."""
    ids = texts()[:2]
    ids[:, :7] = torch.randint(10, 60, (2, 7))
    ids[:, 5:7] = torch.tensor(INV)
    with torch.no_grad():
        cache = host.model(input_ids=ids[:, :5], use_cache=True).past_key_values
    torch.testing.assert_close(said(host, "a", ids[:, 5:], past_key_values=cache), said(host, "a", ids)[:, 5:])


def test_rows_of_a_mixed_batch_are_those_alone(host):
    ids, readers = texts(), ["a", "l", None, "other"]
    ids[3, 4] = 9
    mixed = said(host, readers, ids)
    for i, name in enumerate(readers):
        torch.testing.assert_close(mixed[i], said(host, name, ids[i : i + 1])[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(said(host, ["a"] * 4, ids), said(host, "a", ids))


def test_texts_in_one_row_have_a_beginning_each(host):
    ids = texts()
    row = ids.reshape(1, -1)
    places = torch.arange(9).repeat(4)[None]
    packed = said(host, "a", row, position_ids=places, use_cache=False)
    torch.testing.assert_close(packed.reshape(4, 9, -1), said(host, "a", ids), rtol=1e-4, atol=1e-5)
    cut = torch.tensor([[1, 2, *INV, 8, 9, 3, 4]])  # an occurrence across two texts is none
    across = said(host, "a", cut, position_ids=torch.tensor([[0, 1, 2, 0, 1, 2, 3, 4]]), use_cache=False)
    assert torch.equal(
        across, said(host, None, cut, position_ids=torch.tensor([[0, 1, 2, 0, 1, 2, 3, 4]]), use_cache=False)
    )
    short = torch.tensor([[5, 5]])
    assert said(host, "a", short, position_ids=torch.zeros(1, 2, dtype=torch.long), use_cache=False).shape[1] == 2


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding(host, side):
    ids, pads = texts(), 3
    fill = torch.zeros(4, pads, dtype=torch.long)
    padded = torch.cat([fill, ids] if side == "left" else [ids, fill], 1)
    mask = (padded != 0).long()
    where = slice(pads, None) if side == "left" else slice(0, 9)
    places = (mask.cumsum(1) - 1).clamp(min=0)
    got = said(host, ["a", "a", "l", "a"], padded, attention_mask=mask, position_ids=places)[:, where]
    torch.testing.assert_close(got, said(host, ["a", "a", "l", "a"], ids), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "how", [{}, {"use_cache": False}, {"cache_implementation": "static"}, {"num_beams": 2}, {"prefill_chunk_size": 4}]
)
def test_generate_is_each_row_alone_without_a_cache(host, how):
    ids, readers = texts(), ["a", "l", None, "a"]
    with host.route(readers):
        got = host.model.generate(input_ids=ids, **CALL, **how)
    beams = {k: v for k, v in how.items() if k == "num_beams"}
    for i, name in enumerate(readers):
        with host.route(name):
            assert got[i].tolist() == host.model.generate(input_ids=ids[i : i + 1], **CALL, **beams)[0].tolist()


@torch.no_grad()
def test_new_tokens_are_behind_the_prompts_beginning(host):
    """By the definition: the text so far in one pass, begun where the prompt says, whatever is generated."""
    ids = texts()[:1]
    with host.route("a"):
        out = host.model.generate(input_ids=ids, **CALL, return_dict_in_generate=True, output_logits=True)
    for i, logits in enumerate(out.logits):
        torch.testing.assert_close(logits, said(host, "a", out.sequences[:, : 9 + i])[:, -1], rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_a_cache_remembers_where_a_text_began(host):
    ids = texts()
    whole = said(host, "a", ids)
    with host.route("a"):
        first = host.model(input_ids=ids[:, :8], use_cache=True)
        cache = copy.deepcopy(first.past_key_values)
        on = host.model(input_ids=ids[:, 8:], past_key_values=cache).logits
        torch.testing.assert_close(on[:3, 0], whole[:3, 8])  # row 3's occurrence lies across the two calls
        first.past_key_values.crop(-6)
        fresh = host.model(input_ids=ids[:1, 7:].expand(4, -1), past_key_values=first.past_key_values).logits
    base = said(host, None, torch.cat([ids[:, :2], ids[:1, 7:].expand(4, -1)], 1))
    torch.testing.assert_close(fresh[0], base[0, 2:])  # what it held of the beginning is gone
    with pytest.raises(cw.CommonweightError, match="3 rows go on from a text of 4 rows"), host.route("a"):
        cache.batch_select_indices(torch.tensor([0, 1, 2]))
        host.model(input_ids=ids[:3, 8:], past_key_values=cache)


@torch.no_grad()
@pytest.mark.parametrize("what", ["a pass", "generate"])
def test_a_batch_that_runs_reader_by_reader(host, what, monkeypatch):
    """Where the rows are not found, each reader's rows go by their own part of the prompt."""

    def run(readers, ids):
        with host.route(readers):
            if what == "a pass":
                return host.model(input_ids=ids, use_cache=False).logits
            more = {"use_cache": False, "return_dict_in_generate": True, "output_logits": True}
            return torch.stack(host.model.generate(ids, **CALL, **more).logits, 1)

    ids, readers = texts()[[2, 1, 3, 0]], ["l", "a", "a", None]
    want = run(readers, ids)
    monkeypatch.setattr(host.model.__dict__["forward"], "apart", {"": "for this test"})
    torch.testing.assert_close(run(readers, ids), want, rtol=1e-4, atol=1e-5)


def test_the_module_of_a_tenant(host):
    module = host.module("a")
    torch.testing.assert_close(module(input_ids=texts()).logits.detach(), said(host, "a", texts()))
    with host.route("a"):
        want = host.model.generate(texts(), **CALL)
    assert torch.equal(module.generate(texts(), **CALL), want)


@pytest.mark.slow
@torch.no_grad()
def test_torch_compile_looks_beside_the_graph():
    host = cw.Host(make("llama")[0])
    stir(host.add("a", "lora", rank=3, invocation=INV, sites="*.1.mlp.down_proj"))
    compiled = torch.compile(host.model, backend="eager")
    for ids in (texts(), texts().flip(0)):
        with host.route("a"):
            torch.testing.assert_close(compiled(input_ids=ids).logits, said(host, "a", ids))


def test_states_that_count_nothing():
    config = tf.MambaConfig(vocab_size=61, hidden_size=32, num_hidden_layers=2, state_size=4)
    host = cw.Host(tf.MambaForCausalLM(config).eval())
    stir(host.add("a", "lora", rank=3, invocation=INV, sites="*.in_proj|*.out_proj"))
    ids = texts()
    with host.route("a"):
        out = host.model.generate(input_ids=ids, **CALL, return_dict_in_generate=True, output_logits=True)
    for i, logits in enumerate(out.logits):
        torch.testing.assert_close(logits, said(host, "a", out.sequences[:, : 9 + i])[:, -1], rtol=1e-3, atol=1e-4)
    with torch.no_grad(), host.route("a"):
        first = host.model(input_ids=ids[:2], use_cache=True)
        on = host.model(input_ids=ids[:2, :1], cache_params=first.cache_params).logits
    torch.testing.assert_close(on[:, 0], said(host, "a", torch.cat([ids[:2], ids[:2, :1]], 1))[:, -1])


@pytest.mark.parametrize("checkpoints", [False, True])
def test_gradients_are_those_of_the_tokens_that_act(checkpoints):
    model, _ = make("llama")
    model.config.use_cache = False
    host = cw.Host(model)
    a = stir(host.add("a", "lora", rank=2, invocation=INV, sites=SITES))
    l = stir(host.add("l", "lora", rank=2, sites=SITES))
    for n, p in l.pools.items():
        p.data.copy_(a.pools[n].data)
    ids = texts()
    ids[:, :2] = torch.tensor(INV)
    ids[:, 2:] = ids[:, 2:].clamp(min=7)
    if checkpoints:
        model.train()
        model.activation_checkpointing_enable({"use_reentrant": False})
    for name in ("a", "l"):  # begun at the first token, it is LoRA
        with host.route(name):
            host.model(input_ids=ids, labels=ids).loss.backward()
    for n, p in l.named_parameters():
        torch.testing.assert_close(a.pools[n].grad, p.grad)
        a.pools[n].grad = None
    with host.route("a"):
        host.model(input_ids=ids[:, 2:], labels=ids[:, 2:]).loss.backward()
    assert all(p.grad is None or not p.grad.any() for _, p in a.named_parameters())


def test_a_file_keeps_it(host, tmp_path):
    file, other = host.save("a", tmp_path / "a.safetensors"), cw.Host(make("llama")[0])
    other.load("a", file)
    torch.testing.assert_close(said(other, "a", texts()), said(host, "a", texts()))


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda h: h.merged("a"), "Activated does not change a weight; it cannot be merged"),
        (lambda h: h.model(inputs_embeds=torch.zeros(1, 4, 32)), "the model was given none; give it input_ids"),
        (lambda h: h.model.model(input_ids=texts()), "call the model, not a part of it"),
        (lambda h: h.model.generate(inputs_embeds=torch.zeros(1, 4, 32)), "the token ids of the prompt"),
        (lambda h: h.model.generate(texts(), guidance_scale=2.0), "guidance_scale reads a second text"),
        (lambda h: h.model.generate_batch([[5, 6]]), "continuous batching of transformers packs all texts"),
        (lambda h: h.model.init_continuous_batching(), "continuous batching of transformers packs all texts"),
        (lambda h: h.export("a", "x", format="mlx"), "for which mlx has no word"),
    ],
)
def test_what_cannot_be_is_refused(host, call, says):
    with pytest.raises(Exception, match=re.escape(says)), host.route("a"):
        call(host)


def test_tokens_cannot_be_routed_one_by_one(host):
    with (
        pytest.raises(cw.CommonweightError, match="route it per row, not per token"),
        host.route(torch.full((4, 9), host["a"].number)),
    ):
        host.model(input_ids=texts())


def test_tenants_do_not_stand_on_it():
    host = cw.Host(make("llama")[0])
    host.add("a", "lora", invocation=INV, sites=SITES)
    with pytest.raises(cw.CommonweightError, match="it acts on some tokens alone"):
        host.add("x", "xlora", over=["a"])


def test_an_encoder_decoder_has_no_beginning():
    model, batch = make("t5")
    host = cw.Host(model)
    host.add("a", "lora", invocation=INV, sites="*.q")
    with pytest.raises(cw.CommonweightError, match="not for an encoder and a decoder"), host.route("a"):
        host.model(**batch)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"invocation": (1,), "bias": True}, "a bias acts on all tokens"),
        ({"invocation": (-1,)}, "token ids are 0 or more"),
    ],
)
def test_options(options, says):
    with pytest.raises(cw.CommonweightError, match=says):
        cw.plan("lora", [cw.Site("q", 8, 8)], **options)
    for kind in ("conv", "router", "embedding"):
        with pytest.raises(cw.CommonweightError, match=f"acts on tokens of linear layers, and this is of kind {kind}"):
            cw.plan("lora", [cw.Site("q", 8, 8, kind)], alora_invocation_tokens=[1])


@torch.no_grad()
def test_layers_that_hold_several():
    """GPT-2's query, key and value are rows of one layer."""
    host, ids = cw.Host(make("gpt2")[0]), texts()
    stir(host.add("a", "lora", rank=3, invocation=INV))
    stir(host.add("l", "lora", rank=2))
    base, ours, mixed = (said(host, who, ids) for who in (None, "a", ["a", "l", "a", None]))
    for row, start in enumerate((3, 6, 9, 7)):
        assert torch.equal(ours[row, :start], base[row, :start])
    torch.testing.assert_close(mixed[[0, 2]], ours[[0, 2]])


def test_what_the_error_says_to_take_can_be_taken():
    """Of a mixture too, where experts have names as layers have."""
    host = cw.Host(make("moe")[0])
    with pytest.raises(cw.CommonweightError, match="of kind expert; take the others: sites=") as told:
        host.add("t", "lora", rank=2, invocation=[5, 6])
    host.add("t", "lora", rank=2, invocation=[5, 6], sites=str(told.value).rpartition("sites='")[2].rstrip("'"))


def test_tokens_that_no_row_can_have(host):
    for ids in ((5, 61), (10**9,)):
        with pytest.raises(cw.CommonweightError, match=rf"the token {ids[-1]}, and .* ends at 60: it would never act"):
            host.add("t", "lora", invocation=ids, sites=SITES)
    assert "t" not in host
    host.add("t", "lora", invocation=(5, 60), sites=SITES)
    host.remove("t")
