"""Tenants with keys and values in front of their requests, in continuous batching."""

import pytest

import commonweight as cw
from commonweight.serve import Engine

from ..laws.subjects import small
from .served import add, alone, ask, make, prompt, right


@pytest.mark.parametrize("family", ["llama", "gemma3", "gemma2", "gpt2"])
def test_each_answer_is_its_tenants(family):
    host = cw.Host(make(family))
    add(host, "five", "prefix-tuning", tokens=5)
    add(host, "two", "prefix-tuning", tokens=2, projection=4)
    add(host, "first", "prefix-tuning", tokens=3, sites="*.0.*")
    add(host, "prompt", "prompt-tuning", tokens=4)
    add(host, "lora", "lora")
    add(host, "mam", "mam", tokens=4, size=3)
    add(host, "dept", "dept", tokens=3, rank=4, length=12)
    add(host, "aligner", "aligner", tokens=3, first=0)
    add(host, "one", "aligner", tokens=1, first=1)
    names = ["five", "two", None, "first", "lora", "prompt", "dept", "aligner", "five", "mam", "one"]
    asked = [ask(t, i, max_new_tokens=10) for i, t in enumerate(names)]
    with Engine(host, max_requests=8, max_batch_tokens=32, page_size=8) as engine:
        right(host, asked, engine.generate(asked))
        for few in (asked[:1], asked[5:6]):
            right(host, few, engine.generate(few))


def test_a_prompt_that_runs_by_itself_leaves_networks_beside_the_blocks_alone():
    """What is kept of the step before, for readers of the blocks' states, is not the prompt's."""
    host = cw.Host(make("llama"))
    add(host, "prompt", "prompt-tuning", tokens=4)
    add(host, "read", "read", size=4)
    add(host, "das", "das", skip=1, size=4)
    asked = [ask(t, i, max_new_tokens=6) for i, t in enumerate(["prompt", "read", "das", None])]
    with Engine(host, max_requests=8, max_batch_tokens=32, page_size=8) as engine:
        right(host, asked, engine.generate(asked))


def test_what_stands_in_front_takes_positions():
    host = cw.Host(make("gpt2"))
    add(host, "t", "prefix-tuning", tokens=9)
    fits = ask("t", prompt=prompt(0, 241), max_new_tokens=6)
    long = ask("t", prompt=prompt(0, 244), max_new_tokens=4)
    with Engine(host, max_requests=2, max_batch_tokens=256) as engine:
        with pytest.raises(cw.CommonweightError, match="the model reads 247 with the 9 that the tenant puts in front"):
            engine.submit(long)
        right(host, [fits], engine.generate([fits]))


@pytest.mark.parametrize("family", ["gemma3", "gemma2", "mistral"])
def test_what_is_read_by_itself_in_a_step_sees_as_far_as_the_model_does(family):
    """Prompts that are longer than a sliding window, and tenants that read whole rows: their passes are no step's."""
    host = cw.Host(make(family))
    add(host, "prompt", "prompt-tuning", tokens=12)
    for name in ("lst", "rpo", "vqt"):
        add(host, name, name, **small(name))
    requests = [ask(t, i, prompt=prompt(i, 19)) for i, t in enumerate((None, *host))]
    want = [alone(host, r) for r in requests]  # before an engine puts its attention into the model
    with Engine(host, page_size=8) as engine:
        answers = engine.generate(requests)
        assert [a.tokens for a in answers] == want
        right(host, requests, answers)
