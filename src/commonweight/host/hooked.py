"""A model that a host stands on: its sites, hooked once, and followed where the model changes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from ..core import CommonweightError, Site
from ..methods import Method
from . import ahead, carry, causal, checkpoints, encoding, entrances, experts, forgets, front, frozen, moved
from .aside import AsideHook
from .checkpoints import Replay
from .current import Current
from .door import Door
from .doors import Doors
from .fingerprint import of_base
from .follow import Places, fit
from .further import FurtherForward
from .hooks import ModelHook, SiteHook
from .kept import give_back, keep_storage, tell_of_rows, unpack_at_once
from .limit import Ends, Limit, bends
from .names import named, unwrapped
from .numbered import PositionsHook
from .padding import Padding
from .queries import Queries
from .scanned import StateHook
from .sites import (
    Ahead,
    Aside,
    Front,
    Further,
    Pattern,
    Physical,
    Positions,
    Queried,
    State,
    before_conv,
    depthwise,
    fitting,
    input_table,
    joined,
    once,
    output_head,
    parted,
    scores,
    select,
    strangers,
    ties,
    towers,
    unknown_kind,
    why_no_prompt,
)
from .sites.heads import in_front
from .tenant import Tenant
from .tokens_first import straight, tokens_first, turned
from .unmatched import tell_of_none
from .weights import stored


class HookedModel:
    """A frozen model whose sites read whatever route is in force.

    modules: name -> what a bind sees of it. every, default, chosen: all sites, those of transformer blocks, and those
    that a tenant reads by default here. current: the route in force. Cost: two hooks per linear layer, once.
    """

    def __init__(self, model: nn.Module, sites: Pattern = None, fused: Mapping[str, int] | None = None):
        if not isinstance(model, nn.Module):
            raise CommonweightError(
                f"Host({model!r}): wanted a model (nn.Module), not a {type(model).__name__}; load it first, as with "
                "AutoModel.from_pretrained, or use adapt.open_host"
            )
        if any(isinstance(h, SiteHook) for m in model.modules() for h in m._forward_hooks.values()):
            raise CommonweightError("this model already has a host; use that one, or call its close() first")
        self.model, self.inner = model, unwrapped(model)
        self.pattern, self.fused = sites, fused
        unpack_at_once(model)
        self.modules, self.every, self.default = self._found()
        self.ties = ties(self.modules)
        self.sense: str | None = None  # the tower that is read by default, None for all
        self.usual = self.default  # what is read without a pattern
        self.chosen = select(sites, self.every, self.default, model)
        self.current = Current()
        self.limit = Limit(self.vocabulary)
        carry.install()
        checkpoints.install()
        ahead.install()
        self.kept = keep_storage(model.modules())
        tell_of_rows(model)
        self.trained: dict[str, nn.Parameter] = {}
        self.closed = False
        self._freeze()
        self.handles: list[Any] = [
            self.inner.register_forward_pre_hook(ModelHook(model, self.current), with_kwargs=True)
        ]
        if bends(self.inner):
            self.handles.append(self.inner.register_forward_hook(Ends(self.limit, self.current)))
        turned = [m for m in self.inner.modules() if type(m).__name__ == "ReformerEncoder"]
        self.handles += [checkpoints.reversible(m, self.current) for m in turned]
        self.handles += entrances.install(self.inner, self.current)
        self._hook()

    def _found(self) -> tuple[dict[str, Physical], list[Site], list[Site]]:
        return experts.discover(self.model, self.fused)

    def _hook(self) -> None:
        self.emptied = before_conv(dict(named(self.model)), self.modules)
        tower = towers(self.inner)
        self.current.padding, self.current.prompts = Padding(self.inner), causal.by_prompt(self.inner, self.every)
        apart = experts.Stacked | Ahead | Aside | Front | Further | Positions | State
        alone = {n: at for n, at in self.modules.items() if not isinstance(at, apart)}
        first = tokens_first(self.inner)
        way = {n: turned if id(at.module) in first else straight for n, at in alone.items()}
        hooks = {n: SiteHook(at, self.current, tower(n) in ("vision", "projector"), way[n]) for n, at in alone.items()}
        if (head := output_head(self.inner, self.modules)) in hooks:
            hooks[head].limit = self.limit
        self.limit.size = self.vocabulary
        self.hooks = [h for hook in hooks.values() for h in hook.install()]
        self.hooks += experts.hooks(self.modules, dict(named(self.model)), self.current)
        self.hooks += experts.listed_hooks(dict(named(self.model)), list(alone), self.current)
        fronts = [at for at in self.modules.values() if isinstance(at, Front)]
        self.fronts = [front.FrontHook(at, self.current) for at in fronts]  # whose prompts run before a pass
        self.hooks += [h for f in self.fronts for h in f.install()]
        numbered = [PositionsHook(at, self.current) for at in self.modules.values() if isinstance(at, Positions)]
        scanned = [StateHook(at, self.current) for at in self.modules.values() if isinstance(at, State)]
        self.hooks += [h for n in (*numbered, *scanned) for h in n.install()]
        encoders = encoding.install(self.inner, self.current)
        self.hooks += encoders
        passes = [*(e for e in self.handles if isinstance(e, entrances.Forward)), *encoders]
        for at in (at for at in self.modules.values() if isinstance(at, Further)):
            over = next((e for e in passes if e.model is at.module), None)
            self.hooks += FurtherForward(at, self.current, over).hooks()
        self.queries = Queries(self.modules, self.current)
        for at in (at for at in self.modules.values() if isinstance(at, Ahead)):
            mine = next((f.name for f in fronts if at.name in f.joins), "")
            asked = next((q.name for q in self.modules.values() if isinstance(q, Queried) and at.name in q.ahead), "")
            beside = next((a for a in self.modules.values() if isinstance(a, Aside) and a.joins == at.name), None)
            read = None if beside is None else AsideHook(beside, self.current)
            self.hooks += ahead.AheadHook(at, self.current, self.queries, mine, asked, read).install()
        self.hooks += moved.install(self.inner, dict(named(self.model)), self.modules, self.current)
        self.hooks += frozen.install(alone.values(), self.current)
        # taken off first, as they were put on last
        self.hooks[:0] = forgets.install(self.model.modules(), self.current, passes)
        self.doors = Doors(self.inner, dict(named(self.model)), hooks)
        self.places = Places.of(self.model, self.modules.values())

    def _freeze(self) -> None:
        for n, p in self.model.named_parameters():
            if p.requires_grad:
                p.requires_grad_(False)
                self.trained[n] = p

    def _unhook(self) -> None:
        for h in self.hooks:
            h.remove()
        self.doors.close()
        for m in self.model.modules():  # what others handed on to a module that they put in a hooked one's place
            for hooks in (m._forward_hooks, m._forward_pre_hooks):
                for key in [k for k, h in hooks.items() if isinstance(getattr(h, "__self__", h), SiteHook | Door)]:
                    del hooks[key]

    def follow(self, tenants: Iterable[Tenant]) -> None:
        """Where the model was changed since: its new layers are hooked in place of the old; see `follow`."""
        if self.closed or not self.places.moved():
            return
        found = self._found()
        chosen = select(self.pattern, found[1], found[2], self.model)
        self._unhook()
        self.modules, self.every, self.default = found
        self.ties, self.usual, self.chosen = ties(self.modules), self.default, chosen
        if self.sense is not None:
            self.only(self.sense)
        for tenant in tenants:
            fit(tenant, {s.name: s for s in self.every})
        for module in dict(named(self.model)).values():  # an adapter that came meanwhile may be in training
            for p in module._parameters.values():
                if p is not None and p.requires_grad:
                    p.requires_grad_(False)
        self.kept += keep_storage(self.model.modules())
        self._hook()

    def only(self, sense: str) -> None:
        """By default a tenant reads this tower alone, ``"language"``, where the model has others beside it: rows of
        texts teach the others nothing, and pools that towers share would change them all the same."""
        tower = towers(self.inner)
        mine = [s for s in self.usual if s.kind == "head" or tower(s.name) == sense]
        if any(s.kind != "head" for s in mine):
            self.sense, self.usual = sense, mine
            self.chosen = select(self.pattern, self.every, self.default, self.model, mine)

    def close(self) -> None:
        """Takes every hook off and gives the model back as it was."""
        for h in self.handles:
            h.remove()
        self._unhook()
        for m in self.model.modules():
            if isinstance(kept := getattr(m, "_gradient_checkpointing_func", None), Replay):
                m._gradient_checkpointing_func = kept.checkpoint
        now = dict(self.model.named_parameters())
        for n, p in self.trained.items():
            now.get(n, p).requires_grad_(True)
            p.requires_grad_(True)
        give_back(self.kept)
        self.handles, self.closed = [], True

    def longest(self, tenant: Tenant) -> int | None:
        """The tokens of the longest row that fits behind what a tenant puts ahead of it; None: any."""
        return moved.longest(self.inner, dict(named(self.model)), self.modules, tenant)

    def sites_of(self, pattern: Pattern) -> list[Site]:
        """The sites that a pattern names, whatever their kinds."""
        return select(pattern, self.every, self.default, self.model)

    def sites_for(self, method: Method, pattern: Pattern = None) -> list[Site]:
        """The sites a method takes here: of its kinds, in its default roles unless a pattern chose them; ``...`` in a
        pattern is what it takes without one, and ``!`` is before what is left out."""
        if (parts := parted(self.pattern if pattern is None else pattern)) is None:
            return self._taken(method, pattern, self.pattern, self.chosen)
        found: list[Site] = []
        if parts.usual:
            found += self.sites_for(method) if pattern is not None else self._taken(method, None, None, self.usual)
        if parts.named is not None and pattern is not None:
            found += self._taken(method, parts.named, None, [])
        elif parts.named is not None:  # a host's own is for methods of all kinds
            found += [s for s in self.sites_of(parts.named) if s.kind in (*method.kinds, *method.named)]
        kept = once(self.ties, joined(parts, found, self.every, self.default, self.model))
        if pattern is not None and parts.without is not None and len(kept) == len({s.name for s in found}):
            tell_of_none(pattern, method, kept)
        return kept

    def _taken(self, method: Method, pattern: Pattern, whole: Pattern, chosen: list[Site]) -> list[Site]:
        """whole, chosen: the host's own pattern, and the sites that are taken without another."""
        chosen = chosen if pattern is None else self.sites_of(pattern)
        named = pattern is not None or whole is not None
        if method.at == "scores" and pattern is None:
            chosen = [s for s in self.every if s.name in scores(self.inner, self.modules, self.every)]
        elif method.at and pattern is None and not (named and any(s.kind == "embedding" for s in chosen)):
            chosen = [s for s in self.every if s.name == input_table(self.inner, self.modules)]
        mine = [s for s in chosen if s.kind in method.kinds or (named and s.kind in method.named)]
        mine = once(self.ties, mine)
        if pattern is None and whole is None and method.roles and any(s.role in method.roles for s in mine):
            mine = [s for s in mine if s.role in method.roles]
        if pattern is None and whole is None and not method.depthwise:
            mine = [s for s in mine if not depthwise(self.modules, s)]
        if pattern is None and whole is None:
            mine = fitting(method, mine)
        if method.whole:
            mine = causal.seen(method.name, mine, self.every, pattern)
        strange = [s for s in mine if pattern is None and whole is None and unknown_kind(self.modules, s)]
        if strange:
            raise strangers(self.modules, strange, method.name)
        if method.kinds and not mine:
            kinds, given = " or ".join(method.kinds), pattern or whole
            if given:
                raise CommonweightError(
                    f"{method.name} reads sites of kind {kinds}; the pattern {given!r} matches none of them"
                )
            if method.at == "scores":
                raise CommonweightError(
                    f"{method.name} reads sites of kind {kinds}: the head that scores the vocabulary and the norm "
                    "before it, which this model has not; give a causal language model (`adapt --task lm`)"
                )
            if "prompt" in method.kinds and not any(s.kind == "prompt" for s in self.every):
                ahead = any(s.kind == "prefix" for s in self.every)
                raise CommonweightError(
                    f"{method.name} reads sites of kind {kinds}, and no prompt can stand before this model's tokens: "
                    f"{why_no_prompt(self.model, self.modules)}. Take {'prefix-tuning, or ' if ahead else ''}a method "
                    "that changes weights, such as lora"
                )
            if {"prefix", "aside", "queries"} & {*method.kinds} and not any(s.kind == "prefix" for s in self.every):
                prompts = any(s.kind == "prompt" for s in self.every)
                raise CommonweightError(
                    f"{method.name} reads sites of kind {kinds}, which are where an attention asks transformers' "
                    f"interface for its function; this model's compute by themselves. Take "
                    f"{'prompt-tuning, or ' if prompts else ''}a method that changes weights, such as lora"
                )
            have = ", ".join(dict.fromkeys(s.kind for s in self.every if s.kind != "head"))
            raise CommonweightError(
                f"{method.name} reads sites of kind {kinds}; this model has none of them by default; its sites are of "
                f"kind {have or 'none'}"
            )
        return mine

    def reads(self, method: Method) -> bool:
        """Whether the host has sites of its kinds at all."""
        kinds = method.kinds if self.pattern is None else (*method.kinds, *method.named)
        if method.at == "scores":
            return bool(scores(self.inner, self.modules, self.every))
        table = method.at and input_table(self.inner, self.modules) is not None
        return bool(table) or any(s.kind in kinds for s in self.chosen)

    def told(self, method: Method, config: Any, sites: Sequence[Site]) -> Any:
        """A config with what it leaves to the model, as the model says it."""
        if method.told is None:
            return config
        names, whole = dict(named(self.model)), getattr(self.inner, "config", None)
        return method.told(config, sites, lambda s: in_front(s, names, whole))

    def head_site(self) -> Site:
        """Where a classification head of a tenant stands."""
        for s in self.every:
            if s.kind == "head":
                return s
        raise CommonweightError(
            "labels were given, but the model has no head site; wrap it in commonweight.Classifier first, or where it "
            "has a head of its own give modules_to_save"
        )

    def weight(self, site: str) -> Tensor:
        """The frozen weight that a site reads, (out, inp)."""
        name, rows = site.split("[")[0], next(s.rows for s in self.every if s.name == site)
        return self.modules[name].rows(rows).weight

    def bias(self, site: str) -> Tensor:
        """The frozen bias of a site that has one, (out,)."""
        name, rows = site.split("[")[0], next(s.rows for s in self.every if s.name == site)
        if name not in self.modules or (b := self.modules[name].rows(rows).bias) is None:
            raise CommonweightError(f"{site}: it has no bias")
        return b

    @property
    def vocabulary(self) -> int | None:
        """Entries of the table of input tokens; None for a model that has none."""
        table = input_table(self.inner, self.modules)
        return None if table is None else stored(self.modules[table].module).shape[0]  # no route is asked for

    @property
    def fingerprint(self) -> str:
        """Of the base: names, shapes and 64 values of every parameter but those of heads, rounded to bfloat16, so that
        a float32 and a bfloat16 copy are the same base; see `fingerprint.of_base`. Cost: milliseconds, of a base
        that another library than bitsandbytes packed one reading of every weight; made anew at every look. On a sharded
        base every process must ask."""
        return of_base(self.model, self.heads)

    @property
    def speaking(self) -> set[str]:
        """The sites that have a row for each entry of the vocabulary: the table of input tokens, and the head."""
        found = input_table(self.inner, self.modules), output_head(self.inner, self.modules)
        return {n for n in found if n is not None}

    @property
    def heads(self) -> set[str]:
        """Linear layers outside of the blocks."""
        linear = {n for n, at in self.modules.items() if at.kind == "linear"}
        return linear - {s.name.split("[")[0] for s in self.default}
