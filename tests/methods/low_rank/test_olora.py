"""OLoRA against the QR decomposition."""

import torch

import commonweight as cw
from tests.models import answer, make

SMALL = {"rank": 3}


def test_start_and_formula():
    model, batch = make("llama")
    host = cw.Host(model, sites="*.q_proj|*.up_proj")
    plain = answer(model, batch)
    tenant = host.add("t", "olora", rank=3, alpha=6)
    with torch.no_grad(), host.route("t"):
        assert torch.equal(answer(model, batch), plain)
    for site in host.sites:
        w = host.weight(site.name).double()
        q, r = torch.linalg.qr(w)
        A, B = (tenant.pools[f"{site.name}.{k}"] for k in "AB")
        torch.testing.assert_close((B @ A).double(), q[:, :3] @ r[:3], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(B.T @ B, torch.eye(3), rtol=0, atol=1e-5)
        with torch.no_grad():
            A.mul_(2)
        want = w + 2 * (q[:, :3] @ r[:3])
        torch.testing.assert_close(host.merged("t")[f"{site.name}.weight"].double(), want, rtol=1e-4, atol=1e-5)
