"""Weights laid for oneDNN: read in an engine's steps alone, made anew when written to, gone when it is closed."""

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import nn

import commonweight as cw
from commonweight.host.prepacked import Forward, layers, prepack, unpack
from commonweight.serve import attention
from tests.models import make

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="no oneDNN")


@pytest.fixture
def step():
    attention.STEP.plans = {}
    yield
    attention.STEP.plans = None


def _model(dtype: torch.dtype = torch.float32) -> Any:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(24, 40), nn.Linear(40, 8, bias=False)).to(dtype)


@torch.no_grad()
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16))
def test_a_step_answers_as_the_layers_do(step, dtype):
    model = _model(dtype)
    x = torch.randn(1, 5, 24).to(dtype)
    want = model(x)
    found = prepack(model, True, attention.stepping)
    assert len(found) == 2
    torch.testing.assert_close(model(x), want)
    torch.testing.assert_close(model(x.transpose(0, 1)), want.transpose(0, 1))
    able = dtype is torch.float32 or torch.ops.mkldnn._is_mkldnn_bf16_supported()
    assert [m.__dict__["forward"].packed is not None for m in found] == [able, able]


def test_only_a_step_reads_the_copies_so_that_gradients_go_through():
    model = _model()
    found = prepack(model, True, attention.stepping)
    model(torch.randn(2, 24)).sum().backward()
    assert all(m.__dict__["forward"].packed is None and m.weight.grad is not None for m in found)


@torch.no_grad()
def test_a_weight_that_was_written_to_or_replaced_is_packed_anew(step):
    model, x = _model(), torch.randn(3, 24)
    prepack(model, True, attention.stepping)
    before = model(x)
    model[0].weight.mul_(2)
    assert not model(x).allclose(before)
    torch.testing.assert_close(model[0](x), 2 * x @ (model[0].weight / 2).T + model[0].bias)
    model[1].weight = nn.Parameter(torch.zeros(8, 40))
    assert not model(x).any()


@torch.no_grad()
def test_copies_of_a_model_read_their_own_weights(step):
    model, x = _model(), torch.randn(3, 24)
    prepack(model, True, attention.stepping)
    want = model(x)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        torch.testing.assert_close(other(x), want)
        other[1].weight.zero_()
        assert not other(x).any() and model(x).any()


def test_what_is_no_plain_linear_layer_stays():
    class Other(nn.Linear):
        def forward(self, input):
            return super().forward(input) + 1

    odd: Any = nn.Linear(4, 4)
    odd.forward = lambda x: x
    model = nn.Sequential(Other(4, 4), odd, nn.Linear(4, 4, dtype=torch.float64), nn.Linear(4, 4, device="meta"))
    assert layers(model) == []


def test_unpacked_layers_are_as_they_were():
    model = _model()
    unpack(prepack(model, True, attention.stepping))
    assert all("forward" not in m.__dict__ for m in model) and prepack(model, False) == []


def test_an_engine_packs_and_leaves_the_model_as_it_was():
    model, _ = make("llama")
    answers = []
    for choice in (True, False):
        with cw.Engine(cw.Host(model), prepack=choice, cache_tokens=256, max_requests=4) as engine:
            assert any(isinstance(m.forward, Forward) for m in model.modules() if isinstance(m, nn.Linear)) is choice
            asked = cw.Request(tenant=None, prompt=[1, 5, 9], max_new_tokens=4, temperature=0, ignore_eos=True)
            answers.append(engine.generate([asked])[0])
        engine.host.close()
        assert not any("forward" in m.__dict__ for m in model.modules() if isinstance(m, nn.Linear))
    assert answers[0].tokens == answers[1].tokens and len(answers[0].tokens) == 4, answers
