"""A route belongs to a unit of work: event loops, threads, executors, generation, libraries that reorder rows."""

from __future__ import annotations

import asyncio
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from multiprocessing.pool import ThreadPool

import pytest
import torch
import transformers as tf
from torch import nn
from transformers import ContinuousBatchingConfig, GenerationConfig

import commonweight as cw
from tests.laws.subjects import stir
from tests.models import answer, make

NAMES = ("a", "b", None)


def small():
    """A host on two layers, and what each reader answers."""
    torch.manual_seed(0)
    host = cw.Host(nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8)), sites="*")
    for i, n in enumerate("ab"):
        stir(host.add(n, "lora", rank=2, seed=i), i, 1.0)
    x = torch.randn(2, 8)

    @torch.no_grad()
    def say():
        return host.model(x)

    want = {}
    for n in NAMES:
        with host.route(n):
            want[n] = say()
    assert len({tuple(v.flatten().tolist()) for v in want.values()}) == 3
    return host, say, want


def writer(kind="llama"):
    """A host on a model that generates; prompts of three rows."""
    model, _ = make(kind)
    model.eval()
    host = cw.Host(model)
    for i, n in enumerate("ab"):
        stir(host.add(n, "lora", rank=4), i, 0.5)
    ids = torch.randint(3, 61, (3, 5), generator=torch.Generator().manual_seed(2))
    return host, model, ids


HOW = {"max_new_tokens": 5, "do_sample": False}


def written(host, model, ids, name, **how):
    with host.route(name):
        return model.generate(ids, attention_mask=torch.ones_like(ids), **{**HOW, **how})


# -- event loops -------------------------------------------------------------------------------------------------------


def test_tasks_of_one_event_loop_have_their_own_routes():
    host, say, want = small()

    async def task(name, given):
        wrong = 0
        for _ in range(5):
            if given:
                with host.route(name):
                    await asyncio.sleep(0)
                    wrong += not torch.equal(say(), want[name])
            else:
                await asyncio.sleep(0)
                wrong += not torch.equal(say(), want[None])
        return wrong

    async def main():
        return await asyncio.gather(task("a", True), task("b", True), task(None, True), task(None, False))

    assert asyncio.run(main()) == [0, 0, 0, 0]
    assert torch.equal(say(), want[None]), "nothing stays in force"


def test_work_that_a_task_hands_to_threads_is_the_tasks_own():
    host, say, want = small()

    async def task(name):
        with host.route(name):
            loop = asyncio.get_running_loop()
            return [await asyncio.to_thread(say), await loop.run_in_executor(None, say)]

    async def main():
        return await asyncio.gather(*(task(n) for n in NAMES))

    for name, answers in zip(NAMES, asyncio.run(main())):
        assert all(torch.equal(found, want[name]) for found in answers)


def test_a_compiled_model_in_an_event_loop():
    host, _, _ = small()
    torch._dynamo.reset()
    compiled = torch.compile(host.model, backend="eager")
    x = torch.randn(2, 8)
    with torch.no_grad():
        right = {}
        for n in NAMES:
            with host.route(n):
                right[n] = host.model(x)

    async def task(name):
        wrong = 0
        for _ in range(3):
            with host.route(name):
                await asyncio.sleep(0)
                with torch.no_grad():  # torch's own state is the thread's: it must not be held across an await
                    wrong += not torch.allclose(compiled(x), right[name])
        return wrong

    async def main():
        return await asyncio.gather(*(task(n) for n in NAMES))

    assert asyncio.run(main()) == [0, 0, 0]


def test_a_model_inside_of_what_is_compiled():
    host, _, _ = small()
    torch._dynamo.reset()
    whole = torch.compile(Outer(host.model), backend="eager")
    x = torch.randn(2, 8)
    for n in ("a", "b", None, "a"):
        with torch.no_grad(), host.route(n):
            torch.testing.assert_close(whole(x), host.model(x) + 1)


