"""One run: its record, its place in the cache, and the command that gives it again."""

import copy
import dataclasses
import json
import shlex

import pytest
import torch

import commonweight as cw
from commonweight.adapt.base import tokenizer_of
from commonweight.compare import Cache, Comparison, peak
from commonweight.compare import run as runs
from commonweight.compare.driver import choose
from commonweight.compare.run import NAME, execute, opened
from commonweight.compare.size import nbytes
from tests.adapt import tiny
from tests.cli.test_cli import call


def test_a_record_has_what_was_measured(job, tmp_path):
    record = execute(job, Cache(tmp_path))
    host = opened(job.model, job.task, job.dtype)
    body = job.plan_on(host)
    assert record["state"] == "done" and record["key"] == job.key(host)
    assert record["bytes"] == record["marginal_bytes"] == body.nbytes and record["parameters"] == body.count()
    assert record["head_bytes"] == 4 * 3 * 33
    assert record["test"]["n"] == 20 and record["dev"]["accuracy"] > 0 and record["steps"] == 3
    assert len(record["curve"]) == 3 and "dev_accuracy" in record["curve"][-1]
    assert 0 < record["peak_memory"] < 2e9 and 0 < record["seconds_per_step"] < record["seconds"]
    assert record["machine"]["threads"] == torch.get_num_threads() and not list(host)
    assert json.loads(json.dumps(record)) == Cache(tmp_path).get(record["key"])


def test_a_finished_run_is_never_done_again(job, tmp_path, monkeypatch):
    cache = Cache(tmp_path)
    first = execute(job, cache)
    monkeypatch.setattr(runs, "adapt", lambda *_, **__: pytest.fail("trained again"))
    assert execute(job, cache) == json.loads(json.dumps(first)) and len(cache) == 1


def test_what_decides_the_numbers_decides_the_key(job, files, tmp_path):
    host = opened(job.model, job.task, job.dtype)
    moved = dataclasses.replace(job.data, name="other", train=str(tmp_path / "copy.tsv"))
    (tmp_path / "copy.tsv").write_bytes((files / "one.train.tsv").read_bytes())
    assert dataclasses.replace(job, data=moved).key(host) == job.key(host), "contents count, names do not"
    assert dataclasses.replace(job, lr=1e-3).key(host) == job.key(host), "the method's own rate, said or not"
    others = [
        {"lr": 2e-3}, {"seed": 1}, {"method": "pissa"}, {"options": {"rank": 2}}, {"recipe": {"epochs": 2}},
        {"codec": "int8"}, {"trial": True}, {"data": dataclasses.replace(job.data, dev=0.5)}, {"sites": "*.query"},
        {"data": dataclasses.replace(job.data, train=str(files / "two.train.tsv"))},
    ]  # fmt: skip
    keys = [dataclasses.replace(job, **change).key(host) for change in others]
    assert len({*keys, job.key(host)}) == len(keys) + 1


def test_another_tokenizer_is_another_run_and_a_call_of_it_is_not(job, monkeypatch):
    host = opened(job.model, job.task, job.dtype)
    before, tokenizer = job.key(host), copy.deepcopy(tokenizer_of(host.model))
    monkeypatch.setitem(host.model.__dict__, "_cw_tokenizer", tokenizer)
    tokenizer(["some words"], truncation=True, max_length=3, padding=True)
    assert job.key(host) == before
    shorter = copy.deepcopy(tokenizer)
    shorter.model_max_length = 3
    monkeypatch.setitem(host.model.__dict__, "_cw_tokenizer", shorter)
    assert job.key(host) != before
    tokenizer.add_tokens("some words")
    monkeypatch.setitem(host.model.__dict__, "_cw_tokenizer", copy.deepcopy(tokenizer))
    assert job.key(host) != before


@pytest.mark.parametrize(("method", "options"), [("lora", {"rank": 2}), ("vb-lora", {"num_vectors": 20})])
def test_the_command_gives_the_same_numbers(job, method, options, tmp_path, monkeypatch, capsys):
    record = execute(dataclasses.replace(job, method=method, options=options, lr=0.02, seed=3))
    threads, *words = shlex.split(record["command"])
    assert threads == f"OMP_NUM_THREADS={torch.get_num_threads()}" and words[:2] == ["commonweight", "adapt"]
    monkeypatch.chdir(tmp_path)
    code, _, err = call(capsys, *words[1:])
    assert code == 0, err
    told = json.loads(next(tmp_path.glob("*.json")).read_text())
    assert told["metrics"] == {"dev": record["dev"], "eval": record["test"]}
    assert told["settings"] == json.loads(json.dumps(record["settings"]))


