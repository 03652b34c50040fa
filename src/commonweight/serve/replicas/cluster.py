"""Replicas on Ray Serve: started, asked and stopped."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NamedTuple

from ...core import CommonweightError, first_line
from ..encoder import Encoder
from ..engine import Engine
from ..http.keys import Keys
from ..http.logs import say, to_stderr
from ..http.settings import Settings
from .call import Call, Came, Lost
from .replica import Guarded, Replica

NAME = "commonweight"
_SECONDS = 10.0  # for the metrics of all


class Count(NamedTuple):
    """How many replicas: `least`, and more while there is work for them, `most` at most. busy: calls under way that
    are enough for one. gpus: of each."""

    least: int
    most: int
    busy: int = 32
    gpus: float = 0


class Cluster:
    """See `call.Replicas`."""

    def __init__(self, handle: Any):
        self.handle = handle

    async def ask(self, call: Call, name: str) -> AsyncGenerator[Came, None]:
        from ray.exceptions import RayActorError

        parts = self.handle.options(method_name="answer", stream=True, session_id=name).remote(call)
        try:
            async for part in parts:
                yield part
        except RayActorError as e:  # it has died, or the network to it has
            raise Lost(first_line(e)) from e
        finally:
            parts.cancel()

    async def metrics(self) -> list[str]:
        found = await self.handle.broadcast("metrics").results_async(timeout_s=_SECONDS, return_exceptions=True)
        return [text for text in found if isinstance(text, str)]


class Served:
    """What Ray Serve makes in each process. opened: makes the engine."""

    async def __init__(self, opened: Callable[[], Engine | Encoder], settings: Settings, guard: Guarded):
        from ray import serve

        to_stderr(logging.WARNING)  # the front logs the calls
        number = serve.get_replica_context().replica_tag
        self.replica = Replica(await asyncio.to_thread(opened), settings, guard, number)
        await self.replica.open()

    async def answer(self, call: Call) -> AsyncGenerator[Came, None]:
        async for part in self.replica.answer(call):
            yield part

    def metrics(self) -> str:
        return self.replica.metrics()

    async def check_health(self) -> None:
        if self.replica.service.engine.closed:
            raise RuntimeError("the engine has stopped")

    async def __del__(self) -> None:
        if hasattr(self, "replica"):
            await self.replica.close()


@contextmanager
def deployed(opened: Callable[[], Engine | Encoder], settings: Settings, count: Count) -> Iterator[Cluster]:
    """On the cluster at RAY_ADDRESS, or one that is started on this machine and ends with this.

    opened: makes an engine, in each replica: what it names must be there on every machine.
    Raises: CommonweightError without Ray, without a cluster, and where no replica comes up.
    """
    try:
        import ray
        from ray import serve
        from ray.serve.config import AutoscalingConfig, RequestRouterConfig

        from .router import Bounded
    except ImportError as e:
        raise CommonweightError(f"--ray wants Ray Serve ({e.name} is missing): pip install 'commonweight[ray]'") from e
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    mine = not ray.is_initialized()
    address = os.environ.get("RAY_ADDRESS") or "local"
    try:
        if mine:
            local: dict[str, Any] = {"include_dashboard": False} if address == "local" else {}
            ray.init(address, logging_level=logging.WARNING, **local)
    except (ConnectionError, ValueError, RuntimeError) as e:
        raise CommonweightError(f"--ray: no cluster at {address}: {first_line(e)}") from e
    keys = Keys(settings.keys, settings.admin)
    guard = Guarded(keys.guarded, keys.administered)
    keyless = replace(settings, keys=None, admin=None, shared=True)  # their front has asked for the key
    cores = float(ray.cluster_resources().get("CPU", 1))
    share = cores / count.most
    if count.least == count.most:
        many: dict[str, Any] = {"num_replicas": count.least}
    else:
        many = {"autoscaling_config": AutoscalingConfig(
            min_replicas=count.least, max_replicas=count.most, target_ongoing_requests=count.busy,
            upscale_delay_s=10,
        )}  # fmt: skip
    one: Any = serve.deployment(
        Served,
        name="replica",
        max_ongoing_requests=1 << 20,  # the engine's own queue says when there are too many
        graceful_shutdown_timeout_s=settings.drain,
        ray_actor_options={"num_cpus": float(int(share)) if share >= 1 else share, "num_gpus": count.gpus},
        request_router_config=RequestRouterConfig(  # a name, which each process imports itself
            request_router_class=f"{Bounded.__module__}.{Bounded.__name__}"  # type: ignore[arg-type]
        ),
        logging_config={"log_level": "WARNING", "enable_access_log": False},
        **many,
    )
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    try:
        serve.start(proxy_location="Disabled", logging_config={"log_level": "WARNING"})
        try:
            handle = serve.run(one.bind(opened, keyless, guard), name=NAME, route_prefix=None)
        except RuntimeError as e:
            raise CommonweightError(f"--ray: no replica has come up: {e}") from e
        say("replicas", least=count.least, most=count.most, cores_each=share)
        yield Cluster(handle)
    finally:
        serve.delete(NAME)
        if mine:
            ray.shutdown()