class Outer(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(x) + 1


# -- threads -----------------------------------------------------------------------------------------------------------


def in_thread(run):
    found = []

    def work():
        try:
            found.append(run())
        except cw.CommonweightError as e:
            found.append(e)

    t = threading.Thread(target=work)
    t.start()
    t.join()
    return found[0]


def test_a_thread_started_in_a_route_keeps_it_though_the_route_closes():
    host, say, want = small()
    go, found = threading.Event(), []

    def work():
        go.wait()
        found.append(say())

    with host.route("a"):
        assert torch.equal(in_thread(say), want["a"])
        late = threading.Thread(target=work)
        late.start()
    with host.route("b"):
        go.set()
        late.join()
    assert torch.equal(found[0], want["a"])


def test_an_executor_runs_each_item_as_whoever_gave_it():
    host, say, want = small()
    with ThreadPoolExecutor(1) as pool:
        for n in ("a", "b", None, "a"):
            with host.route(n):
                assert torch.equal(pool.submit(say).result(), want[n])
                assert all(torch.equal(y, want[n]) for y in pool.map(lambda _: say(), range(3)))
        assert torch.equal(pool.submit(say).result(), want[None])


def test_where_it_cannot_be_known_whose_work_a_thread_does_the_model_says_so():
    host, say, want = small()
    with ThreadPool(1) as pool:
        assert torch.equal(pool.apply(say), want[None])
        with host.route("a"), pytest.raises(cw.CommonweightError, match="cannot be known whose work this is"):
            pool.apply(say)

        def based():
            with host.route(None):
                return say()

        with host.route("a"):
            assert torch.equal(pool.apply(based), want[None]), "a thread that says what it wants is believed"


def test_threads_that_share_a_mixed_route_run_side_by_side():
    host, say, want = small()
    wrong = []

    def work():
        for _ in range(20):
            y = say()
            if not torch.allclose(y, torch.stack([want["a"][0], want["b"][1]]), rtol=1e-4, atol=1e-4):
                wrong.append(y)

    with host.route(["a", "b"]):
        threads = [threading.Thread(target=work) for _ in range(3)]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
    assert not wrong


def test_generators_that_take_turns_are_told():
    host, _, _ = small()

    def stream(name):
        with host.route(name):
            yield
            yield

    one, two = stream("a"), stream("b")
    next(one)
    next(two)
    next(one)
    with pytest.raises(cw.CommonweightError, match="closed while one that was opened after it was still open"):
        next(one, None)
    two.close()


def test_a_generator_that_is_resumed_in_another_context_is_told_before_it_answers():
    host, say, want = small()

    def stream():
        with host.route("a"):
            for _ in range(2):
                yield say()

    async def stream_later():
        with host.route("a"):
            for _ in range(2):
                yield say()

    async def from_threads(values):  # as web servers do
        return [await asyncio.to_thread(next, values) for _ in range(2)]

    async def from_tasks(values):
        return [await asyncio.create_task(anext(values)) for _ in range(2)]

    for run in (from_threads(stream()), from_tasks(stream_later())):
        with pytest.raises(cw.CommonweightError, match="is resumed in another context"):
            asyncio.run(run)
    assert all(torch.equal(y, want["a"]) for y in stream())
    values = stream()
    assert torch.equal(next(values), want["a"])
    with host.route("b"):  # what is done beside a generator that waits is not its work
        assert torch.equal(say(), want["b"])
    assert torch.equal(next(values), want["a"])


def test_a_route_of_a_generator_that_waits_answers_nobody_else():
    host, say, want = small()

    def stream():
        with host.route("a"):
            for _ in range(3):
                yield say()

    async def later():
        with host.route("a"):
            for _ in range(3):
                yield say()
                task = asyncio.create_task(asyncio.to_thread(say))
                yield await task  # work that is handed on keeps it

    values = stream()
    next(values)
    with pytest.raises(cw.CommonweightError, match="waits at a yield"):
        say()
    with host.route(None):
        assert torch.equal(say(), want[None])
    with pytest.raises(cw.CommonweightError, match="is resumed in another context"), host.route("b"):
        next(values)
    assert torch.equal(say(), want[None])  # its end has put back what was there

    other, one = stream(), stream()
    assert torch.equal(next(other), want["a"]) and torch.equal(next(one), want["a"])
    with pytest.raises(cw.CommonweightError, match="is resumed in another context"):
        next(other)
    one.close()

    async def consumed():
        values = later()
        assert torch.equal(await anext(values), want["a"])
        with pytest.raises(cw.CommonweightError, match="waits at a yield"):
            say()
        assert torch.equal(await anext(values), want["a"])
        await values.aclose()
        assert torch.equal(say(), want[None])

    asyncio.run(consumed())


def test_a_route_as_the_decorator_of_a_coroutine_lasts_until_its_end():
    host, say, want = small()

    @host.route("a")
    async def answered():
        await asyncio.sleep(0)
        return say()

    assert torch.equal(asyncio.run(answered()), want["a"])
    with pytest.raises(cw.CommonweightError, match="is a generator"):

        @host.route("a")
        def stream():
            yield say()


def test_numbers_of_rows_follow_beams_and_models_without_rows():
    host, model, ids = writer()
    numbers = torch.tensor([host[n].number for n in ("a", "b")])
    want = written(host, model, ids[:2], ["a", "b"], num_beams=3)
    several = host.module(["a", "b"])
    ones = torch.ones_like(ids[:2])
    assert torch.equal(several.generate(ids[:2], attention_mask=ones, num_beams=3, **HOW, tenants=numbers), want)
    model = deberta().eval()
    host = cw.Host(model)
    for i, n in enumerate("ab"):
        stir(host.add(n, "lora", rank=4), i, 0.5)
    with host.route(["a", "b"]):
        want = model(ids[:2])[0]
    assert torch.equal(host.module(["a", "b"])(ids[:2], tenants=numbers)[0], want)


def test_a_route_is_a_decorator_and_serves_a_context_manager_of_ones_own():
    host, say, want = small()

    @contextmanager
    def legal():
        with host.route("a"):
            yield

    with legal():
        assert torch.equal(say(), want["a"])
    as_b = host.route("b")(say)
    assert torch.equal(as_b(), want["b"])
    assert torch.equal(as_b(), want["b"])


# -- generation --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["llama", "t5"])
@pytest.mark.parametrize(
    "how", [{"num_beams": 3}, {"num_beams": 2, "num_return_sequences": 2}, {"num_beams": 1}], ids=str
)
def test_beams_keep_their_rows_readers(kind, how):
    host, model, ids = writer(kind)
    with host.route(["a", None, "b"]):
        mixed = model.generate(ids, attention_mask=torch.ones_like(ids), **{**HOW, **how})
    n = how.get("num_return_sequences", 1)
    for row, name in enumerate(["a", None, "b"]):
        alone = written(host, model, ids[row : row + 1], name, **how)
        width = min(alone.shape[1], mixed.shape[1])
        assert torch.equal(mixed[row * n : row * n + n, :width], alone[:, :width])


def test_sampled_sequences_keep_their_rows_readers():
    host, model, ids = writer()
    seen = []
    handle = model.lm_head.register_forward_pre_hook(lambda _, x: seen.append(x[0].shape[0]))
    with host.route(["a", None, "b"]):
        out = model.generate(ids, do_sample=True, num_return_sequences=2, max_new_tokens=2)
        with pytest.raises(cw.CommonweightError, match=r"names 3 readers, the batch has 6 rows"):
            model(input_ids=out)  # outside of generation nobody repeated rows
    handle.remove()
    assert out.shape[0] == 6 and set(seen) == {4, 6}  # some rows are looked at beforehand, once a model


def test_candidates_of_contrastive_search_keep_their_rows_readers():
    """Such searches lie in repositories of their own: each step passes every row's candidates, one after the other."""
    host, model, ids = writer()
    top = 2
    want = {n: written(host, model, ids, n, output_logits=True, return_dict_in_generate=True).logits[0] for n in NAMES}

    def contrast(model, input_ids, **_):
        plain = model(input_ids=input_ids).logits[:, -1]
        wide = model(input_ids=input_ids.repeat_interleave(top, 0)).logits[:, -1]
        for row, name in enumerate(["a", None, "b"]):
            torch.testing.assert_close(plain[row], want[name][row])
            torch.testing.assert_close(wide[top * row : top * row + top], want[name][row].expand(top, -1))
        return input_ids

    with host.route(["a", None, "b"]):
        config = GenerationConfig(penalty_alpha=0.6, top_k=top, max_new_tokens=2)
        model.generate(ids, custom_generate=contrast, generation_config=config)


def test_a_streaming_thread_writes_as_the_tenant():
    host, model, ids = writer()
    found = []
    with host.route("a"):
        t = threading.Thread(target=lambda: found.append(model.generate(ids, **HOW)))
        t.start()
    t.join()
    assert torch.equal(found[0], written(host, model, ids, "a"))
    assert not torch.equal(found[0], written(host, model, ids, None))


PAGED = ContinuousBatchingConfig(num_blocks=16, page_size=32, max_batch_tokens=64)


def batched(model, ids, **how):
    config = GenerationConfig(**HOW, eos_token_id=-1, pad_token_id=0)
    found = model.generate_batch(ids.tolist(), generation_config=config, continuous_batching_config=PAGED, **how)
    assert list(found) == [r.request_id for r in found.values()] == [f"req_{i}" for i in range(len(ids))]
    return [r.generated_tokens for r in found.values()]


@pytest.mark.filterwarnings("ignore")
def test_continuous_batching_answers_as_the_route_says():
    host, model, ids = writer()
    model.generation_config.eos_token_id = None
    want = {n: written(host, model, ids, n)[:, 5:].tolist() for n in NAMES}
    for n in NAMES:
        with host.route(n):
            assert batched(model, ids) == want[n]
    with host.route(["a", None, "b"]):
        assert batched(model, ids) == [want["a"][0], want[None][1], want["b"][2]]
    assert batched(host.module("b"), ids) == want["b"]
    with host.route(["a", None]), pytest.raises(cw.CommonweightError, match="2 readers, there are 3 prompts"):
        batched(model, ids)


@pytest.mark.filterwarnings("ignore")
def test_a_kept_manager_of_continuous_batching_serves_one_reader():
    host, model, ids = writer()
    model.generation_config.eos_token_id = None
    want = {n: written(host, model, ids, n)[:, 5:].tolist() for n in "ab"}
    for n in "aba":
        with host.route(n):
            found = batched(model, ids, persistent_manager=True)
            assert found == want[n], "prefixes that were computed as another tenant are not reused"
    with host.route("a"):
        manager = model.init_continuous_batching(continuous_batching_config=PAGED)
    with host.route("b"), pytest.raises(cw.CommonweightError, match="made under another route"):
        manager.add_request([5, 6, 7])
    with host.route(["a", "b"]), pytest.raises(cw.CommonweightError, match="answers as one tenant"):
        model.init_continuous_batching(continuous_batching_config=PAGED)
    with host.route("a"):
        model.destroy_cached_continuous_batching_manager()


@pytest.mark.filterwarnings("ignore")
def test_continuous_batching_refuses_what_has_no_paged_attention():
    """transformers runs it, and every token then follows from the last one alone (findings/)."""
    torch.manual_seed(0)
    small = dict(n_embd=32, n_layer=2, n_head=4, n_positions=64, vocab_size=61, bos_token_id=1, eos_token_id=2)
    model = tf.GPTJForCausalLM(tf.GPTJConfig(rotary_dim=4, **small)).eval()
    host = cw.Host(model)
    host.add("a", "lora", rank=2)
    for route in ("a", ["a", None]):
        with host.route(route), pytest.raises(cw.CommonweightError, match="GPTJForCausalLM cannot read the paged"):
            batched(model, torch.tensor([[5, 6, 7], [8, 9, 10]]))


# -- models that feed their layers something without rows --------------------------------------------------------------


def deberta():
    return tf.DebertaV2Model(
        tf.DebertaV2Config(
            hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, vocab_size=61,
            type_vocab_size=0, relative_attention=True, share_att_key=True, pos_att_type=["p2c", "c2p"],
            position_buckets=8, norm_rel_ebd="layer_norm", max_position_embeddings=32, position_biased_input=False,
        )
    )  # fmt: skip


def swin():
    return tf.Swinv2Model(
        tf.Swinv2Config(image_size=16, patch_size=2, embed_dim=8, depths=[1, 1], num_heads=[2, 2], window_size=4)
    )


@pytest.mark.parametrize("make_model", [deberta, swin])
def test_models_without_rows_at_some_layer_are_right_in_mixed_batches(make_model):
    torch.manual_seed(0)
    model = make_model().eval()
    host = cw.Host(model)
    for i, n in enumerate("ab"):
        stir(host.add(n, "lora", rank=4), i, 0.3)
    ids = torch.randint(3, 61, (3, 6), generator=torch.Generator().manual_seed(2))
    batch = {"pixel_values": torch.randn(3, 3, 16, 16)} if make_model is swin else {"input_ids": ids}
    for names in (["a", "a", "a"], ["a", None, "b"], ["b", "a", "b"]):
        with torch.no_grad(), host.route(names):
            mixed = model(**batch).last_hidden_state
        for row, name in enumerate(names):
            one = {k: v[row : row + 1] for k, v in batch.items()}
            with torch.no_grad(), host.route(name):
                torch.testing.assert_close(mixed[row], model(**one).last_hidden_state[0], rtol=1e-3, atol=1e-4)


def test_what_cannot_be_cut_by_rows_is_refused_with_the_reason():
    torch.manual_seed(0)
    model = tf.DebertaV2ForSequenceClassification(deberta().config)
    host = cw.Host(model)
    for i, n in enumerate("ab"):
        stir(host.add(n, "lora", rank=4), i)
    ids = torch.randint(3, 61, (2, 6))
    with host.route(["a", "b"]):
        assert model(input_ids=ids).logits.shape == (2, 2)
        with pytest.raises(cw.CommonweightError, match=r"labels were given"):
            model(input_ids=ids, labels=torch.tensor([0, 1]))


def test_positions_that_do_not_begin_with_the_rows_are_not_cut():
    from commonweight.host.apart import Unfit, by_reader

    ids = torch.zeros(3, 5, dtype=torch.long)
    with pytest.raises(Unfit, match=r"position_ids of shape \(3, 3, 5\) do not begin with the rows"):
        by_reader(print, [("a", [0, 2]), ("b", [1])], (ids,), {"position_ids": torch.zeros(3, 3, 5)}, 3)


# -- others' libraries -------------------------------------------------------------------------------------------------


def sentences():
    st = pytest.importorskip("sentence_transformers")
    tokenizers = pytest.importorskip("tokenizers")
    vocabulary = {w: i for i, w in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *"abcdefghijklmnop"])}
    raw = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="[UNK]"))
    raw.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer = tf.PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="[PAD]", unk_token="[UNK]")
    return st, tokenizer


