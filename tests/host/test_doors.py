"""Weights that a model reads past their modules are the tenant's all the same, or it is said by name."""

from __future__ import annotations

import copy
import pickle
import threading
import warnings
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

import commonweight as cw
from commonweight.host.route import Route
from tests.host.past import MLP, Attention, Blocks, blocks, hosted, merged, routed
from tests.laws.subjects import stir
from tests.models import answer, make

WAYS = "called", "linear", "matmul", "columns", "cast", "forward", "kernel"
X = torch.randn(3, 5, 16, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("method", ["lora", "ia3", "dora", "bitfit"])
@pytest.mark.parametrize("way", WAYS)
def test_the_first_pass_and_every_other_is_the_merged_model(way, method):
    host = hosted(blocks(way), method)
    with torch.no_grad():
        base = host.model(X)
    want = {n: merged(host, n, blocks(way), X) for n in "ab"} | {None: base}
    for name in ("a", "b", "a"):
        torch.testing.assert_close(routed(host, name, X), want[name])
        assert not torch.equal(want[name], base)
    for readers in (["b", None, "a"], ["a", "a", "b"]):
        mixed = routed(host, readers, X)
        for i, name in enumerate(readers):
            torch.testing.assert_close(mixed[i], want[name][i])
    with torch.no_grad():
        assert torch.equal(host.model(X), base)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("readers", ["a", ["a", "a", "b"]])
def test_gradients_reach_every_pool(way, readers):
    host, like = hosted(blocks(way)), hosted(blocks("called" if way in ("called", "columns") else "matmul"))
    for h in (host, like):
        with h.route(readers):
            h.model(X if readers == "a" or way == "called" else X[:3]).square().mean().backward()
    for name in "ab" if isinstance(readers, list) else "a":
        grads = [p.grad for p in host[name].parameters()]
        assert all(g is not None and g.abs().sum() > 0 for g in grads)
    if way not in ("called", "linear"):
        for p, q in zip(host["a"].parameters(), like["a"].parameters()):
            torch.testing.assert_close(p.grad, q.grad)


def test_only_modules_that_are_read_past_keep_a_door():
    model = blocks("matmul")
    kinds = [type(m) for m in model.modules()]
    host = hosted(model)
    routed(host, "a", X)
    kept = [n for n, m in model.named_modules() if type(m) not in kinds]
    # a block with a parameter of its own, q_bias, reads it through a door as long as the host lives
    assert kept == ["layers.0", "layers.0.qkv", "layers.2", "layers.2.qkv"]
    host.close()
    assert [type(m) for m in model.modules()] == kinds
    assert not any("door" in key for m in model.modules() for key in m.__dict__)


def test_a_class_that_was_made_of_one_with_a_door_stays():
    class Twice(nn.Module):
        def forward(self, w):
            return 2 * w

    model = blocks("called")
    host = hosted(model)
    layer = next(m for m in model.modules() if type(m).__name__ == "Linear")
    nn.utils.parametrize.register_parametrization(layer, "weight", Twice())
    want = model(X)
    routed(host, "a", X)
    host.close()
    assert nn.utils.parametrize.is_parametrized(layer) and torch.equal(model(X), want)


def test_who_asks_for_a_dtype_reads_no_weight():
    class Careful(MLP):
        def forward(self, x):
            assert isinstance(self.down.weight, torch.Tensor) and self.down.weight.shape == (16, 32)
            return super().forward(x.to(self.down.weight.dtype).to(self.down.weight.device))

    model = Blocks(Careful(), Careful()).eval()
    host = hosted(model)
    mixed = routed(host, ["a", None, "b"], X)
    torch.testing.assert_close(mixed[0], routed(host, "a", X)[0])
    assert type(model.layers[0].down) is nn.Linear


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("masked", [True, False])
def test_attention_of_torch_and_its_fast_path(masked, first):
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=first)
    make = lambda: nn.TransformerEncoder(copy.deepcopy(layer), 2, enable_nested_tensor=first).eval()  # noqa: E731
    host = hosted(make())
    assert {"layers.0.self_attn.in_proj", "layers.0.self_attn.out_proj"} <= {s.name for s in host.sites}
    x = X if first else X.transpose(0, 1)
    pad = torch.zeros(3, 5, dtype=torch.bool)
    pad[1, 3:] = True
    options = {"src_key_padding_mask": pad} if masked else {}

    def run(readers, model=None):
        with torch.no_grad(), warnings.catch_warnings(), host.route(readers):
            warnings.simplefilter("ignore")  # nested tensors are a prototype, torch says
            return (model or host.model)(x, **options)

    want = {None: run(None)}
    for name in "ab":
        like = make()
        like.load_state_dict(host.merged(name), strict=False)
        want[name] = run(None, like)
        torch.testing.assert_close(run(name), want[name])
    if first:
        readers = ["b", None, "a"]
        mixed = run(readers)
        for i, name in enumerate(readers):
            torch.testing.assert_close(mixed[i], want[name][i])
    with host.route("a"):
        host.model(x, **options).square().mean().backward()
    assert all(p.grad is not None for p in host["a"].parameters())


