"""commonweight store import-peft: its table, its JSON, and how mistakes end."""

import json
import shutil

import pytest
import torch

import commonweight as cw
from commonweight import adapt
from tests.adapt import tiny
from tests.cli.test_cli import call
from tests.laws.subjects import stir
from tests.models import make


@pytest.fixture
def at(tmp_path):
    """A base in a folder, and four adapters of it in the same three directions."""
    host = cw.Host(make("llama")[0])
    host.model.save_pretrained(tmp_path / "base")
    for i in range(4):
        tenant = host.add(f"a{i}", "lora", rank=3, sites="*.q_proj|*.v_proj")
        stir(tenant, i)
        for n, p in tenant.named_parameters():
            mix = torch.randn(3, 3, generator=torch.Generator().manual_seed(i))
            first = host["a0"].pools[n].detach()
            p.data.copy_(mix @ first if n.endswith(".A") else first @ mix)
        (tmp_path / "in").mkdir(exist_ok=True)
        host.export_peft(f"a{i}", tmp_path / "in" / f"a{i}")
    return tmp_path


def test_table_and_json(at, capsys):
    args = "store", "import-peft", at / "store", at / "in", "--model", at / "base"
    code, out, _ = call(capsys, *args)
    head, *rows, last = out.splitlines()
    assert code == 0 and head.split() == "adapter rank bytes in PEFT bytes of its own saved error".split()
    assert [r.split()[0] for r in rows] == ["a0", "a1", "a2", "a3", "common", "total"] and "times smaller" in last
    assert all(len(r) <= len(head) for r in rows[:4]), "columns are aligned"
    assert [r.method for r in cw.Commons(at / "store").list()] == ["share"] * 4
    report = json.loads(call(capsys, *args[:2], at / "other", *args[3:], "--json")[1])
    assert report["after"] == report["common"] + sum(t["own"] for t in report["tenants"])
    assert f"{report['after']:,}" in rows[-1] and report["before"] == sum(t["before"] for t in report["tenants"])


def test_more_directions_than_there_is_to_save(at, capsys):
    code, out, _ = call(
        capsys, "store", "import-peft", at / "store", at / "in" / "a0", "--model", at / "base", "--rank", "32"
    )
    assert code == 0 and "Nothing is saved" in out


def test_mistakes_end_with_two(at, capsys):
    (at / "empty").mkdir()
    for folder, says in ((at / "empty", "holds no adapter_config.json"), (at / "none", "no such folder")):
        code, _, err = call(capsys, "store", "import-peft", at / "store", folder, "--model", at / "base")
        assert code == 2 and says in err and "Traceback" not in err and not (at / "store").exists()


def test_each_adapter_is_measured_before_and_after(llama, tmp_path, capsys):
    host = adapt.open_host(llama, "lm")
    for i in range(2):
        stir(host.add(f"a{i}", "lora", rank=2, sites="*.q_proj|*.v_proj"), i)
        (tmp_path / "in").mkdir(exist_ok=True)
        host.export_peft(f"a{i}", tmp_path / "in" / f"a{i}")
    host.close()
    data = tiny.jsonl(tmp_path / "rows.jsonl", [{"text": "the court ruled"}, {"text": "the team won"}])
    args = "--model", llama, "--keep", "1", "--eval", data, "--json"
    code, out, err = call(capsys, "store", "import-peft", tmp_path / "store", tmp_path / "in", *args)
    assert code == 0, err
    for t in json.loads(out)["tenants"]:
        before, after = t["metrics_before"]["loss"], t["metrics_after"]["loss"]
        assert before > 0 and abs(before - after) < 1e-3
    table = call(capsys, "store", "import-peft", tmp_path / "again", tmp_path / "in", *args[:-1])[1]
    assert "loss" in table.splitlines()[0] and table.count(" -> ") >= 2


def test_checkpoints_are_told_once_and_what_nothing_reads_before_the_base(at, capsys):
    shutil.copytree(at / "in" / "a0", at / "in" / "a1" / "checkpoint-5")
    code, _, err = call(capsys, "store", "import-peft", at / "store", at / "in", "--model", at / "base")
    assert code == 0, err
    assert err.count("notice: ") == err.count("1 checkpoints of its training are left out (checkpoint-5, ...)") == 1
    (at / "prompt").mkdir()
    (at / "no-model").mkdir()
    (at / "no-model" / "config.json").write_text("{}")
    (at / "prompt" / "adapter_config.json").write_text('{"peft_type": "CPT", "task_type": "CAUSAL_LM"}')
    code, _, err = call(capsys, "store", "import-peft", at / "more", at / "prompt", "--model", at / "no-model")
    assert code == 2 and "prompt: adapter_config.json: peft_type CPT is not read" in err
    assert not (at / "more").exists()
