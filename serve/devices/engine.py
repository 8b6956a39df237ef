"""What computes, and what is known about it before the first request: its costs, and what its bits depend on.

**The rule of the numerics id.** Noise is equal everywhere; what an engine makes of it may depend on the shape of the
batch, because kernels are chosen by shape. Only the sizes of the cost table are ever run, so all of them can be
compared before the first request: every row, at every place of a batch of every size, with changing neighbours,
against the same row computed alone. Where the bits agree, the id does not name a size: two servers with the same id
agree with the same rows computed alone, hence with each other, whatever sizes they run. Where they do not, only sizes
that agree with the largest are run, and the smallest of them becomes part of the id: a graph with a form of its own for
large batches keeps all sizes of that form. Where even the place in a batch matters, or the run, as on a GPU whose
library has only kernels that add in an order of chance, nothing can be promised about bits: the id begins with
`approx:` and says that images agree up to rounding, which is measured; an engine that differs by more is refused.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from kaem import noise
from kaem.artifact import Manifest, fingerprint
from kaem.engines.providers import APPROXIMATE
from kaem.errors import BackendError
from kaem.sampler import Images, Uniforms
from serve.scheduling.batch_costs import CostTable
from serve.scheduling.sources import Seeded, draw

_PROBES = 7  # no multiple of a power of two, so that a row meets new neighbours and places in every size
_TIMED_RUNS = 5
_SECONDS_PER_SIZE = 0.3
_WARM_UP_S = 10.0
_MOST_DIFFERENCE = 1e-3
"""Between images of the same row, 1 being the range of a pixel: what TF32 is off by; more is an error, not rounding."""
_log = logging.getLogger(__name__)


class Engine(Protocol):
    """One device with one model on it; `kaem.engines.cpu.LocalSampler` and `kaem.engines.cuda.CudaEngine` satisfy it.

    `decode` is only called with the numbers of rows it was warmed up for, by one thread at a time.
    """

    provider: str
    workers: int

    @property
    def manifest(self) -> Manifest:
        """What the model is."""
        ...

    @property
    def numerics_id(self) -> str:
        """Digest of artifact, provider, its version and the hardware."""
        ...

    def decode(self, uniform: Uniforms) -> Images:
        """Map rows of uniforms, shape (N, D), to images, shape (N, C, H, W)."""
        ...


@dataclass(frozen=True, slots=True)
class Warmth:
    """What warming up has shown.

    Attributes:
        costs: Seconds of a batch, noise included, for each size that may be run.
        numerics_id: Identity of the numerics of everything these sizes compute.
    """

    costs: CostTable
    numerics_id: str

    @property
    def is_exact(self) -> bool:
        """Whether equal ids mean equal bits, and not images that agree up to rounding."""
        return not self.numerics_id.startswith(APPROXIMATE)


@dataclass(frozen=True, slots=True)
class _Probed:
    """What batches of one size have made of the probes.

    Attributes:
        images: Images of the probes, shape (7, C, H, W).
        difference: The largest one between images of the same probe, 1 being the range of a pixel; 0 for equal bits.
    """

    images: Images
    difference: float

    def agrees_with(self, other: _Probed) -> bool:
        """Whether both have given every row the same bits, everywhere."""
        return self.difference == other.difference == 0.0 and np.array_equal(self.images, other.images)


def warm_up(
    engine: Engine,
    sizes: Sequence[int],
    *,
    clock: Callable[[], float] = time.perf_counter,
    is_wanted: Callable[[], bool] = lambda: True,
) -> Warmth:
    """Run every size, compare their bits and measure their time.

    A model whose sampler takes many steps is slow at any size: sizes that ten seconds do not reach are left out.

    Args:
        engine: What computes.
        sizes: Numbers of rows, ascending.
        clock: In seconds.
        is_wanted: Asked before every size; once it says no, the rest is left.

    Raises:
        BackendError: The engine does not run, gives a row another image at another place of a batch, by more than
            rounding, or is not wanted any more.
    """
    found = _probe_sizes(engine, _while_wanted(sizes, is_wanted), clock)
    alone, largest = _probed(engine, 1), found[max(found)]
    # What is tried out here counts, and not that nobody has tried before.
    numerics_id = engine.numerics_id.replace(APPROXIMATE, "sha256:", 1)
    allowed = [size for size, probed in found.items() if probed.agrees_with(alone)]
    if len(allowed) < len(found):
        if largest.difference > 0.0:
            allowed = list(found)
            numerics_id = _approximate_id(engine, [alone, *found.values()])
        else:
            allowed = [size for size, probed in found.items() if probed.agrees_with(largest)]
            numerics_id = fingerprint(f"{numerics_id}\nrows {allowed[0]}".encode())
    costs = {size: _seconds(engine, size, clock) for size in _while_wanted(allowed, is_wanted)}
    return Warmth(CostTable(costs), numerics_id)


def agreed(engines: Sequence[Engine], warmths: Sequence[Warmth]) -> Warmth:
    """Return what holds for several devices that share the batches of one model: the sizes of all, at their slowest.

    Raises:
        BackendError: They do not compute the same bits.
    """
    first = warmths[0]
    for engine, warmth in zip(engines, warmths, strict=True):
        if warmth.numerics_id != first.numerics_id:
            raise BackendError(
                f"the devices do not compute the same bits: their numerics ids are {first.numerics_id} "
                f"and, on {engine.provider}, {warmth.numerics_id}",
                hint="serve each kind of device by its own server",
            )
    # One that is slower may have reached fewer sizes. Those that it shares with the others have equal bits: the id
    # names the smallest wherever bits depend on the size.
    sizes = [size for size in first.costs.sizes if all(size in warmth.costs.sizes for warmth in warmths)]
    seconds = {size: max(warmth.costs.batch_seconds(size) for warmth in warmths) for size in sizes}
    return Warmth(CostTable(seconds), first.numerics_id)


def _approximate_id(engine: Engine, found: Sequence[_Probed]) -> str:
    """Return the id of an engine whose bits differ from place to place or from run to run, and say so in the log.

    Raises:
        BackendError: The images differ by more than rounding.
    """
    between_sizes = (_largest_difference(probed.images, found[0].images) for probed in found)
    difference = max(*(probed.difference for probed in found), *between_sizes)
    if difference > _MOST_DIFFERENCE:
        raise BackendError(
            f"{engine.provider} gives a row another image at another place of a batch: they differ by {difference:.2g}",
            hint="serve it on another provider; the model or the device's libraries are at fault",
        )
    _log.warning(
        "%s gives a row other bits at another place of a batch or in another run: images differ by up to %.2g of a "
        "pixel's range; the numerics id begins with %s",
        engine.provider,
        difference,
        APPROXIMATE,
    )
    return APPROXIMATE + fingerprint(engine.numerics_id.encode()).partition(":")[2]


def _probe_sizes(engine: Engine, sizes: Iterable[int], clock: Callable[[], float]) -> dict[int, _Probed]:
    """Return the probes' images in batches of every size that is reached in time; see `_probed`."""
    began = clock()
    found: dict[int, _Probed] = {}
    for size in sizes:
        found[size] = _probed(engine, size)
        if clock() - began > _WARM_UP_S:
            break
    return found