def test_attention_whose_keys_are_of_another_width():
    class Across(nn.Module):
        def __init__(self):
            super().__init__()
            self.attn = nn.MultiheadAttention(16, 2, kdim=8, vdim=8, batch_first=True)
            self.up = nn.Linear(16, 16)

        def forward(self, x):
            return self.up(self.attn(x, x[..., :8], x[..., 8:])[0])

    def make():
        torch.manual_seed(0)
        return Across().eval()

    host = hosted(make())
    assert {"attn.q_proj", "attn.k_proj", "attn.v_proj", "attn.out_proj", "up"} == {s.name for s in host.sites}
    torch.testing.assert_close(routed(host, "a", X), merged(host, "a", make(), X))


def test_parts_of_attentions_own_weight_are_sites():
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True).eval()
    host = cw.Host(layer, fused={"*.in_proj": 3})
    stir(host.add("v", "lora", rank=2, sites="*.in_proj[[]2]"))
    changed = host.merged("v")["self_attn.in_proj_weight"] - layer.self_attn.in_proj_weight
    assert changed[:32].abs().sum() == 0 and changed[32:].abs().sum() > 0


def test_attention_is_not_exported_where_an_adapter_has_no_effect(tmp_path):
    host = hosted(nn.TransformerEncoderLayer(16, 2, 32, batch_first=True).eval())
    with pytest.raises(cw.CommonweightError, match=r"self_attn.*attention computes with this weight by itself"):
        host.export_peft("a", tmp_path / "out")


def test_a_layer_that_keeps_a_copy_of_its_weight_is_named_once():
    class Stale(MLP):
        def __init__(self):
            super().__init__()
            self.copy = self.up.weight.detach().clone()

        def forward(self, x):
            return self.down((x @ self.copy.T).relu())

    host = hosted(Blocks(Stale(), Stale()).eval())
    with pytest.warns(UserWarning, match=r"layers\.0\.up, layers\.1\.up: neither called nor read in this pass"):
        routed(host, "a", X)
    routed(host, "a", X)  # once


def test_layers_that_a_pass_does_not_reach_are_no_matter():
    class Dropped(Blocks):
        def forward(self, x):
            return x + self.layers[0](x)

    host = hosted(Dropped(Attention("called"), MLP()).eval())
    routed(host, "a", X)
    model, batch = make("moe")
    host = cw.Host(model)
    stir(host.add("a", "lora", rank=2))
    with torch.no_grad(), host.route("a"):
        answer(model, {"input_ids": batch["input_ids"][:, :1]})


def test_a_site_that_is_reached_later_is_looked_at_then():
    class Late(Blocks):
        later = False

        def forward(self, x):
            return super().forward(x) if self.later else x + self.layers[0](x)

    torch.manual_seed(0)
    model = Late(MLP(), Attention("matmul")).eval()
    host = hosted(model)
    routed(host, "a", X)
    model.later = True
    like = copy.deepcopy(model)
    torch.testing.assert_close(routed(host, "a", X), merged(host, "a", like, X))


class Sometimes(nn.Module):
    """Reads past its module in one mode alone."""

    def __init__(self, when):
        super().__init__()
        self.when, self.up = when, nn.Linear(16, 16, bias=False)

    def forward(self, x):
        past = {
            "train": self.training,
            "eval": not self.training,
            "no gradients": not torch.is_grad_enabled(),
            "one token": x.shape[1] == 1,
        }[self.when]
        return x @ self.up.weight.T if past else self.up(x)


class Tokens(nn.Module):
    def __init__(self, *layers):
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, inputs_embeds):
        for layer in self.layers:
            inputs_embeds = inputs_embeds + layer(inputs_embeds)
        return inputs_embeds


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("when", ["train", "eval", "no gradients", "one token"])
def test_a_weight_that_is_read_past_its_module_in_one_mode_alone(when, first):
    torch.manual_seed(0)
    model = Tokens(Sometimes(when), MLP()).eval()
    like = copy.deepcopy(model)
    host = hosted(model)
    modes = [(t, g, n) for t in (False, True) for g in (True, False) for n in (5, 1)]
    for train, grad, tokens in modes if first else modes[::-1]:
        x = X[:, :tokens]
        model.train(train), like.train(train)
        with torch.set_grad_enabled(grad), host.route("a"):
            y = model(inputs_embeds=x)
        torch.testing.assert_close(y.detach(), merged(host, "a", like, x))
        with torch.set_grad_enabled(grad), host.route(["a", None, "b"]):
            mixed = model(inputs_embeds=x)
        torch.testing.assert_close(mixed[0].detach(), y[0].detach())
    assert not host.base.doors.open
    assert [type(m) is nn.Linear for m in (model.layers[0].up, model.layers[1].up)] == [False, True]


