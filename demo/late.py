"""The project's best result, once: a tenant that comes late to a common, and adds only its own few numbers.

The factors of LoRA-XS are trained in common on four tasks and frozen; the fifth task then trains a core of 16 x 16
numbers per layer and its head, stored in int8. `python -m benchmarks.commons` does the same with each of the five tasks
in turn, with three seeds, and with two epochs for the common, of which one must do here.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import commonweight as cw
from benchmarks.commons import CANDIDATES, own_bytes
from benchmarks.overlap import without
from commonweight import adapt

TASK = "trec"  # the only kind of its own: the other four ask what somebody thinks of something
WHAT = CANDIDATES["xs-common-r16-int8"]
COMMON = "tasks"
Rows = dict[str, list[dict[str, Any]]]


def train_common(host: cw.Host, data: dict[str, Rows], store: Path, seed: int, **recipe: Any) -> cw.Commons:
    """A new store that holds a frozen common, trained on every task of `data` but the late one.

    Rows that the late task has among its dev or test rows are left out, as in the benchmark.
    """
    shutil.rmtree(store, ignore_errors=True)
    unseen = [row for part in ("dev", "test") for row in data[TASK][part]]
    tenants = {
        f"{task}-common": adapt.Data(rows=without(rows["train"], unseen), dev=without(rows["dev"], unseen))
        for task, rows in data.items() if task != TASK
    }  # fmt: skip
    recipe = {"epochs": 1, **recipe}
    adapt.adapt_together(host, tenants, method=WHAT.method, options=WHAT.options, common=COMMON, seed=seed, **recipe)
    host.freeze(COMMON)
    commons = cw.Commons(store)
    commons.publish_all(host, tenants, codecs=dict.fromkeys(tenants, WHAT.codec))
    return commons


def train_late(host: cw.Host, rows: Rows, commons: cw.Commons, seed: int, **recipe: Any) -> dict[str, Any]:
    """Trains the late tenant and publishes it; on the host is then what the store gives back, and that is measured.

    own: bytes of its own numbers as stored, without the head. bytes: all that it adds to the store, with head and
    manifest. common: bytes of the pools that it only reads, in memory.
    """
    name = f"{TASK}-late"
    result = adapt.adapt(
        host, name, rows["train"], method=WHAT.method, options=WHAT.options, common=COMMON, dev_rows=rows["dev"],
        seed=seed, **WHAT.late, **recipe,
    )  # fmt: skip
    own = {n: p for n, p in result.tenant.named_parameters() if p.requires_grad}
    count, common = sum(p.numel() for p in own.values()), host.common(COMMON).nbytes
    commons.publish(host, name, codec=WHAT.codec)
    for n in [n for n in host if host[n].common is not None]:
        host.remove(n)
    tenant = host.load_from(commons, name)
    body, head = own_bytes(commons.export(name, commons.folder.with_suffix(".tmp"), overwrite=True), tenant)
    commons.folder.with_suffix(".tmp").unlink()
    return {
        "found": adapt.evaluate(host, name, rows["test"]), "dev": result.metrics["accuracy"],
        "parameters": count, "head": sum(p.numel() for n, p in own.items() if n.startswith("head")),
        "own": body, "head bytes": head, "bytes": commons.show(name).marginal_bytes, "common": common,
        "steps": result.steps, "seconds": round(result.seconds, 2),
        "lr": result.settings["lr"] or tenant.method.lr, "epochs": result.settings["epochs"],
    }  # fmt: skip
