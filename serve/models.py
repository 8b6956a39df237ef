"""A model that is being served: its engines, the scheduler that feeds them, and what clients are told about it."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import grpc

from kaem.artifact import Manifest
from kaem.errors import RequestError
from kaem.protocol.messages import Limits, Model
from serve.buckets import power_sizes
from serve.current import check_allowed
from serve.engine import Engine, agreed, warm_up
from serve.fleet import Fleet, fleet_of
from serve.lanes import Lanes
from serve.observer import Observer
from serve.scheduler import Bounds, Scheduler
from serve.statuses import RefusedError

_MAX_BATCH_ROWS = 256  # for each worker, where the operator names no batch size
_LEAST_BATCH_ROWS = 32  # likewise: what matrix products need to be efficient
_MAX_BATCH_BYTES = 64 << 20  # of images, likewise
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A warm model.

    Attributes:
        info: What clients are told.
        scheduler: Takes jobs for it.
        lanes: Compute them.
        fleet: Of the engines, if they are processes.
    """

    info: Model
    scheduler: Scheduler
    lanes: Lanes
    fleet: Fleet | None = None

    @property
    def manifest(self) -> Manifest:
        """What the artifact says about itself."""
        return self.info.manifest

    async def close(self) -> None:
        """End its jobs and stop computing; the engines stay open."""
        if self.fleet is not None:
            self.fleet.give_up()  # otherwise a batch might still wait for a device that is lost
        await self.lanes.close()


class Models:
    """The models of a server by name; the one that is looked up is always whole and warm."""

    def __init__(self) -> None:
        self._models: dict[str, ServedModel] = {}

    def put(self, model: ServedModel) -> ServedModel | None:
        """Offer a model from now on; return the one that had its name, which is for the caller to close."""
        previous = self._models.get(model.info.name)
        self._models[model.info.name] = model
        return previous

    def __iter__(self) -> Iterator[ServedModel]:
        return iter(tuple(self._models.values()))

    def get(self, name: str) -> ServedModel:
        """Return a model by name; "" is the only one.

        Raises:
            RefusedError: NOT_FOUND; PERMISSION_DENIED, for the caller whose token does not allow it.
        """
        if not name and len(self._models) == 1:
            name = next(iter(self._models))
        check_allowed(name)
        model = self._models.get(name)
        if model is None:
            offered = ", ".join(repr(known) for known in sorted(self._models))
            error = RequestError(f"no model named {name!r}", hint=f"this server offers {offered}")
            raise RefusedError(grpc.StatusCode.NOT_FOUND, error, field="model")
        return model


async def open_model(
    engines: Sequence[Engine],
    *,
    name: str,
    limits: Limits,
    bounds: Bounds,
    max_batch: int | None,
    observer: Observer,
    on_devices: Callable[[int], None] = lambda num_alive: None,
    clock: Callable[[], float] = time.monotonic,
) -> ServedModel:
    """Warm a model's engines up and start computing; to be awaited in the loop that answers requests.

    Args:
        engines: One per device, all of the same artifact.
        name: Under which it is offered.
        limits: What fits in one message.
        bounds: What may wait and be held.
        max_batch: Rows of the largest batch; None for as many as make batches more efficient.
        observer: Told what happens.
        on_devices: Called in this loop with the number of devices that compute, whenever it changes.
        clock: In seconds.

    Raises:
        BackendError: An engine does not run, or they do not compute the same bits.
    """
    first = engines[0]
    warmths = [await asyncio.to_thread(warm_up, engine, _sizes(first, max_batch)) for engine in engines]
    warmth = agreed(engines, warmths)
    costs = warmth.costs if max_batch else warmth.costs.up_to_the_knee(_LEAST_BATCH_ROWS * first.workers)
    loop = asyncio.get_running_loop()
    scheduler = Scheduler(
        costs,
        noise_dim=first.manifest.noise_dim,
        bounds=bounds,
        lanes=len(engines),
        observer=observer,
        clock=clock,
        post=loop.call_soon_threadsafe,
    )
    info = Model(
        name=name,
        manifest=first.manifest,
        numerics_id=warmth.numerics_id,
        provider=first.provider,
        limits=limits,
    )
    table = ", ".join(f"{size}: {1e3 * costs.batch_seconds(size):.3g}" for size in costs.sizes)
    _log.info("model %r on %s, milliseconds of a batch by its rows: %s", name, first.provider, table)
    fleet = fleet_of(engines)
    if fleet is not None:
        _keep_alive(fleet, costs.sizes, observer, lambda num: loop.call_soon_threadsafe(on_devices, num))
    return ServedModel(info, scheduler, Lanes(scheduler, [engine.decode for engine in engines]), fleet)


def _keep_alive(fleet: Fleet, sizes: Sequence[int], observer: Observer, on_devices: Callable[[int], object]) -> None:
    """Have lost devices started again from now on, and tell whom it concerns."""

    def on_change(device: str, is_up: bool, num_alive: int) -> None:
        observer.on_device(device, is_up=is_up)
        on_devices(num_alive)

    for engine in fleet.engines:
        observer.on_device(engine.device, is_up=True)
    fleet.keep_alive(sizes, on_change)


def _sizes(engine: Engine, max_batch: int | None) -> tuple[int, ...]:
    most = _MAX_BATCH_BYTES // engine.manifest.image_bytes
    return power_sizes(max_batch or max(1, min(_MAX_BATCH_ROWS * engine.workers, most)))
