"""OpenAI's own client, as it is, against a server on a free port."""

from __future__ import annotations

import pytest

from ..served import alone, ask, prompt
from . import shop
from .live import live

openai = pytest.importorskip("openai")


@pytest.fixture(scope="module")
def host():
    return shop.host()


@pytest.fixture(scope="module")
def client(host):
    with live(host) as (address, _, _), openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0) as found:
        yield found


def words(host, tenant):
    return shop.tokenizer().decode(alone(host, ask(tenant, 1)), skip_special_tokens=True)


def test_completions(client, host):
    got = client.completions.create(
        model="a",
        prompt=prompt(1),
        max_tokens=6,
        temperature=0,
        logprobs=2,
        extra_body={"ignore_eos": True, "top_k": 0},
    )
    assert got.choices[0].text == words(host, "a") and got.usage.completion_tokens == 6
    assert len(got.choices[0].logprobs.top_logprobs) == 6 and got._request_id


def test_chats_and_streams(client):
    asked = {"model": "b", "messages": [{"role": "user", "content": "w1 w2"}], "max_completion_tokens": 5, "seed": 1}
    whole = client.chat.completions.create(**asked, logprobs=True, top_logprobs=1)
    chunks = list(client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == whole.choices[0].message.content and chunks[-1].usage == whole.usage
    assert whole.choices[0].logprobs.content[0].top_logprobs[0].token
    assert chunks[0].choices[0].delta.role == "assistant"
    with client.chat.completions.stream(**asked) as stream:
        assert "".join(e.delta for e in stream if e.type == "content.delta") == text


def test_responses(client):
    got = client.responses.create(model="a", input="w1 w2", max_output_tokens=4, temperature=0)
    assert got.output_text and got.usage.output_tokens == 4
    *_, last = client.responses.create(model="a", input="w1 w2", max_output_tokens=4, temperature=0, stream=True)
    assert last.type == "response.incomplete" and last.response.output_text


def test_models(client):
    assert [m.id for m in client.models.list()] == ["base", "org/tiny", "a", "b"]
    assert client.models.retrieve("a").owned_by == "commonweight"


def test_errors(client, host):
    with pytest.raises(openai.NotFoundError, match="does not exist") as e:
        client.completions.create(model="none", prompt="w1")
    assert e.value.param == "model" and e.value.status_code == 404
    with pytest.raises(openai.BadRequestError, match="temperature"):
        client.completions.create(model="a", prompt="w1", temperature=-1)


async def many(address, host):
    async with openai.AsyncOpenAI(base_url=f"{address}/v1", api_key="none") as client:
        import asyncio

        asked = [
            client.completions.create(
                model=m, prompt=prompt(1), max_tokens=6, temperature=0, extra_body={"ignore_eos": True}
            )
            for m in ("a", "b", "base") * 5
        ]
        return [g.choices[0].text for g in await asyncio.gather(*asked)]


def test_many_at_once(client, host):
    import asyncio

    got = asyncio.run(many(str(client.base_url).removesuffix("/v1/"), host))
    assert got == [words(host, t) for t in ("a", "b", None)] * 5
