"""A tenant is written before it is measured; what already exists is not replaced without a word."""

import json
from dataclasses import replace

import pytest
from safetensors import safe_open

from commonweight import Commons, CommonweightError
from commonweight.adapt import Job, Source, files, run, run_late, run_together
from tests.adapt import tiny

HOW = {"method": "lora", "dtype": "float32", "epochs": 1, "options": {"rank": 2}, "say": lambda _: None}


def call(model, folder, **more):
    data = str(tiny.jsonl(folder / "rows.jsonl", tiny.rows(20)))
    return run(str(model), data, folder / "new" / "folder" / "t.safetensors", **{**HOW, **more})


def header(path):
    with safe_open(path, "pt") as f:
        return json.loads(f.metadata()["commonweight"])


def fail(*_, **__):
    raise MemoryError


def test_what_was_trained_is_there_when_measuring_fails(bert, tmp_path, monkeypatch):
    test = str(tiny.jsonl(tmp_path / "test.jsonl", tiny.rows(10, seed=1)))
    with monkeypatch.context() as m:
        m.setattr(files, "evaluate", fail)
        with pytest.raises(MemoryError):
            call(bert, tmp_path, eval_file=test)
    at = tmp_path / "new" / "folder" / "t.safetensors"
    assert "metrics" not in header(at)
    steps = []
    found = call(bert, tmp_path, eval_file=test, resume=True, progress=lambda p: steps.append(p.step))
    assert steps == [] and header(at)["metrics"] == found.evaluated and found.evaluated["n"] == 10
    assert sorted(p.name for p in at.parent.iterdir()) == ["t.json", "t.safetensors"]


def test_a_file_that_is_there_is_replaced_when_asked(bert, tmp_path):
    call(bert, tmp_path)
    at = tmp_path / "new" / "folder" / "t.safetensors"
    before = at.read_bytes()
    with pytest.raises(CommonweightError, match=r"t\.safetensors: a file already exists; --overwrite replaces it"):
        call(bert, tmp_path, epochs=2)
    assert at.read_bytes() == before
    call(bert, tmp_path, epochs=2, overwrite=True)
    assert (after := at.read_bytes()) != before
    call(bert, tmp_path, epochs=2, resume=True)  # the same run ended before: it may be repeated
    assert at.read_bytes() == after
    others = ({"method": "full", "options": {}}, {"options": {"rank": 3}}, {"epochs": 1}, {"lr": 1e-2}, {"dev": "0.2"})
    for other in (*others, {"sites": "*.query"}, {"codec": "int8"}, {"tokenizer": str(bert)}):
        with pytest.raises(CommonweightError, match="a file already exists"):  # another run's
            call(bert, tmp_path, resume=True, **{"epochs": 2, **other})
    (at.parent / "t.json").write_text("[1]")
    with pytest.raises(CommonweightError, match="a file already exists"):
        call(bert, tmp_path, resume=True)
    at.unlink()
    with pytest.raises(CommonweightError, match=r"t\.json: the file of its report already exists"):
        call(bert, tmp_path)


def test_several_into_a_folder(bert, tmp_path):
    data = str(tiny.jsonl(tmp_path / "rows.jsonl", tiny.rows(20)))
    job = Job(tenants={"a": Source(data=data), "b": Source(data=data)}, method="probe", recipe={"epochs": 1})
    for more in ({}, {"resume": True}, {"overwrite": True}):
        run_together(str(bert), job, out=tmp_path / "new" / "out", say=lambda _: None, **more)
    for other in ({"method": "bitfit"}, {"recipe": {"epochs": 2}}, {"sites": "*.query"}):
        with pytest.raises(CommonweightError, match=r"a\.safetensors: a file already exists"):
            run_together(str(bert), replace(job, **other), out=tmp_path / "new" / "out", resume=True)
    with pytest.raises(CommonweightError, match=r"a\.safetensors: a file already exists"):
        run_together(str(bert), job, out=tmp_path / "new" / "out", say=lambda _: None)


def test_into_a_store(bert, tmp_path, monkeypatch):
    data = str(tiny.jsonl(tmp_path / "rows.jsonl", tiny.rows(20)))
    source = Source(data=data, eval=data)
    job = Job(tenants={"a": source}, method="probe", recipe={"epochs": 1})
    with monkeypatch.context() as m:
        m.setattr(files, "evaluate", fail)
        with pytest.raises(MemoryError):
            run_late(str(bert), job, tmp_path / "store", say=lambda _: None)
    store = Commons(tmp_path / "store")
    assert store.show("a").versions == (1,) and store.show("a").metrics == {}
    told = []
    for more in ({"resume": True}, {}):
        found = run_late(str(bert), job, tmp_path / "store", say=told.append, **more)["a"]
        assert store.show("a").versions == (1,) and store.show("a").metrics == found.evaluated
    assert told[-1] == "notice: a@1 has this content already: no new version was made" and store.verify() == []
    other = Job(tenants={"a": source}, method="probe", recipe={"epochs": 2})
    run_late(str(bert), other, tmp_path / "store", say=told.append)
    assert "a existed with other content: a@2 is now its newest version" in told[-1]
