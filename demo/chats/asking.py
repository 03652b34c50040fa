"""One mixed batch of chats by OpenAI's own client, and what the server says of itself afterwards."""

from __future__ import annotations

import asyncio
import time
import urllib.request
from collections.abc import Sequence
from typing import NamedTuple

from commonweight import CommonweightError

QUESTIONS = {
    "austen": "Emma looked at the letter, and could not help smiling.",
    "bierce": "Computer",
    "carroll": "Alice saw a very small door behind the curtain.",
    "cr": "the battery died after a week and nobody answered my calls.",
    "doyle": "There was a knock at the door of our rooms in Baker Street.",
    "melville": "The sea was calm that morning.",
    "mr": "an hour too long, and not a single laugh in it.",
    "shakespeare": "Good morrow, my lord. What news from the court?",
    "sst2": "a warm, funny and moving film.",
    "sst5": "it has its moments, but the ending is dull.",
    "sums": "Tom has 3 boxes with 12 pencils each. He gives 6 pencils away. How many pencils has he left?",
    "trec": "Who invented the telephone ?",
}
NEW = 48  # tokens of an answer, at most
SHOWN = {
    "vllm:prompt_tokens_total": "tokens of prompts", "vllm:generation_tokens_total": "tokens of answers",
    "vllm:time_to_first_token_seconds": "seconds to the first token, mean",
    "vllm:e2e_request_latency_seconds": "seconds to the last token, mean",
    "commonweight:tenants_loaded": "tenants loaded", "commonweight:tenants_bytes": "their bytes",
}  # fmt: skip


class Said(NamedTuple):
    tenant: str
    asked: str
    base: str
    answer: str


def batch(address: str, tenants: Sequence[str]) -> tuple[list[Said], float]:
    """Each tenant and the plain model to the tenant's question, all at once; the seconds that it took.

    Raises: CommonweightError where one of them is refused.
    """
    from openai import APIError, AsyncOpenAI

    async def all_of_them() -> list[str]:
        async with AsyncOpenAI(base_url=f"{address}/v1", api_key="none", timeout=600) as client:

            async def one(model: str, text: str) -> str:
                got = await client.chat.completions.create(
                    model=model, messages=[{"role": "user", "content": text}], max_tokens=NEW, temperature=0
                )
                return got.choices[0].message.content or ""

            return await asyncio.gather(*(one(m, QUESTIONS[t]) for t in tenants for m in ("base", t)))

    start = time.perf_counter()
    try:
        found = asyncio.run(all_of_them())
    except APIError as e:  # another model, perhaps
        raise CommonweightError(f"the server did not answer: {e.message}") from e
    seconds = time.perf_counter() - start
    pairs = zip(tenants, found[::2], found[1::2], strict=True)
    return [Said(t, QUESTIONS[t], base, answer) for t, base, answer in pairs], seconds


def metrics(address: str) -> str:
    with urllib.request.urlopen(f"{address}/metrics", timeout=60) as got:
        return got.read().decode()


def summary(text: str) -> dict[str, float]:
    """What is shown of Prometheus' text; series of one name are added, histograms become means."""
    sums: dict[str, float] = {}
    for line in text.splitlines():
        if line and not line.startswith("#"):
            head, value = line.rsplit(" ", 1)
            name = head.split("{", 1)[0]
            sums[name] = sums.get(name, 0) + float(value)
    found = {}
    for name, told in SHOWN.items():
        if name in sums:
            found[told] = sums[name]
        elif sums.get(f"{name}_count"):
            found[told] = sums[f"{name}_sum"] / sums[f"{name}_count"]
    return found