@pytest.mark.filterwarnings("ignore")
def test_sentence_transformers_sorts_rows_and_readers_follow(tmp_path):
    st, tokenizer = sentences()
    make("bert")[0].save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    encoder = st.SentenceTransformer(str(tmp_path), device="cpu")
    host = cw.Host(encoder[0].model)
    for i, n in enumerate("ab"):
        stir(host.add(n, "lora", rank=4), i, 0.3)
    rows, names = ["a b", "c d e f g h i", "j k l", "m"], ["a", "b", None, "a"]
    want = []
    for row, name in zip(rows, names):
        with host.route(name):
            want.append(encoder.encode([row])[0])
    with host.route(names):
        for more in ({}, {"batch_size": 2}, {"convert_to_tensor": True}):
            got = encoder.encode(rows, **more)
            torch.testing.assert_close(torch.as_tensor(got), torch.tensor(want), rtol=1e-4, atol=1e-5)
        with pytest.raises(cw.CommonweightError, match="4 readers, there are 2 rows"):
            encoder.encode(rows[:2])
        with pytest.raises(cw.CommonweightError, match="other processes do not know the route"):
            encoder.encode(rows, device=["cpu", "cpu"])


# -- copies, and numbers that are none ---------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["lora", "loreft", "oft", "mos"])
def test_a_host_comes_back_from_a_pickle_with_its_tenants(method):
    model, batch = make("llama")
    host = cw.Host(model)
    host.add("a", method, common="both" if method == "mos" else None)
    stir(host["a"], 3)
    again = pickle.loads(pickle.dumps(host))
    with torch.no_grad(), host.route("a"), again.route("a"):
        assert torch.equal(answer(model, batch), answer(again.model, batch))
    assert again["a"].base() is again.base and again.model is not model
    again.remove("a")
    assert "a" in host


@pytest.mark.parametrize("method", ["loreft", "oft", "boft", "dora", "svf", "lora"])
def test_a_tenant_with_nan_ends_its_own_rows_alone(method):
    model, batch = make("llama")
    host = cw.Host(model)
    sick, sicker, well = host.add("sick", method), host.add("sicker", method), stir(host.add("well", "lora"))
    with torch.no_grad():
        for t in (sick, sicker):
            for p in t.parameters():
                p.fill_(float("nan"))
        with host.route("well"):
            want = answer(model, batch)
        with host.route(["sick", "well", "sicker", well.name]):
            got = answer(model, batch)
    torch.testing.assert_close(got[[1, 3]], want[[1, 3]])
    assert got[0].isnan().any() and got[2].isnan().any()
