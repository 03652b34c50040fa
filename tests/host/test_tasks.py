"""Tenants that go by tasks: the batch says each row's, and a row is what its task is alone."""

import math

import numpy as np
import pytest
import torch

import commonweight as cw
from tests.host.test_running import checkpoint
from tests.laws.subjects import stir
from tests.models import answer, make

NAME = "model.layers.1.mlp.up_proj"
OPTIONS = {
    "poly": {"skills": 3, "rank": 2, "heads": 2},
    "noisy": {"skills": 3, "rank": 2, "noise": True},
    "shared": {"skills": 3, "rank": 2, "routing": "shared"},
    "cpoly": {"skills": 3, "rank": 2},
    "tensorpoly": {"skills": 2, "rank": 2, "alpha": 0.3},
    "by rank": {"skills": 2, "rank": 2, "alpha": 0.3, "by": "rank"},
}
METHODS = {"noisy": "poly", "shared": "poly", "by rank": "tensorpoly"}
ROWS = ["sst2", "trec", "cr", "trec"]


def tenant(kind="poly", frozen=False):
    model, batch = make("llama")
    host = cw.Host(model)
    t = stir(host.add("t", METHODS.get(kind, kind), tasks="trec,sst2, cr", **OPTIONS[kind]), std=0.2)
    if frozen:
        for p in t.parameters():
            p.requires_grad_(False)
    return host, t, batch


def as_task(host, t, kind, k):
    """A tenant without tasks that has the numbers of task k."""
    out = host.add(f"task{k}", METHODS.get(kind, kind), **OPTIONS[kind])
    with torch.no_grad():
        for n, p in out.pools.items():
            p.copy_(t.pools[n] if t.pools[n].shape == p.shape else t.pools[n][k])


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("kind", OPTIONS)
def test_a_row_is_what_its_task_is_alone(kind, frozen):
    host, t, batch = tenant(kind, frozen)
    assert t.tasks == ("trec", "sst2", "cr")
    with torch.no_grad():
        with host.route("t", tasks=ROWS):
            mixed = answer(host.model, batch)
        assert (mixed[0] - mixed[1]).abs().max() > 1e-3
        for k in range(3):
            as_task(host, t, kind, k)
        for i, task in enumerate(ROWS):
            with host.route(f"task{t.tasks.index(task)}"):
                want = answer(host.model, batch)
            torch.testing.assert_close(mixed[i], want[i], rtol=1e-4, atol=2e-5)
            with host.route("t", tasks=task):
                torch.testing.assert_close(answer(host.model, batch)[i], want[i], rtol=1e-4, atol=2e-5)


def test_formula():
    """MHR by task, skill by skill and head by head."""
    host, t, _ = tenant()
    A, B = t.pools[f"{NAME}.A"].detach(), t.pools[f"{NAME}.B"].detach()
    p = [[1 / (1 + math.exp(-v)) for v in row] for row in t.pools[f"{NAME}.logits"][2].tolist()]
    a = torch.cat([sum(p[h][i] / sum(p[h]) * A[h, i] for i in range(3)) for h in range(2)], 1)
    b = torch.cat([sum(p[h][i] / sum(p[h]) * B[h, i] for i in range(3)) for h in range(2)], 1)
    want = host.weight(NAME) + 2 * b.T @ a
    torch.testing.assert_close(host.merged("t", task="cr")[f"{NAME}.weight"], want)
    torch.testing.assert_close(host.merged("t", task=2)[f"{NAME}.weight"], want)


@pytest.mark.parametrize("reentrant", [None, False, True])
def test_gradients_are_those_of_each_row_by_itself(reentrant):
    host, t, batch = tenant()
    module = host.module("t").train()
    if reentrant is not None:
        checkpoint(host.model, reentrant)
    module(**batch, tasks=torch.tensor([1, 0, 2, 0])).logits.square().sum().backward()
    got = {n: p.grad.clone() for n, p in t.named_parameters()}
    host, t, batch = tenant()
    module = host.module("t").train()
    for i, task in enumerate(ROWS):
        row = {k: v[i : i + 1] for k, v in batch.items()}
        module(**row, tasks=[task]).logits.square().sum().backward()
    for n, p in t.named_parameters():
        torch.testing.assert_close(got[n], p.grad, rtol=1e-3, atol=1e-3 * float(p.grad.abs().max()))


