from __future__ import annotations

import torch

from commonweight.adapt import open_host
from commonweight.lifelong import stages
from commonweight.lifelong.methods.dualprompt import DualPrompt
from tests.lifelong import small


def test_it_begins_as_in_the_code(model, tmp_path, monkeypatch):
    """Uniform in [0, 0.01); a later task's own prompts where those of the one before ended (`shared_prompt_pool`)."""
    asks = []
    old = stages.train
    monkeypatch.setattr(stages, "train", lambda stage, ask, *rest: asks.append(ask) or old(stage, ask, *rest))
    small.stream(model, tmp_path / "shop", "dualprompt", host=open_host(model, "classify", dtype="float32"))
    first, second = asks
    assert first.start is None and all(0 <= p.min() and p.max() < 0.01 for p in first.values.values())
    assert not second.values and second.start.labels == ("food", "law", "sport")
    c = DualPrompt()
    assert (c.tokens, c.general, c.expert) == (5, 2, 3)


def test_general_prompts_go_on_experts_stay_and_a_key_finds_the_task(model, tmp_path, monkeypatch):
    seen, asked = [], []
    old, look = stages.publish, stages.untold
    monkeypatch.setattr(
        stages, "publish", lambda host, store, tenants: seen.append(tenants) or old(host, store, tenants)
    )
    monkeypatch.setattr(stages, "untold", lambda *a: asked.append(a) or look(*a))
    host = open_host(model, "classify", dtype="float32")
    small.stream(model, tmp_path / "shop", "dualprompt", host=host, evals=small.evals())
    (a, first), (b, second) = ((s.sites[0].name, s.sites[1].name) for s in (seen[1]["first"], seen[1]["second"]))
    assert (a, first) == (b, second) and a.split(".")[-4] == "0"
    then, now, new = seen[0]["first"].pools, seen[1]["first"].pools, seen[1]["second"].pools
    assert torch.equal(now[f"{a}.P"], new[f"{a}.P"]) and not torch.equal(now[f"{a}.P"], then[f"{a}.P"])
    assert torch.equal(now[f"{first}.P"], then[f"{first}.P"]) and not torch.equal(now[f"{first}.P"], new[f"{first}.P"])

    stage, found, carried, evals, given, _ = asked[-1]
    keys, last = {}, []
    block = next(iter(host.base.queries.last.values()))[1]

    def query(row):
        handle = block.register_forward_hook(lambda m, args, y: last.append(y[0] if isinstance(y, tuple) else y))
        with torch.no_grad():
            host.model(**{k: torch.tensor([v]) for k, v in row.items() if k != "label"})
        handle.remove()
        return last.pop()[0].mean(0)

    for name, u in given.items():
        units = [q / q.norm() for q in (query(r) for r in u.train)]
        keys[name] = sum(units) / len(units)
        torch.testing.assert_close(carried.tensors[name], keys[name])
    rows = [r for some in evals.values() for r in some]
    want = [max(keys, key=lambda n: float(torch.cosine_similarity(query(r), keys[n], dim=0))) for r in rows]
    assert found.pick(stage, carried, rows) == want
