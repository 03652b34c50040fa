"""Rows of embeddings for a vocabulary of several models, against mergekit's own assignment (its task alone)."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace

import pytest
import torch

from ..methods.test_against_mergekit import WEIGHTS, theirs  # skips where mergekit is not at hand
from .test_vocabulary import EMBED, HEAD, WORDS, merged
from .test_vocabulary import states as states

embed = pytest.importorskip("mergekit.tokenizer.embed", reason="mergekit 0.1.5 is not installed")


def rows(states, name, vocab, base):
    """model -> (len(vocab), d): what mergekit gives every model for the new vocabulary."""
    assert theirs
    named = {m: embed.ModelReference.model_validate(m) for m in states}
    places = {r: {i: WORDS[m].index(t) if t in WORDS[m] else -1 for t, i in vocab.items()} for m, r in named.items()}
    info = SimpleNamespace(tokenizer=SimpleNamespace(get_vocab=lambda: vocab), permutations=places, original_vocabs={})
    kind = embed.PermutedVocabulary
    task = SimpleNamespace(vocabulary_axis=0, pad_to_multiple_of=None, tokens=None, base_model=named.get(base))
    for method in ("assign_embedding_sources", "compute_default_embedding"):
        setattr(task, method, partial(getattr(kind, method), task))
    found = kind.execute(task, info, {r: states[m][name] for m, r in named.items()})
    return {m: found[r] for m, r in named.items()}


@pytest.mark.parametrize("source", ["union", "base"])
def test_rows(source, states):
    """Tokens that one model, several, the base and not the base, or all of them have."""
    if source == "union":
        state, vocab, _ = merged(models=["base", "m1", "m2"], weights=WEIGHTS, tokenizer="union")
        base = None
    else:
        more = {"method": "task_arithmetic", "base": "base", "options": {"normalize": False}}
        state, vocab, _ = merged(**more, weights=WEIGHTS[1:], tokenizer="base")
        base = "base"
    for name in (EMBED, HEAD):
        r = rows(states, name, vocab, base)
        if source == "union":
            wanted = sum(w * r[m] for w, m in zip(WEIGHTS, r)) / sum(WEIGHTS)
        else:
            wanted = r["base"] + sum(w * (r[m] - r["base"]) for w, m in zip(WEIGHTS[1:], ("m1", "m2")))
        torch.testing.assert_close(state[name], wanted, atol=2e-6, rtol=1e-5)