def test_a_compiled_module_whose_batches_say_tasks():
    """In one graph, the route made beside it; also where nothing ran before it was compiled."""
    torch._dynamo.reset()
    model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3))
    host = cw.Host(model)
    stir(host.add("t", "poly", tasks="trec,sst2,cr", skills=2, rank=1), std=0.5)
    module, x = host.module("t"), torch.randn(4, 8)
    compiled = torch.compile(module, backend="eager", fullgraph=True)
    with torch.no_grad():
        got = [compiled(x, tasks=tasks) for tasks in (ROWS, torch.tensor([0, 0, 2, 1]))]
        for out, tasks in zip(got, (ROWS, ["trec", "trec", "cr", "sst2"])):
            assert torch.equal(out, module(x, tasks=tasks))
    with pytest.raises(cw.CommonweightError, match="unknown task 'x' of tenant 't'"):
        compiled(x, tasks="x")


@pytest.mark.parametrize("beams", [1, 2])
def test_generation(beams):
    host, _, batch = tenant()
    ids = batch["input_ids"]
    how = {"max_new_tokens": 4, "num_beams": beams, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    mask = torch.ones_like(ids)
    with host.route("t", tasks=ROWS):
        mixed = host.model.generate(ids, attention_mask=mask, **how)
    said = host.module("t").generate(input_ids=ids, attention_mask=mask, tasks=ROWS, **how)
    assert torch.equal(mixed, said)
    for i, task in enumerate(ROWS):
        with host.route("t", tasks=task):
            alone = host.model.generate(ids[i : i + 1], attention_mask=mask[i : i + 1], **how)
        assert torch.equal(mixed[i : i + 1], alone)


def test_beside_others_by_number_by_token_and_over_files(tmp_path):
    host, t, batch = tenant()
    stir(host.add("l", "lora"))
    host.load("again", host.save("t", tmp_path / "t.safetensors"))
    n = torch.tensor([t.number, host["l"].number, -1, host["again"].number])
    with torch.no_grad():
        with host.route("t", tasks="cr"):
            cr = answer(host.model, batch)
        with host.route("t", tasks="trec"):
            trec = answer(host.model, batch)
        with host.route("l"):
            low = answer(host.model, batch)
        several = host.module(["t", "l", "again"])
        for readers, tasks in ((n, torch.tensor([2, -1, -1, 2])), (["t", "l", None, "again"], ["cr", None, None, 2])):
            with host.route(readers, tasks):
                got = answer(host.model, batch)
            for i, want in ((0, cr), (1, low), (3, cr)):
                torch.testing.assert_close(got[i], want[i], rtol=1e-4, atol=2e-5)
        torch.testing.assert_close(several(**batch, tenants=n, tasks=torch.tensor([2, -1, -1, 2])).logits, got)
        wide = torch.full(batch["input_ids"].shape, t.number)
        with host.route(wide, torch.tensor([2, 0, 2, 0])):
            got = answer(host.model, batch)
    torch.testing.assert_close(got, torch.stack([cr[0], trec[1], cr[2], trec[3]]), rtol=1e-4, atol=2e-5)
    host.roster.rename("t", "u")
    with host.route("u", tasks="cr"):
        assert host.base.current.route.single.name == "u"


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda h: h.route("t"), r"'t' \(poly\): it goes by tasks, and none is said; say which, of trec, sst2, cr"),
        (lambda h: h.route("t", tasks="trek"), "unknown task 'trek' of tenant 't'; known: trec, sst2, cr"),
        (lambda h: h.route("t", tasks=[0, 3]), "unknown task 3 of tenant 't'; known: trec, sst2, cr"),
        (lambda h: h.route("t", -2), "unknown task -2 of tenant 't'; known: trec, sst2, cr"),
        (lambda h: h.route("t", True), "a task is a name or a whole number, and True is said; wanted one of trec"),
        (lambda h: h.route("t", [1.0, 0]), "a task is a name or a whole number, and 1.0 is said"),
        (lambda h: h.route("t", {"trec": 1}), "a task is a name or a whole number, and {'trec': 1} is said"),
        (lambda h: h.route("t", np.array([True])), "a task is a name or a whole number, and True is said"),
        (lambda h: h.merged("t", task=True), "a task is a name or a whole number, and True is said"),
        (lambda h: h.merged("t", task=1.0), "a task is a name or a whole number, and 1.0 is said"),
        (lambda h: h.merged("l", task=0), r"tenant 'l' \(lora\): it knows no tasks, and 0 is said"),
        (lambda h: h.route("t", ["cr", ["cr"]]), "each has as many as the others; this one has one task, 1"),
        (lambda h: h.route(torch.zeros(4, 6).long(), torch.zeros(6, 4).long()), r"readers of shape \(4, 6\) and"),
        (lambda h: h.route(torch.zeros(4).long(), [[0] * 6] * 4), r"readers of shape \(4,\) and tasks of shape \(4, 6"),
        (lambda h: h.route(["t"] * 4, torch.zeros(2).long()), "names 4 readers and 2 tasks; give one task per read"),
        (lambda h: h.route(None, "cr"), "the plain base knows no tasks, and 'cr' is said; leave it out"),
        (lambda h: h.route([None, "l"], ["cr", None]), "^row 0: the plain base knows no tasks, and 'cr' is said"),
        (lambda h: h.route(["t", None], [0, "cr"]), "^row 1: the plain base .* None or -1 says"),
        (lambda h: h.route(["t", None], "cr"), "^row 1: the plain base knows no tasks, and 'cr' is said"),
        (lambda h: h.route(["t", "l"], "cr"), r"^row 1: tenant 'l' \(lora\): it knows no tasks, .* None or -1"),
        (lambda h: h.route(["l", "t"], [None, None]), r"^row 1: tenant 't' \(poly\): it goes by .*name\)$"),
        (lambda h: h.route("t", ["cr", None, "cr"]), r"^row 1: tenant 't' .* goes by tasks, and none is said"),
        (lambda h: h.route(torch.tensor([[-1, -1], [h["t"].number, -1]]), torch.tensor([[-1, -1], [0, 2]])),
         "^row 1, token 1: the plain base knows no tasks, and 2 is said"),
        (lambda h: h.module(["t", "l"])(
            input_ids=torch.ones(2, 2).long(), tenants=torch.tensor([h["t"].number, -1]), tasks=[0, 1]),
         "^row 1: the plain base knows no tasks, and 1 is said"),
        (lambda h: h.module(None)(input_ids=torch.ones(1, 2).long(), tasks=[0]), "plain base knows no tasks, and 0 is"),
        (lambda h: h.route(["t", None], tasks=["cr"]), "names 2 readers and 1 task; give one task per reader"),
        (lambda h: h.route("l", tasks="cr"), r"tenant 'l' \(lora\): it knows no tasks, and 'cr' is said"),
        (lambda h: h.route("t", tasks=torch.tensor([0.0])), "tasks are names, numbers or a LongTensor; this is torch"),
        (lambda h: h.route("t", tasks=torch.tensor(True)), "tasks are names, numbers or a LongTensor; this is torch"),
        (lambda h: h.merged("t"), "it goes by tasks, and none is said"),
        (lambda h: h.module("t")(input_ids=torch.ones(1, 2).long()), "this module runs 't', which goes by tasks: a"),
        (lambda h: h.add("u", "poly", tasks="a,a"), "tasks 'a,a' has 'a' twice; wanted names, as trec,sst2"),
        (lambda h: h.add("u", "poly", tasks="a,,b"), "has an empty name"),
    ],
)  # fmt: skip
def test_what_is_refused(ask, message):
    host, _, _ = tenant()
    host.add("l", "lora")
    with pytest.raises(cw.CommonweightError, match=message):
        ask(host)


