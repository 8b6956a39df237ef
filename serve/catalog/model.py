"""A model that is being served: its engines, the scheduler that feeds them, and what clients are told about it."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import grpc

from kaem.artifact import Manifest
from kaem.errors import ArtifactError, RemoteError, RequestError
from kaem.protocol import kaem_pb2
from kaem.protocol.messages import (
    MAX_MESSAGE_BYTES,
    MESSAGE_HEADROOM,
    Limits,
    Model,
    resolve_encoding,
    rows_per_chunk,
)
from serve.calls.call_context import check_allowed, may_use
from serve.devices.device_pool import DevicePool, fleet_of
from serve.devices.engine import Engine, Warmth, agreed, warm_up
from serve.devices.worker_channel import MOST_ROWS
from serve.events import Observer
from serve.scheduling.batch_costs import power_sizes
from serve.scheduling.demand import Bounds
from serve.scheduling.lanes import Lanes
from serve.scheduling.scheduler import Scheduler
from serve.scheduling.sources import decoder_of
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
        makes_latents: Whether jobs may ask for latent vectors.
        device_pool: Processes of the engines, if they are processes.
    """

    info: Model
    scheduler: Scheduler
    lanes: Lanes
    makes_latents: bool = False
    device_pool: DevicePool | None = None

    @property
    def manifest(self) -> Manifest:
        """What the artifact says about itself."""
        return self.info.manifest

    @property
    def is_alive(self) -> bool:
        """Whether anything is left that computes it: processes of devices may all be lost for a while."""
        return self.device_pool is None or self.device_pool.num_alive > 0

    async def wait_idle(self) -> None:
        """Wait until it has no job left."""
        idle = asyncio.Event()
        self.scheduler.call_when_idle(idle.set)
        await idle.wait()

    async def close(self) -> None:
        """End its jobs and stop computing; the engines stay open."""
        if self.device_pool is not None:
            # Otherwise a batch might still wait for a device that is lost, or for a process that does not answer.
            await asyncio.to_thread(self.device_pool.give_up)
        await self.lanes.close()


class Models:
    """The models of a server by name and version; the one that is looked up is always whole and warm.

    Used in the event loop only. Whoever looks a model up must submit to its scheduler before awaiting anything: once
    a model is out of this table, it is released as soon as no job is left in its scheduler.
    """

    def __init__(self) -> None:
        self._models: dict[str, dict[int, ServedModel]] = {}

    def put(self, model: ServedModel) -> ServedModel | None:
        """Offer a model from now on; return the one that had its name and version, which is for the caller to close."""
        versions = self._models.setdefault(model.info.name, {})
        previous = versions.get(model.info.version)
        versions[model.info.version] = model
        return previous

    def remove(self, model: ServedModel) -> None:
        """Offer a model no more; it is for the caller to close."""
        versions = self._models[model.info.name]
        del versions[model.info.version]
        if not versions:
            del self._models[model.info.name]

    def __iter__(self) -> Iterator[ServedModel]:
        return iter([self._models[name][version] for name in sorted(self._models) for version in self.versions(name)])

    def versions(self, name: str) -> tuple[int, ...]:
        """Return the versions of a model in ascending order; the last is the newest. Empty for an unknown name."""
        return tuple(sorted(self._models.get(name, ())))

    def newest(self, name: str) -> ServedModel | None:
        """Return what a call meets that names no version; None for an unknown name."""
        versions = self._models.get(name)
        return versions[max(versions)] if versions else None

    def get(self, name: str, version: int = 0) -> ServedModel:
        """Return a model that computes.

        Args:
            name: Name of the model; "" for the only one.
            version: Version of the model; 0 for the newest one.

        Raises:
            RefusedError: NOT_FOUND; PERMISSION_DENIED, for the caller whose token does not allow it; UNAVAILABLE, all
                its devices are lost.
        """
        if not name and len(self._models) == 1:
            name = next(iter(self._models))
        if name:
            check_allowed(name)
        versions = self._models.get(name)
        if versions is None:
            offered = ", ".join(repr(known) for known in sorted(self._models) if may_use(known)) or "none at present"
            error = RequestError(
                f"no model named {name!r}" if name else "no model is named, and there are several",
                hint=f"this server offers {offered}",
            )
            raise RefusedError(grpc.StatusCode.NOT_FOUND, error, field="model")
        model = versions.get(version or max(versions))
        if model is None:
            offered = ", ".join(map(str, self.versions(name)))
            error = RequestError(f"no version {version} of model {name!r}", hint=f"this server has {offered}")
            raise RefusedError(grpc.StatusCode.NOT_FOUND, error, field="version")
        if not model.is_alive:
            lost = RemoteError(f"model {name!r} has lost its devices", hint="try again; the server starts them again")
            raise RefusedError(grpc.StatusCode.UNAVAILABLE, lost)
        return model


