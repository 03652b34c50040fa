"""A mistake is told before torch is loaded; flags by the names of peers; a YAML file in the place of flags."""

import subprocess
import sys

import pytest

from commonweight.cli import early, one_file
from commonweight.cli.flags import _ours
from commonweight.cli.progress import Pace, clock, facts
from commonweight.core import CommonweightError
from tests.adapt import tiny
from tests.cli.test_cli import call

MISTAKES = {
    "adapt": (["adapt", "MODEL", "r.jsonl", "-m", "moss", "--out", "x.safetensors"], "unknown method 'moss'"),
    "none": (["adapt", "MODEL", "r.jsonl", "-m", "", "--out", "x.safetensors"], "--method is empty; name one of"),
    "option": (["adapt", "MODEL", "r.jsonl", "-o", "r=0", "--out", "x.safetensors"], "rank is 0; it must be >= 1"),
    "rows": (["adapt", "MODEL", "no.jsonl", "--out", "x.safetensors"], "no.jsonl: no such file"),
    "eval": (["adapt", "MODEL", "r.jsonl", "--eval", "no.tsv", "--out", "x.safetensors"], "no.tsv: no such file"),
    "model": (["adapt", "./no", "r.jsonl", "--out", "x.safetensors"], "model './no' cannot be read"),
    "number": (["adapt", "MODEL", "r.jsonl", "--accumulate", "0", "--out", "x.safetensors"], "accumulate is 0"),
    "device": (["adapt", "MODEL", "r.jsonl", "--device", "gpu", "--out", "x.safetensors"], "wanted auto, cpu, cuda"),
    "config": (["adapt", "no.yaml"], "no.yaml: no such file"),
    "tenants": (["adapt", "MODEL", "--tenants", "t.yaml", "--out", "o"], "t.yaml, line 1: method: unknown method"),
    "compare": (["compare", "MODEL", "r.jsonl", "--methods", "lora,moss"], "unknown method 'moss'"),
    "merge": (["merge", "-m", "tiees", "./a", "./b", "--out", "o"], "unknown merge method 'tiees'"),
    "recipe": (["merge", "no.yaml", "--out", "o"], "no.yaml: no such recipe"),
    "plan": (["plan", "MODEL", "-m", "moss"], "unknown method 'moss'"),
    "methods": (["methods", "moss"], "unknown method 'moss'"),
    "extract": (["extract", "./a", "--base", "./b", "--out", "o"], "a: no such file or folder"),
    "statistics": (["statistics", "MODEL", "no.jsonl", "--out", "s.safetensors"], "no.jsonl: no such file"),
    "serve": (["serve", "MODEL", "--host", "0.0.0.0"], "no --api-keys guard the server"),
    "served": (["serve", "MODEL", "--store", "no"], "no is not a store"),
    "chat": (["chat", "./no"], "model './no' cannot be read"),
    "generate": (["generate", "MODEL", "--device", "gpu"], "wanted auto, cpu, cuda"),
    "keys": (["keys", "add", "team", "--file", "k.json", "--limit", "60"], "wanted a number and a time, as in 60/min"),
    "store": (["store", "list", "no"], "no is not a store"),
    "import-peft": (["store", "import-peft", "s", "no", "--model", "MODEL"], "no: no such folder"),
}


