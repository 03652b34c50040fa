"""APT's pruning, written out a second time: salience, kurtosis, targets, the search, the steps of the masks."""

import statistics

import pytest
import torch

import commonweight as cw
from commonweight.adapt.scheduled import Scheduled, alone
from commonweight.core.bits import unpacked
from commonweight.core.schedule import Moment
from commonweight.methods.low_rank.apt import APT, Growing
from commonweight.methods.low_rank.apt_prune import Block, Pruning, kurtosis
from tests.laws.subjects import stir
from tests.models import answer, make

OPTIONS = {"rank": 2, "most": 4, "times": 2.0, "rounds": 2, "begin": 0.0, "prune": 0.5}
BEHIND = [f"encoder.layer.{i}.{n}.dense" for i in (0, 1) for n in ("attention.output", "output")]


def excess(values):
    """Less 3, by the deviation with n - 1."""
    mean, deviation = statistics.fmean(values), statistics.stdev(values)
    if not deviation:
        return -3.0
    return statistics.fmean(((v - mean) / deviation) ** 4 for v in values) - 3


def test_kurtosis():
    x = torch.randn(30, 3, generator=torch.Generator().manual_seed(0)) ** 3
    x[:, 2] = 0.5
    torch.testing.assert_close(kurtosis(x), torch.tensor([excess(c) for c in x.T.tolist()]), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("with_kurtosis", [True, False])
def test_salience_of_a_real_step(with_kurtosis):
    """Against states and gradients that a hook of the test's own saw, in rows of which one has padding."""
    net, batch = make("bert")
    host = cw.Host(net)
    tenant = stir(host.add("t", "apt", **OPTIONS, kurtosis=with_kurtosis))
    optimizer = torch.optim.AdamW(alone(tenant.param_groups(1e-3)), weight_decay=0.0)
    schedule, seen = Scheduled(tenant, optimizer, None, 8), {}
    schedule.begin()

    def look(name):
        def hook(module, args):
            args[0].retain_grad()
            seen[name] = args[0]

        return net.get_submodule(name).register_forward_pre_hook(hook)

    handles = [look(n) for n in BEHIND]
    mask = torch.ones_like(batch["input_ids"])
    mask[1, -2:] = 0
    with host.route("t"), host.listening() as heard:
        schedule.watch(heard)
        net(**{**batch, "attention_mask": mask})[0][mask.bool()].square().mean().backward()
    for h in handles:
        h.remove()
    optimizer.step()
    schedule.after(1)
    for n in BEHIND:
        h, g = (t.detach() * mask[..., None] for t in (seen[n], seen[n].grad))
        want = h.abs().sum((0, 1)) * g.abs().sum((0, 1))
        parts = 4 if "attention" in n else 64
        want = want.view(parts, -1).sum(1)
        if with_kurtosis:
            w = host.weight(n) + 2 * tenant.pools[f"{n}.B"] @ tenant.pools[f"{n}.A"]
            said = (w * h.sum((0, 1)) / mask.sum()).detach().view(len(w), parts, -1)
            want += torch.tensor([max(0.0, excess(said[:, i].flatten().tolist())) ** 0.5 for i in range(parts)])
        torch.testing.assert_close(schedule.state[f"salience/{n}"], 0.15 * want, rtol=2e-3, atol=1e-5)


def hand(score, numbers, share):
    """The best ones, as long as they have less than that share of all numbers together."""
    best, total, out = sorted(range(len(score)), key=lambda i: -score[i] / numbers[i]), 0, set()
    for i in best:
        total += numbers[i]
        if total >= share * sum(numbers):
            break
        out.add(i)
    return out


def test_targets_and_masks():
    """Two blocks of parts of different sizes over ten steps of which the sixth and the tenth end a round."""
    config = APT(rank=1, times=1.0, rounds=2, begin=0.2, end=0.0, prune=0.6, move=0.3, kurtosis=False)
    found = (Block("a", 3, 2, 40), Block("b", 8, 1, 9))
    way, g = Pruning(config, Growing(config, ("a",), 1), found, 2.0), torch.Generator().manual_seed(1)
    pools = {"a.A": torch.ones(1, 6), "a.B": torch.ones(4, 1), "a.kept": torch.ones(3), "b.kept": torch.ones(8)}
    state, _ = way.begin(None, pools, 10)
    assert way.growing.steps_of(10) == [6, 10]
    score, masks, numbers = [0.0] * 11, [1.0] * 11, [40] * 3 + [9] * 8
    for step in range(1, 11):
        counted, now = dict(way.blank(pools)), []
        for b in found:
            h, e = torch.randn(5, b.parts * b.width, generator=g), torch.randn(5, b.parts * b.width, generator=g)
            counted |= {**way.states(b.site, h, torch.ones(5)), **way.grads(b.site, e, torch.ones(5))}
            each = [float(h[:, i].abs().sum() * e[:, i].abs().sum()) for i in range(b.parts * b.width)]
            now += [sum(each[i : i + b.width]) for i in range(0, len(each), b.width)]
        grads = {"a.A": torch.ones(1, 6)}
        state, edit = way.after(Moment(step, 10, pools, grads, {}, counted=counted), state)
        score = [0.85 * s + 0.15 * n for s, n in zip(score, now)]
        if step > 2:
            kept = hand(score, numbers, 0.4 + 0.6 * ((1 - 0.5) ** 3 if step <= 6 else 0.0))
            if step in (6, 10):
                masks = [float(i in kept) for i in range(11)]
            else:
                masks = [min(1.0, max(0.0, m + (0.3 if i in kept else -0.3))) for i, m in enumerate(masks)]
        else:
            assert not edit.values
        pools = {**pools, **edit.values}
        torch.testing.assert_close(torch.cat([pools["a.kept"], pools["b.kept"]]), torch.tensor(masks))
        assert way.settled(step, 10) == (step == 10)
    left = sum(n for n, m in zip(numbers, masks) if m)
    assert 0.2 * sum(numbers) < left < 0.4 * sum(numbers)
    again, edit = way.after(Moment(11, 10, pools, {}, {}), state)
    assert not edit.values and again.keys() == state.keys()


def trained(name="t", steps=4, seed=0, model=None, **more):
    net, batch = model or make("bert")
    host = cw.Host(net)
    tenant = stir(host.add(name, "apt", seed=seed, **{**OPTIONS, **more}), seed)
    optimizer = torch.optim.AdamW(alone(tenant.param_groups(1e-2)), weight_decay=0.0)
    schedule = Scheduled(tenant, optimizer, None, steps)
    schedule.begin()
    for i in range(1, steps + 1):
        optimizer.zero_grad()
        with host.route(name), host.listening() as heard:
            schedule.watch(heard)
            answer(net, batch).square().mean().backward()
        optimizer.step()
        schedule.after(i)
    return host, tenant, batch


def test_what_is_left_out_is_left_out_in_every_form(tmp_path):
    """Half of the numbers, a bit for each part in the file; other tenants and the base answer as before."""
    host, tenant, batch = trained()
    masks = {n: tenant.pools[f"{n}.kept"].clone() for n in BEHIND}
    numbers = {n: 1048 if "attention" in n else 65 for n in BEHIND}
    left = sum(int(m.sum()) * numbers[n] for n, m in masks.items())
    assert all(set(m.tolist()) <= {0.0, 1.0} for m in masks.values())
    assert 0.4 < left / sum(len(m) * numbers[n] for n, m in masks.items()) < 0.5
    with torch.no_grad():
        with host.route("t"):
            before = answer(host.model, batch)
        whole = tenant.nbytes
        host.compact("t")
        assert tenant.config.masks == "bits" and whole - tenant.nbytes == 2 * (4 * 4 - 1 + 64 * 4 - 8)
        for n, m in masks.items():
            assert torch.equal(unpacked(tenant.pools[f"{n}.bits"], m.shape), m.bool())
        host.save("t", tmp_path / "t.safetensors")
        host.load("u", tmp_path / "t.safetensors")
        host.add("l", "lora")
        merged = host.merged("t")
        for n, m in masks.items():
            w = merged[f"{n}.weight"].view(-1, len(m), merged[f"{n}.weight"].shape[1] // len(m))
            assert torch.equal(w.abs().sum((0, 2)) == 0, m == 0)
            A, B = (tenant.pools[f"{n}.{k}"] for k in "AB")
            want = (host.weight(n) + 2 * B @ A).view_as(w) * m[:, None]
            torch.testing.assert_close(w, want, rtol=1e-4, atol=1e-6)
        plain, found = answer(host.model, batch), {}
        for name in ("t", "u", "l"):
            with host.route(name):
                found[name] = answer(host.model, batch)
        with host.route(["t", None, "u", "l"]):
            mixed = answer(host.model, batch)
    torch.testing.assert_close(found["t"], before)
    torch.testing.assert_close(found["t"], found["u"])
    for row, want in enumerate((found["t"], plain, found["u"], found["l"])):
        torch.testing.assert_close(mixed[row], want[row], rtol=1e-4, atol=1e-5)
    assert (found["t"] - plain).abs().max() > 1e-3
    alone_ = make("bert")[0]
    alone_.load_state_dict(merged, strict=False)
    torch.testing.assert_close(answer(alone_, batch), found["t"], rtol=1e-4, atol=1e-5)


def test_masks_that_move_stay_numbers():
    host, tenant, _ = trained(steps=9)
    with torch.no_grad():
        tenant.pools[f"{BEHIND[0]}.kept"][0] = 0.7
    host.compact("t")
    assert tenant.config.masks == "numbers" and f"{BEHIND[0]}.kept" in tenant.pools


def test_keys_of_several_heads_are_no_head_s():
    sites = [
        cw.Site(f"l.0.{r}", o, i, role=r, bias=False)
        for r, o, i in (("query", 8, 8), ("key", 4, 8), ("value", 4, 8), ("attn_out", 8, 8))
    ]
    sites += [
        cw.Site(f"l.0.{r}", o, i, role=r, bias=False) for r, o, i in (("up", 6, 8), ("gate", 6, 8), ("down", 8, 6))
    ]
    binds = {u.site: u.bind for u in cw.plan("apt", sites, prune=0.5, heads=2).uses}
    assert binds["l.0.attn_out"].numbers == 4 * (8 + 8) and binds["l.0.down"].numbers == 8 + 2 * 8
    assert binds["l.0.attn_out"].parts == 2 and binds["l.0.down"].parts == 6


@pytest.mark.parametrize("out, rows", [(24, 3), (16, 1)])
def test_fused_layers_count_for_all_that_they_are(out, rows):
    """16: of two heads that share their keys and values, the queries alone."""
    sites = [cw.Site(f"l.0.{r}", o, 8, role=r) for r, o in (("qkv", out), ("attn_out", 8), ("up", 16), ("down", 8))]
    binds = {u.site: u.bind for u in cw.plan("apt", sites, prune=0.5, heads=2).uses}
    assert binds["l.0.attn_out"].numbers == 4 * (8 + rows * 9) and binds["l.0.down"].numbers == 8 + 2 * 9


def test_what_cannot_be_pruned():
    site = cw.Site("l.0.query", 64, 64, role="query")
    with pytest.raises(cw.CommonweightError, match="prune wants the layer behind an attention's heads"):
        cw.plan("apt", [site], prune=0.5)
    with pytest.raises(cw.CommonweightError, match=r"prune=0.5 goes by rounds, and rounds is 0"):
        APT(prune=0.5, rounds=0)
    with pytest.raises(cw.CommonweightError, match="its width 64 is not a multiple of heads=5"):
        cw.plan("apt", [cw.Site("l.0.out", 64, 64, role="attn_out")], prune=0.5, heads=5)
    config = APT(prune=0.5, rounds=1)
    way = Pruning(config, Growing(config, (), 1), (Block("a", 2, 1, 3),), 1.0)
    with pytest.raises(cw.CommonweightError, match="nothing was shown of its heads and neurons"):
        way.kept({"salience/a": torch.zeros(2)}, 0.5)
