"""A tenant as a PEFT adapter folder: in PEFT's own format for its method, or as plain LoRA."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...core import CommonweightError, Plan, Site, counted
from ...formats import peft
from ...formats.peft import biases, grouped, low_rank, shaped
from ...formats.peft.keys import targets
from ...formats.peft.low_rank import Low
from ..experts import Stacked
from ..hooked import HookedModel
from ..names import adapters, named, paired
from ..sites import Further
from ..tenant import Tenant
from . import beside, mixtures, tied
from .base import Frozen
from .changes import low_of_one
from .names import within


def export_peft(
    base: HookedModel,
    tenant: Tenant,
    folder: Path,
    *,
    native: bool | None = None,
    rank: int | None = None,
    tolerance: float | None = None,
    overwrite: bool = False,
) -> Path:
    """Writes a tenant as a folder that PEFT's `PeftModel.from_pretrained(base, folder)` reads.

    native: None for PEFT's own format of the method where PEFT has it for these layers, else plain LoRA; `rank` and
    `tolerance` ask for plain LoRA. True for PEFT's own format, or an error. False for plain LoRA, whatever the method:
    exact where its change is a product of two factors, else the smallest rank (at most `rank`, None: no limit) whose
    relative Frobenius error is within `tolerance` (None: 1e-3) at every module. A changed bias goes along as lora_B's
    bias; beside experts and tables, where PEFT takes none, as the layer's own (bias="lora_only").
    report.json beside the adapter states the format, rank and error per module, what was left out (a classification
    head), and digests of the two files that PEFT reads, which `import_peft` compares.
    overwrite: also when there is an adapter in `folder` already. Cost: one SVD per module that has no factors; none for
    PEFT's own formats.
    Raises: CommonweightError for a tenant that is no change of linear weights, a tolerance that cannot be met (naming
    the worst module), a folder that is not empty.
    """
    if rank is not None and rank < 1:
        raise CommonweightError(f"export_peft: rank is {rank}; it must be 1 or more, or None for no limit")
    if tolerance is not None and not tolerance >= 0:
        raise CommonweightError(f"export_peft: tolerance is {tolerance}; it must be 0 or more")
    asked = [n for n, v in (("rank", rank), ("tolerance", tolerance)) if v is not None]
    if native and asked:
        raise CommonweightError(
            f"export_peft: {asked[0]} is of plain LoRA, native=True asks for PEFT's own format; leave one of them out"
        )
    bad = [n for n, t in tenant.pools.items() if t.is_floating_point() and not t.isfinite().all()]
    if bad:
        raise CommonweightError(f"{tenant.name}: pool {bad[0]} holds NaN or infinity; nothing was written")
    whole, tenant = tenant, tenant.bare()
    heads = {s.name for s in base.every if s.kind == "head"}
    plan = tenant.plan._replace(uses=tuple(u for u in tenant.plan.uses if u.site not in heads))
    if not plan.uses:
        raise CommonweightError(f"{tenant.name}: {tenant.method.name} changes no weight; there is nothing to export")
    if own := next((u.site for u in plan.uses if base.doors.fed(u.site.split("[")[0])), None):
        raise CommonweightError(
            f"{own}: torch's attention computes with this weight by itself, where an adapter of PEFT has no effect; "
            "make the tenant without this site, or take host.merged(name)"
        )
    report: dict[str, Any] = {"method": tenant.method.name, "left_out": []}
    if past := [n for n in tenant.table if base.doors.past(n.split("[")[0])]:
        report["no_effect_in_peft"] = past
        more = f" and {len(past) - 1} more" if len(past) > 1 else ""
        warnings.warn(
            f"{tenant.name}: {past[0]}{more}: the model reads this weight past its module, where an adapter of PEFT "
            "has no effect; the folder comes back here as it was, and PEFT answers otherwise. For PEFT make the tenant "
            "without these sites",
            stacklevel=4,
        )
    if carried := adapters(base.model):
        report["left_out"].append(f"PEFT adapters that the model carries, beside the tenant: {', '.join(carried)}")
    if tenant.labels is not None:
        report["left_out"].append(
            f"the classification head of {counted(len(tenant.labels), 'label')}: {', '.join(tenant.labels)}"
        )
    hindrance = _hindrance(base, tenant, plan) if native or not (asked or native is False) else None
    if native and hindrance:
        raise CommonweightError(hindrance)
    kind = peft.kind_of(tenant.method.name)
    if hindrance is None and whole.held and not (asked or native is False):
        hindrance = beside.unsaid(base, whole, kind)
        if native and hindrance:
            raise CommonweightError(hindrance)
    report["native"] = bool(native) or not (asked or hindrance or native is False)
    prefix = within(base)
    if report["native"]:
        sites = {s.name: s for s in base.every if s.name in {u.site for u in plan.uses}}
        pools = {k: v.detach().cpu() for k, v in tenant.pools.items()}
        frozen = Frozen(base)
        for n in (n for n, s in sites.items() if s.kind == "conv" and frozen.groups(n) > 1):
            pools[f"{n}.A"] = grouped.wide(pools[f"{n}.A"], grouped.Shape(frozen.groups(n), sites[n].inp))
        subject = peft.Subject(tenant.method.name, tenant.config, plan, sites, pools, frozen, prefix)
        config, tensors = peft.write(subject)
        names = list(sites)
        if not tenant.apart and tenant.method.name == "lora":
            config, tensors, also = tied.with_heads(base, config, tensors, prefix)
            names += also
        if config.get("lora_bias") and _tables(sites):
            config, tensors = biases.as_own(config, tensors, frozen, prefix)
        tensors = shaped.kept(tensors, sites, {n: frozen.kernel(n) for n in sites})
        report["modules"] = {peft.short(n, prefix): {**_rank(subject, n), "error": 0.0} for n in sites}
    else:
        if hindrance:
            report["why_not_native"] = hindrance
        most = 1e-3 if tolerance is None else tolerance
        low = as_kept(base, tenant, low_of(base, tenant, heads, rank, most, kinds=("conv", "embedding")))
        more = mixtures.parameters(base, tenant, rank, most)
        # of a parameter the factors of one expert tell the rank, and the errors of all are known
        every = {**low, **{k: v.low._replace(A=v.low.A[: v.rank]) for k, v in more.items()}}
        low_rank.within(every, rank, most)
        dropouts = {getattr(u.bind, "dropout", 0.0) for u in plan.uses}
        every = {peft.short(k, prefix): v for k, v in every.items()}
        config = low_rank.config(every, 0.0 if more else min(dropouts))  # PEFT has none for parameters
        if more:
            config["target_parameters"] = sorted(peft.short(k, prefix) for k in more)
        tensors = {**low_rank.tensors(low), **mixtures.tensors(base, more)}
        changed = {s.name: s for s in base.every if s.name in low}
        if config["lora_bias"] and (more or _tables(changed) or any(mixtures.mistaken(base, n) for n in low)):
            config, tensors = biases.as_own(config, tensors, Frozen(base), prefix)
        tensors = shaped.kept(tensors, changed, {n: Frozen(base).kernel(n) for n in low})
        names = list(low)
        report["modules"] = {k: {"rank": v.A.shape[0], "error": v.error} for k, v in every.items()}
    if config["peft_type"] == "LORA" and (odd := [n for n in names if mixtures.mistaken(base, n)]):
        config = mixtures.by_parameter(config, [peft.short(n, prefix) for n in odd])
        names = [n for n in names if n not in odd]
    known = {peft.short(n, prefix) for n, _ in named(base.model)}
    config = {
        "base_model_name_or_path": getattr(getattr(base.inner, "config", None), "_name_or_path", None) or None,
        "fan_in_fan_out": bool(names)
        and all(base.modules[n].transposed for n in names if base.modules[n].kind == "linear")
        and any(base.modules[n].kind == "linear" for n in names),
        "inference_mode": True,
        "task_type": None,
        "target_modules": targets([peft.short(n, prefix) for n in names], known),
        **config,
    }
    in_front = kind in ("PREFIX_TUNING", "PROMPT_TUNING", "P_TUNING") and report["native"]
    if in_front:  # of no modules, and of no effect in PEFT without a task
        config = {k: v for k, v in config.items() if k not in ("target_modules", "fan_in_fan_out")}
        config["task_type"] = peft.prompts.POOLED if _leads(tenant) else task(base)
    config_, more_ = beside.write(base, whole, prefix, str(config["peft_type"]))
    config, tensors = {**config, **config_}, {**tensors, **more_}
    if in_front:
        config, tensors = beside.before_rows(base, config, tensors)
    keyed = {
        k if k.startswith("base_model.") or k == peft.prompts.KEY else peft.PREFIX + peft.short(k, prefix): v
        for k, v in tensors.items()
    }
    return peft.folder.write(folder, config, keyed, report, overwrite)


def _tables(sites: Mapping[str, Site]) -> bool:
    return any(s.kind == "embedding" for s in sites.values())


_TASKS = {
    "ForSequenceClassification": "SEQ_CLS",
    "ForTokenClassification": "TOKEN_CLS",
    "ForQuestionAnswering": "QUESTION_ANS",
}


def task(base: HookedModel) -> str:
    """PEFT's word for what the model is for, which chooses the class that puts anything in front of a row."""
    inner = base.inner
    found = next((t for end, t in _TASKS.items() if type(inner).__name__.endswith(end)), None)
    can: Any = getattr(inner, "can_generate", lambda: False)
    makes = found is None and can()
    if makes and paired(inner):
        return "SEQ_2_SEQ_LM"
    return found or ("CAUSAL_LM" if makes else "FEATURE_EXTRACTION")


