"""schemathesis against the server's own OpenAPI: what it sends, by the schema or against it, is answered as documented.

EXAMPLES=200 for a long run.
"""

from __future__ import annotations

import os
import warnings

import pytest

from .. import encoders
from . import shop
from .test_reading import serving

schemathesis = pytest.importorskip("schemathesis")
hypothesis = pytest.importorskip("hypothesis")

EXAMPLES = int(os.environ.get("EXAMPLES", "2"))
pytestmark = pytest.mark.filterwarnings("ignore")


def checks():
    """All but one: a body may be right by the schema and still ask for what is not there, which is a 400 here as it is
    with OpenAI and vLLM."""
    from schemathesis.checks import CHECKS

    return [c for c in CHECKS.get_all() if c.__name__ != "positive_data_acceptance"]


def chats():
    return shop.client(shop.host(), max_tokens=8)


def readings():
    return serving(encoders.host(encoders.bert()))


def ranks():
    return serving(encoders.ranker_host())


@pytest.fixture(scope="module", params=[chats, readings, ranks])
def app(request):
    with request.param() as client:
        yield client.app


@pytest.fixture(scope="module")
def schema(app):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return schemathesis.openapi.from_asgi("/openapi.json", app)


def test_every_operation_answers_as_documented(schema):
    wrong: dict[str, str] = {}
    for found in schema.get_all_operations():
        operation = found.ok()

        @hypothesis.settings(
            max_examples=EXAMPLES, deadline=None, database=None, derandomize=True,
            suppress_health_check=list(hypothesis.HealthCheck),
        )  # fmt: skip
        @hypothesis.given(case=operation.as_strategy())
        def one(case):
            case.call_and_validate(headers={"host": "localhost"}, checks=checks())

        try:
            one()
        except BaseException as e:  # an ExceptionGroup of all that is wrong
            if isinstance(e, KeyboardInterrupt):
                raise
            inner = getattr(e, "exceptions", [e])
            wrong[operation.label] = "\n".join(dict.fromkeys(str(x)[:700] for x in inner))
    assert not wrong, "\n\n".join(f"== {k}\n{v}" for k, v in wrong.items())
