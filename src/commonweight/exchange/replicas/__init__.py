"""Processes without a server: each is a client, and each makes the server's step on what all have sent.

Only the messages of `rounds.up` travel, so never the frozen base. The step is a function of the messages alone and
they are taken in the order of their clients: every process has the same numbers, to the bit, as the simulated run.
"""

from .carrier import Alone, Carrier, Gloo
from .engine import Replica, exchange

__all__ = ["Alone", "Carrier", "Gloo", "Replica", "exchange"]
