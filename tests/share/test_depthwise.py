"""Depth-wise batching: what each request would be answered alone, with fewer runs of the loop."""

from typing import Any

import pytest
import torch

from commonweight import CommonweightError, share
from commonweight.share import shelves
from commonweight.share.depthwise import Depthwise
from tests.share.deep import IDS, answer, gpt2, llama
from tests.share.methods.test_depth import WAYS, made, walk

PROMPTS = [IDS[0].tolist(), IDS[1].tolist()[:4], [5], IDS[1].tolist(), [7, 8]]


def alone(model, prompt, **how):
    out = model.generate(torch.tensor([prompt]), max_new_tokens=9, do_sample=False, pad_token_id=0, **how)
    return out[0, len(prompt) :].tolist()


@pytest.mark.parametrize("least", (1, 8))
@pytest.mark.parametrize("way", WAYS)
def test_each_request_is_answered_as_alone(way, least, monkeypatch):
    """Five requests in three places, at whatever depth each is. least 1: each attends by itself."""
    monkeypatch.setattr(shelves, "LEAST", least)
    small = made(way)
    small.generation_config.eos_token_id = None
    runner = Depthwise(small, places=3, length=32)
    assert runner.generate(PROMPTS, 9) == [alone(small, p) for p in PROMPTS]
    assert runner.generated == 45
    assert runner.ran < 3 * 45  # rows that ran a loop
    with_all = Depthwise(small, places=3, length=32)
    walk(small).everywhere = True
    assert with_all.generate(PROMPTS, 9) == [alone(small, p) for p in PROMPTS]
    assert with_all.ran == 3 * 45 and runner.steps < with_all.steps


def test_the_model_is_as_before_afterwards():
    small = made("exit")
    before = small.config._attn_implementation, answer(small)
    Depthwise(small, places=2, length=32).generate(PROMPTS[:1], 3)
    assert small.config._attn_implementation == before[0] and torch.equal(answer(small), before[1])
    assert all("forward" not in m.__dict__ for m in small.modules())


def test_an_end_token_ends_and_draws_do_not_depend_on_the_batch():
    small = made("exit")
    said = alone(small, PROMPTS[0], eos_token_id=None)
    small.generation_config.eos_token_id = said[3]
    (got,) = Depthwise(small, places=1, length=32).generate(PROMPTS[:1], 9)
    assert got == said[:4]
    small.generation_config.eos_token_id = None
    one, three = (Depthwise(small, n, 32).generate(PROMPTS, 5, temperature=1.0, seed=4) for n in (1, 3))
    assert one == three


def test_refusals():
    with pytest.raises(CommonweightError, match="depth-wise batching wants a llama layout of mor or exit"):
        Depthwise(share.share(llama(), "recursive"))
    for other in (share.share(gpt2(), "exit"), share.share(llama(), "sut")):
        with pytest.raises(CommonweightError, match="wants a llama layout of mor or exit"):
            Depthwise(other)
    with pytest.raises(CommonweightError, match="loops that share all weights; leave out relax"):
        Depthwise(share.share(llama(), "exit", relax=2))
    windows = made("exit")
    windows.config.sliding_window = 4
    with pytest.raises(CommonweightError, match="wants attention to all tokens; this model's has a window"):
        Depthwise(windows)
    wrongs: list[dict[str, Any]] = [{"places": 0}, {"places": 2.5}, {"length": -1}]
    for wrong in wrongs:
        with pytest.raises(CommonweightError, match=r"is .*; wanted a whole number >= 1"):
            Depthwise(made("exit"), **wrong)
    cases: list[tuple[Any, dict[str, Any], str]] = [
        (["hello"], {}, "a prompt is 'hello'; wanted the numbers of its tokens"),
        ([[1.5]], {}, "wanted the numbers"),
        ([[10**6]], {}, "a prompt has the token 1000000; the model's are 0 to"),
        ([[-1]], {}, "has the token -1"),
        ([[1]], {"max_new_tokens": 0}, "max_new_tokens is 0; wanted a whole number >= 1"),
        ([[1]], {"temperature": -1.0}, "temperature is -1.0; wanted a number >= 0"),
        ([[1]], {"temperature": float("nan")}, "temperature is nan"),
    ]
    for prompts, how, says in cases:
        with pytest.raises(CommonweightError, match=says):
            Depthwise(made("exit"), length=8).generate(prompts, **{"max_new_tokens": 2, **how})
    with pytest.raises(CommonweightError, match="a prompt has no tokens, or with its answer more than length=8"):
        Depthwise(made("exit"), 2, 8).generate([[3] * 4], 5)