def test_one_part_in_training_is_a_mode_of_its_own():
    torch.manual_seed(0)
    model = Tokens(Sometimes("train"), Sometimes("train")).eval()
    like = copy.deepcopy(model)
    host = hosted(model)
    routed(host, "a", X)
    for m in (model, like):
        m.layers[1].train()
    with torch.no_grad(), host.route("a"):
        torch.testing.assert_close(model(inputs_embeds=X), merged(host, "a", like, X))


def test_a_compiled_model_in_a_mode_that_is_new():
    torch._dynamo.reset()
    torch.manual_seed(0)
    model = Tokens(Sometimes("train"), MLP()).eval()
    like = copy.deepcopy(model)
    host = hosted(model)
    routed(host, "a", X)
    compiled = torch.compile(model, backend="eager")
    for train in (False, True):
        model.train(train), like.train(train)
        with torch.no_grad(), host.route("a"):
            torch.testing.assert_close(compiled(X), merged(host, "a", like, X))


def test_until_a_route_opens_every_module_is_as_it_was():
    model = blocks("matmul")
    kinds = [type(m) for m in model.modules()]
    host = hosted(model)
    assert [type(m) for m in model.modules()] == kinds
    with host.route(None):
        model(X)
    assert [type(m) for m in model.modules()] == kinds


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_layers_may_be_quantised_before_the_first_route():
    from torch.ao.quantization import quantize_dynamic

    model = Blocks(MLP(), MLP()).eval()
    host = hosted(model)
    quantize_dynamic(model, inplace=True)
    packed = [n for n, m in model.named_modules() if type(m) is torch.ao.nn.quantized.dynamic.Linear]
    assert packed == ["layers.0.up", "layers.0.down", "layers.1.up", "layers.1.down"]
    base = host.model(X)
    with pytest.raises(cw.CommonweightError, match=r"is no longer in the model"):  # torch.ao's layers are no sites
        routed(host, "a", X)
    with torch.no_grad():
        assert torch.equal(host.model(X), base)
    host.close()
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


@pytest.mark.parametrize("after", [False, True])
def test_a_deep_copy_has_doors_of_its_own(after):
    host = hosted(blocks("matmul"))
    a = routed(host, "a", X)
    if not after:
        host = hosted(blocks("matmul"))
    twin = copy.deepcopy(host)
    stir(host["a"], 9)
    assert torch.equal(routed(twin, "a", X), a)
    alone = copy.deepcopy(host.model)
    with host.route("a"), torch.no_grad():
        assert torch.equal(alone(X), blocks("matmul")(X)), "a copied model is a plain base"


def test_a_class_with_a_door_can_be_pickled():
    from commonweight.host.door import with_door

    made = with_door(nn.Linear, ("weight", "bias"))
    linear = nn.Linear(3, 2)
    want = linear(torch.ones(3))
    linear.__class__ = made
    found = pickle.loads(pickle.dumps(linear))
    assert type(found) is made and torch.equal(found(torch.ones(3)), want)


@pytest.mark.parametrize(("way", "eager_first"), [("called", False), ("linear", False), ("matmul", True)])
def test_torch_compile(way, eager_first):
    torch._dynamo.reset()
    host = hosted(Blocks(Attention(way), MLP()).eval())
    like = Blocks(Attention(way), MLP()).eval()
    like.load_state_dict(host.model.state_dict())
    want = merged(host, "a", like, X)
    if eager_first:
        routed(host, "a", X)
    compiled = torch.compile(host.model, backend="eager")
    with torch.no_grad():
        base = compiled(X)
        with host.route("a"):
            torch.testing.assert_close(compiled(X), want)
        torch.testing.assert_close(compiled(X), base)


def test_a_method_that_changes_no_weight_reads_by_product_or_is_named():
    class Output:  # a bind with nothing but an output form
        def output(self, x, y, base, **slots):
            return y + 1

    for way in ("linear", "matmul", "columns", "cast"):
        host = hosted(blocks(way))
        entry = host["a"].table["layers.0.qkv"][0]
        entry.bind, entry.output = Output(), Output().output
        if way != "cast":
            want, base = routed(host, "a", X), routed(host, None, X)
            assert not torch.equal(want, base)
            torch.testing.assert_close(routed(host, ["a", None, "a"], X), torch.stack([want[0], base[1], want[2]]))
            continue
        with pytest.raises(cw.CommonweightError, match=r"layers\.0\.qkv: the model reads its weight past the module"):
            routed(host, "a", X)


