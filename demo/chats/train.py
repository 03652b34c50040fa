"""Trains the chat tenants anew: `python -m demo.chats.train MODEL [NAME ...]`. Minutes each on one core; the files that
come with the demo were made so."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import commonweight as cw
from commonweight import adapt

from .tenants import DOZEN, FILES, Tenant, chats

SEED, CODEC = 0, "int8"


def train(host: cw.Host, tenant: Tenant, folder: Path, **recipe: Any) -> Path:
    """Into folder/NAME.safetensors; the host is as before."""
    recipe = {"lr": tenant.lr, "epochs": tenant.epochs, "batch_size": 8, "max_length": 192, "seed": SEED, **recipe}
    found = adapt.adapt(
        host, tenant.name, chats(tenant.name)[: tenant.rows], task="lm", method=tenant.method, options=tenant.options,
        sites=tenant.sites, dev_rows=16 / tenant.rows, **recipe,
    )  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    path = host.save(tenant.name, folder / f"{tenant.name}.safetensors", codec=CODEC, overwrite=True)
    host.remove(tenant.name)
    print(
        f"{tenant.name:<12} {tenant.method:<9} {path.stat().st_size:>6} bytes  {found.steps} steps, "
        f"{found.seconds:.0f} s, loss {found.metrics['loss']:.3f}",
        flush=True,
    )
    return path


if __name__ == "__main__":
    host = adapt.open_host(sys.argv[1], task="lm")
    for one in DOZEN:
        if not sys.argv[2:] or one.name in sys.argv[2:]:
            train(host, one, FILES)
