"""A shared model in two processes, each of which holds half of it (FSDP2), trains as in one."""

import torch
import transformers as tf

from commonweight import adapt, share
from commonweight.adapt.shard import groups
from tests.adapt import tiny
from tests.in_two import in_two, wanted
from tests.share.deep import IDS, llama

METHODS = {"recursive": {"loops": 2, "relax": 2}, "hashed": {"chunk": 8, "compression": 2.0}}


def trained(model, ids):
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.05)
    for _ in range(2):
        optimizer.zero_grad()
        model(ids, labels=ids).loss.backward()
        optimizer.step()
    return model


def adapted(folder, **how):
    host = adapt.open_host(str(folder), "lm", dtype="float32", **how)
    rows = [{"text": r["text"]} for r in tiny.rows(12)]
    made = adapt.adapt(host, "t", rows, task="lm", method="lora", options={"rank": 2}, epochs=1, batch_size=4, lr=1e-2)
    return {n: p.detach() for n, p in made.tenant.named_parameters()}


def worker(rank, port, folder):
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    out = {"adapted": adapted(f"{folder}/small", shard=True)}  # joins the processes
    mesh = init_device_mesh("cpu", (2,))
    for method, options in METHODS.items():
        small = share.share(llama(4), method, **options)
        for some in groups(small):
            fully_shard(some, mesh=mesh)
        fully_shard(small, mesh=mesh)
        trained(small, IDS[rank : rank + 1])  # FSDP takes the mean of both
        out[method] = {n: p.full_tensor() for n, p in small.named_parameters()}
        held = sum(p.to_local().numel() for p in small.parameters())
        assert held < 0.6 * sum(p.numel() for p in small.parameters())
    torch.save(out, f"{folder}/{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


@wanted
def test_two_processes_train_a_shared_model_as_one(tmp_path):
    model = tf.AutoModelForCausalLM.from_pretrained(tiny.base(tmp_path / "base", "llama"))
    share.save(share.share(model, "recursive", loops=2, relax=2), tmp_path / "small")
    in_two(worker, str(tmp_path))
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    for n, p in adapted(tmp_path / "small").items():
        assert torch.equal(first["adapted"][n], second["adapted"][n])
        torch.testing.assert_close(first["adapted"][n], p, atol=1e-5, rtol=1e-5)
    for method, options in METHODS.items():
        one = dict(trained(share.share(llama(4), method, **options), IDS).named_parameters())
        assert one.keys() == first[method].keys()
        for n, p in one.items():
            torch.testing.assert_close(first[method][n], p.detach(), atol=1e-5, rtol=1e-5)


def test_blocks_that_share_stand_together():
    small = share.share(llama(), "recursive", loops=2)
    at = {id(b): i for i, b in enumerate(small.model.layers)}
    assert [[at[id(b)] for b in g] for g in groups(small)] == [[0, 3], [1, 4], [2, 5]]
    assert [len(g) for g in groups(llama())] == [1] * 6
    hashed = share.share(llama(), "hashed", chunk=8)
    assert [len(g) for g in groups(hashed)] == [6]