def test_mistakes_are_told_without_torch(tmp_path):
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "config.json").write_text("{}")
    tiny.jsonl(tmp_path / "r.jsonl", tiny.rows(3))
    (tmp_path / "t.yaml").write_text("method: moss\ntenants: {a: {data: r.jsonl}}\n")
    code = (
        "import sys\nfrom commonweight.cli import main\n"
        f"for args in {[args for args, _ in MISTAKES.values()]!r}:\n"
        "    try:\n        main(['./m' if a == 'MODEL' else a for a in args])\n"
        "    except SystemExit as e:\n        print(e.code, file=sys.stderr)\n"
        "print([m for m in ('torch', 'transformers', 'datasets') if m in sys.modules], file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, timeout=100)
    lines = done.stderr.splitlines()
    assert lines[-1] == "[]", done.stderr
    for (_, message), told, exit_code in zip(MISTAKES.values(), lines[:-1:2], lines[1:-1:2], strict=True):
        assert message in told and exit_code == "2", told
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m", "r.jsonl", "t.yaml"]


def test_flags_of_peers():
    known = {"lr": "--lr", "batch_size": "--batch-size", "accumulate": "--accumulate", "option": "--option",
             "sites": "--sites"}  # fmt: skip
    assert _ours("--learning-rate=1e-3", known) == "--lr=1e-3"
    assert _ours("--gradient-accumulation-steps", known) == "--accumulate"
    assert _ours("--gradient_accumulation_steps", known) == "--accumulate"
    assert _ours("--nonsense", known) == "--nonsense" and _ours("-1", known) == "-1"
    with pytest.raises(CommonweightError, match=r"No such option: --lora-alpha; .* -o alpha=VALUE"):
        _ours("--lora-alpha", known)
    with pytest.raises(CommonweightError, match="No such option: --target-modules; layers are chosen by sites"):
        _ours("--target-modules", known)


def test_a_file_in_the_place_of_flags(tmp_path, bert, capsys):
    tiny.jsonl(tmp_path / "r.jsonl", tiny.rows(12))
    at = tmp_path / "run.yaml"
    at.write_text(
        f"model: {bert}\ndata: r.jsonl\neval: r.jsonl\npeft_type: LORA\nlora_alpha: 4\noptions: {{r: 2}}\n"
        "target_modules: [query, value]\nnum_train_epochs: 1\nper_device_train_batch_size: 4\n"
        "gradient_accumulation_steps: 2\ngradient-checkpointing: true\ndtype: float32\nout: new/t.safetensors\n"
    )
    code, out, err = call(capsys, "adapt", at, "--seed", "3", "--tenant", "mine")
    assert code == 0 and "(n=12)" in out and "device: cpu, " in err and "the base in float32" in err, err
    assert "step 2/2, epoch 1: loss " in err and ", lr " in err
    import json

    told = json.loads((tmp_path / "new" / "t.json").read_text())
    assert told["tenant"] == "mine" and told["sites"] == "*.query|*.value"
    s = told["settings"]
    assert (s["seed"], s["accumulate"], s["batch_size"], s["gradient_checkpointing"]) == (3, 2, 4, True)
    assert s["options"]["rank"] == 2 and s["options"]["alpha"] == 4
    code, _, err = call(capsys, "adapt", "--config", at)
    assert code == 2 and "t.safetensors: a file already exists; --overwrite replaces it" in err
    assert call(capsys, "adapt", "--config", at, "--overwrite")[0] == 0


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("epoch: 3", "line 1: epoch: unknown key 'epoch'; did you mean 'epochs'"),
        ("epochs: many", "line 1: epochs: is 'many'; wanted a number"),
        ("data: a.tsv\nlr: 1\nlearning_rate: 2", "line 3: learning_rate: says lr a second time"),
        ("resume: 3", "line 1: resume: is 3; wanted true or false"),
        ("options: 3", "line 1: options: is 3; wanted keys and values"),
        ("tenants: {a: 1}", "line 1: tenants: a file of several tenants goes to --tenants"),
        ("[1]", "wanted keys and values, model: and data: among them"),
    ],
)
def test_wrong_files(tmp_path, body, message):
    (tmp_path / "c.yaml").write_text(body)
    with pytest.raises(CommonweightError) as e:
        one_file.filled(tmp_path / "c.yaml", {})
    assert message in str(e.value)


def test_what_may_be_on_the_hub_is_let_through():
    early.model("gpt2")
    early.model("org/name")
    early.rows("trec", "org/name", "0.1", None)
    early.models(["org/name", "store:tenant", "./store:tenant", "a+b"])
    assert early.task("SEQ_CLS") == "classify" and early.task("CAUSAL_LM") == "lm" and early.task(None) is None


def test_pace(monkeypatch):
    from commonweight.adapt import Progress
    from commonweight.cli import progress

    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    pace, p = Pace(), None
    for step, dev in ((5, None), (6, None), (7, {"loss": 1.0}), (8, None)):  # resumed at step 4
        now[0] += 60 if step == 5 else 20 if dev else 10
        p = Progress("t", step, 12, 1.5, dev, step / 4, 1e-3, 1000 * (step - 4))
        pace.add(p)
    assert pace.rate == 100 and pace.left(p) == pytest.approx(4 * 40 / 3)
    assert facts(p, pace) == "loss 1.500, lr 1.0e-03, 100 tokens/s, 53 s left"
    assert [clock(s) for s in (5, 65, 3700)] == ["5 s", "1 min 5 s", "1 h 1 min"]
