"""From a host, rows and words to what both sides of a run know."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from ..adapt.base import limit, prepare, tokenizer_of
from ..adapt.data import named
from ..adapt.rows import Row
from ..adapt.suited import check_texts
from ..adapt.tasks import Classify, Example, Task, get
from ..core import CommonweightError, build, dump, fits
from ..host import Host, Tenant
from ..methods import get as adapter_of
from ..methods import resolve as resolve_adapter
from ..methods.shown import Shown
from .codes import wrong
from .coding import around, of_run
from .local import Local, Rounds
from .methods import resolve
from .privacy import refuse
from .registry import Method, Privacy, Setting

NAME = "global"


@dataclass(frozen=True)
class Prepared:
    """A run that is ready to begin. tenant: the global one, on the host, with its first numbers. setup: pools that no
    seed makes again, as the tenant began from rows: every client needs them once, before its first round."""

    host: Host
    method: Method
    setting: Setting
    local: Local
    plan: Rounds
    tenant: Tenant
    task: Task
    setup: Mapping[str, Tensor] = field(default_factory=dict)


def numbers(given: Mapping[str, Any]) -> tuple[Rounds, Local]:
    """Both recipes from one set of options. Raises: CommonweightError for a name that neither has."""
    mine = {k: v for k, v in given.items() if k in Rounds.__dataclass_fields__}  # type: ignore[attr-defined]
    plan = build(Rounds, mine)
    for codec in (plan.codec, plan.codec_down):
        if codec is not None and (why := wrong(codec)):
            raise CommonweightError(f"Rounds: codec={codec}: {why}")
    return plan, build(Local, {k: v for k, v in given.items() if k not in mine})


def make_task(
    host: Host, task: str, rows: Sequence[Row], labels: Sequence[str] | None, tokenizer: Any, local: Local,
    reading: Mapping[str, Any], source: str,
) -> Task:  # fmt: skip
    kind = get(task)
    check_texts(host.model, "exchange")
    tokenizer = tokenizer_of(host.model) if tokenizer is None else prepare(tokenizer)
    if task == "classify" and labels is None:
        labels = named(source, lambda r: Classify.classes(r, reading.get("label_column")), rows)
    return kind(tokenizer, limit(host.model, tokenizer, local.max_length, kind.usual_length), labels, **reading)


def travelling(tenant: Tenant, private: str | None) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(names of the trained pools that go to the server, of those that stay). Where a method has pools that tenants
    share, they travel and its others stay, but for what is no pool of the method (a head); else all travel.

    private: a pattern of more that stay. Raises: CommonweightError where nothing is left to travel.
    """
    pools = {n: tenant.plan.pools[n] for n, _ in tenant.named_parameters()}
    shared = any(p.scope == "shared" for p in pools.values())
    stay = {n for n, p in pools.items() if shared and p.scope != "shared" and n not in heads(tenant)}
    if private is not None:
        more = {n for n in pools if any(fits(n, one.strip()) for one in private.split("|"))}
        if not more:
            raise CommonweightError(
                f"private={private!r} is no trained pool; there: {', '.join(sorted(pools)[:5])}, ..."
            )
        stay |= more
    if not pools.keys() - stay:
        raise CommonweightError(f"{tenant.method.name}: no trained pool is left to travel; lower private")
    return tuple(n for n in pools if n not in stay), tuple(n for n in pools if n in stay)


def heads(tenant: Tenant) -> set[str]:
    """The pools of a tenant's classifier."""
    uses = [u for u in tenant.plan.uses if type(u.bind).__name__ == "Classify"]
    return {p for u in uses for r in u.reads.values() for p in r.pools}


def of_one_run(adapter: str) -> CommonweightError:
    return CommonweightError(
        f"{adapter} has a schedule or a penalty of one long run, which no client has; choose another"
    )