def test_a_read_without_a_task_is_refused():
    from commonweight.address import WHOLE, OfTask, at_task, tasks_of
    from commonweight.core import Read, dump, load

    address = OfTask(WHOLE, ("a", "b"), (0,))
    with pytest.raises(cw.CommonweightError, match="differ by task, and no task is said; known: a, b"):
        address(torch.ones(2, 3))
    told = at_task({"x": Read(address, ("p",)), "y": Read(WHOLE, ("q",))}, "b")
    assert told["x"].address.task == 1 and told["x"].address == address and tasks_of(told) == ("a", "b")
    assert told["x"].address(torch.tensor([[1.0], [2.0]])).item() == 2.0
    assert load(dump(told["x"].address)).task == 1
    with pytest.raises(cw.CommonweightError, match="unknown task 'sst2'; known: a, b"):
        at_task({"x": Read(address, ("p",))}, "sst2")


@pytest.mark.parametrize("method", ["psec", "lorahub", "autolora", "phatgoose"])
def test_tenants_over_several_find_a_task_in_each_by_its_name(method):
    """t and u have the same tasks in other orders; x and y are these in one order."""
    model, batch = make("llama")
    host = cw.Host(model)
    for i, (n, tasks) in enumerate((("t", "a,b,c"), ("u", "c,a,b"), ("v", "a,b,c"))):
        stir(host.add(n, "poly", tasks=tasks, skills=2, rank=2), 0 if n == "v" else i, std=0.3)
    with torch.no_grad():
        for n, p in host["v"].pools.items():
            p.copy_(host["u"].pools[n][[1, 2, 0]] if n.endswith("logits") else host["u"].pools[n])
    for over, name in ((["t", "u"], "o"), (["t", "v"], "w")):
        if method == "phatgoose":
            over = [host.add(f"{name}-{n}", method, over=[n]).name for n in over]
        host.add(name, method, over=over)
    found = {}
    with torch.no_grad():
        for n, task in [(n, k) for n in "ow" for k in "abc"]:
            with host.route(n, task):
                found[n, task] = answer(model, batch)
    for k in "abc":
        torch.testing.assert_close(found["o", k], found["w", k])
    assert (found["o", "a"] - found["o", "b"]).abs().max() > 1e-3


