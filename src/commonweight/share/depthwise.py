"""Depth-wise batching: requests at different depths of one loop run in one batch of it, and leave when done."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..builder.dissect import stack
from ..core import CommonweightError
from .shelves import Laid, Shelves


@dataclass
class _Row:
    """A request in work. tokens: prompt and answer. new: the answer. at: those tokens that run loop `loop` next, as
    places of the tables; fresh: how many began together, the whole prompt or the newest token."""

    number: int
    slot: int
    tokens: list[int]
    left: int
    draws: list[float]
    new: list[int] = field(default_factory=list)
    loop: int = 0
    fresh: int = 0
    at: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))


class Depthwise:
    """Generation for many requests on a model with depth per token (`mor`, `exit`).

    One step runs the loop's blocks once, for all tokens that have another loop before them, whichever it is, those of
    prompts and those of answers; or the last blocks and the head, for requests whose tokens are done. So no request
    waits for another's deeper token. Which of both it is: the one whose weights would be read for fewer rows than
    there could be, if the other had to wait. The answers are those of `generate`.

    places: requests at once. length: tokens of prompt and answer. Memory: keys and values, and two states, of
    places * length tokens, the former at each depth; on a CPU, a second copy of the weights while it generates, where
    memory allows. steps, ran, generated: runs of the loop, loops of the tokens of answers, and those tokens.
    Source: arXiv 2410.20672, section 3.3, where it is simulated, with exits that an oracle knows; arXiv 2507.10524 has
    it too.
    Raises: CommonweightError for a model whose loops differ in more than their routers, one with windows of attention,
    or of another layout than llama.
    """

    def __init__(self, model: Any, places: int = 32, length: int = 512):
        _counted(places=places, length=length)
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
        if set(getattr(model.config, "layer_types", None) or ()) - {"full_attention"} or getattr(
            model.config, "sliding_window", None
        ):
            raise CommonweightError("depth-wise batching wants attention to all tokens; this model's has a window")
        self.base, self.head, self.walk = base, model.get_output_embeddings(), blocks[looped[0]].walk
        self.before, self.after = blocks[: looped[0]], blocks[looped[-1] + 1 :]
        self.first = [blocks[i] for i in looped if blocks[i].at == 0]
        self.loops, of = len(self.first), self.first[0].of
        self.unit = blocks[looped[0] : looped[0] + of]
        for n, i in enumerate(looped):
            here = {k: p for k, p in blocks[i].named_parameters() if k not in ("router", "bias")}
            if any(p is not self.unit[n % of].get_parameter(k) for k, p in here.items()):
                raise CommonweightError("depth-wise batching wants loops that share all weights; leave out relax")
        held = [(b, places) for b in (*self.before, *self.after)] + [(b, places * self.loops) for b in self.unit]
        self.shelves = Shelves(model, held, length)
        self.used = np.zeros(places * self.loops, np.int64)  # tokens that a loop of a place holds
        kind: dict[str, Any] = {"dtype": model.dtype, "device": model.device}
        self.states = torch.zeros(places * length, model.config.hidden_size, **kind)  # of each token of each place
        self.x0 = torch.zeros_like(self.states)  # before the loops
        self.gate = torch.ones(places * length, **kind)
        self.last = torch.zeros(places * length, dtype=torch.long, device=model.device)
        self._weights = _numbers(self.unit), _numbers([*self.before, *self.after, self.head])
        self.steps = self.ran = self.generated = 0

    @torch.no_grad()
    def generate(
        self, prompts: Sequence[Sequence[int]], max_new_tokens: int, temperature: float = 0.0, seed: int = 0
    ) -> list[list[int]]:
        """Answers of `max_new_tokens` tokens, or up to the end token. temperature 0: the likeliest token.

        Raises: CommonweightError for numbers and prompts that cannot be, before anything runs.
        """
        _counted(max_new_tokens=max_new_tokens)
        if not 0 <= temperature < float("inf"):
            raise CommonweightError(f"temperature is {temperature!r}; wanted a number >= 0")
        prompts, most = [_ids(p) for p in prompts], self.base.embed_tokens.num_embeddings
        if beyond := [t for p in prompts for t in p if not 0 <= t < most]:
            raise CommonweightError(f"a prompt has the token {beyond[0]}; the model's are 0 to {most - 1}")
        if any(not 0 < len(p) <= self.length - max_new_tokens for p in prompts):
            raise CommonweightError(f"a prompt has no tokens, or with its answer more than length={self.length}")
        ends = self.model.generation_config.eos_token_id
        self.ends = {ends} if isinstance(ends, int) else set(ends or ())
        self.temperature = temperature
        with self.shelves.running(self.head):
            return self._answers(prompts, max_new_tokens, seed)

    def _answers(self, prompts: Sequence[Sequence[int]], most: int, seed: int) -> list[list[int]]:
        waiting, free = list(enumerate(prompts))[::-1], list(range(self.places))[::-1]
        done: list[list[int]] = [[] for _ in prompts]
        looping: list[_Row] = []
        leaving: list[_Row] = []
        loop, rest = self._weights
        while waiting or looping or leaving:
            fresh = []
            if leaving and loop * len(leaving) >= rest * len(looping):
                fresh, ended = self._finish(leaving)
                for row in ended:
                    done[row.number] = row.new
                free += [row.slot for row in ended]
                leaving = []
            while waiting and free:
                number, prompt = waiting.pop()
                dice = torch.Generator().manual_seed(seed * 1_000_003 + number)
                draws = torch.rand(most, generator=dice).tolist()
                fresh.append(_Row(number, free.pop(), list(prompt), most, draws, fresh=len(prompt)))
            if fresh:
                more, over = self._begin(fresh)
                looping, leaving = looping + more, leaving + over
            if looping:
                looping, over = self._loop(looping)
                leaving += over
        return done

    # -- stages ----------------------------------------------------------------------------------------------------

    def _begin(self, rows: list[_Row]) -> tuple[list[_Row], list[_Row]]:
        """The new tokens of each: embedded, through the blocks before the loops, and given their first loop."""
        ids = torch.tensor([t for r in rows for t in r.tokens[-r.fresh :]], device=self.model.device)
        for r in rows:
            r.loop, first = 0, r.slot * self.length + len(r.tokens) - r.fresh
            r.at = np.arange(first, first + r.fresh)
            if r.fresh == len(r.tokens):
                self.used[r.slot * self.loops : (r.slot + 1) * self.loops] = 0
        at, where = self._all(rows)
        x = self._private(self.before, rows, at, self.base.embed_tokens(ids))
        self.states[where] = self.x0[where] = x
        self.last[where] = self.loops - 1
        return self._choose(rows, at, where)

    def _loop(self, rows: list[_Row]) -> tuple[list[_Row], list[_Row]]:
        places = np.array([r.slot * self.loops + r.loop for r in rows])
        counts = np.array([len(r.at) for r in rows])
        at, where = self._all(rows)
        x = self.states[where]
        y = self._run(self.unit, x, self.shelves.lay(places, self.used[places], counts, at % self.length))
        self.used[places] += counts
        loops = torch.from_numpy(np.repeat(places % self.loops, counts)).to(x.device)
        y = self.first[0].merge(y, x, self.x0[where], self.gate[where], self.last[where] == loops)
        self.states[where] = y
        self.steps += 1
        self.ran += sum(int(r.at[-1] == r.slot * self.length + len(r.tokens) - 1) for r in rows)
        for r in rows:
            r.loop += 1
        return self._choose(rows, at, where, y)

    def _choose(
        self, rows: list[_Row], at: np.ndarray, where: Tensor, states: Tensor | None = None
    ) -> tuple[list[_Row], list[_Row]]:
        """(those of which a token runs another loop, those whose tokens are done)."""
        states = self.states[where] if states is None else states
        counts = [len(r.at) for r in rows]
        loops = np.repeat([r.loop for r in rows], counts)
        go = np.zeros(len(at), bool)
        for loop in sorted({r.loop for r in rows if r.loop < self.loops}):
            some = np.flatnonzero(loops == loop)
            mine = slice(None) if len(some) == len(at) else torch.from_numpy(some).to(where.device)
            tokens = where[mine]
            found = self.first[loop].choose(states[mine][:, None], self.last[tokens][:, None])
            if found.gate is not None:
                self.gate[tokens] = found.gate[:, 0].to(self.gate.dtype)
            go[some] = True if self.walk.everywhere else found.go[:, 0].cpu().numpy()
            if not self.walk.everywhere:
                self.last[tokens] = found.last[:, 0]
        on, over, start = [], [], 0
        for r, n in zip(rows, counts):
            if n > 1:
                r.at = r.at[go[start : start + n]]
                goes = len(r.at) > 0
            else:
                goes = bool(go[start])
            (on if goes else over).append(r)
            start += n
        return on, over

    def _finish(self, rows: list[_Row]) -> tuple[list[_Row], list[_Row]]:
        """The last blocks and the head: a token for each row. (Those that go on, those that are done.)"""
        ends = np.array([r.slot * self.length + len(r.tokens) - 1 for r in rows])
        if self.after:
            for r, end in zip(rows, ends):
                r.at = np.arange(end + 1 - r.fresh, end + 1)
            at, where = self._all(rows)
            x = self._private(self.after, rows, at, self.states[where])[np.cumsum([r.fresh for r in rows]) - 1]
        else:
            x = self.states[torch.from_numpy(ends).to(self.model.device)]
        logits = self.head(self.base.norm(x)).float()
        self.generated += len(rows)
        if self.temperature == 0:
            said = logits.argmax(-1).tolist()
        else:
            p = (logits / self.temperature).softmax(-1)
            drawn = torch.tensor([[r.draws[len(r.new)]] for r in rows], device=p.device)
            said = (p.cumsum(-1) < drawn).sum(-1).clamp(max=p.shape[-1] - 1).tolist()
        on, over = [], []
        for r, token in zip(rows, said):
            r.tokens.append(token)
            r.new.append(token)
            r.fresh = 1
            (over if len(r.new) == r.left or token in self.ends else on).append(r)
        return on, over

    # -- blocks ----------------------------------------------------------------------------------------------------

    def _all(self, rows: list[_Row]) -> tuple[np.ndarray, Tensor]:
        """The tokens of all rows, as places of the tables."""
        at = np.concatenate([r.at for r in rows])
        return at, torch.from_numpy(at).to(self.model.device)

    def _private(self, blocks: Sequence[Any], rows: list[_Row], at: np.ndarray, x: Tensor) -> Tensor:
        """Blocks that all new tokens of a row run."""
        if not blocks:
            return x
        counts = np.array([r.fresh for r in rows])
        held = np.array([len(r.tokens) for r in rows]) - counts
        laid = self.shelves.lay(np.array([r.slot for r in rows]), held, counts, at % self.length)
        return self._run(blocks, x, laid)

    def _run(self, blocks: Sequence[Any], x: Tensor, laid: Laid) -> Tensor:
        return self.shelves.run(blocks, x, laid, self.base.rotary_emb(x, position_ids=laid.at))


def _numbers(modules: Sequence[Any]) -> int:
    return sum(p.numel() for m in modules for p in m.parameters())


def _counted(**numbers: Any) -> None:
    for name, value in numbers.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise CommonweightError(f"{name} is {value!r}; wanted a whole number >= 1")


def _ids(prompt: Any) -> list[int]:
    found = prompt.tolist() if isinstance(prompt, Tensor | np.ndarray) else prompt
    if isinstance(found, str | bytes) or not all(isinstance(t, int) for t in found):
        raise CommonweightError(f"a prompt is {str(prompt)[:50]!r}; wanted the numbers of its tokens")
    return list(found)