def _while_wanted(sizes: Iterable[int], is_wanted: Callable[[], bool]) -> Iterator[int]:
    for size in sizes:
        if not is_wanted():
            raise BackendError("it is not wanted any more")
        yield size


def _probed(engine: Engine, size: int) -> _Probed:
    """Return the probes' images in batches of one size, computed twice except on a CPU, where runs do not differ."""
    rows = noise.uniforms(0, 0, _PROBES, engine.manifest.noise_dim)
    count = size * -(-_PROBES // size)
    tiled = np.ascontiguousarray(_repeat(rows, count))
    difference, probes = 0.0, None
    for _ in range(1 if engine.provider == "cpu" else 2):
        images = np.concatenate([engine.decode(tiled[first : first + size]) for first in range(0, count, size)])
        probes = images[:_PROBES].copy() if probes is None else probes
        difference = max(difference, _largest_difference(images, _repeat(probes, count)))
    assert probes is not None  # noqa: S101 - mypy does not see that the loop runs
    return _Probed(probes, difference)


def _largest_difference(images: Images, others: Images) -> float:
    """Return max |images - others|, 1 being the range of a pixel; infinity where one is not a number."""
    if np.array_equal(images, others):
        return 0.0
    largest = float(np.abs(images.astype(np.float64) - others.astype(np.float64)).max())
    return math.inf if math.isnan(largest) else largest / (255.0 if images.dtype == np.uint8 else 1.0)


def _repeat(rows: Images, size: int) -> Images:
    """Return `size` rows, the given ones over and over."""
    return rows[np.arange(size) % len(rows)]


def _seconds(engine: Engine, size: int, clock: Callable[[], float]) -> float:
    """Return the shortest time of a batch of noise: what else the machine does while it starts is no property of it."""
    taken: list[float] = []
    while len(taken) < _TIMED_RUNS and sum(taken) < _SECONDS_PER_SIZE:
        began = clock()
        engine.decode(draw([(Seeded(0, 0), 0, size)], size, engine.manifest.noise_dim))
        taken.append(clock() - began)
    return min(taken)