def test_tenants_over_several_that_go_by_other_tasks_are_refused():
    model, _ = make("llama")
    host = cw.Host(model)
    for n, tasks in (("t", "a,b,c"), ("v", "a,b"), ("n", "")):
        host.add(n, "poly", tasks=tasks, skills=2, rank=2)
    with pytest.raises(cw.CommonweightError, match="'t' by a, b, c and 'v' by a, b, so that a row's task would be"):
        host.add("o", "psec", over=["t", "n", "v"])
    with pytest.raises(cw.CommonweightError, match=r"'v' goes by tasks \(a, b\), and arrow works one vector out of"):
        host.add("o", "arrow", over=["n", "v"])
    assert host.add("o", "psec", over=["n", "v"]).tasks == ("a", "b")


def test_a_task_is_said_by_every_kind_of_whole_number_and_lists_as_tensors():
    host, t, batch = tenant()
    n = batch["input_ids"].shape[1]
    readers = torch.full((4, n), t.number)

    @torch.no_grad()
    def run(readers, tasks):
        with host.route(readers, tasks):
            return answer(host.model, batch)

    want = [run("t", name) for name in t.tasks]
    for one in (1, np.int64(1), torch.tensor(1), torch.tensor(1, dtype=torch.int32), np.array(1), "sst2"):
        for who in ("t", readers):
            torch.testing.assert_close(run(who, one), want[1], rtol=1e-4, atol=2e-5)
        assert t.at(one) is t.at("sst2")
    with torch.no_grad():
        assert torch.equal(host.module("t")(**batch, tasks=1).logits, want[1])
    rows = torch.tensor([1, 0, 2, 0])
    mixed = torch.stack([want[k][i] for i, k in enumerate(rows.tolist())])
    for said in (rows, rows.numpy(), rows.tolist(), ROWS, tuple(ROWS), [*rows]):
        for who in (["t"] * 4, readers):
            torch.testing.assert_close(run(who, said), mixed, rtol=1e-4, atol=2e-5)
    tokens = rows[:, None].expand(4, n)
    for said in (tokens, [[k] * n for k in ROWS]):
        for who in ("t", readers):
            torch.testing.assert_close(run(who, said), mixed, rtol=1e-4, atol=2e-5)
    assert torch.equal(run(None, [-1, None]), run(None, None))


@pytest.mark.parametrize("kind", ["noisy", "cpoly", "tensorpoly"])
def test_one_task_is_written_as_an_adapter_or_a_model(kind, tmp_path):
    host, _, batch = tenant(kind)
    with torch.no_grad(), host.route("t", "cr"):
        want = answer(host.model, batch)
    for write in (
        lambda: host.export_peft("t", tmp_path / "no"),
        lambda: host.export("t", tmp_path / "no"),
        lambda: host.module("t").save_pretrained(tmp_path / "no"),
    ):
        with pytest.raises(cw.CommonweightError, match="it goes by tasks, and none is said; say which, of trec"):
            write()
    host.export_peft("t", tmp_path / "peft", task="cr")
    host.export("t", tmp_path / "t.gguf", "gguf", task=2)
    for file in ("peft", "t.gguf"):
        name = host.load_adapter(tmp_path / file, file.removesuffix(".gguf") + "-back").name
        with torch.no_grad(), host.route(name):
            torch.testing.assert_close(answer(host.model, batch), want, rtol=1e-4, atol=2e-5)
    host.module("t").save_pretrained(tmp_path / "model", task="cr")
    with torch.no_grad():
        torch.testing.assert_close(
            answer(type(host.model).from_pretrained(tmp_path / "model").eval(), batch), want, rtol=1e-4, atol=2e-5
        )
    host.add("l", "lora")
    with pytest.raises(cw.CommonweightError, match="it knows no tasks, and 'cr' is said"):
        host.export("l", tmp_path / "no", task="cr")
