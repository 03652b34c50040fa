"""Hooks that stand first, in both orders of torch's ordered dictionaries."""

from torch import nn

import commonweight as cw
from commonweight.host.foremost import foremost
from tests.models import make


def test_it_runs_and_stands_first():
    layer, ran = nn.Linear(2, 2), []
    layer.register_forward_pre_hook(lambda *_: ran.append("old"))
    handle = foremost(layer, lambda *_: ran.append("new"))
    layer(layer.weight)
    assert ran == ["new", "old"]
    assert [*dict.keys(layer._forward_pre_hooks)] == [*layer._forward_pre_hooks]
    handle.remove()
    layer(layer.weight)
    assert ran == ["new", "old", "old"]


def test_no_hook_of_a_host_stands_otherwise_than_it_runs():
    model, _ = make("llama")
    host = cw.Host(model)
    host.add("t", "lora", rank=2)
    for module in model.modules():
        for hooks in (module._forward_pre_hooks, module._forward_hooks):
            assert [*dict.keys(hooks)] == [*hooks]
