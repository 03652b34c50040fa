"""Tenants with weights and words of their own, in one batch of an engine."""

from __future__ import annotations

import pytest

import commonweight as cw
from commonweight.serve import Engine
from tests.laws.subjects import stir
from tests.serve.served import VOCAB, ask, make, right

pytest.importorskip("transformers.generation.continuous_batching")


def test_each_row_reads_its_own_head_table_and_norms(tmp_path):
    host = cw.Host(make("llama"))
    for i, how in enumerate((
        {"modules_to_save": ["lm_head", "embed_tokens"]}, {}, {"token_rows": [5, 9, 11]}, {"modules_to_save": "norm"},
    )):  # fmt: skip
        stir(host.add(f"t{i}", "lora", rank=2, seed=i, **how), i)
    new = range(VOCAB, host.resize_vocabulary(VOCAB + 4) + 4)
    stir(host.add("t4", "lora", rank=2, token_rows={"embed_tokens": new, "lm_head": new}), 4)
    requests = [ask(name, i) for name in (None, "t0", "t1", "t2", "t3", "t4") for i in range(2)]
    requests.append(ask("t4", prompt=[5, VOCAB, VOCAB + 3]))
    with Engine(host, max_requests=16) as engine:
        right(host, requests, engine.generate(requests))
        with pytest.raises(cw.CommonweightError, match="an engine is at work on this model"):
            host.resize_vocabulary(VOCAB + 9)
    host.resize_vocabulary(VOCAB + 9)


def test_a_tenant_of_the_store_that_brings_words(tmp_path):
    store = cw.Commons(tmp_path / "shop")
    first = cw.Host(make("llama"))
    stir(first.add("old", "lora", rank=2))
    store.publish(first, "old")
    first.resize_vocabulary(VOCAB + 4)
    new = range(VOCAB, VOCAB + 4)
    stir(first.add("new", "lora", rank=2, token_rows={"embed_tokens": new, "lm_head": new}), 1)
    store.publish(first, "new")
    host = cw.Host(make("llama"))
    requests = [ask("new", prompt=[5, VOCAB, 6]), ask("old"), ask(None)]
    with Engine(host, store=store) as engine:
        answers = engine.generate(requests)
        right(first, requests, answers)
        right(host, requests, answers)
