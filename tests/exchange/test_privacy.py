"""Clipped changes and noise on their sum, written out; who cannot have them; what the accountant says."""

import json
import math

import pytest
import torch
from typer.testing import CliRunner

from commonweight.cli import app as cli
from commonweight.core import CommonweightError
from commonweight.exchange import privacy, simulate
from commonweight.exchange.local import Rounds
from commonweight.exchange.message import pack
from commonweight.exchange.page import report
from commonweight.exchange.privacy import epsilon
from commonweight.exchange.registry import METHODS, Privacy
from commonweight.exchange.rounds import Gathering, facts
from tests.adapt import tiny
from tests.exchange import small

RECIPE = {"batch_size": 4, "lr": 1e-2, "clients": 3, "rounds": 2}
DP = {"dp_noise": 0.5, "dp_clip": 0.1}


def state_after(p, begin, sent):
    """Of a round in which three are asked and these answer."""
    inbox = Gathering(p.method, p.setting, 0, {0, 1, 2})
    for c, pools in sent.items():
        assert inbox.put(pack(facts(p.setting, 0, c, 5 + c), pools, p.method.up(p.setting, 0, c)), c)
    return inbox.close(p.method.begin(p.setting, begin))


@pytest.mark.parametrize("answered", [(0, 1, 2), (0, 2)])
def test_the_private_mean(bert, monkeypatch, answered):
    """The sum of clipped changes and noise of z C, over the clients that were asked, whatever rows they have."""
    monkeypatch.setattr(privacy, "normal", lambda shape: torch.full(shape, 0.25, dtype=torch.float64))
    p = small.prepared(bert, "fedavg", {"adapter": "ia3"}, dp_noise=0.5, dp_clip=2.0)
    begin = small.start(p)
    sent = {c: small.moved(begin, c, std=0.02 if c == 2 else 1.0) for c in answered}  # that of client 2 is small enough
    after = state_after(p, begin, sent)
    assert after.seen == {} and after.tensors.keys() == begin.keys()
    for n, was in begin.items():
        want = was.double() * 0 + 0.5 * 2.0 * 0.25
        for new in sent.values():
            norm = math.sqrt(sum(((new[k] - begin[k]).double() ** 2).sum() for k in begin))
            want += (new[n] - was).double() * min(1, 2.0 / norm)
        torch.testing.assert_close(after.tensors[n].double(), was.double() + want / 3, atol=1e-6, rtol=0)


def test_noise_is_the_system_s():
    """No seed gives it again; it has mean 0 and variance 1."""
    torch.manual_seed(0)
    a = privacy.normal((200, 100))
    torch.manual_seed(0)
    b = privacy.normal((200, 100))
    assert a.dtype == torch.float64 and not torch.equal(a, b)
    assert abs(float(a.mean())) < 0.05 and abs(float(a.var()) - 1) < 0.08 and float(a.abs().max()) < 8


def test_a_run_has_noise_and_tells_no_loss(bert, tmp_path):
    how = {"method": "ffa-lora", "options": {"rank": 2}, **RECIPE}
    runs = [
        simulate(small.prepared_host(bert), tiny.rows(30), out=tmp_path / str(k), **how, **dp)
        for k, dp in enumerate((DP, DP, {**DP, "dp_noise": 0.0}))
    ]
    assert not small.same(runs[0].state.tensors, runs[1].state.tensors)
    assert all(r["train_loss"] is None for r in runs[0].curve) and all(s.loss is None for s in runs[0].seats.values())
    told = json.loads((tmp_path / "0" / "run.json").read_text())["privacy"]
    assert {**told, "epsilon": 0} == {"noise": 0.5, "clip": 0.1, "delta": 1e-5, "rounds": 2, "epsilon": 0}
    begin = small.start(small.prepared(bert, "ffa-lora", {"rank": 2}))
    moved = math.sqrt(sum(float((v - begin[n]).square().sum()) for n, v in runs[2].state.tensors.items()))
    assert 0 < moved <= 2 * 0.1 + 1e-6  # two rounds, each a mean of changes of at most 0.1
    assert "no privacy is claimed" in report(tmp_path / "2").read_text()


@pytest.mark.parametrize("name", [n for n, m in METHODS.available().items() if m.noise])
def test_who_cannot_is_refused_by_name(bert, name):
    with pytest.raises(CommonweightError, match=f"{name} cannot: "):
        small.prepared(bert, name, **DP)


@pytest.mark.parametrize("name", [n for n, m in METHODS.available().items() if not m.noise])
def test_who_can_has_one_mean_of_all_that_travels(bert, name):
    """The private mean takes the place of the method's own: what it keeps and what comes up must be the pools,
    once they are decoded."""
    p, method = small.prepared(bert, name, **DP), METHODS.get(name)
    table = method.up(p.setting, 0, 0)
    assert table == method.down(p.setting, 0, 0) and table.keys() == set(p.setting.travels)
    assert method.begin(p.setting, small.start(p)).tensors.keys() == set(p.setting.travels)
    assert all(part.dtype == "float32" for part in table.values())


def test_what_begins_from_a_client_s_rows_is_refused(bert):
    with pytest.raises(CommonweightError, match="begins from rows of the first client"):
        simulate(small.prepared_host(bert), tiny.rows(30), method="fish-mask", shown=4, **RECIPE, **DP)


def test_noise_needs_a_clip():
    with pytest.raises(CommonweightError, match="dp_noise=1 without dp_clip"):
        Rounds(dp_noise=1.0)


def test_without_the_accountant_nothing_is_counted(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "opacus.accountants", None)
    assert epsilon(Privacy(1.0, 1.0), 3) is None
    assert "pip install" in privacy.words(privacy.told(Privacy(1.0, 1.0), 3))
    assert epsilon(Privacy(0.0, 1.0), 3) == math.inf and epsilon(Privacy(1.0, 1.0), 0) == 0.0


def test_the_accountant():
    """Below the plain bound of the Gaussian mechanism's Renyi divergence, and not far below."""
    pytest.importorskip("opacus")
    for z, rounds in ((1.0, 1), (2.0, 8), (10.0, 30)):
        plain = min(a * rounds / (2 * z * z) + math.log(1e5) / (a - 1) for a in (1 + x / 10 for x in range(1, 1000)))
        assert 0.5 * plain < epsilon(Privacy(z, 1.0), rounds) <= plain
    text = privacy.words(privacy.told(Privacy(2.0, 1.0), 8))
    assert text.startswith("epsilon ") and "Opacus" in text


def test_the_command_says_what_it_costs(bert, tmp_path):
    rows = tiny.jsonl(tmp_path / "rows.jsonl", tiny.rows(12))
    line = ["exchange", "simulate", str(bert), str(rows), "-m", "fed-sb", "-o", "rank=2", "--clients", "2", "--rounds"]
    done = CliRunner().invoke(cli, [*line, "1", "--dp-clip", "0.5", "--dp-noise", "3", "--out", str(tmp_path / "run")])
    assert done.exit_code == 0, done.output
    assert "epsilon" in done.output