def warm_engines(
    engines: Sequence[Engine], max_batch: int | None, is_wanted: Callable[[], bool] = lambda: True
) -> Warmth:
    """Run the engines of one model at every size; takes seconds, and is for a thread of its own.

    Args:
        engines: One per device, all of the same artifact.
        max_batch: Rows of the largest batch; None for as many as make batches more efficient.
        is_wanted: Asked now and then; once it says no, the rest is left.

    Returns:
        What holds for all of them: the costs are those of the slowest.

    Raises:
        BackendError: An engine does not run, they do not compute the same bits, or it is not wanted any more.
    """
    first = engines[0]
    sizes = _sizes(first, max_batch)
    warmth = agreed(engines, [warm_up(engine, sizes, is_wanted=is_wanted) for engine in engines])
    if max_batch:
        return warmth
    return replace(warmth, costs=warmth.costs.up_to_the_knee(_LEAST_BATCH_ROWS * first.workers))


def limits_of(manifest: Manifest, max_chunk_bytes: int) -> Limits:
    """Return what fits in one message for a model.

    Raises:
        ArtifactError: Not even one image fits.
    """
    largest = MAX_MESSAGE_BYTES - MESSAGE_HEADROOM
    if manifest.image_bytes > largest:
        raise ArtifactError(
            f"one image of model {manifest.name!r} takes {manifest.image_bytes} bytes; a message holds {largest}",
            hint="sample it without a server: kaem sample",
        )
    own = resolve_encoding(kaem_pb2.ENCODING_UNSPECIFIED, manifest)
    rows = rows_per_chunk(manifest, own, max_chunk_bytes)
    return Limits(
        max_chunk_bytes=max_chunk_bytes,
        max_sample_rows=rows,
        max_decode_rows=max(1, min(rows, max_chunk_bytes // (4 * manifest.noise_dim))),
    )


def start_model(
    engines: Sequence[Engine],
    warmth: Warmth,
    *,
    name: str,
    version: int,
    limits: Limits,
    bounds: Bounds,
    observer: Observer,
    on_devices: Callable[[], None] = lambda: None,
    clock: Callable[[], float] = time.monotonic,
) -> ServedModel:
    """Start computing with warm engines; to be called in the event loop that answers requests.

    Args:
        engines: One per device, all of the same artifact.
        warmth: What `warm_engines` said of them.
        name: Under which the model is offered.
        version: The same.
        limits: What fits in one message.
        bounds: What may wait and be held.
        observer: Told what happens.
        on_devices: Called in this loop whenever a device of it is lost or back.
        clock: In seconds.

    Raises:
        BackendError: Its devices have computed other bits under one numerics id.
    """
    first, costs = engines[0], warmth.costs
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
        version=version,
    )
    table = ", ".join(f"{size}: {1e3 * costs.batch_seconds(size):.3g}" for size in costs.sizes)
    _log.info(
        "model %r version %d on %s, milliseconds of a batch by its rows: %s", name, version, first.provider, table
    )
    device_pool = fleet_of(engines)
    if device_pool is not None:
        _keep_alive(device_pool, warmth, name, observer, lambda: loop.call_soon_threadsafe(on_devices))
    both = [decoder_of(engine) for engine in engines]
    lanes = Lanes(scheduler, [engine.decode for engine in engines], both)
    return ServedModel(info, scheduler, lanes, makes_latents=None not in both, device_pool=device_pool)


def _keep_alive(
    device_pool: DevicePool, warmth: Warmth, model: str, observer: Observer, on_devices: Callable[[], object]
) -> None:
    """Have lost devices started again from now on, and tell whom it concerns."""

    def on_change(device: str, is_up: bool, num_alive: int) -> None:
        observer.on_device(model=model, device=device, is_up=is_up)
        on_devices()

    device_pool.keep_alive(warmth.costs.sizes, on_change, is_exact=warmth.is_exact)
    for engine in device_pool.engines:
        observer.on_device(model=model, device=engine.device, is_up=True)


def _sizes(engine: Engine, max_batch: int | None) -> tuple[int, ...]:
    most = _MAX_BATCH_BYTES // engine.manifest.image_bytes
    return power_sizes(max_batch or max(1, min(_MAX_BATCH_ROWS * engine.workers, most, MOST_ROWS)))
