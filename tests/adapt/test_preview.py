"""What is told before the first step: columns, rows, tokens, losses, and a row with the part that is scored."""

import json

import pytest

from commonweight import CommonweightError
from commonweight.adapt import Data, Job, Recipe, Source, open_host
from commonweight.adapt.data import examples
from commonweight.adapt.files import look
from commonweight.adapt.preview import LONGEST, preview, shorter
from commonweight.methods import available, get
from tests.adapt import tiny


def told(model, rows, task="lm", **more):
    data = Data(rows=rows, sources=("a.jsonl", "b.jsonl"), **more)
    return preview(data, examples(open_host(model, task, dtype="float32"), "", data, task, Recipe(max_length=6), None))


def test_pairs(llama):
    rows = [{"id": i, "question": "w0 w1", "answer": "w2 " * (1 + 8 * i), "source": "x"} for i in range(2)]
    assert told(llama, rows).splitlines() == [
        "a.jsonl: 2 rows; prompt is 'question', completion is 'answer' (columns not used: id, source); 10 tokens, 7 of "
        "them scored, 6 in the longest; loss on the completions only; 1 completion cut at the end, over 6 tokens; 1 "
        "prompt cut at the beginning, over 6 tokens with the completion",
        "one row, what is scored between ⟦ and ⟧:",
        "    w0 w1⟦w2 [SEP]⟧",
    ]


def test_a_classification_with_dev_rows(bert):
    rows = tiny.rows(4, labels=("law", "food"))
    lines = told(bert, rows, "classify", dev=rows[:1], labels=("law", "food")).splitlines()
    assert lines[0].startswith("a.jsonl: 4 rows; text is 'text', label is 'label'; ") and "scored" not in lines[0]
    assert lines[1].startswith("b.jsonl: 1 row; ") and lines[3].endswith(f"-> ⟦{rows[0]['label']}⟧")


def test_texts_in_pieces(llama):
    (line, _, shown) = told(llama, [{"text": "w0 w1 w2 w3 w4 w5 w6"}]).splitlines()
    assert "1 row; text is 'text'; 2 examples; 8 tokens, 6 of them scored" in line
    assert shown == "    w0⟦w1 w2 w3 w4 w5⟧"


def test_a_long_row_loses_its_middle():
    text = "a" * LONGEST + "b" * 1000
    assert shorter(text) == "a" * (LONGEST // 2) + " [... 1,000 characters ...] " + text[-(LONGEST // 2) :]
    assert shorter("a\nb") == "a\nb"


def test_a_look_writes_nothing_and_finds_what_is_wrong(llama, tmp_path):
    rows = [{"question": "w0 w1", "answer": "w2"}] * 4
    source = Source(data=str(tiny.jsonl(tmp_path / "a.jsonl", rows)), eval=str(tiny.jsonl(tmp_path / "e.jsonl", rows)))
    job = Job(tenants={"t": source}, task="lm", method="lora", dtype="float32")
    said = []
    looked = look(str(llama), job, dry_run=True, say=said.append)
    assert len(looked.given["t"].train) == 4 and list(looked.host) == []
    assert said[-2].startswith(f"{source.data}: 4 rows; prompt is 'question'")
    tally = "4 rows; 16 tokens, 8 of them scored, 4 in the longest; loss on the completions only"
    assert said[-1] == f"{source.eval}: {tally}"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.jsonl", "e.jsonl"]
    with pytest.raises(CommonweightError, match="matches no"):
        look(str(llama), Job(**{**vars(job), "sites": "*.nothing"}), dry_run=True, say=said.append)


def test_prompts_are_of_language_models_alone(bert, tmp_path):
    source = Source(data=str(tiny.jsonl(tmp_path / "a.jsonl", tiny.rows(4))), prompt_column="text")
    with pytest.raises(CommonweightError, match="--prompt-column text: the task classify has no prompt"):
        look(str(bert), Job(tenants={"t": source}), say=print)
    with pytest.raises(CommonweightError, match="the task embed has no completion"):
        told(bert, tiny.pairs(2), "embed", completion_column="positive")


def test_the_report_says_what_was_lost(llama, tmp_path):
    from commonweight.adapt import run

    rows = [{"prompt": "w0", "completion": "w1 " * 9}] * 2
    data = tiny.jsonl(tmp_path / "a.jsonl", rows)
    how = {"task": "lm", "method": "lora", "dtype": "float32", "epochs": 1, "max_length": 6}
    run(str(llama), str(data), tmp_path / "t.safetensors", dev=str(data), say=lambda _: None, **how)
    note = json.loads((tmp_path / "t.json").read_text())["note"]
    lost = "2 completions cut at the end, over 6 tokens"
    assert note == f"loss on the completions only; {lost}; of the dev rows {lost}"


ASKS = {n: (get(n).asks(get(n).config()), get(n).kept(get(n).config())) for n in available()}
FROM_ROWS = [n for n, (rows, kept) in ASKS.items() if rows and not kept and get(n).kinds != ("expert",)]


@pytest.mark.parametrize("job", [{"dry_run": True}, {"codec": "bfloat16"}], ids=["dry run", "codec"])
@pytest.mark.parametrize("method", FROM_ROWS)
def test_a_method_that_begins_from_rows_is_looked_at_with_them(bert, tmp_path, method, job):
    source = Source(data=str(tiny.jsonl(tmp_path / "a.jsonl", tiny.rows(8))))
    options = {"rank": 2} if get(method).sizes[:1] == ("rank",) else {}
    given = Job(tenants={"t": source}, method=method, options=options, dtype="float32", codec=job.get("codec"))
    looked = look(str(bert), given, dry_run="dry_run" in job, say=lambda text: None)
    assert list(looked.host) == []