def test_numbers_for_each_token_with_a_weight_read_past():
    for way in ("linear", "matmul", "columns"):
        host = hosted(blocks(way))
        numbers = torch.tensor([[host["a"].number] * 5, [-1] * 5, [host["b"].number] * 5])
        torch.testing.assert_close(routed(host, numbers, X), routed(host, ["a", None, "b"], X))
    with pytest.raises(cw.CommonweightError, match=r"layers\.0\.qkv: the model reads its weight past"):
        routed(hosted(blocks("cast")), numbers, X)


def test_an_error_of_the_model_itself_comes_out_of_the_first_routed_pass():
    host = cw.Host(make("llama")[0])
    host.add("t", "lora", rank=2)
    ids = torch.ones(2, 4, dtype=torch.long)
    with host.route("t"), pytest.raises(ValueError, match="batch_size"):
        host.model(ids, labels=torch.ones(3, 4, dtype=torch.long))
    with host.route("t"):
        host.model(ids)


HOUSEKEEPING = {
    "add": lambda host, at: [host.add(f"n-{m}", m) for m in ("lora", "full", "dora", "pissa", "svf", "tokens", "mos")],
    "save": lambda host, at: host.save("other", at / "saved.safetensors"),
    "load": lambda host, at: host.load("again", at / "other.safetensors"),
    "export": lambda host, at: host.export_peft("other", at / "peft"),
    "import": lambda host, at: host.import_peft("came", at / "other-peft"),
    "fingerprint": lambda host, at: host.fingerprint,
    "coverage": lambda host, at: host.coverage(),
    "merged": lambda host, at: host.merged("other"),
    "remove": lambda host, at: host.remove("other"),
}  # fmt: skip


@pytest.mark.parametrize("what", HOUSEKEEPING)
@pytest.mark.filterwarnings("ignore:.*tied")
def test_a_house_is_kept_by_a_thread_of_its_own_while_another_runs_the_model(what, tmp_path):
    """Nobody there asks which route is in force: it is no work of the model's."""
    model, batch = make("llama")
    host = cw.Host(model)
    for i, name in enumerate(("mine", "other")):
        stir(host.add(name, "lora", rank=2, seed=i), i)
    host.save("other", tmp_path / "other.safetensors")
    host.export_peft("other", tmp_path / "other-peft")
    opened, done, wrong = threading.Event(), threading.Event(), []

    def serve():
        with host.route("mine"):
            opened.set()
            done.wait(60)

    def keep():
        opened.wait(60)
        try:
            HOUSEKEEPING[what](host, tmp_path)
        except Exception as e:
            wrong.append(e)
        finally:
            done.set()

    threads = [threading.Thread(target=f) for f in (serve, keep)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not wrong, wrong[0]
    answer(model, batch)


def of(host: cw.Host, name: str) -> Any:
    """A route as a server sets it: not by `Host.route`."""
    return host.base.current.within(Route(single=host[name]))


def test_the_first_pass_of_a_server_reads_past_modules_too():
    host = hosted(model := blocks("matmul"))
    with torch.no_grad(), of(host, "a"):
        torch.testing.assert_close(model(X), merged(host, "a", copy.deepcopy(model), X))


def test_a_first_route_opens_no_door_behind_another_threads_pass():
    """Its layers would read the tenant's weights, and add the change once more."""
    host = hosted(model := blocks("called"))
    want = merged(host, "a", copy.deepcopy(model), X)
    inside, on, found = threading.Event(), threading.Event(), []

    def wait(*_: Any) -> None:
        inside.set()
        on.wait(60)

    def serve() -> None:
        with torch.no_grad(), of(host, "a"):
            found.append(model(X))

    handle = model.layers[0].qkv.register_forward_pre_hook(wait)
    thread = threading.Thread(target=serve)
    thread.start()
    inside.wait(60)
    with host.route("a"):
        on.set()
        thread.join()
    handle.remove()
    torch.testing.assert_close(found[0], want)
    with torch.no_grad(), host.route("a"):
        torch.testing.assert_close(model(X), want)


def test_a_module_may_be_called_while_its_door_closes(monkeypatch):
    host = hosted(model := blocks("called"))
    qkv, remove, found = model.layers[0].qkv, RemovableHandle.remove, []
    with torch.no_grad(), host.route("a"):
        want = qkv(X)

        def called(self: RemovableHandle) -> None:
            remove(self)
            found.append(qkv(X))

        for door in host.base.doors.doors.values():
            with monkeypatch.context() as m:
                m.setattr(RemovableHandle, "remove", called)
                door.close()
    assert len(found) > 1
    for y in found:
        torch.testing.assert_close(y, want)
