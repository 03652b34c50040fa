"""A grid in this process: nodes are contexts, and a message is answered when it is sent."""

from __future__ import annotations

import runpy
import tomllib

from flwr.app import ConfigRecord, Context, Error, Message, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.task_identity import TaskIdentity


def client_app(folder):
    return runpy.run_path(str(folder / "client_app.py"))["app"]


def config_of(folder):
    return tomllib.loads((folder / "pyproject.toml").read_text())["tool"]["flwr"]["app"]["config"]


class Here(Grid):
    """nodes: id -> its config. spoil: (message, reply) -> the replies that arrive, or None for a node that crashed."""

    def __init__(self, folder, nodes, spoil=None):
        TaskIdentity._task_id, TaskIdentity._run_id, TaskIdentity._node_id = 1, 1, 1
        self.app, self.spoil, self.sent = client_app(folder), spoil, 0
        self.contexts = {n: Context(1, n, dict(c), RecordDict(), config_of(folder)) for n, c in nodes.items()}

    def set_run(self, run):
        raise NotImplementedError

    @property
    def run(self):
        raise NotImplementedError

    def create_message(self, content, message_type, dst_node_id, group_id, ttl=None):
        return Message(content, dst_node_id, message_type, group_id=group_id)

    def get_node_ids(self):
        return list(self.contexts)

    def push_messages(self, messages):
        raise NotImplementedError

    def pull_messages(self, message_ids):
        raise NotImplementedError

    def send_and_receive(self, messages, *, timeout=None):
        out = []
        for m in messages:
            self.sent += 1
            m.metadata.__dict__["_message_id"] = str(self.sent)
            try:
                reply = self.app(m, self.contexts[m.metadata.dst_node_id])
            except Exception as e:
                reply = Message(Error(1, f"{type(e).__name__}: {e}"), reply_to=m)
            out += [reply] if self.spoil is None else self.spoil(m, reply)
        return out


def other(reply, **records):
    """A reply from the same node with other records."""
    content = RecordDict({"facts": ConfigRecord({"round": 0}), **records})
    return Message(content, metadata=reply.metadata)
