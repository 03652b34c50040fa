"""The host in the company it keeps: copies, threads, compilation, autocast, checkpoints, packed batches."""

from __future__ import annotations

import copy
import gc
import threading

import pytest
import torch
from torch import nn

import commonweight as cw
from commonweight.host import Tenant
from tests.host.past import blocks, hosted, routed
from tests.laws.subjects import stir
from tests.models import answer, make, shallow

X = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(1))


def two(kind: str = "llama", make=make):
    model, batch = make(kind)
    host = cw.Host(model)
    stir(host.add("a", "lora", rank=3), 1)
    stir(host.add("b", "mos", rank=4, budget=2, shards=2), 2)
    return host, model, batch


def checkpoint(model, reentrant: bool) -> None:
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": reentrant})


def alone(host, model, batch, name):
    with torch.no_grad(), host.route(name):
        return answer(model, batch)


def test_no_route_is_the_plain_base_bit_for_bit():
    model, batch = make("llama")
    want = answer(model, batch)
    host = cw.Host(model)
    stir(host.add("a", "lora"))
    with host.route("a"):
        pass
    assert torch.equal(answer(model, batch), want)
    with host.route(None):
        assert torch.equal(answer(model, batch), want)


def test_routes_nest_and_end():
    host, model, batch = two()
    a, b = (alone(host, model, batch, n) for n in "ab")
    with torch.no_grad(), host.route("a"):
        with host.route("b"):
            assert torch.equal(answer(model, batch), b)
        assert torch.equal(answer(model, batch), a)
        with pytest.raises(RuntimeError), host.route("b"):
            raise RuntimeError
        assert torch.equal(answer(model, batch), a)


def test_a_deep_copy_reads_its_own_tenants():
    host, model, batch = two()
    a = alone(host, model, batch, "a")
    twin = copy.deepcopy(host)
    stir(host["a"], 9)
    assert torch.equal(alone(twin, twin.model, batch, "a"), a)
    assert not torch.equal(alone(host, model, batch, "a"), a)
    plain = copy.deepcopy(model)
    with host.route("a"):
        assert torch.equal(answer(plain, batch), answer(make("llama")[0], batch)), "a copied model is a plain base"


def test_threads_do_not_see_each_others_route():
    host, model, batch = two()
    want = {n: alone(host, model, batch, n) for n in "ab"}
    wrong: list[str] = []

    def serve(name: str) -> None:
        for _ in range(20):
            if not torch.equal(alone(host, model, batch, name), want[name]):
                wrong.append(name)

    threads = [threading.Thread(target=serve, args=(n,)) for n in "abab"]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not wrong


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("inside", [True, False])
@pytest.mark.parametrize("route", ["a", "b", ["a", "b", None, "a"]])
def test_gradient_checkpointing_gives_the_same_gradients(route, inside, reentrant):
    def grads(on: bool):
        host, model, batch = two()
        model.train()
        if on:
            checkpoint(model, reentrant)
        with host.route(route):
            loss = answer(model, batch).square().mean()
            if inside:
                loss.backward()
        if not inside:
            with host.route("b"):
                answer(model, batch)  # another forward in between must not matter
            loss.backward()
        return [p.grad for n in "ab" for p in host[n].parameters() if p.grad is not None]

    with_, without = grads(True), grads(False)
    assert len(with_) == len(without) > 0
    for x, y in zip(with_, without):
        torch.testing.assert_close(x, y)


class Checkpointing(nn.Module):
    """A model that calls torch's checkpoint by itself."""

    def __init__(self, reentrant: bool):
        super().__init__()
        self.first, self.second, self.reentrant = nn.Linear(6, 6), nn.Linear(6, 6), reentrant

    def forward(self, x):
        return torch.utils.checkpoint.checkpoint(
            lambda x: self.second(self.first(x).tanh()), x, use_reentrant=self.reentrant
        )


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("readers", ["a", ["a", "b", None], None])
@pytest.mark.parametrize("backward", ["outside", "b", ["b", "b", "a"]])
def test_a_models_own_checkpoint_keeps_its_route(backward, readers, reentrant):
    torch.manual_seed(0)
    host = cw.Host(Checkpointing(reentrant))
    for i, name in enumerate("ab"):
        stir(host.add(name, "lora", rank=2), i)
    start = torch.randn(3, 6)

    def grads(within: bool):
        x = start.clone().requires_grad_()  # the re-entrant form asks for one
        for p in (p for n in "ab" for p in host[n].parameters()):
            p.grad = None
        with host.route(readers):
            loss = host.model(x).square().mean()
            if within:
                loss.backward()
        if not within:
            with host.route(None if backward == "outside" else backward):
                loss.backward()
        return [x.grad, *(p.grad for n in "ab" for p in host[n].parameters())]

    for got, want in zip(grads(False), grads(True), strict=True):
        assert (got is None) == (want is None)
        if got is not None:
            torch.testing.assert_close(got, want)


