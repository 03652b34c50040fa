"""What is wrapped around a model or its layers is in no name of a site, a file or an export."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import commonweight as cw
from tests.host.past import blocks, hosted, routed

X = torch.randn(3, 5, 16, generator=torch.Generator().manual_seed(1))


class Wrapper(nn.Module):
    def __init__(self, module: nn.Module):
        super().__init__()
        self.module = module

    def forward(self, *args, **kwargs):
        return self.module(*args, **kwargs)


def compiled_layers() -> nn.Module:
    model = blocks()
    for i, layer in enumerate(model.layers):
        model.layers[i] = untraced(layer)
    return model


def untraced(module: nn.Module) -> nn.Module:
    """As torch.compile wraps it, and nothing is traced: the names are what is asked here."""
    made = torch.compile(module, backend="eager")
    made.forward = made._orig_mod.forward
    return made


def checkpointed() -> nn.Module:
    from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

    model = blocks()
    for i, layer in enumerate(model.layers):
        model.layers[i] = checkpoint_wrapper(layer)
    return model


AROUND = {
    "module": lambda: Wrapper(blocks()), "twice": lambda: Wrapper(Wrapper(blocks())),
    "compiled": lambda: torch.compile(blocks(pairs=1), backend="eager"),
    "data parallel": lambda: nn.DataParallel(blocks()), "both": lambda: untraced(Wrapper(blocks())),
    "layers": compiled_layers, "checkpointed": checkpointed,
}  # fmt: skip


@pytest.mark.parametrize("around", AROUND)
def test_a_tenant_of_a_wrapped_model_is_one_of_the_plain_model(around, tmp_path):
    torch._dynamo.reset()
    pairs = 1 if around == "compiled" else 2  # each is traced by itself, for seconds
    plain, host = hosted(blocks(pairs=pairs)), hosted(AROUND[around]())
    assert host.sites == plain.sites and host.fingerprint == plain.fingerprint
    want = {n: routed(plain, n, X) for n in "ab"}
    for name in "ab":
        torch.testing.assert_close(routed(host, name, X), want[name])
    mixed = routed(host, ["b", None, "a"], X)
    torch.testing.assert_close(mixed[0], want["b"][0])
    torch.testing.assert_close(mixed[1], routed(plain, None, X)[1])
    plain.load("from", host.save("a", tmp_path / "a"))
    torch.testing.assert_close(routed(plain, "from", X), want["a"])
    assert host.merged("a").keys() == plain.merged("a").keys()
    host.export_peft("a", tmp_path / "wrapped")
    plain.export_peft("a", tmp_path / "plain")
    keys = [load_file(tmp_path / d / "adapter_model.safetensors").keys() for d in ("wrapped", "plain")]
    assert keys[0] == keys[1]


def test_a_host_made_after_the_model_was_compiled_and_run():
    torch._dynamo.reset()
    model = blocks(pairs=1)
    compiled = torch.compile(model, backend="eager")
    base = compiled(X).detach()
    host = hosted(model)
    with torch.no_grad(), host.route("a"):
        routed_ = compiled(X)
    assert not torch.allclose(routed_, base)
    torch.testing.assert_close(routed_, routed(hosted(blocks(pairs=1)), "a", X))


def test_copies_in_threads_are_refused(monkeypatch):
    model = nn.DataParallel(blocks())
    model.device_ids = [0, 1]
    with pytest.raises(cw.CommonweightError, match=r"DataParallel.*make the host of model\.module"):
        cw.Host(model)


class TestOnAPeftModel:
    @pytest.fixture
    def models(self):
        from peft import LoraConfig, get_peft_model

        model = get_peft_model(blocks(), LoraConfig(r=2, target_modules=["qkv", "up"], modules_to_save=["proj"])).eval()
        return model, blocks()

    def test_sites_are_the_bases(self, models):
        host = cw.Host(models[0])
        assert [s.name for s in host.sites] == [s.name for s in cw.Host(models[1]).sites]
        assert not any("lora" in s.name or "peft" in s.name for s in host.base.every)

    def test_a_tenant_stands_beside_the_adapter(self, models):
        host, plain = hosted(models[0]), hosted(models[1])
        torch.testing.assert_close(routed(host, "a", X), routed(plain, "a", X))  # a fresh adapter changes nothing
        adapter = models[0].base_model.model.layers[0].qkv.lora_B["default"].weight
        adapter.data.normal_()
        alone = routed(host, None, X)
        assert not torch.allclose(alone, routed(plain, None, X)) and not torch.allclose(routed(host, "a", X), alone)

    def test_an_export_says_what_it_was_made_beside(self, models, tmp_path):
        host = hosted(models[0], sites="*.qkv")
        host.export_peft("a", tmp_path / "out")
        assert "PEFT adapters that the model carries" in (tmp_path / "out" / "report.json").read_text()
        assert next(iter(load_file(tmp_path / "out" / "adapter_model.safetensors"))).startswith(
            "base_model.model.layers.0.qkv.lora_"
        )

    def test_another_adapter_is_another_base(self, models):
        host = cw.Host(models[0])
        before = host.fingerprint
        models[0].base_model.model.layers[0].qkv.lora_A["default"].weight.data.add_(1)
        assert host.fingerprint != before != cw.Host(models[1]).fingerprint

    def test_an_adapter_that_comes_later_is_no_site_either(self, models):
        from peft import LoraConfig, get_peft_model

        host = hosted(blocks())
        want = routed(host, "a", X)
        wrapped = get_peft_model(host.model, LoraConfig(r=2, target_modules=["qkv"])).eval()
        with torch.no_grad(), host.route("a"):
            torch.testing.assert_close(wrapped(X), want)
        assert not any("lora" in s.name for s in host.base.every)
