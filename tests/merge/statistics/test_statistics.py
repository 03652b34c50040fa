"""Statistics: what is collected is what the definitions say, and comes back from files in any pieces."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers.modeling_outputs import SequenceClassifierOutput

import commonweight as cw
from commonweight.merge.recipe import load
from commonweight.merge.recipe.build import build
from commonweight.merge.registry import At
from commonweight.merge.sources.model import open_source
from commonweight.merge.sources.source import Read
from commonweight.merge.statistics import Statistics, fingerprint, open_statistics
from commonweight.merge.stream import beside
from commonweight.merge.stream.work import Job, Task
from commonweight.merge.vocabulary.tokens import Mapped

from ..sample import gap, models, statistics


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


def test_another_file_is_kept_if_asked(tmp_path):
    one, other = (Statistics("mine", statistics(1, "fisher", seed)[0]) for seed in (1, 2))
    path = one.save(tmp_path / "a.safetensors")
    before = path.read_bytes()
    assert one.save(path, overwrite=False).read_bytes() == before
    with pytest.raises(cw.CommonweightError, match=r"a\.safetensors already exists; .*overwrite=True"):
        other.save(path, overwrite=False)
    assert path.read_bytes() == before != other.save(path).read_bytes()


@pytest.fixture
def tuned(tmp_path, monkeypatch):
    """Two models of one network as folders m0, m1, with statistics of each: s0.safetensors, s1.safetensors."""
    monkeypatch.chdir(tmp_path)
    states = []
    for i in range(2):
        net = Net()
        g = torch.Generator().manual_seed(i)
        with torch.no_grad():
            for p in net.parameters():
                p.add_(0.1 * torch.randn(p.shape, generator=g))
        states.append({n: p.detach().clone() for n, p in net.named_parameters()})
        (tmp_path / f"m{i}").mkdir()
        save_file(states[-1], tmp_path / f"m{i}" / "model.safetensors")
        cw.merge.collect(net, [rows(4, i)], header={"rows": f"{i}"}).save(f"s{i}.safetensors")
    return states


def recipe(*files, method="regmean"):
    return {"method": method, "models": [{"model": f"m{i}", "statistics": f} for i, f in enumerate(files)]}


def both_ways(states, *files, method="regmean"):
    """From disk to disk, and in memory."""
    merged = cw.merge.get(method)(states, statistics=list(files))
    done = cw.merge.make(recipe(*files, method=method), "out")
    assert gap(load_file(done.folder / "model.safetensors"), merged) == 0
    shutil.rmtree("out")
    return merged


@pytest.mark.parametrize("method", ["regmean", "fisher"])
def test_statistics_belong_to_their_model(tuned, method):
    plain = cw.merge.linear(tuned)
    assert gap(both_ways(tuned, "s0.safetensors", "s1.safetensors", method=method), plain) > 1e-3
    for files, place in ((["s0", "s0"], 1), (["s1", "s0"], 0)):
        said = rf": {method}: statistics\[{place}\] .*s{files[place][1]}.* other weights than those of"
        for call in (
            lambda files=files: cw.merge.get(method)(tuned, statistics=[f"{f}.safetensors" for f in files]),
            lambda files=files: cw.merge.make(recipe(*(f"{f}.safetensors" for f in files), method=method), "out"),
        ):
            with pytest.raises(cw.CommonweightError, match=f"{said} model.*{place}"):
                call()
    assert not Path("out").exists()


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16, torch.float64])
def test_copies_in_another_precision_are_the_model(tuned, kind):
    """Statistics are collected in float32, whatever the checkpoint; also the other way round."""
    copies = [{n: t.to(kind) for n, t in state.items()} for state in tuned]
    stats = [open_statistics(f"s{i}.safetensors", "it") for i in range(2)]
    cw.merge.regmean(copies, statistics=stats)
    with pytest.raises(cw.CommonweightError, match="other weights"):
        cw.merge.regmean(copies, statistics=stats[::-1])
    if kind != torch.float64:
        net = Net()
        net.load_state_dict({n: t.float() for n, t in copies[0].items()}, strict=False)
        mine = cw.merge.collect(net, [rows(4)], ["gram"])
        cw.merge.regmean(tuned[:1], statistics=[mine])
        cw.merge.regmean(copies[:1], statistics=[mine])


def test_a_small_step_of_training_makes_another_model(tuned):
    near = [{n: t + 1e-5 * torch.randn_like(t) for n, t in state.items()} for state in tuned]
    with pytest.raises(cw.CommonweightError, match="other weights"):
        cw.merge.regmean(near, statistics=["s0.safetensors", "s1.safetensors"])


def renamed(states, prefix):
    return [{f"{prefix}.{n}": t for n, t in state.items()} for state in states]


def test_names_of_another_model(tuned):
    """RegMean without a Gram matrix is the average: a file that fits nowhere would say nothing."""
    files = ["s0.safetensors", "s1.safetensors"]
    said = "its gram is of first.weight and others, of which model 0 has none .it has bert.*collect it on this model"
    with pytest.raises(cw.CommonweightError, match=said):
        cw.merge.regmean(renamed(tuned, "bert"), statistics=files)
    for i, state in enumerate(renamed(tuned, "a.b")):
        save_file(state, f"m{i}/model.safetensors")
    with pytest.raises(cw.CommonweightError, match=r"its gram is of first.weight and others, of which model \(m0"):
        cw.merge.make(recipe(*files), "out")
    part = [{"norm.weight": s["norm.weight"]} for s in tuned]  # of a model, where a state dict need not be whole
    assert gap(cw.merge.regmean(part, statistics=files), cw.merge.linear(part)) == 0


def test_a_part_of_the_model_is_known_too(tuned):
    files = ["s0.safetensors", "s1.safetensors"]
    part = [{n: s[n] for n in ("first.weight", "norm.weight")} for s in tuned]
    assert torch.equal(
        cw.merge.regmean(part, statistics=files)["first.weight"],
        cw.merge.regmean(tuned, statistics=files)["first.weight"],
    )
    with pytest.raises(cw.CommonweightError, match=r"first.weight: .*other weights"):
        cw.merge.regmean(part, statistics=files[::-1])


def test_a_file_without_a_fingerprint_passes_with_a_notice(tuned):
    for i in range(2):
        old = open_statistics(f"s{i}.safetensors", "it")
        kept = {k: v for k, v in old.header.items() if k != "fingerprint"}
        Statistics("old", {k: old._slice(k, None) for k in old.shapes}, kept).save(f"old{i}.safetensors")
    new, wanted = (cw.merge.regmean(tuned, statistics=[f"{x}{i}.safetensors" for i in range(2)]) for x in ("s", "old"))
    assert gap(new, wanted) == 0
    assert beside.check(build(load(recipe("s0.safetensors", "s1.safetensors"))).tasks) == []
    notices = beside.check(build(load(recipe("s0.safetensors", "old1.safetensors"))).tasks)
    assert len(notices) == 1 and "statistics[1]" in notices[0] and "on which weights it was collected" in notices[0]


def test_a_fingerprint_that_is_none(tuned):
    found = open_statistics("s0.safetensors", "it")
    for odd in ("x", ["x"], [], 5):
        mine = Statistics(
            "mine", {k: found._slice(k, None) for k in found.shapes}, {"fingerprint": {"first.weight": odd}}
        )
        with pytest.raises(cw.CommonweightError, match="other weights"):
            cw.merge.regmean(tuned[:1], statistics=[mine])


def test_blocks_that_move_have_no_statistics():
    g = torch.Generator().manual_seed(0)
    body = {
        "method": "regmean",
        "slices": [{"models": [{"model": "m", "layers": "1-2", "statistics": "s.safetensors"}]}],
    }
    with TemporaryDirectory() as place:
        (Path(place) / "m").mkdir()
        save_file({f"layers.{i}.w": torch.randn(3, 3, generator=g) for i in range(3)}, f"{place}/m/model.safetensors")
        grams = {f"gram/layers.{i}.w": torch.eye(3) for i in range(3)}
        Statistics("s", grams).save(f"{place}/s.safetensors")
        (Path(place) / "r.json").write_text(json.dumps(body))
        with pytest.raises(
            cw.CommonweightError, match=r"layers.0.w: it is layers.1.w of .* merge blocks where they are"
        ):
            cw.merge.make(f"{place}/r.json", f"{place}/out")


def test_rows_that_are_mapped_by_token(tmp_path):
    """A Gram matrix is of inputs, whatever the order of the outputs; Fisher information lies as the rows did."""
    g = torch.Generator().manual_seed(0)
    state = {"head.weight": torch.randn(9, 4, generator=g)}
    save_file(state, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text('{"vocab_size": 9}')
    raw = {"m": open_source(tmp_path, "m")}
    source = Mapped("m", raw, {i: [("m", 8 - i)] for i in range(9)}, 9)
    mark = {"fingerprint": fingerprint(source.shapes, raw["m"].flat)}
    at = At("head.weight", (9, 4))
    for kind, shape in (("gram", (4, 4)), ("fisher", (9, 4))):
        stats = (Statistics("s", {f"{kind}/head.weight": torch.ones(shape)}, mark),)
        method = cw.merge.get({"gram": "regmean", "fisher": "fisher"}[kind])
        task = Task(at, Job(method, {"statistics": stats}), (Read(source, "head.weight"),), None, torch.float32)
        if kind == "gram":
            assert beside.check([task]) == []
            continue
        with pytest.raises(cw.CommonweightError, match=r"head.weight: its rows are mapped by token, and s has"):
            beside.check([task])


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda p: p.write_bytes(b"x" * 40), "is damaged, or is not a safetensors file"),
        (
            lambda p: save_file({"fisher/a": torch.ones(2)}, p),
            "is not a statistics file; `commonweight statistics` writes",
        ),
        (
            lambda p: save_file({"fisher/a": torch.ones(2)}, p, {"commonweight-statistics": json.dumps({"format": 9})}),
            "has format 9; upgrade commonweight",
        ),
        (
            lambda p: save_file({"fisher/a": torch.ones(2)}, p, {"commonweight-statistics": "[1]"}),
            "is not a statistics file",
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


def test_a_digest_tells_damage(tmp_path):
    path = cw.merge.Statistics("s", {"fisher/w": torch.randn(5, 3), "gram/w": torch.randn(3, 3)}, {"rows": "x"}).save(
        tmp_path / "s.safetensors"
    )
    found = open_statistics(path, "statistics", "fisher")
    assert found.header["rows"] == "x" and len(found.header["digest"]) == 32
    again = found.save(tmp_path / "again.safetensors")
    assert again.read_bytes() == path.read_bytes()
    whole = path.read_bytes()
    for place, old in (
        (len(whole) - 7, whole[-7:-6]),
        (whole.index(b"rows"), b"r"),
    ):  # a number, and what is said of it
        path.write_bytes(whole[:place] + bytes([old[0] ^ 1]) + whole[place + 1 :])
        with pytest.raises(cw.CommonweightError, match=r"s.safetensors is damaged: its numbers are not those"):
            open_statistics(path, "statistics")


def test_a_file_of_before_has_no_digest(tmp_path):
    header = json.dumps({"format": 1})
    save_file({"fisher/w": torch.ones(2)}, tmp_path / "s.safetensors", {"commonweight-statistics": header})
    assert open_statistics(tmp_path / "s.safetensors", "statistics").kinds() == ["fisher"]


def test_a_weight_worked_out_from_others_has_no_statistics_and_the_rest_has():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 3))
    nn.utils.parametrizations.weight_norm(model[0])
    model.forward = lambda x, attention_mask=None: nn.Sequential.forward(model, x)
    found = cw.merge.collect(model, [{"x": torch.randn(5, 4)}], ["gram", "activations"])
    assert set(found.shapes) == {"gram/1.weight", "activations/1.weight"}