class Again(torch.autograd.Function):
    """A checkpoint that is none of torch's."""

    @staticmethod
    def forward(ctx, function, x):
        ctx.function = function
        ctx.save_for_backward(x)
        with torch.no_grad():
            return function(x)

    @staticmethod
    def backward(ctx, grad):
        x = ctx.saved_tensors[0].detach().requires_grad_()
        with torch.enable_grad():
            torch.autograd.backward(ctx.function(x), grad)
        return None, x.grad


class CheckpointingAlone(Checkpointing):
    def forward(self, x):
        return Again.apply(lambda x: self.second(self.first(x).tanh()), x)


@pytest.mark.parametrize("other", [None, "b", ["a", "a", "b"]])
def test_another_checkpoint_recomputed_under_another_route_is_an_error(other):
    host = cw.Host(CheckpointingAlone(True))
    for i, name in enumerate("ab"):
        stir(host.add(name, "lora", rank=2), i)
    x = torch.randn(3, 6, requires_grad=True)
    with host.route("a"):
        loss = host.model(x).square().mean()
    with host.route(other), pytest.raises(cw.CommonweightError, match=r"a checkpoint recomputes it .* right after it"):
        loss.backward()
    assert all(p.grad is None for n in "ab" for p in host[n].parameters())
    with host.route("a"):
        loss = host.model(x).square().mean()
    with host.route("a"):
        loss.backward()
    assert all(p.grad.abs().sum() > 0 for p in host["a"].parameters())


def test_autocast_and_a_bfloat16_base():
    host, model, batch = two("bert")
    want = alone(host, model, batch, "a")
    with torch.autocast("cpu", torch.bfloat16):
        got = alone(host, model, batch, "a")
    torch.testing.assert_close(got.float(), want, rtol=0.1, atol=0.1)
    model.bfloat16()
    assert all(p.dtype is torch.float32 for p in host["a"].parameters())
    torch.testing.assert_close(alone(host, model, batch, "a").float(), want, rtol=0.1, atol=0.1)
    with host.route(["a", "b", "a", None]):
        answer(model, batch).float().square().mean().backward()
    assert all(p.grad is not None and p.grad.dtype is torch.float32 for n in "ab" for p in host[n].parameters())


@pytest.mark.parametrize("route", [
    ["a", "b", None, "a"],
    *(pytest.param(r, marks=pytest.mark.slow) for r in ("a", "b", ["a", "c", "c", "a"], ["v", "w", "w", "v"])),
])  # fmt: skip
def test_torch_compile_without_a_graph_break(route):
    torch._dynamo.reset()
    host, model, batch = two("bert", shallow)
    stir(host.add("c", "lora", rank=3), 3)
    stir(host.add("v", "vera", rank=3), 3)
    stir(host.add("w", "vera", rank=3), 4)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    base = answer(model, batch)
    torch.testing.assert_close(answer(compiled, batch), base)
    with host.route(route):
        want = answer(model, batch)
        got = answer(compiled, batch)
        torch.testing.assert_close(got, want)
        got.square().mean().backward()
    assert all(p.grad is not None for p in host[route[0]].parameters())
    torch.testing.assert_close(answer(compiled, batch), base)


@pytest.mark.parametrize("route", ["a", ["a", "b"]], ids=str)
def test_a_compiled_model_traces_no_table_being_made(route, monkeypatch):
    """Tables are numbered by all that a process has made: traced, each costs a guard, and a tenant minutes."""
    torch._dynamo.reset()
    model = blocks(pairs=1)
    host = hosted(model)
    compiled, made, own = torch.compile(model, backend="eager"), [], Tenant._entered

    def entered(self):
        made.append(torch.compiler.is_compiling())
        return own(self)

    compiled(X)
    monkeypatch.setattr(Tenant, "_entered", entered)
    for name in "ab":
        host[name].rest()
    want = routed(host, route, X)
    for name in "ab":
        host[name].rest()
    with host.route(route):
        torch.testing.assert_close(compiled(X), want)
    assert len(made) >= 2 and not any(made)


