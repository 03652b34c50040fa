"""lm-evaluation-harness against the server gives the figures of the model: log likelihoods, and generated text."""

from __future__ import annotations

import json
import os

import pytest

from . import shop
from .live import live

lm_eval = pytest.importorskip("lm_eval")
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    """Of local rows: which of three words goes on, how likely a text is, and what is generated."""
    folder = tmp_path_factory.mktemp("rows")
    os.environ.setdefault("HF_DATASETS_CACHE", str(folder / "cache"))
    rows = [
        {
            "text": " ".join(f"w{(7 * i + 3 * j) % 40}" for j in range(3 + i % 4)),
            "choices": [f"w{i}", f"w{2 * i}", "w9 w8"],
        }
        for i in range(12)
    ]
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps({**r, "label": i % 3, "end": "w1"}) + "\n" for i, r in enumerate(rows)))
    shared = {
        "dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(path)}}, "test_split": "test",
        "doc_to_text": "{{text}}",
    }  # fmt: skip
    choice = {
        **shared, "task": "choice", "output_type": "multiple_choice", "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{label}}", "metric_list": [{"metric": "acc"}],
    }  # fmt: skip
    said = {
        **shared, "task": "said", "output_type": "generate_until", "doc_to_target": "{{end}}",
        "generation_kwargs": {"until": ["w39"], "max_gen_toks": 6, "do_sample": False},
        "metric_list": [{"metric": "exact_match"}],
    }  # fmt: skip
    return [choice, said]


def measured(model, tasks):
    found = lm_eval.simple_evaluate(model=model, tasks=[dict(t) for t in tasks], bootstrap_iters=0, log_samples=True)
    return found["samples"], found["results"]


@pytest.mark.parametrize("name", ["base", "a"])
def test_figures_are_those_of_the_model(tasks, tmp_path, name):
    from lm_eval.models.huggingface import HFLM
    from lm_eval.models.openai_completions import LocalCompletionsAPI

    host = shop.host()
    model = host.model if name == "base" else host.merged_model(name)
    shop.tokenizer().save_pretrained(tmp_path)
    want, figures = measured(HFLM(pretrained=model, tokenizer=shop.tokenizer(), batch_size=1), tasks)
    with live(host) as (address, _, _):
        client = LocalCompletionsAPI(
            base_url=f"{address}/v1/completions", model=name, tokenizer=str(tmp_path), tokenizer_backend="huggingface",
            num_concurrent=2, batch_size=2,
        )  # fmt: skip
        got, mine = measured(client, tasks)
    for a, b in zip(want["choice"], got["choice"], strict=True):
        for x, y in zip(a["filtered_resps"], b["filtered_resps"], strict=True):
            assert float(x[0]) == pytest.approx(float(y[0]), abs=1e-3) and x[1] == y[1]
    assert [x["filtered_resps"] for x in want["said"]] == [x["filtered_resps"] for x in got["said"]]
    for task in ("choice", "said"):
        assert {k: v for k, v in figures[task].items() if "," in k} == {k: v for k, v in mine[task].items() if "," in k}