def test_a_method_is_measured_in_the_form_in_which_it_is_stored(job, bert):
    host = cw.adapt.open_host(str(bert), dtype="float32")
    tenant = host.add("t", "vb-lora", num_vectors=20, logits_std=1.0, labels=3)
    ids = torch.randint(5, 40, (4, 7))
    with torch.no_grad():
        with host.route("t"):
            whole = host.model(ids).logits
        nbytes = tenant.plan.nbytes
        small = host.compact("t")
        with host.route("t"):
            assert torch.allclose(host.model(ids).logits, whole, atol=1e-5)
    assert small is tenant and small.plan.nbytes < nbytes / 2.5
    record = execute(dataclasses.replace(job, method="vb-lora", options={"num_vectors": 20}))
    assert record["bytes"] == small.plan.nbytes - record["head_bytes"]
    assert record["parameters"] > record["bytes"] / 4, "what is trained is more than what is stored"


def test_a_codec_is_measured_too(job):
    plain, coded = (execute(dataclasses.replace(job, codec=c, lr=0.05)) for c in (None, "int4"))
    host = opened(job.model, job.task, job.dtype)
    assert coded["bytes"] == nbytes(job.plan_on(host), "int4") < plain["bytes"] / 6
    assert plain["dev"] == coded["dev"], "trained alike" if plain["test"]["loss"] != coded["test"]["loss"] else ""
    assert plain["test"]["loss"] != coded["test"]["loss"] and "--codec int4" in coded["command"]


def test_a_run_that_fails_is_a_record(job, tmp_path):
    record = execute(dataclasses.replace(job, lr=1e30), Cache(tmp_path))
    assert record["state"] == "failed" and "the loss is" in record["error"] and len(Cache(tmp_path)) == 1
    assert not [n for n in opened(job.model, job.task, job.dtype) if n.startswith(NAME)]


def test_language_models(tmp_path):
    model = tiny.base(tmp_path / "llama", "llama")
    rows = [{"text": "w0 w1 w2 w3"}] * 8
    from commonweight.compare import Data
    from commonweight.compare.job import Job

    data = Data("t", *(str(tiny.jsonl(tmp_path / f"{n}.jsonl", rows)) for n in ("a", "b")), dev=0.25)
    one = Job(str(model), data, "lora", {}, 0, task="lm", recipe={"epochs": 1}, dtype="float32")
    record = execute(one)
    assert record["test"]["bits_per_byte"] > 0 and record["head_bytes"] == 0 and "--task lm" in record["command"]


def test_a_damaged_record_is_named(tmp_path):
    cache = Cache(tmp_path)
    cache.put({"key": "a", "x": 1})
    assert cache.get("b") is None and cache.get("a") == {"key": "a", "x": 1} and "a" in cache
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(cw.CommonweightError, match=r"a\.json: cannot be read"):
        cache.get("a")
    (tmp_path / "b.json").write_text('{"key": "a"}')
    with pytest.raises(cw.CommonweightError, match="holds another run"):
        cache.get("b")
    with pytest.raises(cw.CommonweightError, match="is a file; wanted a folder"):
        Cache(tmp_path / "b.json")


def test_memory_is_counted_beyond_what_was_held():
    kept = torch.ones(8_000_000)  # 32 MB that were there before do not count
    held = peak.start()
    assert held is None or held > kept.nbytes
    more = torch.ones(16_000_000)
    found = peak.beyond(held)
    assert found is None or 0.9 * more.nbytes < found < 1.5 * more.nbytes + 2**24


def test_what_fits_no_budget_is_compared_at_its_defaults_if_asked(job, data):
    host = opened(job.model, job.task, job.dtype)

    def chosen(*budgets):
        c = Comparison(job.model, data, ("lora", "full", "bitfit"), budgets)
        return {str(x.fit): x.budgets for x in choose(c, host).configs}

    assert set(chosen()) == set(chosen("default")) == {"lora rank=8", "full", "bitfit"}
    assert set(chosen().values()) == {("default",)}
    both = chosen("4KB", "1KB", "default")  # what has no size that could be less
    assert both == {"lora rank=1": ("4KB",), "bitfit": ("4KB",), "full": ("default",)}
    assert chosen("4KB", "1KB") == {k: v for k, v in both.items() if k != "full"}