def test_packed_batches_route_by_token():
    model, _ = make("mlp")
    host = cw.Host(model)
    a, b = (
        stir(host.add("a", "lora"), 1),
        stir(host.add("b", "ia3") if "ia3" in cw.methods.available() else host.add("b", "lora"), 2),
    )
    x = torch.randn(2, 5, 16)
    who = torch.tensor([[a.number, a.number, -1, b.number, b.number], [b.number, -1, -1, a.number, b.number]])
    with torch.no_grad():
        with host.route(who):
            packed = model(x)
        for number, name in ((a.number, "a"), (b.number, "b"), (-1, None)):
            with host.route(name):
                torch.testing.assert_close(packed[who == number], model(x)[who == number])


def test_a_long_tensor_with_one_number_per_row():
    host, model, batch = two()
    with torch.no_grad():
        with host.route(torch.tensor([host["b"].number, -1, host["a"].number, -1])):
            by_number = answer(model, batch)
        with host.route(["b", None, "a", None]):
            assert torch.equal(by_number, answer(model, batch))


def test_numbers_in_any_order_with_tenants_that_run_as_one_group():
    model, batch = make("llama")
    host = cw.Host(model)
    for i in range(4):
        stir(host.add(f"t{i}", "lora", rank=2), i)
    names = ["t2", "t0", "t3", "t1"]
    with torch.no_grad():
        with host.route(torch.tensor([host[n].number for n in names])):
            mixed = answer(model, batch)
        for i, n in enumerate(names):
            torch.testing.assert_close(mixed[i], alone(host, model, batch, n)[i], rtol=1e-5, atol=1e-6)


def test_a_pool_written_while_a_route_is_open_is_seen():
    model, batch = make("llama")
    host = cw.Host(model)
    for i in range(4):
        stir(host.add(f"t{i}", "lora", rank=2), i)
    with torch.no_grad(), host.route([f"t{i}" for i in range(4)]):
        before = answer(model, batch)
        assert torch.equal(answer(model, batch), before)
        stir(host["t2"], 9)
        after = answer(model, batch)
    assert torch.equal(after[[0, 1, 3]], before[[0, 1, 3]]) and not torch.equal(after[2], before[2])
    torch.testing.assert_close(after[2], alone(host, model, batch, "t2")[2], rtol=1e-5, atol=1e-6)


def test_some_rows_run_as_a_group_and_some_alone():
    model, batch = make("llama")
    batch = {k: v.repeat(3, 1) for k, v in batch.items()}
    host = cw.Host(model)
    for i in range(4):
        stir(host.add(f"t{i}", "lora", rank=2), i)
    stir(host.add("oft", "oft", block_size=8), 8)
    stir(host.add("wide", "lora", rank=3), 9)
    names = ["t2", None, "oft", "t0", "wide", "t2", "oft", "t3", None, "t0", "wide", "t1"]
    with torch.no_grad():
        with host.route(names):
            mixed = answer(model, batch)
        for i, n in enumerate(names):
            torch.testing.assert_close(mixed[i], alone(host, model, batch, n)[i], rtol=1e-4, atol=1e-5)


def test_generate_with_a_cache():
    host, model, batch = two()
    out = {}
    for name in ("a", "b"):
        with host.route(name):
            out[name] = model.generate(**batch, max_new_tokens=5, do_sample=False)
    with host.route(["a", "b", "b", "a"]):
        mixed = model.generate(**batch, max_new_tokens=5, do_sample=False)
    for i, name in enumerate("abba"):
        assert torch.equal(mixed[i], out[name][i])


def test_many_tenants_touch_no_module():
    model, _ = make("llama")
    host = cw.Host(model)
    before = {n: (len(m._forward_hooks), len(m._forward_pre_hooks), list(m.__dict__)) for n, m in model.named_modules()}
    keys = list(model.state_dict())
    for i in range(50):
        host.add(f"t{i}", "lora", rank=2)
    assert before == {
        n: (len(m._forward_hooks), len(m._forward_pre_hooks), list(m.__dict__)) for n, m in model.named_modules()
    }
    assert keys == list(model.state_dict())
    for i in range(50):
        host.remove(f"t{i}")
    assert len(host) == 0


