"""At start: is transformers the one that this was written for, and does the engine answer as the model does?"""

from __future__ import annotations

from typing import Any

import torch

from ..core import CommonweightError, first_line
from .device import devices
from .request import Request, whole

WANTED = "5.23"


def installed() -> None:
    """Raises: CommonweightError where transformers is missing, another minor version, or has moved what is used."""
    try:
        import transformers
    except ImportError as e:
        raise CommonweightError("serving wants transformers: pip install 'commonweight[serve]'") from e
    if not transformers.__version__.startswith(f"{WANTED}."):
        raise CommonweightError(
            f"serving rests on the inside of transformers {WANTED}, and {transformers.__version__} is installed: "
            f"pip install 'transformers=={WANTED}.*'"
        )
    from .batching import missing

    if gone := missing():
        raise CommonweightError(f"transformers {transformers.__version__} has no {', '.join(gone)}; reinstall {WANTED}")


def sizes(least: int = 1, **given: int | None) -> None:
    """The numbers of an engine, None for those that are not said. Raises: CommonweightError naming a wrong one."""
    for name, value in given.items():
        if value is not None:
            whole(name, value, least, None)


def servable(model: Any) -> None:
    """Raises: CommonweightError for a model that generates no text, or whose attention cannot read a paged cache."""
    kind = type(model).__name__
    if not getattr(model, "can_generate", lambda: False)():
        raise CommonweightError(f"{kind} generates no text; load it with AutoModelForCausalLM")
    if getattr(model.config, "is_encoder_decoder", False):
        raise CommonweightError(
            f"{kind} has an encoder and a decoder, which continuous batching does not take; use generate"
        )
    if len(found := devices(model)) > 1:
        raise CommonweightError(
            f"{kind} lies on {' and '.join(found)}, and the paged cache of continuous batching is on one device; load "
            "it on one, or use host.route and generate"
        )
    if not model._can_set_attn_implementation():
        raise CommonweightError(
            f"the attention of {kind} cannot read the paged cache of continuous batching; use host.route and generate"
        )
    if getattr(model.config.get_text_config(), "layer_types", None) and any(
        t not in ("full_attention", "sliding_attention") for t in model.config.get_text_config().layer_types
    ):
        raise CommonweightError(
            f"{kind} has layers that are no attention, which the paged cache does not hold; use generate"
        )


def same(engine: Any) -> None:
    """Two prompts of different lengths together, greedy, against the plain model's own passes.

    Compared are log probabilities, so that a tie does not decide. Raises: CommonweightError where they differ.
    """
    size = engine.vocabulary
    prompts = [[(7 * i + 3) % size for i in range(n)] for n in (5, 19)]
    steps = 3
    asked = [Request(p, max_new_tokens=steps, temperature=0, ignore_eos=True, logprobs=1) for p in prompts]
    answers = engine.generate(asked)
    for prompt, answer in zip(prompts, answers):
        if answer.error and (large := engine._manager.large) is not None:
            raise CommonweightError(
                f"a cache of {engine.cache_tokens:,} tokens, and steps of {engine.max_batch_tokens:,}, have no room "
                f"in the memory that is free ({first_line(large)}); choose fewer cache_tokens or max_batch_tokens"
            )
        if answer.error or answer.logprobs is None:
            kind = type(engine.model).__name__
            raise CommonweightError(f"the engine cannot run {kind} ({answer.error}); use host.route and generate")
        ids = torch.tensor([prompt + answer.tokens[:-1]], device=engine.model.device)
        with torch.no_grad(), engine.host.route(None):
            logits = engine.model(input_ids=ids, use_cache=False).logits[0, len(prompt) - 1 :].float()
        want = torch.log_softmax(logits, -1)
        got = torch.tensor([x.logprob for x in answer.logprobs], device=want.device)
        mine = want.gather(1, torch.tensor(answer.tokens, device=want.device)[:, None])[:, 0]
        slack = 1e-3 if want.dtype == engine.model.dtype else 0.15
        if not torch.allclose(got, mine, atol=slack) or bool((want.max(1).values - mine > slack).any()):
            far = float((got - mine).abs().max())
            raise CommonweightError(
                f"{type(engine.model).__name__} answers otherwise in the engine than by itself: log probabilities "
                f"differ by {far:.3g}, since its attention does not read the paged cache; use host.route and generate"
            )
