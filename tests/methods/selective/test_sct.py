"""SCT: scores of channels written out a second time, and what the chosen ones do."""

import pytest
import torch

import commonweight as cw
from commonweight.methods import Shown
from tests.laws.subjects import stir
from tests.models import answer, make

SMALL = {"start": "random", "ratio": 0.2}


def test_channels_are_scored_by_class():
    model, _ = make("bert")
    host = cw.Host(model, sites="*.query|*.value")
    g = torch.Generator().manual_seed(3)
    ids, labels = torch.randint(5, 40, (6, 7), generator=g), torch.tensor([0, 1, 0, 2, 0, 0])
    mask = torch.ones(6, 7, dtype=torch.int64)
    mask[1, 4:] = mask[4, 2:] = 0
    batch, seen = {"input_ids": ids, "attention_mask": mask}, {}
    hooks = [
        model.get_submodule(s.name).register_forward_hook(lambda m, a, y, n=s.name: seen.__setitem__(n, y))
        for s in host.sites
    ]
    with torch.no_grad():
        model(**batch)
    for h in hooks:
        h.remove()
    batches = [{k: v[i : i + 4] for k, v in {**batch, "labels": labels}.items()} for i in (0, 4)]
    run = lambda model, b: model(input_ids=b["input_ids"], attention_mask=b["attention_mask"])  # noqa: E731
    tenant = host.add("t", "sct", ratio=0.25, rows=Shown(batches, run))
    for n, y in seen.items():
        norms = []
        for c in range(3):
            tokens = torch.cat([y[i][mask[i].bool()] for i in range(6) if labels[i] == c])
            norms.append(tokens.square().sum(0).sqrt())
        score = sum(norms) / 3
        k = round(0.25 * y.shape[-1])
        assert sorted(score.topk(k).indices.tolist()) == tenant.pools[f"{n}.at"].tolist()


@pytest.mark.parametrize("kind, m", [("bert", True), ("llama", False)])
def test_formula(kind, m, tmp_path):
    model, batch = make(kind)
    host = cw.Host(model)
    tenant = stir(host.add("t", "sct", start="random", ratio=0.2))
    site = tenant.plan.uses[0].site
    at, M = tenant.pools[f"{site}.at"].long(), tenant.pools[f"{site}.M"].detach()
    y = []
    handle = model.get_submodule(site).register_forward_hook(lambda mod, a, out: y.append(out))
    with torch.no_grad():
        model(**batch)
        with host.route("t"):
            model(**batch)
    handle.remove()
    want = y[0].clone()
    want[..., at] += y[0][..., at] @ M.T + (tenant.pools[f"{site}.m"].detach() if m else 0)
    torch.testing.assert_close(y[1], want)
    assert (f"{site}.m" in tenant.pools) == m


def streams(model, batch, block, parts):
    """What the parts of a block are given, and what the first of them gives."""
    seen = {}

    def came(name):
        return lambda m, args, kwargs: seen.__setitem__(name, (*args, *kwargs.values())[0])

    hooks = [model.get_submodule(n).register_forward_pre_hook(came(n), with_kwargs=True) for n in (block, *parts)]
    hooks.append(model.get_submodule(parts[0]).register_forward_hook(lambda m, a, y: seen.__setitem__("y", y)))
    with torch.no_grad():
        model(**batch)
    for h in hooks:
        h.remove()
    return seen


CASES = {
    "bert": ("encoder.layer.0", ("attention.output.dense", "attention.output.LayerNorm"), "attention.output.LayerNorm"),
    "llama": ("model.layers.0", ("self_attn.o_proj", "post_attention_layernorm"), "self_attn"),
}


@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_behind_attention(kind, tmp_path):
    """z[at] + M z[at] + m of the stream z, which is scored there; in a mixed batch as alone; kept in a file."""
    model, batch = make(kind)
    host = cw.Host(model)
    batch = {"input_ids": batch["input_ids"][:3], "attention_mask": torch.ones(3, 6).long()}
    labels = torch.tensor([0, 1, 0])
    run = lambda model, b: model(input_ids=b["input_ids"])  # noqa: E731
    rows = Shown([{**batch, "labels": labels}], run)
    tenant = host.add("t", "sct", place="stream", ratio=0.25, rows=rows)
    block, (gives, norm), site = CASES[kind]
    gives, norm, site = (f"{block}.{n}" for n in (gives, norm, site))
    plain = streams(model, batch, block, (gives, norm))
    z = plain[block] + plain["y"]
    torch.testing.assert_close(plain[norm], z)
    score = sum(z[labels == c].flatten(0, 1).square().sum(0).sqrt() for c in (0, 1)) / 2
    k = round(0.25 * z.shape[-1])
    at = tenant.pools[f"{site}.at"].long()
    assert at.tolist() == sorted(score.topk(k).indices.tolist())
    assert len(tenant.plan.pools) == 3 * model.config.num_hidden_layers
    fresh = answer(model, batch)
    with torch.no_grad(), host.route("t"):
        torch.testing.assert_close(answer(model, batch), fresh)
    stir(tenant)
    M, m = tenant.pools[f"{site}.M"].detach(), tenant.pools[f"{site}.m"].detach()
    z[..., at] += z[..., at] @ M.T + m
    with host.route("t"):
        got = streams(model, batch, block, (gives, norm))
    if kind == "llama":  # the norm is given the changed stream, and so is what is added to it
        torch.testing.assert_close(got[norm], z)
    behind = []
    handle = model.get_submodule(norm).register_forward_hook(lambda mod, a, y: behind.append(y))
    with torch.no_grad(), host.route("t"):
        alone = answer(model, batch)
    with torch.no_grad(), host.route(["t", None, "t"]):
        mixed = answer(model, batch)
    handle.remove()
    if kind == "bert":
        torch.testing.assert_close(behind[0], model.get_submodule(norm)(z))
    torch.testing.assert_close(mixed, torch.stack([alone[0], fresh[1], alone[2]]), rtol=1e-4, atol=1e-5)
    with host.route("t"):
        answer(model, batch).square().mean().backward()
    assert all(p.grad is not None and p.grad.any() for p in tenant.parameters())
    host.save("t", tmp_path / "t.safetensors")
    host.load("u", tmp_path / "t.safetensors")
    with torch.no_grad(), host.route("u"):
        torch.testing.assert_close(answer(model, batch), alone)


def test_a_stream_that_cannot_be():
    host = cw.Host(make("bert")[0])
    with pytest.raises(cw.CommonweightError, match=r"sct: place='stream' begins from rows"):
        host.add("t", "sct", place="stream", start="random")
    with pytest.raises(cw.CommonweightError, match="streams are told, and place is outputs"):
        host.add("t", "sct", streams=("a",))
    with pytest.raises(cw.CommonweightError, match=r"streams names encoder.layer.7.norm, which is none of its sites"):
        host.add("t", "sct", place="stream", start="given", streams=("encoder.layer.7.norm",))


def test_count_is_the_papers():
    """96^2 + 96 in each of twelve blocks."""
    names = tuple(f"encoder.layer.{i}.attention.output.LayerNorm" for i in range(12))
    sites = [cw.Site(n, 768, 1, "norm") for n in names]
    assert cw.plan("sct", sites, place="stream", start="given", streams=names).count() == 111_744
    parts = [cw.Site(f"encoder.layer.{i}.attention", 768, 768, "attention") for i in range(12)]
    assert cw.plan("sct", parts, place="stream").count() == 111_744, "before rows were seen"