def test_common_frozen_pools_exist_once():
    if "vera" not in cw.methods.available():
        return
    model, _ = make("llama")
    host = cw.Host(model)
    one, two_ = host.add("one", "vera", rank=4), host.add("two", "vera", rank=4)
    shared = [n for n, p in one.plan.pools.items() if not p.save]
    assert shared and all(one.pools[n] is two_.pools[n] for n in shared)
    host.remove("one")
    del one
    assert len(host.roster.frozen) == len(shared)
    host.remove("two")
    del two_
    gc.collect()
    assert not host.roster.frozen


def test_close_gives_the_model_back():
    model, _ = make("llama")
    flags = [p.requires_grad for p in model.parameters()]
    host = cw.Host(model)
    with pytest.raises(cw.CommonweightError, match="already has a host"):
        cw.Host(model)
    host.close()
    assert [p.requires_grad for p in model.parameters()] == flags
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    cw.Host(model).close()


def test_rows_of_a_fused_projection_are_sites():
    model, batch = make("gpt2")
    host = cw.Host(model, sites="*.c_attn", fused={"*.c_attn": 3})
    assert [s.name for s in host.sites if s.kind == "linear"][:3] == [
        f"transformer.h.0.attn.c_attn[{i}]" for i in range(3)
    ]
    tenant = stir(host.add("q-and-v", "lora", rank=2, sites="*.c_attn[[]0]|*.c_attn[[]2]"))
    assert len(tenant.plan.uses) == 4
    merged = host.merged("q-and-v")
    base = host.model.transformer.h[0].attn.c_attn.weight
    delta = merged["transformer.h.0.attn.c_attn.weight"] - base
    assert delta[:, 32:64].abs().max() == 0 and delta[:, :32].abs().max() > 0 and delta[:, 64:].abs().max() > 0
    plain, _ = make("gpt2")
    plain.load_state_dict(merged, strict=False)
    with host.route("q-and-v"):
        torch.testing.assert_close(answer(model, batch), answer(plain, batch), rtol=1e-4, atol=1e-5)


def test_any_module_is_a_model():
    net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))
    host = cw.Host(net, sites=lambda name, module: name == "2")
    assert [s.name for s in host.sites] == ["2"]
    stir(host.add("t", "lora", rank=2))
    x = torch.randn(3, 4)
    with host.route(["t", None, "t"]):
        y = net(x)
    assert torch.equal(y[1], net(x)[1]) and not torch.equal(y[0], net(x)[0])


class Keywords(nn.Module):
    """Calls its layers by keyword, as some models do."""

    def __init__(self):
        super().__init__()
        self.fc, self.norm = nn.Linear(16, 16), nn.LayerNorm(16)

    def forward(self, x):
        return self.norm(input=self.fc(input=x))


@pytest.mark.parametrize("method", ["lora", "oft", "ia3", "lntuning"])
def test_layers_that_are_called_by_keyword(method):
    torch.manual_seed(0)
    model, plain = Keywords(), Keywords()
    plain.load_state_dict(model.state_dict())
    host = cw.Host(model)
    stir(host.add("t", method, **({"block_size": 4} if method == "oft" else {})))
    plain.load_state_dict(host.merged("t"), strict=False)
    x = torch.randn(3, 16)
    with host.route("t"):
        torch.testing.assert_close(model(x), plain(x), rtol=1e-4, atol=1e-5)
    with host.route(["t", None, "t"]):
        torch.testing.assert_close(model(x)[[0, 2]], plain(x)[[0, 2]], rtol=1e-4, atol=1e-5)


def test_a_layer_that_is_fed_all_tokens_in_one_list():
    class Flat(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, x):
            n, t, d = x.shape
            return self.b(self.a(x).reshape(n * t, d)).reshape(n, t, d)

    host = cw.Host(Flat())
    stir(host.add("a", "lora", rank=2), 1)
    stir(host.add("b", "oft", block_size=4), 2)
    x = torch.randn(3, 5, 8)
    with torch.no_grad():
        with host.route(["a", None, "b"]):
            mixed = host.model(x)
        for i, n in enumerate(("a", None, "b")):
            with host.route(n):
                torch.testing.assert_close(mixed[i], host.model(x)[i], rtol=1e-4, atol=1e-5)


