"""Methods that begin from data: the training's own first rows, and the same bits when a killed run goes on."""

import pytest
import torch

import commonweight as cw
from commonweight.adapt import adapt, open_host
from tests.adapt import tiny
from tests.laws.subjects import model_of, small

METHODS = [n for n, m in cw.methods.available().items() if m.begin]


def from_rows(method):
    """The option of a method that begins from data only when asked."""
    start = cw.methods.get(method).config().start
    return {"start": "rows"} if start == "random" else {}


def trained(folder, method, **more):
    host = open_host(folder, dtype="float32")
    options = {k: v for k, v in small(method).items() if k != "start"} | from_rows(method)
    found, config = cw.methods.resolve(method, options)
    more |= {"retain": tiny.rows(9)[5:]} if found.kept(config) else {}
    result = adapt(host, "t", tiny.rows(24), method=method, options=options, batch_size=4, epochs=1, **more)
    return result.tenant, {n: p.detach().clone() for n, p in result.tenant.pools.items()}


@pytest.mark.parametrize("method", [n for n in METHODS if model_of(n) == "llama"])
def test_begins_from_its_rows_and_resumes_to_the_same_bits(bert, tmp_path, method):
    def stop(p):
        if p.step == 4:
            raise KeyboardInterrupt

    tenant, whole = trained(bert, method, rows_shown=8)
    assert tenant.config.start == "given" and tenant.labels
    with pytest.raises(KeyboardInterrupt):
        trained(bert, method, rows_shown=8, checkpoint=tmp_path / "c", checkpoint_every=2, progress=stop)
    _, again = trained(bert, method, rows_shown=8, checkpoint=tmp_path / "c", checkpoint_every=2, resume=True)
    assert whole.keys() == again.keys() and all(torch.equal(p, again[n]) for n, p in whole.items())
    _, other = trained(bert, method, rows_shown=2)
    assert whole.keys() != other.keys() or any(not torch.equal(p, other[n]) for n, p in whole.items())


@pytest.mark.parametrize("method", METHODS)
def test_it_wants_rows_and_says_which(method):
    from tests.models import make

    host = cw.Host(make(model_of(method))[0])
    with pytest.raises(cw.CommonweightError, match=f"{method}( with .*)? begins from data: .* or take start='random'"):
        host.add("t", method, **from_rows(method))
    host.add("t", method, **small(method))


def test_rows_to_keep_are_refused_where_nobody_asks_and_wanted_where_somebody_does(bert):
    host = open_host(bert, dtype="float32")
    with pytest.raises(cw.CommonweightError, match="retain: lora does not ask for rows to keep; leave retain out"):
        adapt(host, "t", tiny.rows(8), retain=tiny.rows(4), method="lora")
    with pytest.raises(cw.CommonweightError, match=r"salora begins from data: .* give retain="):
        adapt(host, "t", tiny.rows(8), method="salora")
    assert "t" not in host
