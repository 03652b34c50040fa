"""A base of which parts lie elsewhere until they run."""

from __future__ import annotations

import pytest
import torch
from accelerate import cpu_offload
from torch import nn

from commonweight.core import CommonweightError
from commonweight.host import Host
from commonweight.serve import Encoder, Engine
from commonweight.serve.device import devices, entry
from commonweight.serve.edition import Editions
from commonweight.serve.scoring import score

from . import encoders, served

AT = torch.device("cpu")


class Spread(nn.Module):
    """Its first parameter lies on another device than the table of its inputs."""

    def __init__(self):
        super().__init__()
        self.tower = nn.Linear(2, 2, device="meta")
        self.table = nn.Embedding(3, 2)

    def get_input_embeddings(self):
        return self.table


def test_inputs_go_where_their_table_is():
    model = Spread()
    assert entry(model) == AT and devices(model) == ["cpu", "elsewhere"]
    assert entry(nn.Linear(2, 2)) == AT, "no table"


def test_what_is_put_away_is_loaded_where_it_runs():
    model = cpu_offload(served.make(), AT)
    assert devices(model) == ["elsewhere"] and entry(model) == AT
    host = Host(model)
    served.add(host, "a")
    here = Host(served.make())
    served.add(here, "a")
    got, want = (score(h, Editions().of(h["a"], h.base.modules), served.prompt(1), 0) for h in (host, here))
    assert [x.logprob for x in got] == pytest.approx([x.logprob for x in want], abs=1e-5)


def test_an_encoder_reads_with_a_base_that_is_put_away():
    found = []
    for put_away in (False, True):
        model = encoders.bert()
        with Encoder(encoders.host(cpu_offload(model, AT) if put_away else model)) as encoder:
            found.append([e.vector for t in (None, "plain") for e in encoder.embed([served.prompt(2)], t)])
    assert found[1][0] == pytest.approx(found[0][0], abs=1e-5) and found[1][0] != found[1][1]
    assert found[1][1] == pytest.approx(found[0][1], abs=1e-5)


def test_an_engine_wants_one_device():
    model = served.make()
    cpu_offload(model.model.layers[1], AT)
    with pytest.raises(CommonweightError, match=r"lies on cpu and elsewhere, and the paged cache .* is on one device"):
        Engine(model)