def test_blocks_in_a_sequential_leave_the_head_out():
    block = lambda: nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8))  # noqa: E731
    model = nn.ModuleDict({"blocks": nn.Sequential(block(), block()), "head": nn.Linear(8, 2)})
    assert not any(s.name == "head" for s in cw.Host(model).sites)


def test_a_tied_head_is_not_merged():
    model, _ = make("gpt2")
    host = cw.Host(model)
    stir(host.add("t", "lora", sites="lm_head", rank=2))
    with pytest.raises(cw.CommonweightError, match="lm_head: its weight is tied"):
        host.merged("t")


def test_the_fingerprint_sees_every_kind_of_parameter():
    base = cw.Host(make("llama")[0]).fingerprint
    for name in ("model.embed_tokens.weight", "model.norm.weight", "model.layers.1.mlp.up_proj.weight"):
        model, _ = make("llama")
        with torch.no_grad():
            model.get_parameter(name).add_(0.05 * torch.randn_like(model.get_parameter(name)))
        assert cw.Host(model).fingerprint != base, name
    model, _ = make("llama")
    host = cw.Host(model)
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight[:, 1:].mul_(1.5)
    assert host.fingerprint != base, "a change made after the host was built"


def many(tenants: int = 5, seen: list | None = None):
    """A model of two linear layers, and a hook that saw the first one's output before the host did."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 12), nn.Linear(12, 8)).eval()
    if seen is not None:
        model[0].register_forward_hook(lambda m, a, y: seen.append(y))
    host = cw.Host(model)
    names = [f"t{i}" for i in range(tenants)]
    for i, n in enumerate(names):
        stir(host.add(n, "lora", rank=2, seed=i), i)
    return host, names, torch.randn(tenants, 3, 8)


@pytest.mark.parametrize("inference", [False, True])
def test_stacks_of_a_mixed_batch_follow_every_write_and_every_pass(inference):
    host, names, x = many()

    def want(order):
        out = []
        for row, n in zip(x, order):
            with host.route(n):
                out.append(host.model(row[None])[0])
        return torch.stack(out)

    with torch.inference_mode(inference), torch.no_grad():
        for order in (names, names[::-1], ["t0", "t1", "t0", "t1", "t0"]):
            with host.route(order):
                for _ in range(4):  # the first pass shares memory between sites, later ones keep their stacks
                    torch.testing.assert_close(host.model(x), want(order))
                    host["t1"].pools["0.B"].neg_()
    with host.route(names):  # memory that inference mode has written serves outside of it
        torch.testing.assert_close(host.model(x), want(names))
        host.model(x).square().sum().backward()
    assert all(p.grad.abs().sum() > 0 for n in names for p in host[n].parameters())


def test_a_mixed_batch_does_not_write_over_what_another_hook_was_given():
    seen: list = []
    host, names, x = many(seen=seen)
    with torch.no_grad(), host.route(names):
        host.model(x)
    want = torch.nn.functional.linear(x, host.model[0].weight, host.model[0].bias)
    torch.testing.assert_close(seen[-1], want)


def test_a_bfloat16_base_reads_stacks_of_float32_pools():
    host, names, x = many()
    with torch.no_grad(), host.route(names):
        want = host.model(x)
        host.model.bfloat16()
        for _ in range(3):
            got = host.model(x.bfloat16())
            assert got.dtype is torch.bfloat16
            torch.testing.assert_close(got.float(), want, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("route", [None, "t", [None, "t", "u", "t"], ["u", "u", None, None]])
def test_the_last_tokens_of_a_batch_reach_the_head_together(route):
    """A slice of all tokens a frozen head would multiply row by row (findings/torch_frozen_head_by_rows.sh)."""
    model, batch = make("llama")
    host, seen = cw.Host(model), []
    stir(host.add("t", "lora", rank=2))
    stir(host.add("u", "lora", rank=2, sites="lm_head|*q_proj"), 1)
    model.lm_head.register_forward_hook(lambda _, args, y: seen.append((args[0].is_contiguous(), len(args[0]))))
    with torch.no_grad(), host.route(route):
        last = model(**batch, logits_to_keep=1).logits
        whole = model(**batch).logits
    assert (True, 4) in seen and all(together for together, _ in seen)
    torch.testing.assert_close(last, whole[:, -1:], rtol=1e-5, atol=1e-6)
