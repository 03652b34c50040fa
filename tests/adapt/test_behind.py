"""Rows that no table of positions holds behind a prefix are told before any work."""

import pytest
import transformers as tf

import commonweight as cw
from commonweight.adapt import Data, adapt, open_host
from commonweight.lifelong import learn
from tests.adapt import tiny
from tests.models import VOCAB, make


@pytest.fixture(scope="module")
def host(tmp_path_factory):
    return open_host(tiny.base(tmp_path_factory.mktemp("behind") / "model"))  # 64 positions


def long(n):
    """Rows of which one has n tokens, [CLS] and [SEP] among them."""
    return [*tiny.rows(6), {"text": " ".join(["w20"] * (n - 2)), "label": "food"}]


def seen(_):
    raise AssertionError("a step was taken")


@pytest.mark.parametrize("options, room", [({"method": "prompt-pool", "options": {"tokens": 2}}, 54),
                                           ({"method": "prompt-tuning", "options": {"tokens": 5}}, 59),
                                           ({"method": "prefix-tuning", "options": {"tokens": 3}}, 61)])  # fmt: skip
def test_a_training_is_told_at_the_start(host, options, room):
    how = dict(options, epochs=1, batch_size=4, max_length=64)
    told = rf"t, training rows: number 7 has {room + 1} tokens, .* for {room}; lower max_length to at most {room}"
    with pytest.raises(cw.CommonweightError, match=told):
        adapt(host, "t", long(room + 1), progress=seen, **how)
    with pytest.raises(cw.CommonweightError, match="t, dev rows: number 7"):
        adapt(host, "t", tiny.rows(6), dev_rows=long(64), progress=seen, **how)
    assert len(host) == 0
    assert adapt(host, "t", long(room), **how).steps == 2
    host.remove("t")


def test_where_no_position_is_left_less_is_to_be_put_ahead(host):
    told = r"number 7 has 20 tokens, .* no position left; put at least 56 tokens less ahead"
    with pytest.raises(cw.CommonweightError, match=told):
        adapt(host, "t", long(20), method="prefix-tuning", options={"tokens": 100}, epochs=1, progress=seen)


@pytest.mark.parametrize("late", [{"rows": long(64)}, {"rows": tiny.rows(6), "dev": long(64)}, None])
def test_a_stream_is_told_before_its_first_task(host, tmp_path, late):
    tasks = {"first": Data(rows=tiny.rows(6)), "second": Data(**(late or {"rows": tiny.rows(6)}))}
    how = {"method": "l2p", "options": {"tokens": 2}, "max_length": 64, "epochs": 1}
    evals = {} if late else {"first": long(64)}
    told = f"rows of {'second' if late else 'first'}: number (7|13) has 64 tokens"
    with pytest.raises(cw.CommonweightError, match=told):
        learn(host, tasks, tmp_path / "shop", progress=seen, evals=evals, **how)
    assert len(host) == 0 and not (tmp_path / "shop").exists()


def test_where_tables_begin_and_what_has_none():
    model = tf.RobertaModel(tf.RobertaConfig(
        hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=4, vocab_size=VOCAB,
        max_position_embeddings=26, pad_token_id=1,
    ))  # fmt: skip
    host = cw.Host(model.eval())
    assert host.base.longest(host.add("p", "prefix-tuning", tokens=4)) == 20
    assert host.base.longest(host.add("l", "lora", rank=2)) is None
    host = cw.Host(make("llama")[0])
    assert host.base.longest(host.add("p", "prefix-tuning", tokens=4)) is None
