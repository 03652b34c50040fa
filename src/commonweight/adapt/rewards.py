"""Reward functions of grpo: `reward(prompts, completions, **columns)` gives one number each, as TRL calls them."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ..core import CommonweightError, counted, first_line

Reward = Callable[..., Any]  # a sequence of numbers


def to_call(reward: Any) -> Reward:
    """A function, or ``module:function``, or ``file.py:function``. Raises: CommonweightError."""
    if callable(reward):
        return reward
    where, colon, name = str(reward).rpartition(":")
    if not colon or not name.isidentifier():
        raise CommonweightError(f"reward {reward!r}: wanted module:function, or file.py:function")
    try:
        if where.endswith(".py"):
            spec = importlib.util.spec_from_file_location(Path(where).stem, where)
            assert spec is not None and spec.loader is not None
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
        else:
            if "" not in sys.path:
                sys.path.insert(0, "")  # a command's own folder is not among them
            module = importlib.import_module(where)
    except Exception as e:  # it runs what the user wrote
        raise CommonweightError(f"reward {reward!r} cannot be loaded: {first_line(e)}") from e
    found = getattr(module, name, None)
    if not callable(found):
        raise CommonweightError(f"reward {reward!r}: there is no function {name} in {where}")
    return found


def rewards(reward: Reward, rows: Sequence[dict[str, Any]], answers: Sequence[str]) -> list[float]:
    """One number for each answer; as TRL does, chats get their answer as a list of one message."""
    chats = [not isinstance(r["prompt"], str) for r in rows]
    completions = [[{"role": "assistant", "content": a}] if c else a for c, a in zip(chats, answers)]
    others = {k: [r.get(k) for r in rows] for k in dict.fromkeys(k for r in rows for k in r) if k != "prompt"}
    got = list(reward(prompts=[r["prompt"] for r in rows], completions=completions, **others))
    if len(got) != len(rows):
        raise CommonweightError(
            f"the reward gave {counted(len(got), 'number')} for {counted(len(rows), 'completion')}; wanted one each"
        )
    return [float(g) for g in got]