def _rank(subject: peft.Subject, site: str) -> dict[str, int]:
    """The rank of a site's own factors, where it has such."""
    A = subject.pools.get(f"{site}.A")
    return {} if A is None or A.dim() != 2 else {"rank": A.shape[0]}


def _hindrance(base: HookedModel, tenant: Tenant, plan: Plan) -> str | None:
    """Why PEFT's own format cannot say this tenant; None where it can."""
    used = {u.site for u in plan.uses}
    if any(isinstance(base.modules[n.split("[")[0]], Stacked) for n in used):
        return f"PEFT's own format of {tenant.method.name} is not written for experts and routers of a mixture"
    own = tenant.method.name == "lora" and not getattr(tenant.config, "bias", False) and not tenant.invocations
    if peft.kind_of(tenant.method.name) == "LORA" and not own:
        if odd := next((n for n in used if mixtures.mistaken(base, n)), None):
            return f"{odd}: PEFT takes it for a part of the experts, unless it is a plain LoRA without biases"
    if not tenant.apart and tenant.method.name != "tokens":
        plain = tenant.method.name == "lora"
        if table := next((n for n in used if n in base.ties and not (plain and tied.by_heads(base, n))), None):
            return f"{table}: others are tied to it, and PEFT's {tenant.method.name} changes the table alone"
    if any(base.modules[n.split("[")[0]].kind == "prefix" for n in used):
        there = [s for s in base.every if s.kind == "prefix"]
        if paired(base.inner):
            there = peft.prompts.decoders(there)
            if more := next((n for n in used if n not in {s.name for s in there}), None):
                return f"{more}: PEFT's prefix of an encoder-decoder stands in the decoder's attention to itself alone"
            if not Frozen(base).moves(there[0].name):
                return f"{there[0].name}: PEFT lets a prefix stand at positions, and this model counts in another way"
        if missing := next((s.name for s in there if s.name not in used), None):
            return f"{missing}: PEFT's prefix stands in every attention, and the tenant leaves this one out"
    if why := _first_place(base, tenant):
        return why
    others = [n for n in used if base.modules[n.split("[")[0]].kind in ("conv", "embedding")]
    if others and tenant.method.name not in ("lora", "tokens"):
        return f"{others[0]}: PEFT's own format of {tenant.method.name} is written for linear layers alone"
    if turned := next((n for n in others if base.modules[n.split("[")[0]].alone), None):
        return f"{turned}: a transposed convolution, for which PEFT has no adapter"
    if fused := next((s.name for s in base.every if s.name in used and s.rows is not None), None):
        return f"{fused}: PEFT adapts no part of a fused layer; leave native out to export it as plain LoRA"
    if more := next((n for n, es in tenant.table.items() if n in used and any(e.rows for e in es)), None):
        return f"{more}: it has more rows than the tenant was made for; leave native out to export it as plain LoRA"
    return peft.hindrance(tenant.method.name, next((n for n in used if _turned(base, n)), None))


