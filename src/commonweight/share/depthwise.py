"""Depth-wise batching: requests at different depths of one loop run in one batch of it, and leave when done."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..builder.anatomy import stack
from ..core import CommonweightError


@dataclass
class _Row:
    """A request in work. tokens: prompt and answer. loop: the one that its newest token runs next."""

    number: int
    slot: int
    tokens: list[int]
    left: int
    draws: list[float]
    new: list[int] = field(default_factory=list)
    loop: int = 0
    last: int = 0


class Depthwise:
    """Generation for many requests on a model with depth per token (`mor`, `exit`).

    One step runs the loop's blocks once, for all requests that have another loop before them, whichever it is; or
    the last blocks and the head, for those whose token is done: whatever more wait for. So no request waits for
    another's deeper token. The answers are those of `generate`. places: requests at once. length: tokens of prompt and
    answer. Memory: keys and values of places * length tokens at each depth. Source: arXiv 2410.20672, section 3.3,
    where it is simulated, with exits that an oracle knows; arXiv 2507.10524 has it too.
    Raises: CommonweightError for a model whose loops differ in more than their routers, or of another layout than
    llama.
    """

    def __init__(self, model: Any, places: int = 32, length: int = 512):
        self.model, self.places, self.length = model, places, length
        blocks = list(model.get_submodule(stack(model)))
        looped = [i for i, b in enumerate(blocks) if hasattr(b, "walk")]
        base = getattr(model, model.base_model_prefix)
        if (
            not looped
            or blocks[looped[0]].held
            or not all(hasattr(base, n) for n in ("embed_tokens", "rotary_emb", "norm"))
        ):
            raise CommonweightError(f"{type(model).__name__}: depth-wise batching wants a llama layout of mor or exit")
        self.base, self.head, self.walk = base, model.get_output_embeddings(), blocks[looped[0]].walk
        self.before, self.after = blocks[: looped[0]], blocks[looped[-1] + 1 :]
        self.first = [blocks[i] for i in looped if blocks[i].at == 0]
        self.loops, of = len(self.first), self.first[0].of
        self.unit = blocks[looped[0] : looped[0] + of]
        for n, i in enumerate(looped):
            here = {k: p for k, p in blocks[i].named_parameters() if k not in ("router", "bias")}
            if any(p is not self.unit[n % of].get_parameter(k) for k, p in here.items()):
                raise CommonweightError("depth-wise batching wants loops that share all weights; leave out relax")
        config = model.config
        heads = config.num_key_value_heads
        size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        kind: dict[str, Any] = {"dtype": model.dtype, "device": model.device}

        def held(rows: int) -> tuple[Tensor, Tensor]:
            return torch.zeros(rows, heads, length, size, **kind), torch.zeros(rows, heads, length, size, **kind)

        self.pages = {id(b): held(places) for b in (*self.before, *self.after)}
        self.pages |= {id(b): held(places * self.loops) for b in self.unit}
        self.used = torch.zeros(places * self.loops, dtype=torch.long)  # tokens that a loop of a place holds
        self.states = torch.zeros(places, config.hidden_size, **kind)
        self.entered, self.x0 = torch.zeros_like(self.states), torch.zeros_like(self.states)
        self.gate = torch.ones(places, **kind)
        self.steps = self.ran = self.generated = 0

    @torch.no_grad()
    def generate(
        self, prompts: Sequence[Sequence[int]], max_new_tokens: int, temperature: float = 0.0, seed: int = 0
    ) -> list[list[int]]:
        """Answers of `max_new_tokens` tokens, or up to the end token. temperature 0: the likeliest token."""
        if any(not 0 < len(p) <= self.length - max_new_tokens for p in prompts):
            raise CommonweightError(f"a prompt has no tokens, or with its answer more than length={self.length}")
        ends = self.model.generation_config.eos_token_id
        self.ends = {ends} if isinstance(ends, int) else set(ends or ())
        self.temperature = temperature
        waiting, free = list(enumerate(prompts))[::-1], list(range(self.places))[::-1]
        done: list[list[int]] = [[] for _ in prompts]
        looping: list[_Row] = []
        leaving: list[_Row] = []
        while waiting or looping or leaving:
            fresh = []
            while waiting and free:
                number, prompt = waiting.pop()
                dice = torch.Generator().manual_seed(seed * 1_000_003 + number)
                draws = torch.rand(max_new_tokens, generator=dice).tolist()
                fresh.append(_Row(number, free.pop(), list(prompt), max_new_tokens, draws))
            for length in {len(r.tokens) for r in fresh}:
                self._prompts([r for r in fresh if len(r.tokens) == length])
            if not fresh and len(looping) >= max(1, len(leaving)):
                looping, over = self._loop(looping)
                leaving += over
                continue
            if not fresh:
                fresh, ended = self._finish(leaving)
                for row in ended:
                    done[row.number] = row.new
                free += [row.slot for row in ended]
                leaving = []
            if fresh:
                more, over = self._begin(fresh)
                looping, leaving = looping + more, leaving + over
        return done

    # -- stages ----------------------------------------------------------------------------------------------------

    def _prompts(self, rows: list[_Row]) -> None:
        """All tokens of prompts of one length but the last, by the model itself; the last begins as any token does."""
        for r in rows:
            self.used[r.slot * self.loops : (r.slot + 1) * self.loops] = 0
        length = len(rows[0].tokens) - 1
        if length == 0:
            return
        ids = torch.tensor([r.tokens[:-1] for r in rows], device=self.model.device)
        layers = self.model(ids, use_cache=True, logits_to_keep=1).past_key_values.layers
        n, of = len(self.before), len(self.unit)
        start = n + self.loops * of
        slots = [r.slot for r in rows]
        for block, layer in zip((*self.before, *self.after), (*layers[:n], *layers[start : start + len(self.after)])):
            for row, slot in enumerate(slots):
                self._copy(block, slot, layer, row, slice(None))
        for loop, first in enumerate(self.first):
            if len(layers) <= first.slot or layers[first.slot].get_seq_length() == 0:
                continue  # no token ran it
            ran = layers[first.slot].keys[:, 0, :, 0] >= 0
            for row, slot in enumerate(slots):
                place = slot * self.loops + loop
                self.used[place] = int(ran[row].sum())
                for j, block in enumerate(self.unit):
                    self._copy(block, place, layers[n + loop * of + j], row, ran[row])

    def _copy(self, block: nn.Module, place: int, layer: Any, row: int, which: Any) -> None:
        for page, held in zip(self.pages[id(block)], (layer.keys, layer.values)):
            some = held[row][:, which]
            page[place, :, : some.shape[1]] = some

    def _begin(self, rows: list[_Row]) -> tuple[list[_Row], list[_Row]]:
        """The newest token of each: embedded, through the blocks before the loops, and given its first loop."""
        ids = torch.tensor([r.tokens[-1] for r in rows], device=self.model.device)
        slots = torch.tensor([r.slot for r in rows])
        x = self._private(self.before, rows, slots, self.base.embed_tokens(ids)[:, None])
        self.states[slots] = self.x0[slots] = x[:, 0]
        for r in rows:
            r.loop, r.last = 0, self.loops - 1
        return self._choose(rows)

    def _loop(self, rows: list[_Row]) -> tuple[list[_Row], list[_Row]]:
        slots, loops = torch.tensor([r.slot for r in rows]), torch.tensor([r.loop for r in rows])
        places = slots * self.loops + loops
        x = self.entered[slots] = self.states[slots]
        y = self._run(self.unit, x[:, None], rows, places, self.used[places])[:, 0]
        self.used[places] += 1
        done = torch.tensor([r.loop == r.last for r in rows], device=x.device)
        y = self.first[0].merge(y, x, self.x0[slots], self.gate[slots], done)
        self.states[slots] = y
        self.steps, self.ran = self.steps + 1, self.ran + len(rows)
        for r in rows:
            r.loop += 1
        return self._choose(rows)

    def _choose(self, rows: list[_Row]) -> tuple[list[_Row], list[_Row]]:
        """(those that run another loop, those whose token is done)."""
        go: dict[int, bool] = {}
        for loop in {r.loop for r in rows if r.loop < self.loops}:
            some = [r for r in rows if r.loop == loop]
            slots = torch.tensor([r.slot for r in some])
            found = self.first[loop].choose(self.states[slots][:, None], torch.tensor([[r.last] for r in some]))
            if found.gate is not None:
                self.gate[slots] = found.gate[:, 0].to(self.gate.dtype)
            for r, goes, last in zip(some, found.go[:, 0].tolist(), found.last[:, 0].tolist()):
                go[r.slot] = goes or self.walk.everywhere
                r.last = r.last if self.walk.everywhere else last
        return [r for r in rows if go.get(r.slot)], [r for r in rows if not go.get(r.slot)]

    def _finish(self, rows: list[_Row]) -> tuple[list[_Row], list[_Row]]:
        """The last blocks and the head: a token for each row. (Those that go on, those that are done.)"""
        slots = torch.tensor([r.slot for r in rows])
        x = self._private(self.after, rows, slots, self.states[slots][:, None])
        logits = self.head(self.base.norm(x))[:, 0].float()
        self.generated += len(rows)
        if self.temperature == 0:
            said = logits.argmax(-1).tolist()
        else:
            p = (logits / self.temperature).softmax(-1)
            drawn = torch.tensor([[r.draws[len(r.new)]] for r in rows], device=p.device)
            said = (p.cumsum(-1) < drawn).sum(-1).clamp(max=p.shape[-1] - 1).tolist()
        for r, token in zip(rows, said):
            r.tokens.append(token)
            r.new.append(token)
        over = [len(r.new) == r.left or r.new[-1] in self.ends for r in rows]
        return [r for r, o in zip(rows, over) if not o], [r for r, o in zip(rows, over) if o]

    def _private(self, blocks: Sequence[Any], rows: list[_Row], slots: Tensor, x: Tensor) -> Tensor:
        return self._run(blocks, x, rows, slots, torch.tensor([len(r.tokens) - 1 for r in rows])) if blocks else x

    def _run(self, blocks: Sequence[Any], x: Tensor, rows: list[_Row], places: Tensor, held: Tensor) -> Tensor:
        """Blocks for one token a row. held: how many tokens each place has before it."""
        at = torch.tensor([[len(r.tokens) - 1] for r in rows], device=x.device)
        longest = int(held.max()) + 1
        mask = (torch.arange(longest)[None] <= held[:, None])[:, None, None].to(x.device)
        rotary = self.base.rotary_emb(x, position_ids=at)
        for block in blocks:
            how: dict[str, Any] = {
                "attention_mask": mask, "position_ids": at, "position_embeddings": rotary, "use_cache": True,
                "past_key_values": _Places(*self.pages[id(block)], places, held, longest),
            }  # fmt: skip
            x = block.alone(x, **how) if hasattr(block, "walk") else block(x, **how)
            x = x[0] if isinstance(x, tuple) else x
        return x


class _Places:
    """What attention sees as a cache: some places of a block's pages."""

    def __init__(self, keys: Tensor, values: Tensor, places: Tensor, held: Tensor, longest: int):
        self.pages, self.places, self.held, self.longest = (keys, values), places, held, longest

    def update(self, keys: Tensor, values: Tensor, *_: Any, **__: Any) -> tuple[Tensor, ...]:
        for page, new in zip(self.pages, (keys, values)):
            page[self.places, :, self.held] = new[:, :, 0]
        return tuple(page[:, :, : self.longest].index_select(0, self.places) for page in self.pages)
