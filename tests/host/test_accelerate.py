"""A tenant's module in other people's loops: state dicts, and accelerate in two processes."""

import copy
from pathlib import Path

import pytest
import torch
from torch import nn

import commonweight as cw
from tests.in_two import in_two
from tests.models import make

STEPS = 4


def tenant_module():
    host = cw.Host(make("llama")[0], sites="*.q_proj|*.v_proj")
    tenant = host.add("t", "lora", rank=2)
    with torch.no_grad():
        for i, p in enumerate(tenant.parameters()):
            p.copy_(torch.randn(p.shape, generator=torch.Generator().manual_seed(i)) / 4)
    return tenant, host.module("t")


def batches():
    g = torch.Generator().manual_seed(5)
    return [torch.randint(3, 61, (8, 6), generator=g) for _ in range(STEPS)]


def pools(tenant):
    return {n: p.detach().clone() for n, p in tenant.named_parameters()}


def worker(rank: int, port: int, folder: str) -> None:
    """One of two: its half of every batch; then accelerate's own files, out and back."""
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    assert accelerator.num_processes == 2
    tenant, module = tenant_module()
    wrapped, optimizer = accelerator.prepare(module, torch.optim.SGD(tenant.parameters(), lr=0.5))
    assert type(wrapped).__name__ == "DistributedDataParallel"
    for ids in batches():
        mine = ids[4 * rank : 4 * rank + 4]
        accelerator.backward(wrapped(input_ids=mine, labels=mine).loss)
        optimizer.step()
        optimizer.zero_grad()
    trained = pools(tenant)
    accelerator.save_state(f"{folder}/state")
    with torch.no_grad():
        for p in tenant.parameters():
            p.zero_()
    accelerator.wait_for_everyone()
    accelerator.load_state(f"{folder}/state")
    assert all(torch.equal(p, trained[n]) for n, p in tenant.named_parameters())
    torch.save(trained, f"{folder}/{rank}.pt")
    accelerator.end_training()


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without torch.distributed")
def test_two_processes_train_as_one(tmp_path: Path):
    pytest.importorskip("accelerate")
    tenant, module = tenant_module()
    start = pools(tenant)
    optimizer = torch.optim.SGD(tenant.parameters(), lr=0.5)
    for ids in batches():
        module(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    in_two(worker, str(tmp_path))
    one, two = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    for n, p in pools(tenant).items():
        assert torch.equal(one[n], two[n]) and not torch.allclose(p, start[n], atol=1e-3)
        torch.testing.assert_close(one[n], p, atol=1e-6, rtol=1e-6)


class Wrapper(nn.Module):
    def __init__(self, module: nn.Module):
        super().__init__()
        self.module = module


@pytest.mark.parametrize("wrap", [lambda m: m, Wrapper])
def test_a_state_dict_is_the_pools_alone(wrap):
    tenant, module = tenant_module()
    outer = wrap(module)
    want, state = pools(tenant), {k: v.clone() for k, v in outer.state_dict().items()}
    assert len(state) == len(want)
    with torch.no_grad():
        for p in tenant.parameters():
            p.zero_()
    assert outer.load_state_dict(state) == ([], [])
    assert all(torch.equal(p, want[n]) for n, p in tenant.named_parameters())
    name, *_ = state
    with pytest.raises(RuntimeError, match=r"Missing key.*pools\."):
        outer.load_state_dict({k: v for k, v in state.items() if k != name})
    with pytest.raises(RuntimeError, match="Unexpected key"):
        outer.load_state_dict({**state, name + "x": state[name]})


def test_loading_never_writes_the_base():
    _, module = tenant_module()
    weight = module.get_parameter("base.lm_head.weight")
    before = weight.clone()
    state = {**module.state_dict(), "base.lm_head.weight": torch.zeros_like(before)}
    with pytest.raises(RuntimeError, match=r"Unexpected key.*base\.lm_head\.weight"):
        module.load_state_dict(state)
    module.load_state_dict(state, strict=False)
    assert torch.equal(weight, before)


def test_a_module_of_a_removed_tenant_is_refused():
    """Another tenant of the same name has other pools: an optimizer of the old ones would train nothing."""
    host = cw.Host(make("llama")[0], sites="*.q_proj|*.v_proj")
    tenant, module = host.add("t", "lora", rank=2), host.module("t")
    twin = copy.deepcopy(module)
    host.remove("t")
    for again in (False, True):
        if again:
            host.add("t", "lora", rank=2)
        with pytest.raises(cw.CommonweightError, match="made for a tenant 't' that has been removed"):
            module(input_ids=batches()[0])
    twin(input_ids=batches()[0], labels=batches()[0]).loss.backward()
    assert all(p.grad is not None for p in twin.parameters() if p.requires_grad)
    assert all(p.grad is None for p in tenant.parameters())