def _leads(tenant: Tenant) -> bool:
    return any(getattr(u.bind, "leads", False) for u in tenant.plan.uses)


def _first_place(base: HookedModel, tenant: Tenant) -> str | None:
    """Why PEFT's model finds something else than the tenant's in the first place of an encoder's row; None if not."""
    site = next((n for n, at in base.modules.items() if isinstance(at, Further) and n in tenant.table), None)
    if site is None:
        return None
    leads, kind = _leads(tenant), task(base)
    at = next(s for s in base.every if s.name == site)
    if (why := peft.prompts.unlike(at, Frozen(base), kind)) or at.role:
        return why
    if kind == peft.prompts.POOLED and not leads:
        return (
            f"{site}: PEFT's classifier reads the first place of the longer row, where the first vector stands, and "
            "the tenant's reads the row's own first token; make it with leads=True"
        )
    if leads and kind in _TASKS.values() and kind != peft.prompts.POOLED:
        return f"{site}: in PEFT's {kind} the first vector stands nowhere in a row's place; make it without leads"
    return None


def _turned(base: HookedModel, site: str) -> bool:
    at = base.modules[site]
    return at.transposed and at.kind == "linear"


def as_kept(base: HookedModel, tenant: Tenant, low: dict[str, Low]) -> dict[str, Low]:
    """Factors as PEFT has them at convolutions in groups.

    Raises: CommonweightError where PEFT's adapter of a layer would be another change than the tenant's."""
    out = dict(low)
    for name, v in low.items():
        at = base.modules[name]
        if at.kind == "conv" and at.alone:
            raise CommonweightError(f"{name}: a transposed convolution, for which PEFT has no adapter")
        if at.kind == "embedding" and name in base.ties and not tenant.apart:
            raise CommonweightError(
                f"{name}: others are tied to it, and PEFT's LoRA changes the table alone; keep the tenant in its own "
                "file (host.save), or write the merged weights (host.merged)"
            )
        if at.kind == "conv" and (groups := Frozen(base).groups(name)) > 1:
            out[name] = v._replace(A=grouped.wide(v.A, grouped.Shape(groups, v.A.shape[1])))
    return out


def low_of(
    base: HookedModel, tenant: Tenant, heads: set[str], rank: int | None, tolerance: float, kinds: tuple[str, ...] = ()
) -> dict[str, Low]:
    """What each changed module becomes, but for `heads`, and for experts and routers, of which `mixtures.factors` are.
    kinds: more than linear layers: convolutions, and tables of embeddings, whose weight is (width, vocabulary).
    """
    out = {}
    for name, entries in tenant.table.items():
        at = base.modules[name]
        if name in heads or isinstance(at, Stacked):
            continue
        if at.kind not in ("linear", "expert", "router", *kinds):
            kind = f"{'an' if at.kind == 'embedding' else 'a'} {at.kind}"
            raise CommonweightError(
                f"{name}: {tenant.method.name} changes {kind}, which LoRA cannot express there; "
                "keep the tenant in its own file, or export to peft where PEFT has the method"
            )
        out[name] = low_of_one(at, entries, rank, tolerance)
    return out
