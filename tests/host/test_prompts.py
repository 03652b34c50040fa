"""A row's embedding in a decoder: that of its prompt, which is said, labelled or given to `generate`."""

import threading

import pytest
import torch

import commonweight as cw
from tests.host.test_running import checkpoint
from tests.laws.subjects import stir
from tests.models import make

NAMES = ["a", "t", None, "t"]
HOW = {"max_new_tokens": 4, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
PROMPTS = [[5, 9, 4], [7, 7, 8, 30, 31], [40, 3], [11, 12, 50, 3]]


def writer(kind="llama"):
    model, _ = make(kind)
    model.eval()
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(3) if p.dim() > 1 else None
    host = cw.Host(model)
    for i, n in enumerate("ab"):
        stir(host.add(n, "lora", rank=2), i, 0.5)
    stir(host.add("t", "psec", over=["a", "b"], hidden=5, context="row"), 7, 0.5)
    return host, model


def padded(prompts, left=True):
    most = max(map(len, prompts))
    ids, mask = torch.zeros(len(prompts), most, dtype=torch.long), torch.zeros(len(prompts), most, dtype=torch.long)
    for i, p in enumerate(prompts):
        at = slice(most - len(p), most) if left else slice(0, len(p))
        ids[i, at], mask[i, at] = torch.tensor(p), 1
    return ids, mask


def by_hand(host, model, name, prompt, n=4):
    """A step at a time, without a cache, by the prompt that is said."""
    ids = torch.tensor([prompt])
    with torch.no_grad(), host.route(name, prompts=[prompt]):
        for _ in range(n):
            logits = model(input_ids=ids, use_cache=False).logits[:, -1]
            ids = torch.cat([ids, logits.argmax(1, keepdim=True)], 1)
    return ids[0, len(prompt) :].tolist()


def answers(host, model, names, prompts=PROMPTS, **how):
    ids, mask = padded(prompts)
    with host.route(names):
        out = model.generate(ids, attention_mask=mask, **{**HOW, **how})
    return out[:, ids.shape[1] :].tolist()


def test_the_formula():
    host, model = writer()
    p = {k.rpartition(".")[2]: v.detach() for k, v in host["t"].pools.items() if k.startswith("state")}
    z = model.get_input_embeddings().weight[[7, 7, 8]].detach().mean(0)
    a = torch.relu(z @ p["W1"].T + p["b1"]) @ p["W2"].T + p["b2"]
    name, seen = "model.layers.1.self_attn.q_proj", []
    at = model.get_submodule(name)
    handle = at.register_forward_hook(lambda m, args, y: seen.append((args[0], y)))
    with torch.no_grad(), host.route("t", prompts=[[7, 7, 8]]):
        model(torch.tensor([[7, 7, 8, 30, 31]]))
    handle.remove()
    ((x, y),) = seen
    low = [x @ host[n].pools[f"{name}.A"].detach().T @ host[n].pools[f"{name}.B"].detach().T * 2 for n in "ab"]
    want = at.weight.detach()
    torch.testing.assert_close(y, x @ want.T + a[0] * low[0] + a[1] * low[1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("how", [{}, {"use_cache": False}, {"num_beams": 2}], ids=str)
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_a_row_of_a_mixed_batch_is_what_it_is_alone(kind, how):
    host, model = writer(kind)
    mixed = answers(host, model, NAMES, **how)
    for i, (n, prompt) in enumerate(zip(NAMES, PROMPTS)):
        if "num_beams" in how:
            assert mixed[i] == answers(host, model, n, [prompt], **how)[0]
        elif n == "t":
            assert mixed[i] == by_hand(host, model, n, prompt)
    if not how:
        assert mixed == answers(host, model, NAMES, prefill_chunk_size=2)
        ids, mask = padded(PROMPTS)
        with host.route(NAMES):
            vectors = model.get_input_embeddings()(ids).detach()
            assert model.generate(inputs_embeds=vectors, attention_mask=mask, **HOW).tolist() == mixed
        only = answers(host, model, "t")  # one reader for all rows
        assert [only[1], only[3]] == [mixed[1], mixed[3]]


def test_every_sequence_of_a_row_has_its_prompt():
    host, model = writer()
    ids, mask = padded(PROMPTS)
    for names in (NAMES, "t"):
        with host.route(names):
            out = model.generate(ids, attention_mask=mask, num_beams=2, num_return_sequences=2, **HOW)
        alone = answers(host, model, "t", [PROMPTS[1]], num_beams=2, num_return_sequences=2)
        assert out[2:4, ids.shape[1] :].tolist() == alone


def test_another_prompt_gives_other_weights():
    host, model = writer()
    ids = torch.tensor([[7, 7, 8, 30, 31]])
    got = []
    for prompt in ([7], [7, 7, 8]):
        with torch.no_grad(), host.route("t", prompts=[prompt]):
            got.append(model(ids).logits)
    assert (got[0] - got[1]).abs().max() > 1e-3


def test_two_generations_at_once_keep_to_their_own():
    host, model = writer()
    want = [answers(host, model, "t", [p])[0] for p in PROMPTS]
    got = {}

    def run(i):
        for _ in range(3):
            got[i] = answers(host, model, "t", [PROMPTS[i]])[0]

    threads = [threading.Thread(target=run, args=(i,)) for i in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert [got[i] for i in range(4)] == want


def rows(left=False):
    """Prompts with three tokens behind them: (batch, labels, the tokens alone)."""
    texts = [[*p, 20 + i, 21, 22] for i, p in enumerate(PROMPTS)]
    ids, mask = padded(texts, left)
    labels = torch.full_like(ids, -100)
    for i, (p, text) in enumerate(zip(PROMPTS, texts)):
        begin = ids.shape[1] - len(text) if left else 0
        labels[i, begin + len(p) : begin + len(text)] = torch.tensor(text[len(p) :])
    return {"input_ids": ids, "attention_mask": mask}, labels, texts


@pytest.mark.parametrize("left", [False, True])
def test_labels_say_where_a_prompt_ends(left):
    host, model = writer()
    batch, labels, texts = rows(left)
    with torch.no_grad(), host.route(NAMES):
        mixed = model(**batch, labels=labels).logits
    with torch.no_grad(), host.route(NAMES, prompts=PROMPTS):
        torch.testing.assert_close(model(**batch).logits, mixed, rtol=0, atol=0)
    for i, (n, text, prompt) in enumerate(zip(NAMES, texts, PROMPTS)):
        with torch.no_grad(), host.route(n, prompts=[prompt]):
            alone = model(torch.tensor([text])).logits[0]
        mine = mixed[i][batch["attention_mask"][i].bool()]
        torch.testing.assert_close(mine, alone, rtol=1e-3, atol=1e-3)
    told = host.module("t")
    prompt_mask = (labels == -100).long() * batch["attention_mask"]
    with torch.no_grad(), host.route("t"):
        want = model(**batch, labels=labels).logits
    with torch.no_grad():
        torch.testing.assert_close(told(**batch, prompt_mask=prompt_mask).logits, want, rtol=0, atol=0)
        torch.testing.assert_close(told(**batch, labels=labels).logits, want, rtol=0, atol=0)


def test_no_token_of_an_answer_is_known_before_it():
    host, _ = writer()
    batch, labels, _ = rows()
    module = host.module("t")
    with torch.no_grad():
        one = module(**batch, labels=labels).logits
        batch["input_ids"][:, -1] = 60
        other = module(**batch, labels=labels).logits
    torch.testing.assert_close(one[:, :-1], other[:, :-1], rtol=0, atol=0)


def test_a_checkpoint_computes_again_by_the_same_prompts():
    host, model = writer()
    batch, labels, _ = rows()
    later = labels.masked_fill(labels == torch.tensor([20, 21, 22, 23])[:, None], -100)  # prompts a token longer
    got = []
    for checkpointed in (False, True):
        if checkpointed:
            checkpoint(model, False)
        model.train()
        module = host.module("t")
        module.zero_grad()
        first, second = (module(**batch, labels=where).loss for where in (labels, later))
        (first + second).backward()
        got.append([p.grad.clone() for p in host["t"].parameters()])
    for one, two in zip(*got):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-4 * float(one.abs().max()))


def test_what_nothing_tells_is_refused():
    host, model = writer()
    batch, labels, _ = rows()
    with host.route("t"), torch.no_grad():
        with pytest.raises(cw.CommonweightError, match="nothing says where the prompt ends"):
            model(**batch)
        with pytest.raises(cw.CommonweightError, match="row 0 has no prompt"):
            model(**batch, labels=batch["input_ids"])
        cache = model(torch.tensor([PROMPTS[0]]), labels=torch.full((1, 3), -100)).past_key_values
        with pytest.raises(cw.CommonweightError, match="a cache holds what a prompt before this one made"):
            model.generate(torch.tensor([[*PROMPTS[0], 9]]), past_key_values=cache, **HOW)
        with pytest.raises(cw.CommonweightError, match="guidance_scale reads a second text without the prompt"):
            model.generate(torch.tensor([PROMPTS[0]]), guidance_scale=2.0, **HOW)
        with pytest.raises(cw.CommonweightError, match="packs all texts into one row"):
            model.generate_batch([PROMPTS[0]])
        with pytest.raises(cw.CommonweightError, match="texts stand side by side"):
            model(
                torch.tensor([[5, 6, 7, 8]]),
                labels=torch.tensor([[-100, 6, -100, 8]]),
                position_ids=torch.tensor([[0, 1, 0, 1]]),
            )
    with host.route("t", prompts=PROMPTS[:2]), torch.no_grad():
        with pytest.raises(cw.CommonweightError, match="4 rows ask here, and the route was told 2 prompts"):
            model(**batch)
    with pytest.raises(cw.CommonweightError, match="names 4 readers and 1 prompt; give one"):
        host.route(NAMES, prompts=PROMPTS[:1])
    with pytest.raises(cw.CommonweightError, match="wanted one entry for each of input_ids"):
        host.module("t")(**batch, prompt_mask=labels[:, 1:])
    numbers = torch.full_like(batch["input_ids"], host["t"].number)
    with (
        torch.no_grad(),
        host.route(numbers),
        pytest.raises(cw.CommonweightError, match="name readers of rows, not of tokens"),
    ):
        model(**batch, labels=labels)


def test_prompts_of_a_pool_are_those_that_a_rows_prompt_asks_for():
    model, _ = make("gpt2")  # as wide as its keys
    model.eval()
    host = cw.Host(model)
    stir(host.add("a", "lora", rank=2), 1, 0.5)
    stir(host.add("t", "prompt-pool", query="embeddings", prompts=4, tokens=3, top=1), 7, 1.0)
    pools = host["t"].pools
    x = torch.stack([model.get_input_embeddings().weight[p].detach().mean(0) for p in PROMPTS])
    best = torch.nn.functional.cosine_similarity(x[:, None], pools["pool.K0"].detach()[None], -1).argmax(1).tolist()
    assert len({*best}) > 1
    stir(host.add("fixed", "prefix-tuning", tokens=3), 2)
    mixed = answers(host, model, NAMES)
    for i, (n, prompt) in enumerate(zip(NAMES, PROMPTS)):
        if n == "t":
            with torch.no_grad():
                for name, pool in host["fixed"].pools.items():
                    pool.copy_(pools[f"{name.rpartition('.')[0]}.P0"][best[i]])
            n = "fixed"
        assert mixed[i] == answers(host, model, n, [prompt])[0]
    with pytest.raises(cw.CommonweightError, match="take query=embeddings, which goes by a row's prompt"):
        host.add("base", "prompt-pool")
