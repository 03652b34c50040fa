"""Statistics: what is collected is what the definitions say, and comes back from files in any pieces."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from transformers.modeling_outputs import SequenceClassifierOutput

import commonweight as cw
from commonweight.merge.registry import At
from commonweight.merge.statistics import Statistics, open_statistics

from .sample import gap, models, statistics


class Net(nn.Module):
    """Tokens (B, T, 4) averaged over their mask, two layers that share a weight, a norm, three classes."""

    def __init__(self, text: bool = False):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.norm, self.last = nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 3)
        self.again, self.text = nn.Linear(4, 4), text
        self.again.weight = self.first.weight

    def forward(self, x, attention_mask=None):
        h = self.again(self.norm(self.first(x).tanh()))
        if not self.text:
            mask = torch.ones(x.shape[:2]) if attention_mask is None else attention_mask
            h = (h * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        return SequenceClassifierOutput(logits=self.last(h))


def rows(n, seed=0, tokens=5):
    g = torch.Generator().manual_seed(seed)
    mask = torch.arange(tokens)[None] < torch.randint(2, tokens + 1, (n, 1), generator=g)
    x = torch.randn(n, tokens, 4, generator=g)
    return {"x": x, "attention_mask": mask.long(), "labels": torch.randint(3, (n,), generator=g)}


def batched(whole, size):
    n = len(whole["x"])
    return [{k: v[i : i + size] for k, v in whole.items()} for i in range(0, n, size)]


def fisher_by_definition(net, whole, data=False):
    out = {n: torch.zeros_like(p) for n, p in net.named_parameters()}
    count = len(whole["x"])
    for i in range(count):
        for y in range(3):
            net.zero_grad()
            logits = net(whole["x"][i : i + 1], whole["attention_mask"][i : i + 1]).logits[0]
            p = logits.softmax(-1)[y].item() if not data else float(y == whole["labels"][i])
            logits.log_softmax(-1)[y].backward()
            for n, q in net.named_parameters():
                out[n] += p * q.grad**2 / count
    net.zero_grad(set_to_none=True)
    return out


@pytest.mark.parametrize("labels", ["exact", "data"])
def test_fisher_is_exact_by_row_whatever_the_batches(labels):
    net, whole = Net(), rows(7)
    wanted = fisher_by_definition(net, whole, labels == "data")
    for size in (1, 3, 7):
        mine = cw.merge.collect(net, batched(whole, size), ["fisher"], labels=labels)
        assert mine.shapes.keys() == {f"fisher/{n}" for n in wanted}
        for n, f in wanted.items():
            assert torch.allclose(mine.whole("fisher", n), f, rtol=1e-4, atol=1e-8), n
    assert all(p.requires_grad and p.grad is None for p in net.parameters())


def test_sampled_fisher_is_the_exact_one_in_the_mean():
    net, whole = Net(), rows(4)
    wanted = fisher_by_definition(net, whole)["last.weight"]
    many = {k: v.repeat(40, *[1] * (v.dim() - 1)) for k, v in whole.items()}
    how = {"labels": "sample", "names": lambda n: n == "last.weight"}
    mine = cw.merge.collect(net, [many], ["fisher"], **how).whole("fisher", "last.weight")
    assert (mine - wanted).norm() / wanted.norm() < 0.25
    assert torch.equal(mine, cw.merge.collect(net, [many], ["fisher"], **how).whole("fisher", "last.weight"))
    other = cw.merge.collect(net, [many], ["fisher"], seed=1, **how).whole("fisher", "last.weight")
    assert not torch.equal(mine, other)


def test_fisher_of_a_language_model_scores_every_token():
    net, whole = Net(text=True), rows(2)
    whole["labels"] = torch.tensor([[0, 1, -100, 2, 1], [2, -100, 0, 1, 1]])
    mine = cw.merge.collect(net, [whole], ["fisher"], labels="data").whole("fisher", "last.bias")
    wanted = torch.zeros(3)
    for x, y in zip(whole["x"], whole["labels"]):
        log = net(x[None]).logits[0].log_softmax(-1)
        value = sum(log[t, y[t + 1]] for t in range(4) if y[t + 1] != -100)
        wanted += torch.autograd.grad(value, net.last.bias)[0] ** 2 / 2
    assert torch.allclose(mine, wanted, rtol=1e-5)
    assert cw.merge.collect(net, [whole], ["fisher"], labels="sample").whole("fisher", "last.bias").min() >= 0
    with pytest.raises(cw.CommonweightError, match="a language model takes 'sample' or 'data'"):
        cw.merge.collect(net, [whole], ["fisher"])


def test_grams_and_activations_are_of_the_tokens_that_count():
    net, whole = Net(), rows(6)
    mine = cw.merge.collect(net, batched(whole, 4), ["gram", "activations"], tokens=9)
    x = whole["x"][whole["attention_mask"].bool()]
    shared = net.norm(net.first(whole["x"]).tanh())[whole["attention_mask"].bool()]
    both = torch.cat([x, shared]).detach()
    assert torch.allclose(mine.whole("gram", "first.weight"), both.T @ both / len(both), atol=1e-6)
    assert torch.allclose(mine.whole("activations", "first.weight")[:3], x[:3])
    assert mine.shapes["activations/first.weight"] == (9, 4)
    pooled = net.again(net.norm(net.first(whole["x"]).tanh())) * whole["attention_mask"][..., None]
    pooled = (pooled.sum(1) / whole["attention_mask"].sum(1, keepdim=True)).detach()
    assert torch.allclose(mine.whole("gram", "last.weight"), pooled.T @ pooled / 6, atol=1e-6)
    assert not mine.has("gram", "norm.weight") and not mine.has("gram", "again.weight")


def test_a_file_gives_back_any_piece(tmp_path):
    of = statistics(1, "fisher")[0]
    path = Statistics("mine", of, {"rows": "3 rows abc"}).save(tmp_path / "a.safetensors")
    back = open_statistics(path, "statistics")
    assert back.header["rows"] == "3 rows abc" and back.header["format"] == 1 and back.kinds() == ["fisher"]
    for k, t in of.items():
        name = k.removeprefix("fisher/")
        flat = t.reshape(-1)
        for start, count in ((0, t.numel()), (3, 4), (t.numel() - 5, 5)):
            at = At(name, tuple(t.shape), start)
            assert torch.equal(back.piece("fisher", at, torch.zeros(count)), flat[start : start + count])
        rows = torch.zeros_like(t[1:3])
        at = At(name, tuple(t.shape), t[0].numel())
        assert torch.equal(back.piece("fisher", at, rows), t[1:3])
    _, sources = models(3)
    files = [Statistics("mine", s).save(tmp_path / f"{i}.safetensors") for i, s in enumerate(statistics(3, "fisher"))]
    mine = cw.merge.fisher(sources, statistics=files)
    assert gap(mine, cw.merge.fisher(sources, statistics=statistics(3, "fisher"))) == 0
    assert gap(mine, cw.merge.fisher(sources, statistics=[str(f) for f in files], piece=7)) < 1e-6
    assert open_statistics(back, "again", "fisher").header == back.header


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda p: p.write_bytes(b"x" * 40), "is damaged or no safetensors file"),
        (
            lambda p: save_file({"fisher/a": torch.ones(2)}, p),
            "is no statistics file; `commonweight statistics` writes",
        ),
        (
            lambda p: save_file({"fisher/a": torch.ones(2)}, p, {"commonweight-statistics": json.dumps({"format": 9})}),
            "has format 9; upgrade commonweight",
        ),
        (
            lambda p: save_file({"fisher/a": torch.ones(2)}, p, {"commonweight-statistics": "[1]"}),
            "is no statistics file",
        ),
        (lambda p: None, "no such file"),
    ],
)
def test_files_that_are_none(tmp_path, write, message):
    write(tmp_path / "s.safetensors")
    with pytest.raises(cw.CommonweightError, match=message):
        open_statistics(tmp_path / "s.safetensors", "statistics")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda net: cw.merge.collect(net, [rows(2)], ["fischer"]), "did you mean 'fisher'"),
        (lambda net: cw.merge.collect(net, []), "no rows to collect statistics from"),
        (
            lambda net: cw.merge.collect(net, [{"x": rows(2)["x"]}], ["fisher"], labels="data"),
            "the rows have no labels",
        ),
        (
            lambda net: cw.merge.collect(nn.Sequential(nn.LayerNorm(4)), [], ["gram"]),
            "no rows",
        ),
        (lambda net: cw.merge.collect(net, [rows(2)], ["fisher"], names=lambda n: False), "no parameter to collect"),
        (lambda net: cw.merge.collect(net, [rows(2)], ["gram"], names=lambda n: False), "ran no linear layer"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(cw.CommonweightError, match=message):
        call(Net())