def ready(
    host: Host, task: Task, method: str | Any, options: Mapping[str, Any], plan: Rounds, local: Local, *,
    clients: int, sites: Any = None, name: str = NAME, run: str = "run", common: str | None = None,
    shown: Shown | None = None,
) -> Prepared:  # fmt: skip
    """Adds the global tenant to the host. common: a frozen common of the host that it reads; its own numbers alone are
    trained and travel. shown: rows for an adapter that begins from data. The method has the run's codecs around it.
    Raises: CommonweightError; the host is then as it was."""
    found, config = resolve(method, options)
    coding = of_run(found, config, plan.codec, plan.codec_down, plan.codec_feedback)
    adapter, how = found.adapter(config)
    if common is not None and not host.common(common).frozen:
        raise CommonweightError(f"common={common!r} is still trained; freeze it first: host.freeze({common!r})")
    if found.by_sites is not None:
        how = how | found.by_sites(config, host.sites_for(adapter_of(adapter), sites))
    about, made = resolve_adapter(adapter, how)
    if about.penalty is not None or about.router_loss(made) is not None:
        raise of_one_run(adapter)
    wants = bool(about.asks(made))
    tenant = host.add(
        name, adapter, sites=sites, seed=plan.seed, labels=task.labels, common=common, rows=shown if wants else None,
        **how,
    )  # fmt: skip
    try:
        if about.scheduled(tenant.config, tenant.plan) is not None:
            raise of_one_run(adapter)
        if tenant.tasks:
            raise CommonweightError(
                f"{adapter} goes by tasks here ({', '.join(tenant.tasks)}), and a client's rows say none; leave "
                "tasks= out, so that all rows read one routing"
            )
        if not tenant.count():
            raise CommonweightError(f"{adapter} has no trainable number for this task; choose another")
        travels, private = travelling(tenant, plan.private)
        begun = {n: p for n, p in tenant.plan.pools.items() if p.save and n not in heads(tenant)} if wants else {}
        if plan.dp_clip is not None:
            refuse(found, begun)
        setting = Setting(
            found.name, config, tenant.plan, travels, private, run, host.fingerprint, plan.seed, plan.rounds, clients,
            plan.weigh, None if plan.dp_clip is None else Privacy(plan.dp_noise or 0.0, plan.dp_clip, plan.dp_delta),
            coding,
        )  # fmt: skip
    except BaseException:
        host.remove(name)
        raise
    setup = {n: tenant.pools[n].detach().cpu().clone() for n in begun}
    return Prepared(host, around(found, coding), setting, local, replace(plan, clients=clients), tenant, task, setup)


def told(p: Prepared) -> dict[str, Any]:
    """What a resumed run must share, JSON-ready."""
    config = dump(p.setting.config)
    config.pop("is")
    return {
        "method": p.method.name, "options": config, "plan": p.tenant.plan.digest(), "base": p.setting.base,
        "task": type(p.task).__name__.lower(), "labels": p.task.labels, "max_length": p.task.max_length,
        "dtype": str(next(p.host.model.parameters()).dtype).removeprefix("torch."), "common": _content(p.tenant),
        **numbers_of(p.plan), **numbers_of(p.local),
    }  # fmt: skip


def _content(tenant: Tenant) -> str | None:
    """Name of the common that the tenant reads, and 16 hex digits of its pools; None where it reads none."""
    if tenant.common is None:
        return None
    h = hashlib.blake2b(digest_size=8)
    for name, pool in sorted(tenant.common.pools.items()):
        h.update(name.encode())
        h.update(pool.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return f"{tenant.common.name} {h.hexdigest()}"


def numbers_of(config: Any) -> dict[str, Any]:
    return {k: getattr(config, k) for k in config.__dataclass_fields__}


def by_client(task: Task, rows: Sequence[Row], places: Sequence[Sequence[int]]) -> list[list[Example]]:
    """Each client's examples. A task may make several or none of a row."""
    every = task.examples(rows)
    if len(every) == len(rows):
        return [[every[i] for i in mine] for mine in places]
    out = [task.examples([rows[i] for i in mine]) for mine in places]
    if empty := next((c for c, mine in enumerate(out) if not mine), None):
        raise CommonweightError(f"client {empty}: none of its rows is long enough to learn from")
    return out
